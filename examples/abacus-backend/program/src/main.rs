//! Continues a prompt with whichever backend can run the model: `abacus-program [FOLDER] [PROMPT]`.

use std::error::Error;

// ANCHOR: link
// The only mention of the backend: a crate that no code names is not linked, and registers nothing.
use abacus_backend as _;
// ANCHOR_END: link
use futures::{StreamExt as _, executor::block_on};
use inference::{GenerateOptions, load_model};

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../model");

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| MODEL.to_owned());
    let prompt = arguments.next().unwrap_or_else(|| "The ".to_owned());
    block_on(async {
        let model = load_model(folder).await?;
        let options = GenerateOptions::new().max_tokens(60).temperature(0.8).seed(1);
        let mut stream = model.generate(prompt.as_str().into(), options).await?;
        print!("{}: {prompt}", model.info().backend);
        while let Some(token) = stream.next().await {
            print!("{}", token?.text);
        }
        println!();
        Ok(())
    })
}
