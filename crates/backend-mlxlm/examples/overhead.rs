//! What the bridge costs: this backend against mlx_lm's own `generate_step` (under `stream_generate`)
//! and `BatchGenerator`, on the same checkpoint and in the same run, turn by turn; and how long a cancellation takes.
//!
//! ```sh
//! INFERENCE_PYTHON=… cargo run --release -p inferlm-backend-mlxlm --example overhead -- MODEL [TRIALS] [TOKENS] [BATCH]
//! ```

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use backend_mlxlm::DESCRIPTOR;
use futures::{StreamExt as _, executor::block_on};
use inference_core::{CancellationToken, GenerateOptions, Prompt, Registry, TextModel, TextModelExt as _};
use serde_json::{Value, json};

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// mlx_lm by itself, in a process that stays loaded between the turns.
const REFERENCE: &str = r#"
import json, sys, time
from pathlib import Path
import mlx.core as mx
from mlx_lm.generate import BatchGenerator, generate_step
from mlx_lm.utils import load_model
model, _ = load_model(Path(sys.argv[1]))
for line in sys.stdin:
    turn = json.loads(line)
    prompts, tokens = turn["prompts"], turn["tokens"]
    began = first = None
    if turn["kind"] == "stream":
        for token, _ in generate_step(mx.array(prompts[0]), model, max_tokens=tokens):
            last = time.perf_counter()
            first = first or last
        count = tokens - 1
    else:
        generator = BatchGenerator(model, prefill_step_size=512)
        generator.insert(prompts, [tokens] * len(prompts))
        left = len(prompts)
        while left:
            for response in generator.next_generated():
                last = time.perf_counter()
                first = first or last
                left -= response.finish_reason is not None
        count = (tokens - 1) * len(prompts)
    print(json.dumps(count / (last - first)), flush=True)
"#;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().ok_or("usage: overhead MODEL [TRIALS] [TOKENS] [BATCH]")?;
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse::<usize>());
    let (trials, tokens, batch) = (number(9)?, number(128)?, number(8)?);
    let registry = Registry::empty().with(DESCRIPTOR);
    let info = registry.open("mlx_lm")?.info().clone();
    println!("{}, {}; {folder}; {trials} trials of {tokens} tokens", info.version, info.device);

    let model = block_on(registry.load_model(&folder).into_future())?;
    let mut reference = Reference::start(&folder)?;
    let prompt = |salt: usize| {
        (0..16).map(|i| ((i * 131 + salt * 977) % (model.info().vocab_size - 8)) as u32).collect()
    };
    let prompts: Vec<Vec<u32>> = (0..batch).map(prompt).collect();

    let one = &prompts[..1];
    let mut comparisons = [
        Comparison::new("one request", "generate_step", one),
        Comparison::new("one request", "BatchGenerator", one),
        Comparison::new("requests at once", "BatchGenerator", &prompts),
    ];
    for trial in 0..=trials {
        for comparison in &mut comparisons {
            let kind = if comparison.reference == "BatchGenerator" { "batch" } else { "stream" };
            let ours = decode_rate(&model, comparison.prompts, tokens)?;
            let theirs = reference.turn(kind, comparison.prompts, tokens)?;
            // The first turn warms up.
            if trial > 0 {
                comparison.rates.push((ours, theirs));
            }
        }
    }
    println!("median of tokens/s, and of the turns' ratios");
    for comparison in &comparisons {
        let pick =
            |of: fn(&(f64, f64)) -> f64| median(&mut comparison.rates.iter().map(of).collect::<Vec<_>>());
        let (ours, theirs, ratio) = (pick(|rate| rate.0), pick(|rate| rate.1), pick(|rate| rate.0 / rate.1));
        let Comparison { what, reference, prompts, .. } = comparison;
        let (count, percent) = (prompts.len(), 100.0 * (ratio - 1.0));
        println!(
            "  {count} {what:<17} this backend {ours:8.2}   {reference:<14} {theirs:8.2}   {percent:+.2} %"
        );
    }

    let single = median(&mut comparisons[0].rates.iter().map(|rate| rate.0).collect::<Vec<_>>());
    let step = 1000.0 / single;
    let (in_decode, in_prefill, chunk) = block_on(cancel_latencies(&model, trials))?;
    println!("cancelling, median of {trials}");
    println!("  in decode    {in_decode:8.2} ms   (a step takes {step:.2} ms)");
    println!("  in prefill   {in_prefill:8.2} ms   (a chunk of 512 tokens takes {chunk:.2} ms)");
    reference.process.kill()?;
    reference.process.wait()?;
    block_on(model.close())?;
    Ok(())
}

