//! Where a run keeps what it needs to go on, and whether another may go on from it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Schedule, TokenExample, TrainOptions};
use crate::{Error, Result, files::read_json};

/// The folder of checkpoints in a run's output.
const CHECKPOINTS: &str = "checkpoints";

/// The state's name in a checkpoint's folder.
const STATE: &str = "state.json";

/// The longest state.json, in bytes; it has a list of layers, written by a person, in it.
const LONGEST_STATE: u64 = 1 << 20;

/// The format's version.
const VERSION: u32 = 1;

/// The options that a resumed run may have otherwise: they do not change what is learnt.
const FREE: &[&str] = &["gradient_checkpointing", "evaluate_every", "validation_batches", "save_every"];

/// state.json of a checkpoint: how far the run was, and what run it was.
///
/// A run's output holds its newest adapter and, in `checkpoints/0000100`, what it was after step 100: the adapter, the
/// optimiser's state and this.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrainState {
    version: u32,
    /// Steps done.
    pub step: usize,
    /// Tokens learnt in them.
    pub tokens: u64,
    /// [`TrainOptions`] of the run.
    options: Map<String, Value>,
    /// The [`fingerprint`](Self::fingerprint) of its examples.
    data: String,
}

impl TrainState {
    /// The state after `step` steps, which learnt `tokens` tokens of the examples with this fingerprint.
    ///
    /// # Errors
    /// The options cannot be written as JSON.
    pub fn new(step: usize, tokens: u64, options: &TrainOptions, data: &str) -> Result<Self> {
        Ok(Self { version: VERSION, step, tokens, options: as_json(options)?, data: data.to_owned() })
    }

    /// A hash of the run's examples: their tokens, in order, and which of them are learnt.
    #[must_use]
    pub fn fingerprint(examples: &[TokenExample]) -> String {
        // FNV-1a: the same in every version, and nobody gains by a collision.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let mut add = |value: u64| hash = (hash ^ value).wrapping_mul(0x0100_0000_01b3);
        for example in examples {
            add(example.tokens.len() as u64);
            for (token, learnt) in example.tokens.iter().zip(&example.learnt) {
                add(u64::from(*token) << 1 | u64::from(*learnt));
            }
        }
        format!("{}:{hash:016x}", examples.len())
    }

    /// The folder of the checkpoint after `step` steps.
    #[must_use]
    pub fn folder(output: &Path, step: usize) -> PathBuf {
        output.join(CHECKPOINTS).join(format!("{step:07}"))
    }

    /// The newest checkpoint of a run, with its folder; `None` where there is none.
    ///
    /// # Errors
    /// As [`read`](Self::read); the folder cannot be listed.
    pub fn latest(output: &Path) -> Result<Option<(PathBuf, Self)>> {
        let folder = output.join(CHECKPOINTS);
        let entries = match fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(Error::io("list", folder, source)),
        };
        let steps = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<usize>().ok());
        let Some(step) = steps.max() else { return Ok(None) };
        let newest = Self::folder(output, step);
        let state = Self::read(&newest)?;
        Ok(Some((newest, state)))
    }

    /// Reads state.json of a checkpoint.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key that is missing or makes no sense; [`Error::Io`] if the file is unreadable.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(STATE);
        let state: Self = read_json(&path, LONGEST_STATE)?;
        if state.version != VERSION {
            let reason =
                format!("is {}, expected {VERSION}: another version of this program wrote it", state.version);
            return Err(Error::invalid_key(path, "version", reason));
        }
        Ok(state)
    }

    /// Writes state.json into a checkpoint.
    ///
    /// # Errors
    /// [`Error::Io`]: the file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join(STATE);
        let text =
            serde_json::to_string_pretty(self).map_err(|error| Error::io("write", &path, error.into()))?;
        fs::write(&path, text + "\n").map_err(|source| Error::io("write", path, source))
    }

    /// Whether a run with these options and examples can go on from here as if it had never stopped. A constant rate can go on
    /// for longer; how often is validated and saved may change.
    ///
    /// # Errors
    /// [`Error::InvalidOption`] names the option that differs, or `data`.
    pub fn check(&self, options: &TrainOptions, data: &str) -> Result<()> {
        let differs = |option, reason| Err(Error::invalid_option(option, reason));
        if self.data != data {
            let reason = "resumes a run on other examples: give the same data, or another output".to_owned();
            return differs("data", reason);
        }
        let longer = options.schedule == Schedule::Constant;
        for (name, value) in as_json(options)? {
            let free = FREE.contains(&name.as_str()) || (longer && name == "length");
            let was = self.options.get(&name);
            if !free && was != Some(&value) {
                let was = was.map_or_else(|| "nothing".to_owned(), Value::to_string);
                let reason = format!("{name} is {value}, the run that it goes on with had {was}");
                return differs("resume", reason);
            }
        }
        Ok(())
    }
}

/// By way of the text, which has the shortest digits of an `f32`.
fn as_json(options: &TrainOptions) -> Result<Map<String, Value>> {
    let text = serde_json::to_string(options);
    text.and_then(|text| serde_json::from_str(&text)).map_err(|error| {
        let reason = format!("the options cannot be written as JSON: {error}");
        Error::invalid_option("resume", reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Method;

    #[test]
    fn the_newest_checkpoint_is_found_and_the_same_run_goes_on() {
        let output = tempfile::tempdir().unwrap();
        let options = TrainOptions::new(output.path()).steps(10).learning_rate(0.3);
        assert_eq!(TrainState::latest(output.path()).unwrap(), None);
        let data = TrainState::fingerprint(&[TokenExample::from_answer(vec![1, 2, 3], 1)]);
        for step in [5, 10] {
            let folder = TrainState::folder(output.path(), step);
            fs::create_dir_all(&folder).unwrap();
            TrainState::new(step, 7, &options, &data).unwrap().write(&folder).unwrap();
        }
        fs::create_dir_all(output.path().join("checkpoints/0000011.partial")).unwrap();
        let (folder, state) = TrainState::latest(output.path()).unwrap().unwrap();
        assert_eq!((folder, state.step, state.tokens), (TrainState::folder(output.path(), 10), 10, 7));

        state.check(&options, &data).unwrap();
        state.check(&options.clone().steps(20).save_every(1).resume(true), &data).unwrap();
        let refused =
            |options: TrainOptions, data: &str| state.check(&options, data).unwrap_err().to_string();
        let other = TrainState::fingerprint(&[TokenExample::from_answer(vec![1, 2, 3], 2)]);
        assert!(refused(options.clone(), &other).starts_with("option data:"));
        let method = refused(options.clone().method(Method::dora()), &data);
        assert!(method.contains("method is {\"type\":\"dora\""), "{method}");
        assert!(
            refused(options.clone().seed(1), &data).contains("seed is 1, the run that it goes on with had 0")
        );
        assert!(refused(options.schedule(Schedule::Linear, 0), &data).contains("schedule is"));
    }
}
