//! `inference embed`: texts as vectors.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use inference::{
    CancellationToken, EmbedOptions, Embedding, EmbeddingFormat, EmbeddingVector, Error, Pooling, Prompt,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    failure::Usage,
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
    text_input,
};

/// Calls that take longer show how far they have come.
const PATIENCE: Duration = Duration::from_millis(300);

/// Turn texts into vectors that lie near each other where texts mean the same
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference embed --model ~/models/all-MiniLM-L6-v2 'The cat sleeps.' 'Cats like to sleep.'
  inference embed --model ~/models/Qwen3-Embedding-0.6B --prefix-name query 'where do cats sleep'
  inference embed --model ~/models/all-MiniLM-L6-v2 --output vectors.npy - < texts.txt

A line of stdin is a text, or a JSON object with the text and an id, which the output repeats:

  {\"id\": \"doc-7\", \"text\": \"The cat sleeps.\"}

Each line of the output is a JSON object: {\"index\": 0, \"tokens\": 7, \"embedding\": [0.03, …]}.")]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// The texts; - reads one from each line of stdin
    #[arg(value_name = "TEXT", required = true)]
    texts: Vec<String>,

    /// Put this before each text
    #[arg(long, value_name = "TEXT", conflicts_with = "prefix_name")]
    prefix: Option<String>,

    /// Put a prefix of the model's folder before each text: query or document, say
    #[arg(long, value_name = "NAME")]
    prefix_name: Option<String>,

    /// Cut texts that are too long for the model
    #[arg(long)]
    truncate: bool,

    /// How the vectors of tokens become one [default: as the model's folder says]
    #[arg(long, value_name = "HOW")]
    pooling: Option<PoolingArg>,

    /// Keep so many elements of each vector
    #[arg(long, value_name = "N")]
    dimensions: Option<usize>,

    /// Leave vectors as long as they are [default: as the model's folder says, else a length of 1]
    #[arg(long)]
    no_normalize: bool,

    /// The form of the vectors
    #[arg(long, value_name = "FORM", value_enum, default_value_t = FormatArg::Float)]
    format: FormatArg,

    #[command(flatten)]
    load: LoadArgs,

    /// Write to this file: a NumPy array if it ends in .npy, else JSON Lines [default: stdout]
    #[arg(long, short, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,

    /// Print no figures and no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

/// [`Pooling`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum PoolingArg {
    /// Their mean
    Mean,
    /// The first token's
    Cls,
    /// The last token's
    Last,
    /// The largest of each element
    Max,
}

/// [`EmbeddingFormat`] on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum FormatArg {
    /// Floats
    Float,
    /// Whole numbers from -127 to 127, and a scale for each vector
    Int8,
    /// A bit for each element, eight in a number from 0 to 255
    Binary,
}

/// A text, and its identifier if it has one.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: Option<Value>,
    text: String,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let rows = rows(&args.texts)?;
    let bar = render::progress(rows.len() as u64, "embedding {wide_bar:.cyan} {pos}/{len}");
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let (shown, since) = (bar.clone(), Instant::now());
    let options = args.options(scope.token()).on_progress(move |progress| {
        if since.elapsed() >= PATIENCE {
            shown.set_position(progress.done as u64);
        }
    });
    options.validate()?;
    let path = model::or_demo(args.model.as_ref())?;
    let model = model::load(&path, &args.load, scope.token(), args.quiet).await?;
    let prompts: Vec<Prompt> = rows.iter().map(|row| Prompt::from(row.text.as_str())).collect();
    let began = Instant::now();
    let embedded = model::using(model, async |model| {
        let embeddings = model.embed(prompts, options).await?;
        Ok((embeddings, began.elapsed()))
    })
    .await;
    bar.finish_and_clear();
    let (embeddings, took) = embedded?;
    match &args.output {
        Some(path) if path.extension().is_some_and(|extension| extension == "npy") => npy(path, &embeddings)?,
        Some(path) => lines(path, &rows, &embeddings)?,
        None => {
            let mut out = Out::new();
            for (index, (row, embedding)) in rows.iter().zip(&embeddings).enumerate() {
                out.json(&line(index, row, embedding))?;
            }
        }
    }
    if !args.quiet {
        render::remark(&figures(&embeddings, took));
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn options(&self, cancel: CancellationToken) -> EmbedOptions {
        let mut options = EmbedOptions::new().truncate(self.truncate).cancel(cancel);
        (options.prefix, options.prefix_name) = (self.prefix.clone(), self.prefix_name.clone());
        options.dimensions = self.dimensions;
        options.normalize = self.no_normalize.then_some(false);
        options.pooling = self.pooling.map(|pooling| match pooling {
            PoolingArg::Mean => Pooling::Mean,
            PoolingArg::Cls => Pooling::Cls,
            PoolingArg::Last => Pooling::Last,
            PoolingArg::Max => Pooling::Max,
        });
        options.format(match self.format {
            FormatArg::Float => EmbeddingFormat::Float,
            FormatArg::Int8 => EmbeddingFormat::Int8,
            FormatArg::Binary => EmbeddingFormat::Binary,
        })
    }
}

