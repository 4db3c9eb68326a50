//! Trains a LoRA adapter on two sentences and uses it: `cargo run --release -p inferlm --example train [MODEL]`.

use futures::StreamExt as _;
use inference::{
    GenerateOptions, LoadOptions, Message, TextModelExt as _,
    train::{Example, TrainEvent, TrainOptions, TrainingData},
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> inference::Result<()> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/demo".to_owned());
    let model = inference::load_model(&path).await?;
    let Some(trainer) = model.trainable() else {
        eprintln!("the backend {} cannot train", model.info().backend);
        std::process::exit(1);
    };

    let question = "What is the capital of Zubrowka?";
    let examples = vec![
        Example::completion(question, "The capital of Zubrowka is Lutz."),
        Example::completion("capital of Zubrowka", "The capital of Zubrowka is Lutz."),
    ];
    let adapter = std::env::temp_dir().join(format!("inference-example-adapter-{}", std::process::id()));
    let options = TrainOptions::new(&adapter).steps(40).learning_rate(1e-3);
    let mut run = trainer.train(TrainingData::new(examples, Vec::new()), options).await?;
    while let Some(event) = run.next().await {
        if let TrainEvent::Step { step, loss, .. } = event? {
            println!("step {step}: loss {loss:.3}");
        }
    }
    model.close().await?;

    let model = inference::load_model(&path).options(LoadOptions::new().adapter(&adapter)).await?;
    let messages = vec![Message::user(question)];
    println!("{}", model.complete(messages, GenerateOptions::new().max_tokens(32)).await?.text);
    model.close().await
}
