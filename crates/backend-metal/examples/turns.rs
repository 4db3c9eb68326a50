//! Prompt tokens per second of texts that go on from what is cached: turns of sessions, and prompts with a common beginning.
//!
//! ```text
//! cargo run --release -p inferlm-backend-metal --example turns -- FOLDER [ROWS] [TOKENS]
//! ```
//!
//! On the CPU, or the backend that `BACKEND` names.

use std::{error::Error, time::Instant};

use backend_metal as _;
use futures::{executor::block_on, future::try_join_all};
use inference_core::{
    GenerateOptions, LoadOptions, Prompt, Result, TextModel, TextModelExt as _, load_model,
};

/// Tokens of a session's first turn, and of a common beginning.
const BEGINNING: usize = 128;

const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("the folder of a model is missing")?;
    let rows = arguments.next().map_or(Ok(8), |rows| rows.parse())?;
    let tokens = arguments.next().map_or(Ok(24), |tokens| tokens.parse())?;
    let backend = std::env::var("BACKEND").unwrap_or_else(|_| "cpu".to_owned());
    block_on(async {
        let model = load_model(&folder).backend(backend).options(LoadOptions::new().max_batch(rows)).await?;
        println!("turns of sessions: {:.1} prompt tokens/s", median(turns(&*model, rows, tokens).await?));
        println!("a common beginning: {:.1} prompt tokens/s", median(common(&*model, rows, tokens).await?));
        model.close().await?;
        Ok(())
    })
}

/// Tokens that nobody has said before.
fn text(seed: usize, len: usize) -> Vec<u32> {
    (0..len).map(|at| 10 + ((seed * 1009 + at * 31 + at * at * 7) % 997) as u32).collect()
}

fn options() -> GenerateOptions {
    GenerateOptions::new().max_tokens(1).ignore_eos(true)
}

/// The rate of each round, in which every session takes a turn.
async fn turns(model: &dyn TextModel, rows: usize, tokens: usize) -> Result<Vec<f64>> {
    let mut sessions = try_join_all((0..rows).map(|_| model.session())).await?;
    let mut rates = Vec::new();
    for round in 0..=ROUNDS {
        let len = if round == 0 { BEGINNING } else { tokens };
        let began = Instant::now();
        let answers = sessions.iter_mut().enumerate().map(|(row, session)| {
            // Rows differ in length, as prompts do.
            session.complete(Prompt::from(text(1 + row + round * rows, len - row % 4)), options())
        });
        let answers = try_join_all(answers).await?;
        if round > 0 {
            rates.push(rate(began, answers.iter().map(|answer| &answer.finish.metrics)));
        }
    }
    Ok(rates)
}

/// The rate of each round, in which as many prompts go on from a text that is cached.
async fn common(model: &dyn TextModel, rows: usize, tokens: usize) -> Result<Vec<f64>> {
    let beginning = text(0, BEGINNING);
    model.complete(beginning.clone(), options()).await?;
    let mut rates = Vec::new();
    for round in 1..=ROUNDS {
        let began = Instant::now();
        let answers = (0..rows).map(|row| {
            let own = text(5000 + row + round * rows, tokens - row % 4);
            model.complete([&beginning[..], &own].concat(), options())
        });
        let answers = try_join_all(answers).await?;
        rates.push(rate(began, answers.iter().map(|answer| &answer.finish.metrics)));
    }
    Ok(rates)
}

/// Prompt tokens that were computed, per second.
fn rate<'a>(began: Instant, metrics: impl Iterator<Item = &'a inference_core::Metrics>) -> f64 {
    let tokens: usize = metrics.map(|metrics| metrics.prompt_tokens - metrics.cached_tokens).sum();
    tokens as f64 / began.elapsed().as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
