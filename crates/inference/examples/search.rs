//! Semantic search over text files: `cargo run --release -p inferlm --example search MODEL FOLDER QUERY`.
//!
//! Paragraphs of the folder's `.md` and `.txt` files become vectors once. Those that are nearest to the query's are printed.

use std::path::{Path, PathBuf};

use inference::{EmbedOptions, Embedding, Prompt, TextModel};

/// A paragraph, and where it stands.
struct Passage {
    file: PathBuf,
    line: usize,
    text: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let [model, folder, query] =
        std::env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "MODEL FOLDER QUERY")?;
    let model = inference::load_model(model).await?;

    let passages = passages(Path::new(&folder))?;
    let texts = passages.iter().map(|passage| passage.text.as_str());
    let vectors = embed(&*model, texts, EmbedOptions::new()).await?;
    let query = embed(&*model, [query.as_str()], EmbedOptions::new()).await?;

    // Vectors have the length 1, so that their product is the cosine of the angle between them.
    let product = |vector: &[f32]| vector.iter().zip(&query[0]).map(|(a, b)| a * b).sum::<f32>();
    let mut found: Vec<_> = vectors.iter().map(|vector| product(vector)).zip(&passages).collect();
    found.sort_by(|(a, _), (b, _)| b.total_cmp(a));
    for (score, Passage { file, line, text }) in found.into_iter().take(5) {
        println!("{score:.3} {}:{line}\n  {}", file.display(), text.replace('\n', "\n  "));
    }
    Ok(model.close().await?)
}

/// The vectors of texts, which are cut where they are too long.
async fn embed<'t>(
    model: &dyn TextModel,
    texts: impl IntoIterator<Item = &'t str>,
    options: EmbedOptions,
) -> inference::Result<Vec<Vec<f32>>> {
    let prompts = texts.into_iter().map(Prompt::from).collect();
    let embeddings = model.embed(prompts, options.truncate(true).normalize(true)).await?;
    Ok(embeddings.iter().map(Embedding::to_floats).collect())
}

/// The paragraphs of all text files below a folder.
fn passages(folder: &Path) -> std::io::Result<Vec<Passage>> {
    let (mut passages, mut pending) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            for entry in std::fs::read_dir(&path)? {
                pending.push(entry?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "md" || extension == "txt") {
            let text = std::fs::read_to_string(&path)?;
            let mut line = 1;
            for paragraph in text.split("\n\n") {
                if !paragraph.trim().is_empty() {
                    passages.push(Passage { file: path.clone(), line, text: paragraph.trim().to_owned() });
                }
                line += paragraph.matches('\n').count() + 2;
            }
        }
    }
    Ok(passages)
}
