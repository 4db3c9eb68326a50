//! The file of answers: prompts whose answers are in it are not asked again.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Read as _, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{render, rows::Row};

/// The longest file of answers, in bytes.
const LONGEST: u64 = 1 << 32;

/// The file of answers, locked.
#[derive(Debug)]
pub(super) struct Answers {
    path: PathBuf,
    file: File,
    /// The digest of each answered line of the prompts' file.
    digests: HashMap<usize, String>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    line: usize,
    digest: String,
    #[serde(default)]
    error: Option<Value>,
}

impl Answers {
    /// Opens or creates the file and locks it, so that no other run adds to it. Cuts off a last line that a killed program left
    /// unfinished. With `retry`, answers that are errors do not count.
    ///
    /// Fails if another run writes to the file, or if it holds answers to other prompts.
    pub(super) fn open(path: &Path, rows: &[Row], retry: bool) -> anyhow::Result<Self> {
        let name = render::path(path);
        let cannot = |what: &str| format!("cannot {what} {name}");
        // Appending: even without locks, which some filesystems lack, answers are not overwritten.
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let mut file = file.with_context(|| cannot("write"))?;
        let metadata = file.metadata().with_context(|| cannot("read"))?;
        ensure!(metadata.is_file(), "{name} is no regular file: name another --output");
        ensure!(metadata.len() <= LONGEST, "{name} has more than {LONGEST} bytes: name another --output");
        if matches!(file.try_lock(), Err(TryLockError::WouldBlock)) {
            bail!("another run writes to {name}: wait for it to end, or name another --output");
        }
        let mut text = String::new();
        file.read_to_string(&mut text).map_err(|error| match error.kind() {
            ErrorKind::InvalidData => anyhow::anyhow!("{name} is no text: name another --output"),
            _ => anyhow::Error::new(error).context(cannot("read")),
        })?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let digests = read(&text[..whole], rows, retry)
            .with_context(|| format!("{name} holds something else: name another --output, or remove it"))?;
        file.set_len(whole as u64).with_context(|| cannot("write"))?;
        Ok(Self { path: path.to_owned(), file, digests })
    }

    pub(super) fn has(&self, line: usize) -> bool {
        self.digests.contains_key(&line)
    }

    pub(super) fn len(&self) -> usize {
        self.digests.len()
    }

    /// Adds an answer, in one write, so that lines stay whole.
    pub(super) fn write(&mut self, row: &Row, answer: Value) -> anyhow::Result<()> {
        let mut line = json!({ "line": row.line });
        if let Some(id) = &row.id {
            line["id"] = id.clone();
        }
        line["digest"] = digest(&row.source).into();
        if let (Value::Object(line), Value::Object(answer)) = (&mut line, answer) {
            line.extend(answer);
        }
        let written = self.file.write_all(format!("{line}\n").as_bytes());
        written.with_context(|| format!("cannot write {}", render::path(&self.path)))
    }
}

fn read(text: &str, rows: &[Row], retry: bool) -> anyhow::Result<HashMap<usize, String>> {
    let expected: HashMap<usize, String> = rows.iter().map(|row| (row.line, digest(&row.source))).collect();
    let mut digests = HashMap::new();
    for (index, line) in text.lines().enumerate() {
        let answer: Answer =
            serde_json::from_str(line).with_context(|| format!("line {} is no answer", index + 1))?;
        if expected.get(&answer.line) != Some(&answer.digest) {
            bail!("line {} answers another prompt than line {} of the file", index + 1, answer.line);
        }
        if answer.error.is_some() && retry {
            continue;
        }
        digests.insert(answer.line, answer.digest);
    }
    Ok(digests)
}

/// Identifies the line that was answered (64-bit FNV-1a).
fn digest(text: &str) -> String {
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows;

    #[test]
    fn what_is_answered_is_known_and_half_a_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let (prompts, output) = (folder.path().join("p"), folder.path().join("a"));
        std::fs::write(&prompts, "one\n\ntwo\nthree\n").unwrap();
        let rows = rows::read(&prompts).unwrap();
        let mut answers = Answers::open(&output, &rows, false).unwrap();
        answers.write(&rows[0], json!({"text": "1"})).unwrap();
        answers.write(&rows[1], json!({"error": {"kind": "closed"}})).unwrap();
        drop(answers);
        let whole = std::fs::read_to_string(&output).unwrap();
        std::fs::write(&output, format!("{whole}{{\"line\": 4, \"dig")).unwrap();

        let answers = Answers::open(&output, &rows, false).unwrap();
        assert!(answers.has(1) && answers.has(3) && !answers.has(4));
        drop(answers);
        assert_eq!(std::fs::read_to_string(&output).unwrap(), whole);
        assert!(!Answers::open(&output, &rows, true).unwrap().has(3), "an error is asked again");
    }

    #[test]
    fn one_run_at_a_time_adds_answers() {
        let folder = tempfile::tempdir().unwrap();
        let (prompts, output) = (folder.path().join("p"), folder.path().join("a"));
        std::fs::write(&prompts, "one\ntwo\n").unwrap();
        let rows = rows::read(&prompts).unwrap();
        let mut first = Answers::open(&output, &rows, false).unwrap();
        first.write(&rows[0], json!({"text": "1"})).unwrap();
        let error = Answers::open(&output, &rows, false).unwrap_err().to_string();
        assert!(error.contains("another run writes to"), "{error}");
        first.write(&rows[1], json!({"text": "2"})).unwrap();
        drop(first);
        assert_eq!(Answers::open(&output, &rows, false).unwrap().len(), 2);
        assert!(Answers::open(folder.path(), &rows, false).is_err(), "a folder");
    }

    #[test]
    fn answers_to_other_prompts_are_not_mixed_in() {
        let folder = tempfile::tempdir().unwrap();
        let (prompts, output) = (folder.path().join("p"), folder.path().join("a"));
        std::fs::write(&prompts, "one\n").unwrap();
        let rows = rows::read(&prompts).unwrap();
        Answers::open(&output, &rows, false).unwrap().write(&rows[0], json!({"text": "1"})).unwrap();
        std::fs::write(&prompts, "changed\n").unwrap();
        let error = Answers::open(&output, &rows::read(&prompts).unwrap(), false).unwrap_err();
        assert!(format!("{error:#}").contains("answers another prompt"), "{error:#}");
        let error = Answers::open(&prompts, &rows, false).unwrap_err();
        assert!(format!("{error:#}").contains("line 1 is no answer"), "{error:#}");
    }
}
