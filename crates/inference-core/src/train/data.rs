//! Examples from JSON Lines, as mlx_lm reads them: every line is checked, and a bad one named, before anything is learnt.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    path::Path,
    sync::Arc,
};

use serde_json::{Map, Value};

use super::{Example, ExampleKind, ExampleSource, TokenExample, TrainingData, batches::Random};
use crate::{
    Error, Message, Result,
    files::{LFS_ADVICE, LFS_POINTER, open_regular, parse_strict},
};

/// The longest line, in bytes: some four million tokens, more than any context holds.
const LONGEST_LINE: u64 = 16 << 20;

/// What a line can be.
const FORMS: &str =
    "an object with `text`, with `prompt` and `completion`, with `messages`, or with `tokens`";

impl TrainingData {
    /// Reads a folder with `train.jsonl` and, for validation, `valid.jsonl`; or one file.
    ///
    /// `split` holds out that share of the examples for validation, drawn by the seed: of a file, or of a folder without
    /// `valid.jsonl`. A line is a text (`text`), a prompt and its answer (`prompt`, `completion`), or a conversation
    /// (`messages`), the last two perhaps with `tools`; or, beyond mlx_lm, token ids (`tokens`), of which the ranges
    /// `"learnt": [[from, to], …]` are learnt, or all. Other keys are ignored, and empty lines are skipped.
    ///
    /// # Errors
    /// [`Error::InvalidData`] names the file and line, with what was found and expected; [`Error::InvalidOption`] if `split` is
    /// not from 0 to less than 1, or there is `valid.jsonl`; [`Error::Io`] if a file is unreadable.
    pub fn read(path: impl AsRef<Path>, split: Option<f32>, seed: u64) -> Result<Self> {
        let path = path.as_ref();
        let invalid = |reason: String| Err(Error::invalid_option("split", reason));
        if let Some(share) = split.filter(|share| !(0.0..1.0).contains(share)) {
            return invalid(format!("{share}, expected from 0 to less than 1"));
        }
        let valid = path.join("valid.jsonl");
        let mut data = match (path.is_dir(), valid.exists()) {
            (true, true) if split.is_some() => {
                return invalid(format!("there is {}: leave it out, or that file", valid.display()));
            }
            (true, true) => Self::new(read_lines(&path.join("train.jsonl"))?, read_lines(&valid)?),
            (true, false) => Self::new(read_lines(&path.join("train.jsonl"))?, Vec::new()),
            (false, _) => Self::new(read_lines(path)?, Vec::new()),
        };
        if let Some(share) = split {
            data.hold_out(share, seed);
        }
        match (data.train.is_empty(), data.validation.is_empty()) {
            (true, false) => invalid("leaves no examples to learn from".to_owned()),
            (true, true) => {
                let reason = format!("holds no examples, expected {FORMS} on each line");
                Err(Error::invalid_data(path.display().to_string(), reason))
            }
            (false, _) => Ok(data),
        }
    }

    /// Moves a share of the training examples, drawn by the seed, to the validation examples; at least one.
    fn hold_out(&mut self, share: f32, seed: u64) {
        let count =
            (self.train.len() as f64 * f64::from(share)).round().max(f64::from(u8::from(share > 0.0)));
        let mut held = vec![false; self.train.len()];
        held.iter_mut().take(count as usize).for_each(|held| *held = true);
        Random::new(seed, u64::MAX).shuffle(&mut held);
        let mut held = held.into_iter();
        self.validation = self.train.extract_if(.., |_| held.next() == Some(true)).collect();
    }
}

fn read_lines(path: &Path) -> Result<Vec<Example>> {
    let at = |line: usize| ExampleSource::new(path, line);
    let invalid = |line: usize, reason: String| Err(Error::invalid_data(at(line).to_string(), reason));
    let file = open_regular(path).map_err(|error| match error {
        Error::InvalidModel { path, reason, .. } => Error::invalid_data(path.display().to_string(), reason),
        error => error,
    })?;
    let mut reader = BufReader::new(file.0);
    let (mut examples, mut bytes) = (Vec::new(), Vec::new());
    let shared: Arc<Path> = path.into();
    for number in 1.. {
        bytes.clear();
        let mut line = reader.by_ref().take(LONGEST_LINE + 1);
        let length = line.read_until(b'\n', &mut bytes).map_err(|source| Error::io("read", path, source))?;
        if length == 0 {
            break;
        }
        if length as u64 > LONGEST_LINE {
            return invalid(number, format!("has more than {LONGEST_LINE} bytes"));
        }
        let text = match std::str::from_utf8(&bytes) {
            // A byte order mark begins files that some editors write, and lines where such files were joined.
            Ok(text) => text.trim_start_matches('\u{feff}').trim(),
            Err(error) => return invalid(number, format!("is not UTF-8 at byte {}", error.valid_up_to())),
        };
        if number == 1 && text.starts_with(LFS_POINTER) {
            return invalid(number, LFS_ADVICE.to_owned());
        }
        if text.is_empty() {
            continue;
        }
        match parse(text) {
            Ok(kind) => {
                let source = Some(ExampleSource::new(Arc::clone(&shared), number));
                examples.push(Example { kind, source });
            }
            Err(reason) => return invalid(number, reason),
        }
    }
    Ok(examples)
}

