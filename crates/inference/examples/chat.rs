//! Chats on the terminal and keeps the conversation: `cargo run --release -p inferlm --example chat [MODEL]`.

use std::io::{BufRead as _, Write as _};

use futures::StreamExt as _;
use inference::{AssistantMessage, ChatEvent, GenerateOptions, Message, TextModelExt as _};

#[tokio::main(flavor = "current_thread")]
async fn main() -> inference::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/demo".to_owned());
    let model = inference::load_model(path).await?;
    let mut messages = Vec::new();
    println!("Type a question and press Enter; end with Ctrl-D.");
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        messages.push(Message::user(line));
        let options = GenerateOptions::new().max_tokens(256);
        let mut stream = model.chat(messages.clone(), options).await?;
        let mut answer = AssistantMessage::default();
        while let Some(event) = stream.next().await {
            let event = event?;
            if let ChatEvent::Text(text) = &event {
                print!("{text}");
                // A terminal that is gone ends the program with the next line.
                let _ = std::io::stdout().flush();
            }
            answer.extend([event]);
        }
        println!();
        messages.push(answer.message());
    }
    model.close().await
}
