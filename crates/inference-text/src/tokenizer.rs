//! A model folder's tokenizer and its special tokens.

use std::{
    collections::BTreeMap,
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::Arc,
};

use inference_core::{
    Error, Result,
    backend::{read_json, read_regular},
};
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::{
    Detokenizer, MAX_TEXT_BYTES,
    guard::{self, Growth},
    pieces::{Piece, Pieces},
};

/// tokenizer.json: twice the largest published one (Gemma 3's, 33 MB). Read, it takes about ten times its size.
const MAX_TOKENIZER_JSON: u64 = 64 << 20;
/// The other files: Gemma 3's tokenizer_config.json has 1.2 MB.
pub(crate) const MAX_CONFIG_JSON: u64 = 16 << 20;

/// A model's tokenizer: text to ids and back, and which ids are special.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    pieces: Arc<Pieces>,
    special: SpecialTokens,
    bos: Option<u32>,
    eos: Vec<u32>,
    growth: Growth,
    path: PathBuf,
}

/// The tokens that a model folder gives a name, as chat templates see them: `bos_token`, `eos_token`, `pad_token`, ….
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    named: BTreeMap<String, String>,
    additional: Vec<String>,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("eos", &self.eos).finish_non_exhaustive()
    }
}

impl SpecialTokens {
    /// The text of a named token: `get("bos_token")`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.named.get(name).map(String::as_str)
    }

    /// All named tokens with their texts.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.named.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }

    /// Further special tokens, which have no name.
    #[must_use]
    pub fn additional(&self) -> &[String] {
        &self.additional
    }

    /// Adds what a configuration file names; what is known already stays.
    fn merge(&mut self, config: &Map<String, Value>) {
        for (name, value) in config {
            // A token is its text, or an object with the text and how it is matched.
            let text = value.as_str().or_else(|| value.get("content")?.as_str());
            if let Some(text) = text.filter(|_| name.ends_with("_token")) {
                self.named.entry(name.clone()).or_insert_with(|| text.to_owned());
            }
        }
        if let Some(tokens) = config.get("additional_special_tokens").and_then(Value::as_array)
            && self.additional.is_empty()
        {
            let text =
                |token: &Value| Some(token.as_str().or_else(|| token.get("content")?.as_str())?.to_owned());
            self.additional = tokens.iter().filter_map(text).collect();
        }
    }
}

impl Tokenizer {
    /// Reads the tokenizer of a model folder: tokenizer.json; tokenizer_config.json and special_tokens_map.json for special
    /// tokens; generation_config.json and config.json for the ids that begin and end a text.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the file that is missing, too large, or not what a tokenizer needs.
    pub fn load(folder: &Path) -> Result<Self> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            let hint = if folder.join("tokenizer.model").exists() {
                "is missing; tokenizer.model alone is not read: save the tokenizer with transformers, which writes tokenizer.json"
            } else {
                "is missing; a model needs its tokenizer beside the weights"
            };
            return Err(Error::invalid_file(path, hint));
        }
        let bytes = read_regular(&path, MAX_TOKENIZER_JSON)?;
        let config = config_of(folder, "tokenizer_config.json")?;
        let mut special = SpecialTokens::default();
        special.merge(&config);
        special.merge(&config_of(folder, "special_tokens_map.json")?);

        let growth = guard::check(&path, &bytes)?;
        let mut inner = guarded(&path, || tokenizers::Tokenizer::from_bytes(&bytes))?;
        drop(bytes);
        // A whole prompt is wanted, whatever the file says about cutting and filling up.
        inner.with_padding(None);
        guarded(&path, || inner.with_truncation(None).map(|_| ()))?;
        add_tokens(&mut inner, &config, &folder.join("tokenizer_config.json"))?;
        let pieces =
            catch_unwind(|| Pieces::new(&inner)).unwrap_or_else(|_| Err("cannot be applied".to_owned()));
        let pieces = pieces.map_err(|reason| Error::invalid_key(&path, "decoder", reason))?;

        let (bos, eos) = ends(folder, &special, &inner)?;
        let inner = Arc::new(inner);
        guard::probe(&path, &inner, growth)?;
        Ok(Self { inner, pieces: Arc::new(pieces), special, bos, eos, growth, path })
    }

    /// The ids of a text. `add_special` adds what the tokenizer puts around a text of its own (a BOS, say): right for plain
    /// prompts, wrong for rendered chat templates, which hold it already.
    ///
    /// # Errors
    /// [`Error::InvalidPrompt`]: the text is longer than [`MAX_TEXT_BYTES`], or the tokenizer cannot cut it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let invalid = |reason: String| Err(Error::InvalidPrompt { reason });
        if text.len() > MAX_TEXT_BYTES {
            return invalid(format!("has {} bytes, expected at most {MAX_TEXT_BYTES}", text.len()));
        }
        if !self.growth.fits(text.len()) {
            return invalid(format!("has {} bytes, which {} may blow up", text.len(), self.path.display()));
        }
        match catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, add_special))) {
            Ok(Ok(encoding)) => Ok(encoding.get_ids().to_vec()),
            Ok(Err(error)) => invalid(format!("{} cannot tokenise it: {error}", self.path.display())),
            Err(_) => invalid(format!("{} cannot tokenise it: the tokenizer panicked", self.path.display())),
        }
    }

    /// The text of ids. Ids outside the vocabulary have none; bytes that make no character become U+FFFD.
    /// `skip_special` leaves special tokens out.
    #[must_use]
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let mut detokenizer = self.detokenizer(skip_special);
        let mut text = String::new();
        for id in ids {
            text.push_str(detokenizer.push(*id));
        }
        text.push_str(detokenizer.finish());
        text
    }

    /// A [`Detokenizer`] for one text.
    #[must_use]
    pub fn detokenizer(&self, skip_special: bool) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.pieces), skip_special)
    }

    /// Ids that end a text: those of generation_config.json, or else config.json, and the tokenizer's own. Sorted.
    #[must_use]
    pub fn eos_ids(&self) -> &[u32] {
        &self.eos
    }

    /// The id that begins a text, where the model has one.
    #[must_use]
    pub fn bos_id(&self) -> Option<u32> {
        self.bos
    }

    /// One more than the largest id. A model's embedding may have more rows.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.pieces.len()
    }

    /// The id of a token, spelt as the vocabulary spells it.
    #[must_use]
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary spells it.
    #[must_use]
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The text of a special token, which texts for readers leave out; `None` for any other.
    #[must_use]
    pub fn special(&self, id: u32) -> Option<&str> {
        match (self.pieces.get(id, true), self.pieces.get(id, false)) {
            (Piece::Nothing, Piece::Text(text)) => std::str::from_utf8(text).ok(),
            _ => None,
        }
    }

    /// The tokens that have a name.
    #[must_use]
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special
    }
}

