//! Rows to learn from: stretches of a long conversation, as tokens, in which every answer is learnt.

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
};

use anyhow::{Result, anyhow};
use serde_json::json;
use tokenizers::Tokenizer;

use super::{
    folder::{CONTEXT, END, START},
    generator::Turn,
    random::Random,
};

/// (tokens of a row, share of all tokens). Rows begin with a new conversation: short rows teach the first answer, long ones that
/// an answer does not depend on what came before, over the whole context.
const ROWS: [(usize, f64); 3] = [(64, 0.4), (256, 0.35), (CONTEXT, 0.25)];

/// Turns that are tokenised at once.
const CHUNK: usize = 50_000;

/// Writes rows of the turns, in order, and returns the number of their tokens.
pub(super) fn write(path: &Path, tokenizer: &Tokenizer, turns: &[Turn], seed: u64) -> Result<usize> {
    let mut random = Random::new(seed);
    let mut file = BufWriter::new(File::create(path)?);
    let lengths = ROWS.map(|(length, share)| (length, share / length as f64));
    let (mut tokens, mut learnt, mut written) = (Vec::new(), Vec::new(), 0);
    let mut wanted = random.weighted(&lengths);
    for chunk in turns.chunks(CHUNK) {
        let parts: Vec<String> = chunk.iter().flat_map(parts).collect();
        let encoded =
            tokenizer.encode_batch_fast(parts, false).map_err(|error| anyhow!("a turn: {error}"))?;
        for turn in encoded.chunks(2) {
            let [given, answer] = turn else { continue };
            tokens.extend_from_slice(given.get_ids());
            let from = tokens.len();
            tokens.extend_from_slice(answer.get_ids());
            // The line break after the answer is the template's.
            learnt.push([from, tokens.len() - 1]);
            if tokens.len() >= wanted {
                tokens.truncate(wanted);
                learnt.retain_mut(|[from, to]| {
                    *to = (*to).min(wanted);
                    from < to
                });
                if !learnt.is_empty() {
                    serde_json::to_writer(&mut file, &json!({"tokens": tokens, "learnt": learnt}))?;
                    file.write_all(b"\n")?;
                    written += tokens.len();
                }
                tokens.clear();
                learnt.clear();
                wanted = random.weighted(&lengths);
            }
        }
    }
    file.flush()?;
    Ok(written)
}

/// What is given and what is answered, as the chat template writes them.
fn parts(turn: &Turn) -> [String; 2] {
    let system =
        turn.system.as_ref().map(|system| format!("{START}system\n{system}{END}\n")).unwrap_or_default();
    [
        format!("{system}{START}user\n{}{END}\n{START}assistant\n", turn.user),
        format!("{}{END}\n", turn.answer),
    ]
}
