//! `inference estimate`: the memory that a model needs, and whether it is there.

use std::{path::PathBuf, process::ExitCode};

use inference::{
    KvBits,
    manifest::{MemoryEstimate, ModelManifest},
};
use inference_core::backend::free_memory;
use serde::Serialize;

use crate::{
    failure::Usage,
    model,
    options::{ByteSize, kv_bits},
    render::{self, Out},
};

/// Estimate the memory that a model needs; fails where there is less
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Counted are the weights as stored, and the keys and values of every layer with a full context. Activations and the \
engine's own needs come on top: leave a margin.

Examples:
  inference estimate ~/models/Qwen3-8B
  inference estimate ~/models/Qwen3-8B --context-length 32768 --batch 8 --memory 24GB"
)]
pub(crate) struct Args {
    /// The model's folder
    path: PathBuf,

    /// Tokens of prompt and answer together [default: the model's own]
    #[arg(long, value_name = "TOKENS")]
    context_length: Option<usize>,

    /// Requests that run at once
    #[arg(long, value_name = "REQUESTS", default_value_t = 1)]
    batch: usize,

    /// Quantise the KV cache to 8 or 4 bits [default: not quantised]
    #[arg(long, value_name = "BITS", value_parser = kv_bits)]
    kv_bits: Option<KvBits>,

    /// Memory to fit into, such as 24GB [default: what this machine has free]
    #[arg(long, value_name = "SIZE")]
    memory: Option<ByteSize>,

    /// Print a JSON object
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    weight_bytes: u64,
    kv_bytes: u64,
    total_bytes: u64,
    context_length: usize,
    batch: usize,
    available_bytes: Option<u64>,
    fits: Option<bool>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let manifest = ModelManifest::read(model::find(&args.path)?)?;
    let Some(context) = args.context_length.map_or_else(|| manifest.context_length(), |n| Ok(Some(n)))?
    else {
        let message = "config.json does not say how long the model's context is: give --context-length";
        return Err(Usage(message.to_owned()).into());
    };
    let estimate = manifest.estimate(context, args.batch, args.kv_bits)?;
    let available = args.memory.map(|size| size.0).or_else(memory);
    let report = Report::new(&estimate, context, args.batch, available);
    let mut out = Out::new();
    if args.json {
        out.json(&report)?;
    } else {
        out.table(&render::facts(report.rows()))?;
    }
    if let Some(available) = available {
        estimate.check(available)?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Report {
    fn new(estimate: &MemoryEstimate, context_length: usize, batch: usize, available: Option<u64>) -> Self {
        Self {
            weight_bytes: estimate.weight_bytes,
            kv_bytes: estimate.kv_bytes,
            total_bytes: estimate.total_bytes(),
            context_length,
            batch,
            available_bytes: available,
            fits: available.map(|available| estimate.check(available).is_ok()),
        }
    }

    fn rows(&self) -> [(&'static str, String); 4] {
        let requests = render::things(self.batch, "request");
        [
            ("weights", render::bytes(self.weight_bytes)),
            (
                "keys and values",
                format!("{} for {requests} of {} tokens", render::bytes(self.kv_bytes), self.context_length),
            ),
            ("together", render::bytes(self.total_bytes)),
            ("available", self.available_bytes.map_or_else(|| "not known".to_owned(), render::bytes)),
        ]
    }
}

/// The memory available on this machine, if it can be read: free memory on Linux, all memory on other systems.
fn memory() -> Option<u64> {
    free_memory().or_else(all_memory)
}

#[cfg(unix)]
fn all_memory() -> Option<u64> {
    // SAFETY: `sysconf` reads system constants by number and has no other effect; −1 means that one is not known.
    let [pages, size] = [libc::_SC_PHYS_PAGES, libc::_SC_PAGESIZE].map(|name| unsafe { libc::sysconf(name) });
    u64::try_from(pages).ok()?.checked_mul(u64::try_from(size).ok()?)
}

#[cfg(not(unix))]
fn all_memory() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_memory() {
        assert!(memory().is_some_and(|bytes| bytes > 1 << 20));
    }
}
