//! Scores labels in one forward pass per prompt: `cargo run --release -p inferlm --example classify [MODEL]`.

use inference::{ClassifyOptions, Prompt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> inference::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/demo".to_owned());
    let model = inference::load_model(path).await?;

    let sentences = ["The striker scored twice.", "Rain is expected tomorrow.", "The band plays tonight."];
    let prompts = sentences.iter().map(|text| Prompt::from(format!("{text}\nDomain:"))).collect();
    let options = ClassifyOptions::new().labels([" sport", " weather", " music"]);
    for (sentence, result) in sentences.iter().zip(model.classify(prompts, options).await?) {
        if let Some(best) = result.best() {
            println!("{sentence} →{} ({:.0} %)", best.label, 100.0 * best.probability);
        }
    }
    model.close().await
}