/// A configuration file's object; empty where there is no such file.
pub(crate) fn config_of(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    if path.exists() { read_json(&path, MAX_CONFIG_JSON) } else { Ok(Map::new()) }
}

/// Runs the `tokenizers` crate on a file that nobody vouches for: it indexes and unwraps by what the file says.
fn guarded<T>(path: &Path, work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(Error::invalid_file(path, format!("is no tokenizer: {error}"))),
        Err(_) => Err(Error::invalid_file(path, "is no tokenizer: its parts contradict each other")),
    }
}

/// Adds the tokens that only tokenizer_config.json lists.
fn add_tokens(tokenizer: &mut tokenizers::Tokenizer, config: &Map<String, Value>, path: &Path) -> Result<()> {
    let Some(listed) = config.get("added_tokens_decoder").and_then(Value::as_object) else { return Ok(()) };
    let invalid =
        |id: &str, reason: String| Error::invalid_key(path, format!("added_tokens_decoder.{id}"), reason);
    let known = tokenizer.get_added_tokens_decoder();
    let mut missing = Vec::new();
    for (key, entry) in listed {
        let id: u32 = key.parse().map_err(|_| invalid(key, "expected a token id as the key".to_owned()))?;
        let content = entry.get("content").and_then(Value::as_str);
        let content = content.ok_or_else(|| invalid(key, "has no string `content`".to_owned()))?;
        let flag = |name: &str, unset: bool| entry.get(name).and_then(Value::as_bool).unwrap_or(unset);
        let special = flag("special", false);
        if known.get(&id).is_none_or(|token| token.content != content) {
            let token = AddedToken::from(content, special)
                .single_word(flag("single_word", false))
                .lstrip(flag("lstrip", false))
                .rstrip(flag("rstrip", false))
                .normalized(flag("normalized", !special));
            missing.push((id, key, token));
        }
    }
    // New tokens get the next free ids, in order.
    missing.sort_by_key(|(id, ..)| *id);
    guarded(path, || tokenizer.add_tokens(missing.iter().map(|(_, _, token)| token.clone())))?;
    for (id, key, token) in missing {
        match tokenizer.token_to_id(&token.content) {
            Some(found) if found == id => {}
            found => {
                let found = found.map_or("none".to_owned(), |id| id.to_string());
                let reason = format!("{:?} has id {found} in tokenizer.json; expected {id}", token.content);
                return Err(invalid(key, reason));
            }
        }
    }
    Ok(())
}

/// The ids that begin and end a text.
fn ends(
    folder: &Path,
    special: &SpecialTokens,
    tokenizer: &tokenizers::Tokenizer,
) -> Result<(Option<u32>, Vec<u32>)> {
    let generation = config_of(folder, "generation_config.json")?;
    let config = config_of(folder, "config.json")?;
    let text_config = config.get("text_config").and_then(Value::as_object).cloned().unwrap_or_default();
    // The first of these that says anything is the model's own answer.
    let sources = [
        ("generation_config.json", "", &generation),
        ("config.json", "", &config),
        ("config.json", "text_config.", &text_config),
    ];
    let ids_of = |key: &str| -> Result<Vec<u32>> {
        for (file, at, object) in sources {
            let ids = match object.get(key) {
                None | Some(Value::Null) => continue,
                Some(Value::Array(ids)) => ids.iter().map(token_id).collect::<Option<Vec<_>>>(),
                Some(id) => token_id(id).map(|id| vec![id]),
            };
            let reason = "expected a token id, or a list of them";
            return ids.ok_or_else(|| Error::invalid_key(folder.join(file), format!("{at}{key}"), reason));
        }
        Ok(vec![])
    };
    let named = |name: &str| special.get(name).and_then(|token| tokenizer.token_to_id(token));
    let bos = match named("bos_token") {
        Some(id) => Some(id),
        None => ids_of("bos_token_id")?.first().copied(),
    };
    let mut eos = ids_of("eos_token_id")?;
    eos.extend(named("eos_token"));
    eos.sort_unstable();
    eos.dedup();
    Ok((bos, eos))
}

fn token_id(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}
