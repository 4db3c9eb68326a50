//! What a constraint costs: tokens per second with a JSON schema and without, the time of masks, and of a schema's first use.
//!
//! ```text
//! cargo run --release --example constraints -- FOLDER [TOKENS]
//! ```

use std::{
    error::Error,
    path::Path,
    time::{Duration, Instant},
};

use backend_metal as _;
use futures::{TryStreamExt as _, executor::block_on, future::try_join_all};
use inference_core::{
    Constraint, GenerateOptions, ModelInfo, Prompt, Result, TemplateOptions, TextModel, TextModelExt as _,
    load_model,
};
use inference_text::{PromptLimits, TextPipeline};
use serde_json::{Value, json};

/// Rounds by turns, without and with.
const ROUNDS: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("the folder of a model is missing")?;
    let tokens = std::env::args().nth(2).map_or(Ok(96), |tokens| tokens.parse())?;
    block_on(async {
        let model = load_model(&folder).backend("cpu").await?;
        let ids = masks(Path::new(&folder), &*model, tokens).await?;
        println!("{} tokens: {:?}", ids.len(), model.decode(ids[..ids.len().min(40)].to_vec()).await?);
        for rows in [1, 8] {
            let mut shares = [Vec::new(), Vec::new()];
            for round in 0..ROUNDS {
                let options = GenerateOptions::new().max_tokens(tokens);
                let free = speed(&*model, rows, options.clone().ignore_eos(true)).await?;
                let constraint = Constraint::json_schema(schema(rows * 10 + round));
                let held = speed(&*model, rows, options.constraint(constraint)).await?;
                for ((name, shares), (free, held)) in
                    ["whole run", "all decode"].iter().zip(&mut shares).zip(free.iter().zip(held))
                {
                    let share = held / free;
                    println!("{rows} rows, {name}: {free:.1} tokens/s without, {held:.1} with: {share:.3}");
                    shares.push(share);
                }
            }
            for (name, shares) in ["whole run", "all decode"].iter().zip(&mut shares) {
                shares.sort_by(f64::total_cmp);
                println!("{rows} rows, {name}: {:.3} (the median)", shares[ROUNDS / 2]);
            }
        }
        model.close().await?;
        Ok(())
    })
}

/// A schema that an answer can go on with for ever; each number gives another.
fn schema(number: usize) -> Value {
    let item = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150 + number},
            "role": {"enum": ["reader", "writer", "owner"]}, "tags": {"type": "array", "items": {"type": "string"}},
        },
        "required": ["name", "age", "role", "tags"], "additionalProperties": false,
    });
    json!({"type": "array", "items": item, "minItems": 50})
}

/// Tokens per second of rows side by side: of the whole run, and while all of them decode.
async fn speed(model: &dyn TextModel, rows: usize, options: GenerateOptions) -> Result<[f64; 2]> {
    let began = Instant::now();
    let times = try_join_all((0..rows).map(|row| {
        let prompt = Prompt::from(format!("Row {row}: a list of people follows, as JSON."));
        let options = options.clone().temperature(1.0).seed(row as u64);
        async move {
            let stream = model.generate(prompt, options).await?;
            stream.map_ok(|_| Instant::now()).try_collect::<Vec<_>>().await
        }
    }))
    .await?;
    let ends = times.iter().flat_map(|times| times.first().zip(times.last()));
    let (first, last): (Vec<Instant>, Vec<Instant>) = ends.unzip();
    let rate = |from: Option<Instant>, to: Option<Instant>| {
        let (from, to) = from.zip(to)?;
        let tokens = times.iter().flatten().filter(|time| (from..=to).contains(time)).count();
        Some(tokens as f64 / to.checked_duration_since(from)?.as_secs_f64())
    };
    let whole = rate(Some(began), last.iter().max().copied());
    let steady = rate(first.iter().max().copied(), last.iter().min().copied());
    Ok([whole, steady].map(|rate| rate.unwrap_or(f64::NAN)))
}

/// Prints how long masks take along an answer, and the first use of a schema; the answer's tokens.
async fn masks(folder: &Path, model: &dyn TextModel, tokens: usize) -> Result<Vec<u32>> {
    let text = TextPipeline::load(folder)?;
    let mut info = ModelInfo::default();
    (info.vocab_size, info.context_length) = (model.info().vocab_size, model.info().context_length);
    let limits = PromptLimits::new(&info, 0);
    let options = |number| GenerateOptions::new().constraint(Constraint::json_schema(schema(number)));
    let prompt = text.prepare(Prompt::from("a"), &TemplateOptions::new(), limits.clone()).await?;
    let mut firsts = Vec::new();
    for number in 0..12 {
        let began = Instant::now();
        text.constraint(&prompt, &options(number), limits.clone()).await?;
        firsts.push(began.elapsed());
    }
    let (first, further) = (firsts[0], quantiles(&mut firsts[1..]));
    println!("the tokenizer's trie and the first schema: {first:?}; further schemas: {further:?}");
    let held = options(0).max_tokens(tokens).temperature(1.0).seed(1);
    let ids: Vec<u32> = model.complete("People:", held).await?.tokens.iter().map(|token| token.id).collect();
    let (mut times, mut forced) = (Vec::new(), 0);
    if let Some(mut run) = text.constraint(&prompt, &options(99), limits).await? {
        for id in &ids {
            let began = Instant::now();
            let allowed = run.mask()?.count();
            times.push(began.elapsed());
            forced += usize::from(allowed == 1);
            run.accept(*id)?;
        }
    }
    println!(
        "masks along an answer: {:?}; {forced} of {} allow one token",
        quantiles(&mut times),
        times.len()
    );
    Ok(ids)
}

/// The middle, the 99th of 100, and the longest.
fn quantiles(times: &mut [Duration]) -> [Duration; 3] {
    times.sort();
    let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
    [at(0.5), at(0.99), at(1.0)]
}
