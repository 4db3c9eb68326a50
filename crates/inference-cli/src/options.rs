//! The options that commands share, and what they become in the library.

use std::{path::PathBuf, str::FromStr};

use clap::Args;
use inference::{CancellationToken, ContextOverflow, GenerateOptions, KvBits, LoadOptions, Xtc};
use serde_json::Value;

use crate::{failure::Usage, render, text_input};

/// Which engine loads the model, and how.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Loading")]
pub(crate) struct LoadArgs {
    /// The engine: see `inference backends` [default: the best that runs here and supports the model]
    #[arg(long, value_name = "ID")]
    pub(crate) backend: Option<String>,

    /// Tokens of prompt and answer together [default: the model's own]
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<usize>,

    /// A folder with a LoRA adapter to apply
    #[arg(long, value_name = "PATH")]
    adapter: Option<PathBuf>,

    /// Requests decoded at once [default: the engine's choice]
    #[arg(long, value_name = "REQUESTS")]
    max_batch: Option<usize>,

    /// Prompt tokens computed at once [default: the engine's choice]
    #[arg(long, value_name = "TOKENS")]
    prefill_chunk: Option<usize>,

    /// Quantise the KV cache to 8 or 4 bits: half or a quarter of the memory of 16 [default: as computed]
    #[arg(long, value_name = "BITS", value_parser = kv_bits)]
    kv_bits: Option<KvBits>,

    /// Keep at most this much of the keys and values of earlier prompts, for prompts that begin alike; 0 keeps none [default: the
    /// engine's choice]
    #[arg(long, value_name = "SIZE")]
    prefix_cache: Option<ByteSize>,

    /// Memory that the engine may use, such as 8GB or 512MiB [default: no limit]
    #[arg(long, value_name = "SIZE")]
    memory_limit: Option<ByteSize>,

    /// Memory that the engine's allocator may keep for reuse [default: the engine's choice]
    #[arg(long, value_name = "SIZE")]
    cache_limit: Option<ByteSize>,
}

impl LoadArgs {
    /// The flags that were given and have no effect on training.
    pub(crate) fn without_effect_on_training(&self) -> [(&'static str, bool); 4] {
        [
            ("--max-batch", self.max_batch.is_some()),
            ("--prefill-chunk", self.prefill_chunk.is_some()),
            ("--kv-bits", self.kv_bits.is_some()),
            ("--prefix-cache", self.prefix_cache.is_some()),
        ]
    }

    /// Nothing but an engine.
    pub(crate) fn of_backend(id: &str) -> Self {
        Self { backend: Some(id.to_owned()), ..Self::default() }
    }

    /// The library's options; `cancel` cancels the load.
    pub(crate) fn options(&self, cancel: CancellationToken) -> LoadOptions {
        let mut options = LoadOptions::new().cancel(cancel);
        options.context_length = self.context_length;
        options.adapter = self.adapter.clone();
        options.max_batch = self.max_batch;
        options.prefill_chunk = self.prefill_chunk;
        options.kv_bits = self.kv_bits;
        options.prefix_cache = self.prefix_cache.map(|size| size.0);
        options.memory_limit = self.memory_limit.map(|size| size.0);
        options.cache_limit = self.cache_limit.map(|size| size.0);
        options
    }
}

/// How much is generated, and how tokens are chosen.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Generation")]
pub(crate) struct GenerateArgs {
    /// Tokens generated at most [default: 256]
    #[arg(long, short = 'n', value_name = "TOKENS")]
    max_tokens: Option<usize>,

    /// Tokens generated at least [default: 0]
    #[arg(long, value_name = "TOKENS")]
    min_tokens: Option<usize>,

    /// Tokens of reasoning at most; then the model must answer [default: no limit]
    #[arg(long, value_name = "TOKENS")]
    thinking_budget: Option<usize>,

    /// When prompt and answer exceed the context: `stop` there, `refuse` the request, or `rotate:KEEP`: keep the first KEEP tokens and
    /// the latest ones [default: stop]
    #[arg(long, value_name = "POLICY", value_parser = overflow)]
    context_overflow: Option<ContextOverflow>,

