//! User input: files of prompts and tools, and standard input.
//!
//! A byte order mark is left out and CRLF line ends become LF, as Windows programs write them. Other encodings are refused by name.

use std::{fs::File, io::Read, path::Path};

use anyhow::Context as _;

use crate::{failure::Usage, render};

/// The longest text that is read, in bytes.
const LONGEST: u64 = 1 << 30;

/// What some editors write at the start of a file.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads a file, which may be a pipe.
pub(crate) fn read_file(path: &Path) -> anyhow::Result<String> {
    let context = || format!("cannot read {}", render::path(path));
    let file = File::open(path).with_context(context)?;
    let length = file.metadata().with_context(context)?.len();
    if length > LONGEST {
        let message = format!("{} has {length} bytes, expected at most {LONGEST}", render::path(path));
        return Err(Usage(message).into());
    }
    read(file, &render::path(path)).with_context(context)?.map_err(|reason| Usage(reason).into())
}

/// Reads all of the standard input.
pub(crate) fn read_stdin() -> anyhow::Result<String> {
    let text = read(std::io::stdin().lock(), "the standard input").context("cannot read the input")?;
    text.map_err(|reason| Usage(reason).into())
}

/// A line without the byte order mark that files keep when they are joined.
pub(crate) fn without_mark(line: &str) -> &str {
    line.trim_start_matches(BYTE_ORDER_MARK)
}

/// Reads UTF-8 text from `reader`. The inner error says why it is not text; `name` is for its message.
fn read(reader: impl Read, name: &str) -> std::io::Result<Result<String, String>> {
    let mut bytes = Vec::new();
    reader.take(LONGEST + 1).read_to_end(&mut bytes)?;
    Ok(decode(bytes).map_err(|reason| format!("{name} {reason}")))
}

fn decode(bytes: Vec<u8>) -> Result<String, String> {
    if bytes.len() as u64 > LONGEST {
        return Err(format!("has more than {LONGEST} bytes"));
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err("is UTF-16: save it as UTF-8".to_owned());
    }
    let text = String::from_utf8(bytes)
        .map_err(|error| format!("is not UTF-8 at byte {}", error.utf8_error().valid_up_to()))?;
    let text = match text.strip_prefix(BYTE_ORDER_MARK) {
        Some(rest) => rest.to_owned(),
        None => text,
    };
    Ok(if text.contains("\r\n") { text.replace("\r\n", "\n") } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_and_line_ends_of_windows_are_left_out() {
        let text = |bytes: &[u8]| decode(bytes.to_vec());
        assert_eq!(text("\u{feff}a\r\nü\r\n\nb".as_bytes()).unwrap(), "a\nü\n\nb");
        assert_eq!(text(b"a\n").unwrap(), "a\n");
        assert!(text(b"\xff\xfea\0").unwrap_err().contains("UTF-16"));
        assert!(text(b"ab\xff").unwrap_err().contains("not UTF-8 at byte 2"));
        assert_eq!(without_mark("\u{feff}\u{feff}a"), "a");
    }
}
