//! Compares steps on the GPU with double precision on the host, for many shapes of decoders. Fails without a GPU.
//!
//! `cargo run -p inferlm-cuda-kernels --example device_check [substring of a case's name] …`
//!
//! With `GUARD=1` in the environment, reading or writing past the end of a buffer is an error, too.

mod cases;
mod decoder;
mod draw;
mod feed_forward;
mod matrix;

use std::{env, process::ExitCode, sync::Arc, time::Instant};

use cuda_kernels::{Buffer, Cache as CacheAt, Compiler, Device, Executor, Logits, Options, Result, Row};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use crate::{
    decoder::{Cache, Decoder, LayerCache, Shape},
    matrix::{narrow, widen},
};

fn main() -> ExitCode {
    match run() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            println!("{failed} FAILED");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("ERROR {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<usize> {
    let mut device = Device::probe(0)?;
    if env::var_os("GUARD").is_some() {
        device = device.with_guarded_buffers();
    }
    println!("{} driver {}", device.name(), device.driver());
    let compiler = Arc::new(Compiler::new(&device, env::var_os("KERNEL_CACHE").map(Into::into)));
    let wanted: Vec<String> = env::args().skip(1).collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted));
    let mut failed = check_draws(&compiler, is_wanted)?;
    for (seed, (name, shape)) in cases::all().into_iter().enumerate() {
        if !is_wanted(&name) {
            continue;
        }
        let started = Instant::now();
        let decoder = Decoder::random(&device, shape, seed as u64)?;
        for rows in [1, 2, 3, 8, 13, 32] {
            match check(&compiler, &decoder, rows, seed as u64) {
                // Single precision in between adds little to the rounding of halves.
                Ok([error, rounding]) if error <= 1.5 * rounding => {
                    println!("ok   {name} rows {rows}: {error:.1e}, rounding {rounding:.1e}");
                }
                Ok([error, rounding]) => {
                    failed += 1;
                    println!("FAIL {name} rows {rows}: {error:.1e}, rounding {rounding:.1e}");
                }
                Err(error) => {
                    failed += 1;
                    println!("FAIL {name} rows {rows}: {error}");
                }
            }
        }
        println!("     {name}: {:.1} s", started.elapsed().as_secs_f32());
    }
    Ok(failed)
}

/// How many cases of draws failed.
fn check_draws(compiler: &Arc<Compiler>, is_wanted: impl Fn(&str) -> bool) -> Result<usize> {
    let mut failed = 0;
    for (seed, (name, shape)) in
        draw::cases().into_iter().enumerate().filter(|(_, (name, _))| is_wanted(name))
    {
        // The reference takes long for many rows of many tokens.
        let most = if shape.vocabulary > 100_000 { 3 } else { 4 };
        for rows in [1, 3, 8, 32].into_iter().take(most) {
            match draw::check(compiler, &shape, rows, seed as u64)? {
                Ok([drawn, close]) => {
                    println!("ok   {name} rows {rows}: {drawn} tokens, {close} of them close");
                }
                Err(why) => {
                    failed += 1;
                    println!("FAIL {name} rows {rows}: {why}");
                }
            }
        }
    }
    Ok(failed)
}

