//! The model: a row of logits for each character, read from a folder or counted from a text.

use std::{collections::BTreeSet, fs, path::Path};

use inference_core::{Dtype, Error, ModelManifest, Result};
use serde::Deserialize;
use serde_json::json;

/// The id of the end of a text.
pub const END: u32 = 0;
/// The id of every character that the counted text did not have.
pub const UNKNOWN: u32 = 1;

const TENSOR: &str = "follows";
/// The largest table that is read: a character set has no use for more.
const MOST_CHARACTERS: usize = 4096;

/// What follows what.
#[derive(Debug)]
pub struct Table {
    characters: Vec<char>,
    /// `logits[before * V + after]`.
    logits: Vec<f32>,
}

#[derive(Deserialize)]
struct Config {
    vocab_size: usize,
    vocabulary: String,
}

impl Table {
    // ANCHOR: read
    /// Reads the table of a folder: `vocabulary` of config.json, and the tensor `follows` of `[vocab_size, vocab_size]`.
    ///
    /// # Errors
    /// The file, and the key or tensor at fault, with what was found and what was expected.
    pub fn read(model: &ModelManifest) -> Result<Self> {
        let config: Config = model.parse_config()?;
        let characters: Vec<char> = config.vocabulary.chars().collect();
        let count = characters.len();
        if config.vocab_size != count || !(2..=MOST_CHARACTERS).contains(&count) {
            let reason = format!("{}, expected that of `vocabulary`, which is {count}", config.vocab_size);
            return Err(Error::invalid_key(model.config_path(), "vocab_size", reason));
        }
        let Some(tensor) = model.tensors().get(TENSOR) else {
            return Err(Error::invalid_key(&model.files()[0], TENSOR, "is missing"));
        };
        let file = &model.files()[tensor.file];
        let found = (tensor.dtype, &tensor.shape[..]);
        if found != (Dtype::F32, &[count; 2]) {
            let reason = format!("{found:?}, expected F32 of [{count}, {count}]");
            return Err(Error::invalid_key(file, TENSOR, reason));
        }
        let bytes = model.read_tensor(tensor)?;
        let logits: Vec<f32> = bytes.as_chunks().0.iter().map(|chunk| f32::from_le_bytes(*chunk)).collect();
        if let Some(at) = logits.iter().position(|logit| !logit.is_finite()) {
            return Err(Error::invalid_key(file, TENSOR, format!("element {at} is not a finite number")));
        }
        Ok(Self { characters, logits })
    }
    // ANCHOR_END: read

    /// Counts a text, in which each line is a text of its own. A logit is the logarithm of a count; what was never seen counts
    /// as a fiftieth.
    #[must_use]
    pub fn count(text: &str) -> Self {
        let seen: BTreeSet<char> = text.chars().filter(|c| *c != '\n').collect();
        let characters: Vec<char> = ['\u{3}', '\u{fffd}'].into_iter().chain(seen).collect();
        let mut table = Self { logits: vec![0.02; characters.len().pow(2)], characters };
        for line in text.lines().filter(|line| !line.is_empty()) {
            let mut before = END;
            for after in table.ids(line).into_iter().chain([END]) {
                let at = table.at(before, after);
                table.logits[at] += 1.0;
                before = after;
            }
        }
        table.logits.iter_mut().for_each(|count| *count = count.ln());
        table
    }

    /// Writes the table as a model's folder.
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn write(&self, folder: &Path) -> std::io::Result<()> {
        let (count, length) = (self.characters.len(), self.logits.len() * 4);
        let tensor = json!({"dtype": "F32", "shape": [count, count], "data_offsets": [0, length]});
        let header = json!({TENSOR: tensor}).to_string();
        let mut bytes = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
        bytes.extend(self.logits.iter().flat_map(|logit| logit.to_le_bytes()));
        let config = json!({
            "model_type": crate::ID,
            "vocab_size": count,
            "vocabulary": self.characters.iter().collect::<String>(),
            "eos_token_id": END,
            "max_position_embeddings": 1 << 15,
        });
        fs::create_dir_all(folder)?;
        fs::write(folder.join("config.json"), format!("{config:#}\n"))?;
        fs::write(folder.join("model.safetensors"), bytes)
    }

    /// Ids of a text; characters that the table does not have are [`UNKNOWN`].
    #[must_use]
    pub fn ids(&self, text: &str) -> Vec<u32> {
        let id = |c| self.characters.iter().position(|known| *known == c).map_or(UNKNOWN, |id| id as u32);
        text.chars().map(id).collect()
    }

    /// The text of an id; none for the end.
    #[must_use]
    pub fn text(&self, id: u32) -> String {
        if id == END { String::new() } else { self.characters[id as usize].to_string() }
    }

    /// The logits of what follows `before`, one for each character.
    #[must_use]
    pub fn row(&self, before: u32) -> &[f32] {
        &self.logits[self.at(before, 0)..][..self.len()]
    }

    /// Characters that the table knows.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the end and the unknown are always there")]
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    fn at(&self, before: u32, after: u32) -> usize {
        before as usize * self.len() + after as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_comes_back() {
        let folder = tempfile::tempdir().unwrap();
        let counted = Table::count("abab\nac\n");
        counted.write(folder.path()).unwrap();
        let read = Table::read(&ModelManifest::read(folder.path()).unwrap()).unwrap();
        assert_eq!((&read.characters, &read.logits), (&counted.characters, &counted.logits));
        let [end, a, b] = ["", "a", "b"].map(|text| read.ids(text).first().copied().unwrap_or(END));
        assert!((read.row(a)[b as usize] - 2.02_f32.ln()).abs() < 1e-6);
        assert!((read.row(end)[a as usize] - 2.02_f32.ln()).abs() < 1e-6);
        assert_eq!(read.ids("a?"), [a, UNKNOWN]);
    }
}
