//! Computes a document once, asks two questions about it, saves the session and loads it again:
//! `cargo run --release -p inferlm --example session [MODEL]`.

use inference::GenerateOptions;

#[tokio::main(flavor = "current_thread")]
async fn main() -> inference::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/demo".to_owned());
    let model = inference::load_model(path).await?;
    let options = GenerateOptions::new().max_tokens(16);

    let mut session = model.session().await?;
    session.append("The capital of France is Paris. The capital of Italy is Rome.").await?;
    let mut fork = session.fork().await?;
    for (session, question) in [(&mut session, "\nFrance:"), (&mut fork, "\nItaly:")] {
        let answer = session.complete(question, options.clone()).await?;
        let metrics = &answer.finish.metrics;
        println!(
            "{question}{} ({} of {} tokens cached)",
            answer.text, metrics.cached_tokens, metrics.prompt_tokens
        );
    }

    let file = std::env::temp_dir().join("inference-example.session");
    session.save(&file).await?;
    let loaded = model.load_session(&file).await?;
    println!("The saved session has {} tokens.", loaded.tokens().await.len());
    model.close().await
}
