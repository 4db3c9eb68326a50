//! The commands, a file each: `Args` is what the person types, `run` does it.

pub(crate) mod backends;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod explain;
pub(crate) mod generate;
pub(crate) mod info;

use std::io::Read as _;

use anyhow::Context as _;

/// The prompt that was typed; all of stdin where that is `-`.
fn prompt_or_stdin(prompt: String) -> anyhow::Result<String> {
    if prompt != "-" {
        return Ok(prompt);
    }
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).context("cannot read the prompt from the input")?;
    Ok(text)
}