    /// The sampling temperature; 0 always takes the likeliest token [default: 0]
    #[arg(long, short = 't', value_name = "NUMBER", allow_negative_numbers = true)]
    temperature: Option<f32>,

    /// Nucleus sampling: keep the likeliest tokens that have this share of the probability [default: all]
    #[arg(long, value_name = "0..1", allow_negative_numbers = true)]
    top_p: Option<f32>,

    /// Keep this many of the likeliest tokens; 0 keeps all [default: all]
    #[arg(long, value_name = "TOKENS")]
    top_k: Option<usize>,

    /// Drop tokens less likely than this share of the likeliest one's probability [default: none]
    #[arg(long, value_name = "0..1", allow_negative_numbers = true)]
    min_p: Option<f32>,

    /// XTC sampling: with PROBABILITY, drop all tokens above THRESHOLD but the least likely of them
    #[arg(long, value_name = "PROBABILITY,THRESHOLD")]
    xtc: Option<XtcPair>,

    /// The seed of the sampler [default: random]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) seed: Option<u64>,

    /// Make recent tokens less likely: above 1 by a factor [default: 1, off]
    #[arg(long, value_name = "FACTOR", allow_negative_numbers = true)]
    repetition_penalty: Option<f32>,

    /// Subtracted from the logit of each recent token [default: 0]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    presence_penalty: Option<f32>,

    /// Subtracted from a recent token's logit for each time it was seen [default: 0]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    frequency_penalty: Option<f32>,

    /// How many of the last tokens the penalties look at [default: 64]
    #[arg(long, value_name = "TOKENS")]
    penalty_window: Option<usize>,

    /// Added to a token's logit; -inf bans the token; may be repeated
    #[arg(long, value_name = "ID=NUMBER", allow_hyphen_values = true)]
    logit_bias: Vec<LogitBias>,

    /// End the text before this string; may be repeated
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,

    /// End the text at this token id; may be repeated
    #[arg(long, value_name = "ID")]
    stop_token: Vec<u32>,

    /// Go on past the model's end-of-sequence tokens
    #[arg(long)]
    pub(crate) ignore_eos: bool,

    /// With --json: each token's log-probability, and those of the N likeliest
    #[arg(long, value_name = "N", requires = "json")]
    log_probs: Option<usize>,
}

impl GenerateArgs {
    /// The library's options; `cancel` cancels the generation.
    pub(crate) fn options(&self, cancel: CancellationToken) -> GenerateOptions {
        let mut options = GenerateOptions::new().ignore_eos(self.ignore_eos).cancel(cancel);
        options.max_tokens = self.max_tokens;
        options.min_tokens = self.min_tokens;
        options.thinking_budget = self.thinking_budget;
        options.log_probabilities = self.log_probs;
        options.context_overflow = self.context_overflow;
        options.sampling.temperature = self.temperature;
        options.sampling.top_p = self.top_p;
        options.sampling.top_k = self.top_k;
        options.sampling.min_p = self.min_p;
        options.sampling.xtc = self.xtc.map(|pair| pair.0);
        options.sampling.seed = self.seed;
        options.sampling.repetition_penalty = self.repetition_penalty;
        options.sampling.presence_penalty = self.presence_penalty;
        options.sampling.frequency_penalty = self.frequency_penalty;
        options.sampling.penalty_window = self.penalty_window;
        if !self.logit_bias.is_empty() {
            options = options.logit_bias(self.logit_bias.iter().map(|bias| bias.0));
        }
        if !self.stop.is_empty() {
            options = options.stop(self.stop.iter().cloned());
        }
        if !self.stop_token.is_empty() {
            options = options.stop_tokens(self.stop_token.iter().copied());
        }
        options
    }
}

/// What the model's chat template is given besides the messages.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Conversation")]
pub(crate) struct TemplateArgs {
    /// Instructions for the whole conversation
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(crate) system: Option<String>,

    /// A JSON file with a list of tool definitions for the chat template
    #[arg(long, value_name = "FILE")]
    tools: Option<PathBuf>,