/// What a line says; `prompt` and `completion` go before `messages`, and that before `text`, as in mlx_lm.
fn parse(line: &str) -> Result<ExampleKind, String> {
    let value = parse_strict(line, LONGEST_LINE).map_err(|error| {
        // serde_json counts lines within the one that it was given.
        let reason = error.to_string();
        let column = error.column();
        format!("is not JSON at column {column}: {}", reason.split(" at line ").next().unwrap_or_default())
    })?;
    let Value::Object(mut object) = value else {
        return Err(format!("is {}, expected {FORMS}", kind(&value)));
    };
    if object.contains_key("prompt") && object.contains_key("completion") {
        let completion = string(&object, "completion")?;
        if completion.is_empty() {
            return Err("`completion` is empty, expected the answer to learn".to_owned());
        }
        Ok(ExampleKind::Completion {
            prompt: string(&object, "prompt")?,
            completion,
            tools: tools(&mut object)?,
        })
    } else if let Some(messages) = object.remove("messages") {
        Ok(ExampleKind::Chat { messages: conversation(messages)?, tools: tools(&mut object)? })
    } else if object.contains_key("text") {
        let text = string(&object, "text")?;
        if text.is_empty() {
            Err("`text` is empty, expected one to learn".to_owned())
        } else {
            Ok(ExampleKind::Text(text))
        }
    } else if let Some(ids) = object.remove("tokens") {
        Ok(ExampleKind::Tokens(tokens(ids, object.remove("learnt"))?))
    } else if let Some(one) = ["prompt", "completion"].into_iter().find(|key| object.contains_key(*key)) {
        let other = if one == "prompt" { "completion" } else { "prompt" };
        Err(format!("has `{one}`, but no `{other}`"))
    } else {
        let keys: Vec<_> = object.keys().take(8).map(|key| format!("`{key}`")).collect();
        let found = if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") };
        Err(format!("is an object with {found}, expected {FORMS}"))
    }
}

fn string(object: &Map<String, Value>, key: &str) -> Result<String, String> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text.clone()),
        Some(other) => Err(format!("`{key}` is {}, expected a string", kind(other))),
        None => Err(format!("has no `{key}`")),
    }
}

fn conversation(value: Value) -> Result<Vec<Message>, String> {
    let Value::Array(values) = value else {
        return Err(format!("`messages` is {}, expected a list of messages", kind(&value)));
    };
    if values.is_empty() {
        return Err("`messages` is empty, expected a conversation".to_owned());
    }
    let message = |(at, mut value): (usize, Value)| {
        let wrong = |reason: String| format!("`messages[{at}]` {reason}");
        let expected = "expected an object with `role` and `content`";
        let Some(object) = value.as_object_mut() else {
            return Err(wrong(format!("is {}, {expected}", kind(&value))));
        };
        if !object.contains_key("role") {
            return Err(wrong(format!("has no `role`, {expected}")));
        }
        match object.get("content") {
            // `Message` says which parts of a list it reads.
            Some(Value::String(_) | Value::Array(_)) => {}
            // An answer of calls alone has no content.
            None | Some(Value::Null) if object.contains_key("tool_calls") => {
                object.remove("content");
            }
            None => return Err(wrong(format!("has no `content`, {expected}"))),
            Some(other) => {
                return Err(wrong(format!("has a `content` of {}, expected a string", kind(other))));
            }
        }
        serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
    };
    values.into_iter().enumerate().map(message).collect()
}

fn tokens(ids: Value, learnt: Option<Value>) -> Result<TokenExample, String> {
    let ids: Vec<u32> = serde_json::from_value(ids).map_err(|error| format!("`tokens`: {error}"))?;
    let Some(learnt) = learnt else { return Ok(TokenExample::from_answer(ids, 0)) };
    let ranges: Vec<[usize; 2]> = serde_json::from_value(learnt)
        .map_err(|error| format!("`learnt`: {error}, expected [[from, to], …]"))?;
    let mut mask = vec![false; ids.len()];
    for [from, to] in ranges {
        match mask.get_mut(from..to) {
            Some(range) => range.fill(true),
            None => {
                return Err(format!(
                    "`learnt` holds [{from}, {to}], expected a range of {} tokens",
                    ids.len()
                ));
            }
        }
    }
    TokenExample::new(ids, mask).map_err(|error| error.to_string())
}

fn tools(object: &mut Map<String, Value>) -> Result<Option<Arc<[Value]>>, String> {
    match object.remove("tools") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Array(tools)) if tools.iter().all(Value::is_object) => Ok(Some(tools.into())),
        Some(Value::Array(tools)) => {
            let other = tools.iter().find(|tool| !tool.is_object()).map_or("nothing", kind);
            Err(format!("`tools` holds {other}, expected objects"))
        }
        Some(other) => Err(format!("`tools` is {}, expected a list of objects", kind(&other))),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
