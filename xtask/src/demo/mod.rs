//! The demo model, from nothing: data and tokenizer from word lists, random weights, our own trainer, quantisation, scores on
//! held-out questions, and its card.
//!
//! All work on a model is done by the program `inference`, as a person would type it; its lines are printed.

mod folder;
mod generator;
mod random;
mod rows;
mod score;
mod split;
mod words;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use self::{generator::Generator, words::Words};
use crate::sh;

/// What the data is drawn from.
const DATA_SEED: u64 = 0;

/// The tokenizer beside the data.
const TOKENIZER: &str = "tokenizer.json";

/// How many tokens there are to learn from.
const TOKENS: &str = "tokens";

/// How the demo model is made.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The folder to write
    #[arg(long, default_value = "models/demo")]
    out: PathBuf,

    /// Where first and trained weights are kept; what is there is not made again
    #[arg(long, default_value = "target/demo-model")]
    work: PathBuf,

    /// Where the data is kept, which is the same for every seed [default: `data` in the former]
    #[arg(long)]
    data: Option<PathBuf>,

    /// The program that trains [default: built here, as a release]
    #[arg(long)]
    program: Option<PathBuf>,

    /// Generated turns
    #[arg(long, default_value_t = 3_000_000)]
    turns: usize,

    /// Steps of training
    #[arg(long, default_value_t = 16_000)]
    steps: usize,

    /// Tokens of a step
    #[arg(long, default_value_t = 32_768)]
    tokens: usize,

    /// The highest learning rate
    #[arg(long, default_value_t = 2e-3)]
    learning_rate: f32,

    /// Fixes first weights, order and dropout
    #[arg(long, default_value_t = 2)]
    seed: u64,

    /// Stop once this is done
    #[arg(long, value_enum)]
    until: Option<Stage>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Stage {
    /// Data, tokenizer and first weights
    Data,
    /// Training
    Training,
}

/// Makes the demo model.
///
/// # Errors
/// A word list is broken, a folder cannot be written, or `inference` fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    let base = args.work.join("base");
    let data = args.data.clone().unwrap_or_else(|| args.work.join("data"));
    let (trained, fused, quantised) =
        (args.work.join("trained"), args.work.join("fused"), args.work.join("quantised"));
    if !data.join(TOKENIZER).exists() {
        write_data(args, &data)?;
    }
    if !base.exists() {
        folder::write(&base, &folder::read_tokenizer(&data.join(TOKENIZER))?, args.seed)?;
    }
    if args.until == Some(Stage::Data) {
        return Ok(());
    }
    let program = args.program.clone().map_or_else(build, Ok)?;
    let inference = |arguments: &[&str]| sh::run(sh::utf8(&program)?, arguments);
    if !events(&trained)?.iter().any(is_end) {
        let resume = trained.join("checkpoints").exists().then_some("--resume");
        let arguments = training(args, &base, &data, &trained)?;
        inference(&arguments.iter().map(String::as_str).chain(resume).collect::<Vec<_>>())?;
    }
    if args.until == Some(Stage::Training) {
        return Ok(());
    }
    for folder in [&fused, &quantised] {
        if folder.exists() {
            fs::remove_dir_all(folder)?;
        }
    }
    inference(&[
        "fuse",
        "--model",
        sh::utf8(&base)?,
        "--adapter",
        sh::utf8(&trained)?,
        "--output",
        sh::utf8(&fused)?,
    ])?;
    inference(&["convert", sh::utf8(&fused)?, sh::utf8(&quantised)?, "--bits", "8", "--group-size", "64"])?;
    let scores = score::score(&program, &quantised, &args.work)?;
    fs::create_dir_all(&args.out)?;
    for entry in fs::read_dir(&quantised)? {
        let entry = entry?;
        fs::copy(entry.path(), args.out.join(entry.file_name()))?;
    }
    fs::write(args.out.join("README.md"), card(args, &data, &trained, &scores)?)?;
    Ok(())
}