    /// A variable for the chat template, such as enable_thinking=false; may be repeated
    #[arg(long = "var", value_name = "NAME=VALUE")]
    variables: Vec<Variable>,
}

impl TemplateArgs {
    /// Adds a variable, written `NAME=VALUE`.
    pub(crate) fn add_variable(&mut self, text: &str) -> Result<(), String> {
        self.variables.push(text.parse()?);
        Ok(())
    }

    /// Adds to the options what the template is given.
    pub(crate) fn apply(&self, mut options: GenerateOptions) -> anyhow::Result<GenerateOptions> {
        if let Some(path) = &self.tools {
            let tools: Vec<Value> = serde_json::from_str(&text_input::read_file(path)?).map_err(|error| {
                Usage(format!("{}: expected a JSON list of tool definitions: {error}", render::path(path)))
            })?;
            options = options.tools(tools);
        }
        for Variable(name, value) in &self.variables {
            options = options.template_variable(name, value.clone());
        }
        Ok(options)
    }
}

/// A number of bytes, written with a unit: `8GB` is decimal, `8GiB` binary, a bare number bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ByteSize(pub(crate) u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let scale: u64 = match unit.trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1000,
            "mb" => 1000 * 1000,
            "gb" => 1000 * 1000 * 1000,
            "tb" => 1000 * 1000 * 1000 * 1000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err(format!("unknown unit {unit:?}, expected KB, MB, GB, TB, KiB, MiB, GiB or TiB")),
        };
        let number: f64 =
            number.parse().map_err(|_| "expected a number and a unit, such as 8GB".to_owned())?;
        Ok(Self((number * scale as f64) as u64))
    }
}

/// Token ids as a JSON list: `[1,2,3]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenIds(pub(crate) Vec<u32>);

impl FromStr for TokenIds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text)
            .map(Self)
            .map_err(|error| format!("expected a JSON list of token ids, such as [1,2,3]: {error}"))
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct XtcPair(Xtc);

impl FromStr for XtcPair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = text.split_once(',').and_then(|(probability, threshold)| {
            Some(Xtc::new(probability.trim().parse().ok()?, threshold.trim().parse().ok()?))
        });
        pair.map(Self).ok_or_else(|| "expected two numbers, such as 0.5,0.1".to_owned())
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct LogitBias((u32, f32));

impl FromStr for LogitBias {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pair = text
            .split_once('=')
            .and_then(|(id, bias)| Some((id.trim().parse().ok()?, bias.trim().parse().ok()?)));
        pair.map(Self).ok_or_else(|| "expected a token id and a number, such as 42=-1.5".to_owned())
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Variable(String, Value);

impl FromStr for Variable {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) =
            text.split_once('=').ok_or("expected a name and a value, such as thinking=false")?;
        // What is no JSON is a string, so that nobody has to quote twice.
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
        Ok(Self(name.to_owned(), value))
    }
}

/// The bits of keys and values.
pub(crate) fn kv_bits(text: &str) -> Result<KvBits, String> {
    match text {
        "4" => Ok(KvBits::Four),
        "8" => Ok(KvBits::Eight),
        _ => Err("expected 8 or 4".to_owned()),
    }
}

