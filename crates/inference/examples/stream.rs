//! Streams tokens and cancels after ten: `cargo run --release -p inferlm --example stream [MODEL]`.

use futures::StreamExt as _;
use inference::{CancellationToken, GenerateOptions, Prompt};

#[tokio::main(flavor = "current_thread")]
async fn main() -> inference::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/demo".to_owned());
    let model = inference::load_model(path).await?;

    let cancel = CancellationToken::new();
    let options = GenerateOptions::new().max_tokens(200).ignore_eos(true).cancel(cancel.clone());
    let mut stream = model.generate(Prompt::from("Once upon a time"), options).await?;
    let mut count = 0;
    while let Some(token) = stream.next().await {
        print!("{}", token?.text);
        count += 1;
        if count == 10 {
            cancel.cancel();
        }
    }
    let finish = stream.finish().await?;
    let speed = finish.metrics.decode_tokens_per_second();
    println!("\n{:?} after {} tokens, {speed:.0} tokens/s", finish.reason, finish.metrics.generated_tokens);
    model.close().await
}
