//! The commands, a file each: `Args` is what the person types, `run` does it.

pub(crate) mod backends;
pub(crate) mod batch;
pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod classify;
#[cfg(feature = "metal")]
pub(crate) mod convert;
pub(crate) mod discover;
#[cfg(feature = "metal")]
pub(crate) mod dist;
pub(crate) mod embed;
pub(crate) mod estimate;
pub(crate) mod explain;
#[cfg(feature = "metal")]
pub(crate) mod fuse;
pub(crate) mod generate;
pub(crate) mod hub;
pub(crate) mod info;
pub(crate) mod parity;
pub(crate) mod rerank;
pub(crate) mod serve;
pub(crate) mod shell;
pub(crate) mod soak;
pub(crate) mod train;

use crate::text_input;

/// The prompt that was typed; all of stdin where that is `-`.
fn prompt_or_stdin(prompt: String) -> anyhow::Result<String> {
    if prompt != "-" {
        return Ok(prompt);
    }
    text_input::read_stdin()
}

/// Longest piece of a text that a table shows, in characters.
const SHOWN: usize = 60;

/// The text on one line, cut to what a table shows.
fn shortened(text: &str) -> String {
    let line: String = text.chars().map(|c| if c == '\n' { ' ' } else { c }).collect();
    if line.chars().count() <= SHOWN {
        return line;
    }
    line.chars().take(SHOWN - 1).chain(['…']).collect()
}

/// Parses a number of requests, tokens or trials: at least 1, and no more than fit into memory.
fn positive(text: &str) -> Result<usize, String> {
    const MOST: usize = 1_000_000;
    match text.parse() {
        Ok(0) => Err("expected at least 1".to_owned()),
        Ok(number) if number > MOST => Err(format!("expected at most {MOST}")),
        Ok(number) => Ok(number),
        Err(_) => Err("expected a whole number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shown_on_one_line_of_a_tables_width() {
        assert_eq!(shortened("a\nb"), "a b");
        let long = shortened(&"ü".repeat(100));
        assert_eq!((long.chars().count(), long.ends_with('…')), (SHOWN, true));
    }

    #[test]
    fn none_is_no_number_of_things() {
        assert!(
            positive("0").is_err() && positive("-1").is_err() && positive("18446744073709551615").is_err()
        );
        assert_eq!(positive("3"), Ok(3));
    }
}
