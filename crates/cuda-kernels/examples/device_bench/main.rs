//! Times steps of decoders of well-known shapes, with random weights. Fails without a GPU.
//!
//! `cargo run --release -p inferlm-cuda-kernels --example device_bench [substring of a model's name] …`

mod models;

use std::{env, process::ExitCode};

use cuda_kernels::{Compiler, Device, Executor, Options, Part, Result, Row};

use crate::models::{Model, Random};

const PARTS: [Part; 7] =
    [Part::Embed, Part::Qkv, Part::Attention, Part::Output, Part::GateUp, Part::Down, Part::Head];
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
    let compiler = Compiler::new(&device, env::var_os("KERNEL_CACHE").map(Into::into));
    let wanted: Vec<String> = env::args().skip(1).collect();
    let random = Random::new();
    for model in models::all() {
        if !wanted.is_empty() && !wanted.iter().any(|wanted| model.name.contains(wanted)) {
            continue;
        }
        bench(&compiler, &random, &model, bandwidth)?;
    }
    Ok(())
}

fn bench(compiler: &Compiler, random: &Random, model: &Model, bandwidth: f64) -> Result<()> {
    let (spec, _buffers) = model.build(compiler.device(), random)?;
    let caches = model.caches(compiler.device(), random)?;
    for (early_start, look_ahead) in [(true, false), (true, true), (false, false)] {
        let options = Options { history: 16, keep_logits: false, early_start, look_ahead };
        // SAFETY: weights and caches live as long as this function.
        let mut executor = unsafe { Executor::new(compiler, spec.clone(), options)? };
        for (layer, rows) in caches.iter().enumerate() {
            for (row, [keys, values]) in rows.iter().enumerate() {
                executor.set_cache(layer, row, keys.ptr(), values.ptr())?;
            }
        }
        for rows in [1, 2, 4, 8] {
            executor.prepare(compiler, rows)?;
            for prompt in [32, 2048] {
                if (!early_start || look_ahead) && (rows > 1 || prompt > 32)
                    || rows > 1 && env::var_os("ROWS").is_none()
                {
                    continue;
                }
                let mut rates = Vec::new();
                for _ in 0..3 {
                    rates.push(rate(&mut executor, rows, prompt)?);
                }
                rates.sort_by(f64::total_cmp);
                let bytes = model.bytes(rows, prompt + STEPS / 2) as f64;
                println!(
                    "{} rows {rows} prompt {prompt}{}: {:.0} tok/s, {:.3} ms a step, {:.1} % of the bandwidth",
                    model.name,
                    match (early_start, look_ahead) {
                        (true, true) => ", look-ahead",
                        (true, false) => "",
                        (false, true) => ", no early start, look-ahead",
                        (false, false) => ", no early start",
                    },
                    rates[1] * rows as f64,
                    1e3 / rates[1],
                    100.0 * bytes * rates[1] / bandwidth,
                );
                if early_start && !look_ahead && (rows == 1 || (rows == 8 && prompt == 32)) {
                    let mut line = String::new();
                    for part in PARTS {
                        let milliseconds = executor.time(rows, 20, |p| p == part)?;
                        let count = executor.parts(rows).iter().filter(|p| **p == part).count();
                        let each = 1e3 * milliseconds / count as f32;
                        line += &format!(" {part:?} {milliseconds:.3} ({count} × {each:.1} µs)");
                    }
                    println!("   {line}");
                }
            }
        }
    }
    Ok(())
}

/// Steps for each second.
fn rate(executor: &mut Executor, rows: usize, prompt: usize) -> Result<f64> {
    for row in 0..8 {
        let next = Row { token: 17 + row as u32, position: prompt };
        executor.set_row(row, (row < rows).then_some(next))?;
    }
    executor.run(rows, 16)?;
    let start = executor.stream().record()?;
    executor.run(rows, STEPS)?;
    let end = executor.stream().record()?;
    let milliseconds = start.milliseconds_to(&end)?;
    executor.tokens(0, 16)?;
    Ok(STEPS as f64 * 1e3 / f64::from(milliseconds))
}
