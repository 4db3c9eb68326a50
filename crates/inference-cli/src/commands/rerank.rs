//! `inference rerank`: how relevant documents are to a query.

use std::{path::PathBuf, process::ExitCode};

use comfy_table::Cell;
use inference::{Relevance, RerankOptions};
use serde_json::json;

use crate::{
    commands::shortened,
    failure::Usage,
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
    text_input,
};

/// Order documents by how relevant they are to a query, with a model that reads both together
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference rerank --model ~/models/bge-reranker-base 'where do cats sleep' 'On roofs.' 'The price of tin.'
  inference rerank --model ~/models/Qwen3-Reranker-0.6B --top-n 5 --json 'where do cats sleep' - < documents.txt")]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// The query
    #[arg(value_name = "QUERY")]
    query: String,

    /// The documents; - reads one from each line of stdin
    #[arg(value_name = "DOCUMENT", required = true)]
    documents: Vec<String>,

    /// What makes a document relevant, for models that read it (Qwen3-Reranker)
    #[arg(long, value_name = "TEXT")]
    instruction: Option<String>,

    /// Cut documents that are too long for the model
    #[arg(long)]
    truncate: bool,

    /// Scores are the model's logits, and not numbers between 0 and 1
    #[arg(long)]
    raw: bool,

    /// Print so many of the most relevant documents
    #[arg(long, value_name = "N", value_parser = super::positive)]
    top_n: Option<usize>,

    #[command(flatten)]
    load: LoadArgs,

    /// Print JSON Lines, the most relevant document first
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let documents = documents(&args.documents)?;
    let options = RerankOptions::new().raw(args.raw).truncate(args.truncate).cancel(scope.token());
    let options = match &args.instruction {
        Some(instruction) => options.instruction(instruction),
        None => options,
    };
    let path = model::or_demo(args.model.as_ref())?;
    let model = model::load(&path, &args.load, scope.token(), args.quiet || args.json).await?;
    let (query, texts) = (args.query.clone(), documents.clone());
    let scores = model::using(model, async |model| Ok(model.rerank(query, texts, options).await?)).await?;
    let order = ranked(&scores);
    let order = &order[..order.len().min(args.top_n.unwrap_or(usize::MAX))];
    let mut out = Out::new();
    if args.json {
        for index in order {
            let Relevance { score, prompt_tokens, .. } = scores[*index];
            let document = &documents[*index];
            out.json(
                &json!({"index": index, "score": score, "tokens": prompt_tokens, "document": document}),
            )?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = render::table(&["score", "document"]);
    for index in order {
        let document = Cell::new(render::harmless(&shortened(&documents[*index])));
        table.add_row([render::right(format!("{:.4}", scores[*index].score)), document]);
    }
    out.table(&table)?;
    Ok(ExitCode::SUCCESS)
}

/// The documents that were typed, and those of stdin's lines.
fn documents(given: &[String]) -> anyhow::Result<Vec<String>> {
    let mut documents = Vec::new();
    for document in given {
        if document == "-" {
            let text = text_input::read_stdin()?;
            let lines = text.lines().map(text_input::without_mark).filter(|line| !line.trim().is_empty());
            documents.extend(lines.map(str::to_owned));
        } else {
            documents.push(document.clone());
        }
    }
    if documents.is_empty() {
        return Err(Usage("there is nothing to rank: stdin has no lines".to_owned()).into());
    }
    Ok(documents)
}

/// The documents' indices, the most relevant first; of equals the first.
fn ranked(scores: &[Relevance]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].score.total_cmp(&scores[*a].score));
    order
}
