//! Generation and classification with the real mlx_lm.

mod common;

use common::{EOS, VOCAB_SIZE, load, tiny_model};
use futures::StreamExt as _;
use inference_core::{
    ClassifyOptions, Error, FinishReason, GenerateOptions, LoadOptions, Message, Prompt, StopCause,
    TextModel as _, TextModelExt as _,
};

fn prompt(length: u32) -> Prompt {
    Prompt::Tokens((0..length).map(|i| (i * 7 + 3) % 200).collect())
}

#[tokio::test]
async fn a_text_is_continued() {
    let folder = tiny_model();
    let model = load(folder.path(), LoadOptions::new()).await.unwrap();
    assert_eq!(model.info().vocab_size, VOCAB_SIZE);
    assert_eq!(model.info().eos_token_ids, [EOS]);
    let mut stream = model.generate("Hello".into(), GenerateOptions::new().max_tokens(8)).await.unwrap();
    let mut ids = Vec::new();
    while let Some(token) = stream.next().await {
        ids.push(token.unwrap().id);
    }
    let finish = stream.finish().await.unwrap();
    println!("{ids:?} {finish:?}");
    assert_eq!(finish.reason, FinishReason::Length);
    assert_eq!(ids.len(), 8);
    model.close().await.unwrap();
}