/// The texts that were typed, and those of stdin's lines.
fn rows(texts: &[String]) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for text in texts {
        if text == "-" {
            let input = text_input::read_stdin()?;
            let lines = input.lines().map(text_input::without_mark).enumerate();
            for (at, line) in lines.filter(|(_, line)| !line.trim().is_empty()) {
                rows.push(parse(line).map_err(|reason| Usage(format!("line {}: {reason}", at + 1)))?);
            }
        } else {
            rows.push(Row { id: None, text: text.clone() });
        }
    }
    if rows.is_empty() {
        return Err(Usage("there is nothing to embed: stdin has no lines".to_owned()).into());
    }
    Ok(rows)
}

/// A line: a text, or an object.
fn parse(line: &str) -> Result<Row, String> {
    if line.trim_start().starts_with('{') {
        return serde_json::from_str(line).map_err(|error| error.to_string());
    }
    Ok(Row { id: None, text: line.to_owned() })
}

/// What is printed of a text.
fn line(index: usize, row: &Row, embedding: &Embedding) -> Value {
    let mut line = Map::new();
    line.insert("index".to_owned(), json!(index));
    if let Some(id) = &row.id {
        line.insert("id".to_owned(), id.clone());
    }
    line.insert("tokens".to_owned(), json!(embedding.prompt_tokens));
    let vector = match &embedding.vector {
        EmbeddingVector::Int8 { values, scale } => {
            line.insert("scale".to_owned(), json!(scale));
            json!(values)
        }
        EmbeddingVector::Binary { bits, .. } => json!(bits),
        vector => json!(vector.to_floats()),
    };
    line.insert("embedding".to_owned(), vector);
    Value::Object(line)
}

fn lines(path: &Path, rows: &[Row], embeddings: &[Embedding]) -> anyhow::Result<()> {
    let failed = |source| Error::io("write", path, source);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    for (index, (row, embedding)) in rows.iter().zip(embeddings).enumerate() {
        writeln!(file, "{}", line(index, row, embedding)).map_err(failed)?;
    }
    Ok(file.flush().map_err(failed)?)
}

/// Writes a NumPy array `[texts, elements]` (format 1.0): of floats, or of bytes.
fn npy(path: &Path, embeddings: &[Embedding]) -> anyhow::Result<()> {
    let (kind, width) = match embeddings.first().map(|embedding| &embedding.vector) {
        Some(EmbeddingVector::Int8 { values, .. }) => ("|i1", values.len()),
        Some(EmbeddingVector::Binary { bits, .. }) => ("|u1", bits.len()),
        Some(vector) => ("<f4", vector.dimensions()),
        None => ("<f4", 0),
    };
    let shape = format!("({}, {width})", embeddings.len());
    let mut header = format!("{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}");
    // Ten bytes stand before it, it ends with a line break, and all of it is a multiple of 64.
    let padding = (10 + header.len() + 1).next_multiple_of(64) - (10 + header.len() + 1);
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    let failed = |source| Error::io("write", path, source);
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.write_all(b"\x93NUMPY\x01\x00").map_err(failed)?;
    file.write_all(&(header.len() as u16).to_le_bytes()).map_err(failed)?;
    file.write_all(header.as_bytes()).map_err(failed)?;
    for embedding in embeddings {
        let bytes: Vec<u8> = match &embedding.vector {
            EmbeddingVector::Int8 { values, .. } => {
                values.iter().map(|value| value.cast_unsigned()).collect()
            }
            EmbeddingVector::Binary { bits, .. } => bits.clone(),
            vector => vector.to_floats().iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        file.write_all(&bytes).map_err(failed)?;
    }
    Ok(file.flush().map_err(failed)?)
}

fn figures(embeddings: &[Embedding], took: Duration) -> String {
    let tokens: usize = embeddings.iter().map(|embedding| embedding.prompt_tokens).sum();
    let dimensions = embeddings.first().map_or(0, |embedding| embedding.vector.dimensions());
    let per_second = |count: usize| render::rate(count as f64 / took.as_secs_f64().max(1e-9));
    format!(
        "{} of {dimensions} dimensions in {} · {} texts/s · {} tokens/s",
        render::things(embeddings.len(), "vector"),
        render::duration(took),
        per_second(embeddings.len()),
        per_second(tokens),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_text_or_an_object() {
        assert_eq!(parse(" a b"), Ok(Row { id: None, text: " a b".to_owned() }));
        assert_eq!(parse(r#"{"id": 7, "text": "a"}"#), Ok(Row { id: Some(7.into()), text: "a".to_owned() }));
        assert!(parse(r#"{"id": 7}"#).unwrap_err().contains("text"));
        assert!(parse(r#"{"text": "a", "txt": 1}"#).unwrap_err().contains("txt"));
    }
}
