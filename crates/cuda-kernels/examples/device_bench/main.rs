//! Times steps of decoders of well-known shapes, with random weights. Fails without a GPU.
//!
//! `cargo run --release -p inferlm-cuda-kernels --example device_bench [substring of a model's name] …`

mod models;

use std::{env, process::ExitCode, sync::Arc};

use cuda_kernels::{Buffer, Cache, Compiler, Device, Executor, Logits, Options, Part, Result, Row, Sampling};

use crate::models::{CAPACITY, Model, Random};

const PARTS: [Part; 8] = [
    Part::Embed,
    Part::Qkv,
    Part::Attention,
    Part::Output,
    Part::Route,
    Part::GateUp,
    Part::Down,
    Part::Head,
];
/// Steps that are timed.
const STEPS: usize = 256;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("ERROR {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let device = Device::probe(0)?;
    let bandwidth: f64 = if device.name().contains("H200") { 4.8e12 } else { 3.35e12 };
    println!("{} driver {}, {bandwidth:.2e} bytes/s", device.name(), device.driver());
    let compiler = Arc::new(Compiler::new(&device, env::var_os("KERNEL_CACHE").map(Into::into)));
    let wanted: Vec<String> = env::args().skip(1).collect();
    let random = Random::new();
    for model in models::all() {
        if wanted.is_empty() || wanted.iter().any(|wanted| model.name.contains(wanted)) {
            for early_start in [true, false] {
                bench(&compiler, &random, &model, bandwidth, early_start)?;
            }
        }
    }
    Ok(())
}

fn bench(
    compiler: &Arc<Compiler>,
    random: &Random,
    model: &Model,
    bandwidth: f64,
    early_start: bool,
) -> Result<()> {
    let device = compiler.device();
    let (spec, _buffers) = model.build(device, random)?;
    let options = Options { history: 16, early_start, ..Options::default() };
    let many = env::var_os("ROWS").is_some();
    let caches =
        (0..if many { 32 } else { 1 }).map(|_| model.caches(device, random)).collect::<Result<Vec<_>>>()?;
    // SAFETY: weights and caches live as long as this function; the executor is dropped first.
    let mut executor = unsafe { Executor::new(compiler.clone(), spec, options)? };
    for (row, layers) in caches.iter().enumerate() {
        let cache = |[keys, values]: &[Buffer; 2]| Cache {
            keys: keys.ptr(),
            values: values.ptr(),
            capacity: CAPACITY,
        };
        executor.set_caches(row, &layers.iter().map(cache).collect::<Vec<_>>())?;
    }
    for (rows, prompt) in [1, 2, 4, 8, 16, 32].into_iter().flat_map(|rows| [(rows, 32), (rows, 2048)]) {
        let extra = rows > 1 || prompt > 32;
        if extra && !early_start || rows > 1 && !many {
            continue;
        }
        let mut rates =
            (0..3).map(|_| rate(&mut executor, rows, prompt, Logits::Discard)).collect::<Result<Vec<_>>>()?;
        rates.sort_by(f64::total_cmp);
        let bytes = model.bytes(rows, prompt + STEPS / 2) as f64;
        println!(
            "{} rows {rows} prompt {prompt}{}: {:.0} tok/s, {:.3} ms a step, {:.1} % of the bandwidth",
            model.name,
            if early_start { "" } else { ", no early start" },
            rates[1] * rows as f64,
            1e3 / rates[1],
            100.0 * bytes * rates[1] / bandwidth,
        );
        if early_start && (rows == 1 || (rows >= 8 && prompt == 32)) {
            print_parts(&mut executor, [rows, prompt + 16 + STEPS])?;
            print_draws(&mut executor, rows, prompt)?;
        }
    }
    Ok(())
}

/// Prints what draws cost.
fn print_draws(executor: &mut Executor, rows: usize, prompt: usize) -> Result<()> {
    let all = Sampling { seed: 1, step: 0, temperature: 0.7, top_p: None, min_p: None, top_k: None };
    let filtered = Sampling { top_p: Some(0.95), top_k: Some(40), ..all };
    for (name, sampling) in [("all", all), ("top-k 40, top-p 0.95", filtered)] {
        executor.set_sampling(&vec![Some(sampling); rows])?;
        let rate = rate(executor, rows, prompt, Logits::Draw)?;
        println!("    drawn from {name}: {:.0} tok/s, {:.3} ms a step", rate * rows as f64, 1e3 / rate);
    }
    Ok(())
}

/// Prints what each part of a step costs when its launches run after each other.
fn print_parts(executor: &mut Executor, [rows, positions]: [usize; 2]) -> Result<()> {
    let mut line = String::new();
    for part in PARTS {
        let count = executor.parts(rows, positions).iter().filter(|p| **p == part).count();
        if count == 0 {
            continue;
        }
        let milliseconds = executor.time([rows, positions], 20, |p| p == part)?;
        let each = 1e3 * milliseconds / count as f32;
        line += &format!(" {part:?} {milliseconds:.3} ({count} × {each:.1} µs)");
    }
    println!("   {line}");
    Ok(())
}

/// Steps for each second.
fn rate(executor: &mut Executor, rows: usize, prompt: usize, logits: Logits) -> Result<f64> {
    let next = |row: usize| Some(Row { token: 17 + row as u32, position: prompt });
    executor.set_rows(&(0..rows).map(next).collect::<Vec<_>>())?;
    executor.run(rows, 16, logits)?;
    let start = executor.stream().record_timed()?;
    executor.run(rows, STEPS, logits)?;
    let end = executor.stream().record_timed()?;
    let milliseconds = start.milliseconds_to(&end)?;
    executor.tokens(0, 16)?;
    Ok(STEPS as f64 * 1e3 / f64::from(milliseconds))
}