/// What the program is told for training: the whole of the model, from its random weights.
fn training(args: &Args, base: &Path, data: &Path, trained: &Path) -> Result<Vec<String>> {
    let paths = [sh::utf8(base)?, sh::utf8(data)?, sh::utf8(trained)?];
    let line = format!(
        "train --method full --mixed-precision --dropout 0.1 --learning-rate {} --schedule linear --warmup {} \
         --optimizer adamw --betas 0.9,0.99 --weight-decay 0.1 --clip 1 --steps {} --batch-size {} --batch-tokens {} \
         --max-length {} --evaluate-every {} --save-every {} --seed {}",
        args.learning_rate,
        (args.steps / 10).clamp(1, 500),
        args.steps,
        args.tokens,
        args.tokens,
        folder::CONTEXT,
        (args.steps / 16).max(1),
        (args.steps / 8).max(1),
        args.seed,
    );
    let named =
        ["--model", "--data", "--output"].into_iter().zip(paths).flat_map(|(name, path)| [name, path]);
    Ok(line.split_whitespace().chain(named).map(str::to_owned).collect())
}

/// Writes the data, and the tokenizer that was made for it.
fn write_data(args: &Args, data: &Path) -> Result<()> {
    let words = Words::load()?;
    let mut generator = Generator::new(&words, DATA_SEED);
    let turns: Vec<_> = (0..args.turns).map(|_| generator.turn()).collect();
    let texts = turns.iter().take(100_000).map(|turn| format!("{}\n{}", turn.user, turn.answer));
    let often: Vec<&str> = words.labels().chain(["system", "user", "assistant"]).collect();
    let tokenizer = folder::train_tokenizer(texts, &often)?;
    fs::create_dir_all(data)?;
    let tokens = rows::write(&data.join("train.jsonl"), &tokenizer, &turns, DATA_SEED)?;
    let validation: Vec<_> = (0..2000).map(|_| generator.turn()).collect();
    rows::write(&data.join("valid.jsonl"), &tokenizer, &validation, DATA_SEED)?;
    fs::write(data.join(TOKENS), tokens.to_string())?;
    eprintln!("{} turns, {tokens} tokens", turns.len());
    // Last: where it is, the rest is complete.
    folder::write_tokenizer(&tokenizer, &data.join(TOKENIZER))
}

fn build() -> Result<PathBuf> {
    sh::run(&sh::cargo(), ["build", "--release", "--package", "inferlm-cli"])?;
    Ok(sh::root().join("target/release/inference"))
}

/// The model's card: card.md, filled in.
fn card(args: &Args, data: &Path, trained: &Path, scores: &score::Scores) -> Result<String> {
    let events = events(trained)?;
    ensure!(events.iter().any(is_end), "the training did not end");
    let plan = events.iter().rev().find(|event| event["event"] == "started");
    let plan = plan.context("metrics.jsonl tells of no start")?;
    let weights = fs::metadata(args.out.join("model.safetensors"))?.len();
    let parameters = plan["trainable_parameters"].as_u64().unwrap_or_default();
    let tokens: u64 = fs::read_to_string(data.join(TOKENS))?.trim().parse()?;
    let filled = [
        ("parameters", thousands(parameters)),
        ("megabytes", format!("{:.1}", weights as f64 / 1e6)),
        ("labels", Words::load()?.labels().collect::<Vec<_>>().join(", ")),
        ("scores", scores.table()),
        ("steps", thousands(args.steps as u64)),
        ("tokens_per_step", thousands(args.tokens as u64)),
        ("seed", args.seed.to_string()),
        ("turns", thousands(args.turns as u64)),
        ("stream_tokens", thousands(tokens)),
    ];
    let card = include_str!("../../demo/card.md").to_owned();
    Ok(filled.iter().fold(card, |card, (name, value)| card.replace(&format!("{{{name}}}"), value)))
}

/// What the run that trained this tells in its metrics.jsonl; nothing where there is none.
fn events(trained: &Path) -> Result<Vec<Value>> {
    let path = trained.join("metrics.jsonl");
    if !path.exists() {
        return Ok(Vec::new());
    }
    Ok(fs::read_to_string(path)?.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
}

/// Whether all steps were done then.
fn is_end(event: &Value) -> bool {
    event["event"] == "finished" && event["reason"] == "completed"
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|g| std::str::from_utf8(g).ok()).collect();
    groups.join(",")
}
