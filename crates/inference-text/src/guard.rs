//! Checks of a tokenizer.json that nobody vouches for, before the `tokenizers` crate acts on it.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use inference_core::{Error, Result};
use serde::Deserialize;
use serde_json::Value;

/// The longest text that normalisation may make: it keeps some forty bytes about each.
const MAX_GROWN: usize = 64 << 20;

/// How long cutting a page of text may take, on a busy machine too.
const PROBE_TIME: Duration = Duration::from_secs(3);

/// How often a post-processor may put a text into its result; published ones do so once.
const MAX_COPIES: usize = 4;

/// The parts that say what is done to a text; vocabularies are skipped over.
#[derive(Deserialize)]
struct Shape {
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
}

/// How long a text of a given length may become: at most `factor` times as long and `constant` bytes more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Growth {
    factor: usize,
    constant: usize,
}

impl Growth {
    const NONE: Self = Self { factor: 1, constant: 0 };

    /// Whether a text of so many bytes stays within bounds.
    pub(crate) fn fits(self, bytes: usize) -> bool {
        bytes.saturating_mul(self.factor).saturating_add(self.constant) <= MAX_GROWN
    }

    fn times(factor: usize) -> Self {
        Self { factor, constant: 0 }
    }

    fn then(self, next: Self) -> Self {
        Self {
            factor: self.factor.saturating_mul(next.factor),
            constant: self.constant.saturating_mul(next.factor).saturating_add(next.constant),
        }
    }

    /// Of one step of tokenizer.json, or of a sequence of them.
    fn of(step: &Value) -> Self {
        if let Some(steps) = ["normalizers", "pretokenizers"].iter().find_map(|key| step.get(key)?.as_array())
        {
            return steps.iter().map(Self::of).fold(Self::NONE, Self::then);
        }
        let length = |key: &str| step.get(key).and_then(Value::as_str).map_or(0, str::len);
        match step.get("type").and_then(Value::as_str) {
            Some("Replace") => {
                let literal =
                    step.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
                // A regular expression may match nothing, between any two characters.
                let matched = literal.map_or(0, str::len);
                let content = length("content");
                match matched {
                    0 => Self { factor: content + 1, constant: content },
                    _ => Self::times(content.div_ceil(matched).max(1)),
                }
            }
            Some("Prepend") => Self { factor: 1, constant: length("prepend") },
            Some("ByteLevel") => Self { factor: 2, constant: 2 },
            Some("Metaspace") => Self { factor: 3, constant: 4 },
            // Unicode's own limits for UTF-8: 3 for the canonical forms, 11 for the compatibility forms.
            Some("NFC" | "NFD" | "Lowercase" | "BertNormalizer" | "StripAccents") => Self::times(3),
            Some("NFKC" | "NFKD" | "Precompiled" | "Nmt") => Self::times(11),
            _ => Self::NONE,
        }
    }
}

/// Cuts a page of text, with a limit on the time: a pattern may take as long for each letter as the regular expression
/// engine lets a match take, which for a long prompt is for ever. A sane tokenizer needs a millisecond.
///
/// # Errors
/// [`Error::InvalidModel`]: the time is up. The thread ends by itself, a minute later at worst.
pub(crate) fn probe(path: &Path, tokenizer: &Arc<tokenizers::Tokenizer>, growth: Growth) -> Result<()> {
    let words = "The quick brown fox's 1234 jumps -- over it!\n\tLet x = {}; \u{4f60}\u{597d}  ".repeat(16);
    let text = words + &" ".repeat(400) + &"a".repeat(400) + &"1".repeat(400);
    if !growth.fits(text.len()) {
        // No prompt of this length will be let through either.
        return Ok(());
    }
    let (done, wait) = mpsc::channel();
    let tokenizer = Arc::clone(tokenizer);
    let work = move || {
        // What it gives is of no interest here, and a panic is told when a real prompt meets it.
        let _ = catch_unwind(AssertUnwindSafe(|| tokenizer.encode_fast(text, false)));
        let _ = done.send(());
    };
    let thread = thread::Builder::new().name("tokenizer probe".to_owned()).spawn(work);
    thread.map_err(|source| Error::io("start a thread to probe", path, source))?;
    wait.recv_timeout(PROBE_TIME).map_err(|_| {
        let reason = format!(
            "takes more than {PROBE_TIME:?} to cut a page of text: its patterns backtrack without measure"
        );
        Error::invalid_key(path, "pre_tokenizer", reason)
    })
}

/// How often a post-processor puts the text into its result. Only templates for one text are used.
fn copies(step: &Value) -> usize {
    let items = |key: &str| step.get(key).and_then(Value::as_array).into_iter().flatten();
    let own = items("single").filter(|piece| piece.get("Sequence").is_some()).count().max(1);
    items("processors").map(copies).fold(own, usize::saturating_mul)
}

/// Checks the file; how much it may make a text grow.
///
/// # Errors
/// [`Error::InvalidModel`]: it is no tokenizer, or would multiply every text.
pub(crate) fn check(path: &Path, bytes: &[u8]) -> Result<Growth> {
    let shape: Shape = serde_json::from_slice(bytes)
        .map_err(|error| Error::invalid_file(path, format!("is no tokenizer: {error}")))?;
    let copies = copies(&shape.post_processor);
    if copies > MAX_COPIES {
        let reason = format!("repeats the text {copies} times, expected at most {MAX_COPIES}");
        return Err(Error::invalid_key(path, "post_processor", reason));
    }
    Ok(Growth::of(&shape.normalizer).then(Growth::of(&shape.pre_tokenizer)))
}
