//! What the backend costs: answers through it beside answers of a bare llama-server over HTTP, with the same model and options, turn by
//! turn; and how long a cancellation takes.
//!
//! ```sh
//! LLAMA_SERVER=… cargo run --release -p inferlm-backend-llamacpp --example llama_overhead -- MODEL.gguf [TRIALS] [TOKENS]
//! ```

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use backend_llamacpp::DESCRIPTOR;
use futures::{StreamExt as _, executor::block_on};
use inference_core::{
    CancellationToken, GenerateOptions, LoadOptions, Registry, TextModel, TextModelExt as _,
};
use serde_json::json;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

/// Tokens of a text's context.
const CONTEXT: usize = 2048;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let file = arguments.next().ok_or("usage: llama_overhead MODEL.gguf [TRIALS] [TOKENS]")?;
    let mut number = |default: usize| arguments.next().map_or(Ok(default), |text| text.parse::<usize>());
    let (trials, tokens) = (number(9)?, number(128)?);
    let options = LoadOptions::new().context_length(CONTEXT).max_batch(1);
    let registry = Registry::empty().with(DESCRIPTOR);
    let model = block_on(async { registry.load_model(&file).backend("llama_cpp").options(options).await })?;
    let bare = Bare::start(Path::new(&file))?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for trial in 0..trials + 1 {
        let prompt: Vec<u32> = (0..32).map(|i| 300 + (i * 7 + trial as u32 * 13) % 900).collect();
        let greedy = GenerateOptions::new().max_tokens(tokens).temperature(0.0).ignore_eos(true);
        let began = Instant::now();
        block_on(model.complete(prompt.clone(), greedy))?;
        let our = began.elapsed();
        let their = bare.complete(&prompt, tokens)?;
        // The first turn warms both up.
        if trial > 0 {
            ours.push(our);
            theirs.push(their);
        }
    }
    let ratios = ours.iter().zip(&theirs).map(|(our, their)| our.as_secs_f64() / their.as_secs_f64());
    let mut ratios: Vec<f64> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    println!(
        "{trials} answers of {tokens} tokens: this backend {:?}, the server's own HTTP {:?} (medians)",
        median(ours),
        median(theirs)
    );
    println!("ratio of the turns, median: {:.3}", ratios[ratios.len() / 2]);
    cancel(&*model, trials)
}

/// How long a cancellation in decode takes, and how long the only slot is taken after it.
fn cancel(model: &dyn TextModel, trials: usize) -> Result<()> {
    let (mut answered, mut free, mut usual) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..trials {
        let cancel = CancellationToken::new();
        let options = GenerateOptions::new().max_tokens(1000).ignore_eos(true).cancel(cancel.clone());
        block_on(async {
            let began = Instant::now();
            let mut stream = model.generate(vec![504_u32, 3575].into(), options).await?;
            for _ in 0..4 {
                stream.next().await;
            }
            usual.push(began.elapsed() / 4);
            let began = Instant::now();
            cancel.cancel();
            stream.finish().await?;
            answered.push(began.elapsed());
            // The next request waits for the slot, and computes one step.
            model.complete(vec![504_u32, 3575], GenerateOptions::new().max_tokens(1)).await?;
            free.push(began.elapsed());
            Ok::<_, inference_core::Error>(())
        })?;
    }
    let (answered, free, step) = (median(answered), median(free), median(usual));
    println!(
        "cancelled after {answered:?}; the next answer of one token came {free:?} after that, a step takes {step:?}"
    );
    Ok(())
}

fn median(mut durations: Vec<Duration>) -> Duration {
    durations.sort();
    durations[durations.len() / 2]
}

/// A llama-server that this program starts and asks by itself.
struct Bare {
    child: Child,
    folder: tempfile::TempDir,
}

impl Bare {
    fn start(model: &Path) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let server = std::env::var_os("LLAMA_SERVER").ok_or("LLAMA_SERVER is not set")?;
        let mut command = Command::new(server);
        command.arg("--model").arg(model).arg("--host").arg(folder.path().join("s.sock"));
        command.args([
            "--ctx-size",
            &CONTEXT.to_string(),
            "--parallel",
            "1",
            "--batch-size",
            "512",
            "--ubatch-size",
            "512",
        ]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let bare = Self { child, folder };
        while !bare.ask("GET", "/health", "").is_ok_and(|mut answer| {
            let mut line = String::new();
            answer.read_line(&mut line).is_ok() && line.contains("200")
        }) {
            std::thread::yield_now();
        }
        Ok(bare)
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<BufReader<UnixStream>> {
        let mut stream = UnixStream::connect(self.folder.path().join("s.sock"))?;
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        Ok(BufReader::new(stream))
    }

    /// How long an answer takes whose stream is read and thrown away.
    fn complete(&self, prompt: &[u32], tokens: usize) -> Result<Duration> {
        let body = json!({
            "prompt": prompt, "n_predict": tokens, "stream": true, "samplers": ["temperature"], "temperature": 0.0,
            "ignore_eos": true,
        });
        let began = Instant::now();
        let mut answer = String::new();
        self.ask("POST", "/completion", &body.to_string())?.read_to_string(&mut answer)?;
        let took = began.elapsed();
        if !answer.contains(&format!("\"tokens_predicted\":{tokens}")) {
            return Err(format!("it did not answer with {tokens} tokens").into());
        }
        Ok(took)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