fn overflow(text: &str) -> Result<ContextOverflow, String> {
    match text.split_once(':') {
        None if text == "stop" => Ok(ContextOverflow::Stop),
        None if text == "refuse" => Ok(ContextOverflow::Refuse),
        Some(("rotate", keep)) => match keep.parse() {
            Ok(keep) => Ok(ContextOverflow::Rotate { keep }),
            Err(error) => Err(format!("{keep:?} is no number of tokens: {error}")),
        },
        _ => Err("expected stop, refuse or rotate:KEEP, as in rotate:4".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        load: LoadArgs,
        #[command(flatten)]
        generate: GenerateArgs,
        #[command(flatten)]
        template: TemplateArgs,
        #[arg(long)]
        json: bool,
    }

    fn parse(line: &[&str]) -> Result<Line, clap::Error> {
        Line::try_parse_from(std::iter::once("test").chain(line.iter().copied()))
    }

    #[test]
    fn what_is_not_given_stays_unset() {
        let line = parse(&[]).unwrap();
        let options = line.generate.options(CancellationToken::new());
        assert_eq!(options.required_features().count(), 0);
        assert_eq!(options.max_tokens, None);
        assert_eq!(line.load.options(CancellationToken::new()).required_features().count(), 0);
    }

    #[test]
    fn every_option_arrives() {
        let line = parse(&[
            "--max-tokens=9",
            "--temperature=0.5",
            "--top-p=0.9",
            "--top-k=4",
            "--min-p=0.1",
            "--seed=7",
            "--repetition-penalty=1.1",
            "--presence-penalty",
            "-0.5",
            "--frequency-penalty=0.2",
            "--penalty-window=32",
            "--xtc=0.5,0.1",
            "--logit-bias=3=-inf",
            "--stop=a",
            "--stop=b",
            "--stop-token=5",
            "--min-tokens=2",
            "--thinking-budget=7",
            "--ignore-eos",
            "--log-probs=3",
            "--json",
        ]);
        let options = line.unwrap().generate.options(CancellationToken::new());
        let sampling = &options.sampling;
        assert_eq!((options.max_tokens, options.min_tokens, sampling.seed), (Some(9), Some(2), Some(7)));
        assert_eq!(options.thinking_budget, Some(7));
        assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (Some(0.5), Some(0.9), Some(0.1)));
        assert_eq!((sampling.top_k, sampling.repetition_penalty), (Some(4), Some(1.1)));
        assert_eq!((sampling.presence_penalty, sampling.frequency_penalty), (Some(-0.5), Some(0.2)));
        assert_eq!(sampling.penalty_window, Some(32));
        assert_eq!(sampling.xtc, Some(Xtc::new(0.5, 0.1)));
        assert_eq!(sampling.logit_bias.as_deref(), Some(&[(3, f32::NEG_INFINITY)][..]));
        assert_eq!(options.stop.as_deref(), Some(&["a".to_owned(), "b".to_owned()][..]));
        assert_eq!(options.stop_tokens.as_deref(), Some(&[5][..]));
        assert!(options.ignore_eos);
        assert_eq!(options.log_probabilities, Some(3));
    }

    #[test]
    fn load_options_arrive() {
        let line = parse(&[
            "--context-length=10",
            "--adapter=a",
            "--max-batch=2",
            "--memory-limit=2GiB",
            "--prefix-cache=0",
        ]);
        let options = line.unwrap().load.options(CancellationToken::new());
        assert_eq!((options.context_length, options.max_batch), (Some(10), Some(2)));
        assert_eq!(options.adapter.as_deref(), Some(std::path::Path::new("a")));
        assert_eq!((options.memory_limit, options.prefix_cache), (Some(2 << 30), Some(0)));
    }

    #[test]
    fn sizes_have_decimal_and_binary_units() {
        let parse = |text: &str| text.parse::<ByteSize>().map(|size| size.0);
        assert_eq!(parse("1.5GB"), Ok(1_500_000_000));
        assert_eq!(parse("2 MiB"), Ok(2 << 20));
        assert_eq!(parse("17"), Ok(17));
        assert!(parse("3 apples").unwrap_err().contains("apples"));
        assert!(parse("GB").is_err());
    }

    #[test]
    fn token_ids_are_a_json_list() {
        assert_eq!("[1, 2]".parse(), Ok(TokenIds(vec![1, 2])));
        assert!("[1,-2]".parse::<TokenIds>().is_err());
        assert!("1,2".parse::<TokenIds>().unwrap_err().contains("[1,2,3]"));
    }

    #[test]
    fn variables_are_json_where_they_can_be() {
        assert_eq!("think=false".parse(), Ok(Variable("think".into(), false.into())));
        assert_eq!("name=Ada".parse(), Ok(Variable("name".into(), "Ada".into())));
        assert!("name".parse::<Variable>().is_err());
    }
}