/// The error of logits over all rows and steps, relative to their length, and that of rounding alone. Rows begin at different positions, with caches of
/// random numbers; of three and thirteen rows the second one is idle.
fn check(compiler: &Arc<Compiler>, decoder: &Decoder, rows: usize, seed: u64) -> Result<[f64; 2]> {
    let (device, shape) = (compiler.device(), &decoder.shape);
    let mut rng = StdRng::seed_from_u64(seed + 1000);
    let long = if shape.capacity > 2048 { shape.capacity } else { 299 };
    let starts = [0, 1, 37, 130, 63, 64, long, 200].map(|start: usize| start.min(shape.capacity - 8));
    let mut caches: Vec<Cache> = Vec::new();
    let mut buffers: Vec<Buffer> = Vec::new();
    let starts: Vec<usize> = (0..rows).map(|row| starts[(row + 6 * usize::from(rows == 1)) % 8]).collect();
    // SAFETY: the decoder, its caches and the buffers live as long as this function.
    let mut executor = unsafe {
        Executor::new(compiler.clone(), decoder.spec(), Options { history: 4, ..Options::default() })?
    };
    for (row, &start) in starts.iter().enumerate() {
        let (mut cache, mut places) = (Vec::new(), Vec::new());
        for layer in 0..shape.layers {
            let (host, pair) = random_cache(device, &mut rng, decoder, layer, start)?;
            let capacity = decoder.capacity(layer);
            places.push(CacheAt { keys: pair[0].ptr(), values: pair[1].ptr(), capacity });
            cache.push(host);
            buffers.extend(pair);
        }
        executor.set_caches(row, &places)?;
        caches.push(cache);
    }
    let (mut rounded_caches, rounding) = (caches.clone(), decoder.rounding(rows));
    let idle = |row: usize| rows % 10 == 3 && row == 1;
    let (mut ours, mut rounded) = (Error::default(), Error::default());
    let mut wrong = false;
    let idle_or = |row: usize, token: u32, step: usize| {
        (!idle(row)).then_some(Row { token, position: starts[row] + step })
    };
    let mut first = Vec::new();
    for step in 0..5 {
        let (mut next, mut expected) = (Vec::new(), Vec::new());
        for row in 0..rows {
            let (token, logits) =
                decoder.certain_step(&mut rng, [&mut caches[row], &mut rounded_caches[row]], rounding);
            next.push(idle_or(row, token, step));
            expected.push(logits);
            if step == 0 {
                first.push(idle_or(row, token, 1));
            }
        }
        executor.set_rows(&next)?;
        executor.poison()?;
        executor.run(rows, 1, Logits::Keep)?;
        for (row, [exact, nearly]) in expected.into_iter().enumerate().filter(|(row, _)| !idle(*row)) {
            let logits = executor.logits(row)?;
            ours.add(logits.iter().copied().map(f64::from), &exact);
            rounded.add(nearly, &exact);
            let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap_or(0);
            let chosen = executor.tokens(row, 1)?[0];
            if chosen as usize != best {
                println!("FAIL row {row} chose {chosen} rather than {best}");
                wrong = true;
            }
        }
    }
    // The same tokens follow without the host.
    executor.set_rows(&first)?;
    let mut single = vec![Vec::new(); rows];
    for _ in 0..4 {
        let pending = executor.submit(rows, Logits::Discard)?;
        for row in (0..rows).filter(|row| !idle(*row)) {
            match pending.token(row)? {
                Some(token) => single[row].push(token),
                None => wrong = true,
            }
        }
    }
    executor.set_rows(&first)?;
    executor.run(rows, 4, Logits::Keep)?;
    for row in (0..rows).filter(|row| !idle(*row)) {
        let together = executor.tokens(row, 4)?;
        if together != single[row] {
            println!("FAIL row {row}: {together:?} in one go, {:?} step by step", single[row]);
            wrong = true;
        }
    }
    let ours = if wrong { f64::INFINITY } else { ours.relative() };
    Ok([ours, rounded.relative()])
}

/// Keys and values of `start` positions, in both places. Slots that hold none are NaN.
fn random_cache(
    device: &Device,
    rng: &mut StdRng,
    decoder: &Decoder,
    layer: usize,
    start: usize,
) -> Result<(LayerCache, [Buffer; 2])> {
    let Shape { half, kv_heads, head_dim, .. } = decoder.shape;
    let capacity = decoder.capacity(layer);
    let mut bits = [0, 1].map(|_| vec![0x7fff_u16; kv_heads * capacity * head_dim]);
    let mut host = Vec::new();
    for position in 0..start {
        host.push(bits.each_mut().map(|bits| {
            let mut values = Vec::new();
            for head in 0..kv_heads {
                for d in 0..head_dim {
                    let value = narrow(half, rng.random_range(-1.5..1.5));
                    bits[(head * capacity + position % capacity) * head_dim + d] = value;
                    values.push(widen(half, value));
                }
            }
            values
        }));
    }
    let [keys, values] = bits;
    Ok((host, [Buffer::of(device, &keys)?, Buffer::of(device, &values)?]))
}

/// The squares of differences, and those of what is right.
#[derive(Default)]
struct Error {
    apart: f64,
    length: f64,
}

impl Error {
    fn add(&mut self, found: impl IntoIterator<Item = f64>, right: &[f64]) {
        self.apart += found.into_iter().zip(right).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        self.length += right.iter().map(|b| b * b).sum::<f64>();
    }

    /// Not a number becomes infinite.
    fn relative(&self) -> f64 {
        let error = (self.apart / self.length).sqrt();
        if error.is_nan() { f64::INFINITY } else { error }
    }
}