/// Tokens per second of all prompts together, while all of them are decoded: requests come one by one, so that the first is
/// under way while the others' prompts are computed.
fn decode_rate(model: &Arc<dyn TextModel>, prompts: &[Vec<u32>], tokens: usize) -> Result<f64> {
    let options = GenerateOptions::new().max_tokens(tokens).ignore_eos(true);
    let run = async |prompt: Vec<u32>| -> Result<Vec<Instant>, inference_core::Error> {
        let mut stream = model.generate(Prompt::Tokens(prompt), options.clone()).await?;
        let mut times = Vec::with_capacity(tokens);
        while let Some(token) = stream.next().await {
            token?;
            times.push(Instant::now());
        }
        Ok(times)
    };
    let rows = block_on(futures::future::try_join_all(prompts.iter().cloned().map(run)))?;
    let began = rows.iter().filter_map(|row| row.first()).max().ok_or("no tokens")?;
    let first = rows.iter().min_by_key(|row| row.last()).ok_or("no tokens")?;
    let ended = first.last().ok_or("no tokens")?;
    // Each step gives every row a token, one after the other: the tokens of one row are the steps.
    let steps = first.iter().filter(|time| *time > began).count();
    Ok((steps * rows.len()) as f64 / (*ended - *began).as_secs_f64())
}

/// Milliseconds from the cancellation to the end of the stream: in decode, in prefill; and what a chunk of prefill takes.
async fn cancel_latencies(model: &Arc<dyn TextModel>, trials: usize) -> Result<(f64, f64, f64)> {
    let context = model.info().context_length;
    let long: Vec<u32> = (0..context.min(4096) - 8).map(|i| (i * 7 % 200) as u32).collect();
    let whole = model.complete(long.clone(), GenerateOptions::new().max_tokens(1)).await?;
    let chunk = whole.finish.metrics.prefill.as_secs_f64() * 1000.0 * 512.0 / long.len() as f64;
    let (mut decode, mut prefill) = (Vec::new(), Vec::new());
    for trial in 0..trials {
        let cancel = CancellationToken::new();
        let options = GenerateOptions::new().max_tokens(context - 32).ignore_eos(true).cancel(cancel.clone());
        let mut stream = model.generate(vec![1, 2, 3].into(), options).await?;
        for _ in 0..8 {
            stream.next().await.transpose()?;
        }
        decode.push(latency(&cancel, &mut stream).await?);

        let cancel = CancellationToken::new();
        let options = GenerateOptions::new().cancel(cancel.clone());
        let mut stream = model.generate(long.clone().into(), options).await?;
        // At another place of the prefill each time.
        std::thread::sleep(Duration::from_secs_f64(chunk / 1000.0 * (0.5 + trial as f64 / trials as f64)));
        prefill.push(latency(&cancel, &mut stream).await?);
    }
    Ok((median(&mut decode), median(&mut prefill), chunk))
}

async fn latency(cancel: &CancellationToken, stream: &mut inference_core::TokenStream) -> Result<f64> {
    let began = Instant::now();
    cancel.cancel();
    stream.finish().await?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// This backend beside one of mlx_lm's own ways to generate.
struct Comparison<'a> {
    what: &'static str,
    reference: &'static str,
    prompts: &'a [Vec<u32>],
    /// Ours and theirs, turn by turn.
    rates: Vec<(f64, f64)>,
}

impl<'a> Comparison<'a> {
    fn new(what: &'static str, reference: &'static str, prompts: &'a [Vec<u32>]) -> Self {
        Self { what, reference, prompts, rates: Vec::new() }
    }
}

struct Reference {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Reference {
    fn start(folder: &str) -> Result<Self> {
        let python = std::env::var_os("INFERENCE_PYTHON").unwrap_or_else(|| "python3".into());
        let mut process = Command::new(python)
            .args(["-c", REFERENCE, folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (process.stdin.take().ok_or("stdin")?, process.stdout.take().ok_or("stdout")?);
        Ok(Self { process, input, output: BufReader::new(output) })
    }

    fn turn(&mut self, kind: &str, prompts: &[Vec<u32>], tokens: usize) -> Result<f64> {
        writeln!(self.input, "{}", json!({"kind": kind, "prompts": prompts, "tokens": tokens}))?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str::<Value>(&line)?.as_f64().ok_or_else(|| "mlx_lm gave no figure".into())
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
