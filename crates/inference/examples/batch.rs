//! Answers several prompts in one batch: `cargo run --release -p inferlm --example batch [MODEL]`.

use inference::{GenerateOptions, Message, TextModelExt as _};

#[tokio::main(flavor = "current_thread")]
async fn main() -> inference::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/demo".to_owned());
    let model = inference::load_model(path).await?;

    let questions = ["What is 2+2?", "What is the capital of France?", "How many days has a week?"];
    let prompts = questions.map(|question| vec![Message::user(question)]);
    let answers = model.batch_generate(prompts, GenerateOptions::new().max_tokens(32)).await;
    for (question, answer) in questions.iter().zip(answers) {
        // Each request has its own result: one that fails leaves the others alone.
        match answer {
            Ok(answer) => println!("{question} {}", answer.answer.text),
            Err(error) => println!("{question} failed: {error}"),
        }
    }
    model.close().await
}
