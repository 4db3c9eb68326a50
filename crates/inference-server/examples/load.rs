//! Many streaming clients at once, some of which vanish: `cargo run --release -p inferlm-server --example load -- URL CLIENTS SECONDS
//! [VANISHING]`, with the server at `URL` (`http://127.0.0.1:8080`). Every `VANISHING`th request is dropped after its first
//! event; 0 drops none. Prints tokens per second and percentiles of the time to the first token.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use futures::{StreamExt as _, future::join_all};
use reqwest::Client;
use serde_json::{Value, json};

/// Tokens of each prompt and each answer, as `inference bench --prompt-tokens 64 --generate-tokens 128` has them.
const PROMPT: u32 = 64;
const ANSWER: u32 = 128;
/// The first ids are left to special tokens.
const FIRST_ID: u32 = 300;
const IDS: u32 = 1700;

#[derive(Default)]
struct Counts {
    answers: usize,
    tokens: u64,
    vanished: usize,
    refused: usize,
    first: Vec<Duration>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number =
        |at: usize, otherwise: u64| arguments.get(at).map_or(Ok(otherwise), |text| text.parse::<u64>());
    let url = arguments.first().map_or("http://127.0.0.1:8080", String::as_str);
    let (clients, seconds, vanishing) = (number(1, 64)?, number(2, 10)?, number(3, 0)?);
    let http = Client::new();
    let began = Instant::now();
    let until = began + Duration::from_secs(seconds);
    let all = (0..clients).map(|client| run(&http, url, client, until, vanishing));
    let mut sum = Counts::default();
    for counts in join_all(all).await {
        let counts = counts?;
        sum.answers += counts.answers;
        sum.tokens += counts.tokens;
        sum.vanished += counts.vanished;
        sum.refused += counts.refused;
        sum.first.extend(counts.first);
    }
    let time = began.elapsed().as_secs_f64();
    sum.first.sort_unstable();
    let percentile = |percent: usize| {
        let at = (sum.first.len() * percent / 100).min(sum.first.len().saturating_sub(1));
        sum.first.get(at).map_or(0.0, |time| time.as_secs_f64() * 1e3)
    };
    println!(
        "{} answers, {} vanished, {} refused; {:.0} tokens/s; first token after {:.1} ms (p50), {:.1} ms (p99)",
        sum.answers,
        sum.vanished,
        sum.refused,
        sum.tokens as f64 / time,
        percentile(50),
        percentile(99),
    );
    Ok(())
}

async fn run(
    http: &Client,
    url: &str,
    client: u64,
    until: Instant,
    vanishing: u64,
) -> Result<Counts, Box<dyn Error>> {
    let mut counts = Counts::default();
    let mut state = client.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut random = || {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    while Instant::now() < until {
        let prompt: Vec<u32> = (0..PROMPT).map(|_| FIRST_ID + (random() % u64::from(IDS)) as u32).collect();
        let body = json!({
            "prompt": prompt, "max_tokens": ANSWER, "ignore_eos": true, "temperature": 0, "stream": true,
            "stream_options": {"include_usage": true},
        });
        let vanishes = vanishing > 0 && random().is_multiple_of(vanishing);
        let sent = Instant::now();
        let response = http.post(format!("{url}/v1/completions")).json(&body).send().await?;
        if !response.status().is_success() {
            counts.refused += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let mut stream = response.bytes_stream();
        let mut rest = String::new();
        let mut first = None;
        while let Some(bytes) = stream.next().await {
            rest.push_str(&String::from_utf8_lossy(&bytes?));
            first.get_or_insert_with(|| sent.elapsed());
            if vanishes {
                break;
            }
            let complete = rest.rfind("\n\n").map_or(0, |at| at + 2);
            for event in rest[..complete].split("\n\n") {
                counts.tokens += tokens(event);
            }
            rest.drain(..complete);
        }
        counts.first.extend(first);
        counts.answers += usize::from(!vanishes);
        counts.vanished += usize::from(vanishes);
    }
    Ok(counts)
}

/// The tokens of the whole answer, which its last chunk tells.
fn tokens(event: &str) -> u64 {
    let usage = event.strip_prefix("data: ").filter(|data| data.contains("\"usage\":{"));
    let chunk: Value = usage.and_then(|data| serde_json::from_str(data).ok()).unwrap_or_default();
    chunk["usage"]["completion_tokens"].as_u64().unwrap_or(0)
}
