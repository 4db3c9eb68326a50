//! tokenizer.json as typed values: an allow-list of parts, types and keys.
//!
//! The `tokenizers` crate takes what it does not know for harmless and guesses the type of a part without one. Here both
//! are errors, and the pipeline is built from what was checked, not from the file.

use std::{collections::BTreeMap, fmt, path::Path};

use inference_core::{Error, Result};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor},
};
use serde_json::Value;

use super::{
    limits::{MAX_ADDED_BYTES, MAX_ADDED_TOKENS, MAX_NORMALIZER_JSON, MAX_STEP_JSON, MAX_STEPS},
    small_json::SmallJson,
    vocab::{Merges, Vocab},
};

/// What a tokenizer.json says.
#[derive(Debug)]
pub(super) struct TokenizerFile {
    pub(super) added_tokens: Vec<AddedTokenEntry>,
    pub(super) normalizer: Vec<NormalizerStep>,
    pub(super) pre_tokenizer: Vec<PreTokenizerStep>,
    pub(super) post_processor: Vec<PostProcessorStep>,
    /// `None` where the file has no decoder: tokens are words then.
    pub(super) decoder: Option<Vec<DecoderStep>>,
    pub(super) model: ModelFile,
}

/// The file's parts before they are typed. Whole prompts are wanted: truncation and padding are skipped.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Parts {
    #[serde(default)]
    version: Option<String>,
    #[serde(default, rename = "truncation")]
    _truncation: IgnoredAny,
    #[serde(default, rename = "padding")]
    _padding: IgnoredAny,
    #[serde(default)]
    added_tokens: Option<AddedTokenList>,
    #[serde(default)]
    normalizer: SmallJson<MAX_NORMALIZER_JSON>,
    #[serde(default)]
    pre_tokenizer: SmallJson<MAX_STEP_JSON>,
    #[serde(default)]
    post_processor: SmallJson<MAX_STEP_JSON>,
    #[serde(default)]
    decoder: SmallJson<MAX_STEP_JSON>,
    model: ModelFile,
}

/// An added token, which the model's vocabulary does not have.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AddedTokenEntry {
    pub(super) id: u32,
    pub(super) content: String,
    pub(super) single_word: bool,
    pub(super) lstrip: bool,
    pub(super) rstrip: bool,
    pub(super) normalized: bool,
    pub(super) special: bool,
}

/// What a step searches.
#[derive(Debug, Clone, Deserialize)]
pub(super) enum TextPattern {
    String(String),
    Regex(String),
}

/// A step that changes characters.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum NormalizerStep {
    #[serde(alias = "Bert")]
    BertNormalizer {
        clean_text: bool,
        handle_chinese_chars: bool,
        strip_accents: Option<bool>,
        lowercase: bool,
    },
    Strip {
        strip_left: bool,
        strip_right: bool,
    },
    StripAccents {},
    #[serde(rename = "NFC")]
    Nfc {},
    #[serde(rename = "NFD")]
    Nfd {},
    #[serde(rename = "NFKC")]
    Nfkc {},
    #[serde(rename = "NFKD")]
    Nfkd {},
    Lowercase {},
    Nmt {},
    Precompiled {
        precompiled_charsmap: String,
    },
    Replace {
        pattern: TextPattern,
        content: String,
    },
    Prepend {
        prepend: String,
    },
    ByteLevel {},
}

/// What becomes of the text that separates pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum Behavior {
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// Where [`PreTokenizerStep::Metaspace`] puts its character before a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PrependScheme {
    First,
    Never,
    Always,
}

/// A step that cuts a text into words.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum PreTokenizerStep {
    BertPreTokenizer {},
    ByteLevel(ByteLevel),
    CharDelimiterSplit {
        delimiter: char,
    },
    Metaspace(Metaspace),
    Whitespace {},
    WhitespaceSplit {},
    Split {
        pattern: TextPattern,
        behavior: Behavior,
        invert: bool,
    },
    Punctuation {
        #[serde(default = "isolated")]
        behavior: Behavior,
    },
    Digits {
        individual_digits: bool,
    },
    FixedLength {
        #[serde(default = "five")]
        length: usize,
    },
}

/// The parameters that `ByteLevel` has in every part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ByteLevel {
    pub(super) add_prefix_space: bool,
    #[serde(rename = "trim_offsets")]
    _trim_offsets: bool,
    #[serde(default = "yes")]
    pub(super) use_regex: bool,
}

/// The parameters that `Metaspace` has in every part.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metaspace {
    pub(super) replacement: char,
    add_prefix_space: Option<bool>,
    #[serde(default = "always")]
    prepend_scheme: PrependScheme,
    split: Option<bool>,
    #[serde(rename = "str_rep")]
    _str_rep: Option<String>,
}

/// What is put around a text.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum PostProcessorStep {
    ByteLevel(#[allow(dead_code, reason = "it concerns offsets alone")] ByteLevel),
    BertProcessing {
        sep: (String, u32),
        cls: (String, u32),
    },
    RobertaProcessing {
        sep: (String, u32),
        cls: (String, u32),
        #[serde(rename = "trim_offsets")]
        _trim_offsets: bool,
        #[serde(rename = "add_prefix_space")]
        _add_prefix_space: bool,
    },
    TemplateProcessing {
        single: Vec<TemplatePiece>,
        pair: Vec<TemplatePiece>,
        special_tokens: BTreeMap<String, TemplateToken>,
    },
}

/// A place in a template.
#[derive(Debug, Clone, Deserialize)]
pub(super) enum TemplatePiece {
    Sequence { id: SequenceId, type_id: u32 },
    SpecialToken { id: String, type_id: u32 },
}

/// One of the two texts that a template may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum SequenceId {
    A,
    B,
}

/// A name that templates use, and the ids behind it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TemplateToken {
    #[serde(rename = "id")]
    _id: String,
    pub(super) ids: Vec<u32>,
    #[serde(rename = "tokens")]
    _tokens: Vec<String>,
}

/// A step from tokens to text.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "type", deny_unknown_fields)]
pub(super) enum DecoderStep {
    ByteLevel(#[allow(dead_code, reason = "it concerns encoding alone")] ByteLevel),
    WordPiece { prefix: String, cleanup: bool },
    Metaspace(Metaspace),
    Replace { pattern: TextPattern, content: String },
    Fuse {},
    Strip { content: char, start: usize, stop: usize },
    ByteFallback {},
}

/// The model's parameters. Which of them a type has is checked where it is built.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ModelFile {
    #[serde(rename = "type")]
    pub(super) kind: Option<ModelKind>,
    pub(super) dropout: Option<f32>,
    pub(super) unk_token: Option<String>,
    pub(super) continuing_subword_prefix: Option<String>,
    pub(super) end_of_word_suffix: Option<String>,
    pub(super) fuse_unk: Option<bool>,
    pub(super) byte_fallback: Option<bool>,
    pub(super) ignore_merges: Option<bool>,
    pub(super) max_input_chars_per_word: Option<usize>,
    pub(super) unk_id: Option<usize>,
    pub(super) vocab: Vocab,
    #[serde(default)]
    pub(super) merges: Option<Merges>,
}

/// How words become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub(super) enum ModelKind {
    #[serde(rename = "BPE")]
    Bpe,
    WordPiece,
    WordLevel,
    Unigram,
}

impl Metaspace {
    /// Where the character is put; `None` where two keys contradict each other.
    pub(super) fn scheme(&self) -> Option<PrependScheme> {
        match (self.add_prefix_space, self.prepend_scheme) {
            (Some(false), PrependScheme::Never) => Some(PrependScheme::Never),
            (Some(false), _) => None,
            (_, scheme) => Some(scheme),
        }
    }

    /// Whether words begin at the character.
    pub(super) fn splits(&self) -> bool {
        self.split.unwrap_or(true)
    }
}

impl TokenizerFile {
    /// Reads the file's text.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the key, what was found and what was expected.
    pub(super) fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut deserializer = serde_json::Deserializer::from_slice(bytes);
        let parts: Parts = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let reason = error.inner().to_string();
            match error.path().to_string() {
                at if at == "." => Error::invalid_file(path, format!("is not a tokenizer: {reason}")),
                at => Error::invalid_key(path, at, reason),
            }
        })?;
        if let Some(version) = parts.version.filter(|version| version != "1.0") {
            return Err(Error::invalid_key(path, "version", format!("is {version:?}, expected \"1.0\"")));
        }
        let steps = Steps { path };
        let decoder = Some(parts.decoder.0).filter(|decoder| !decoder.is_null());
        Ok(Self {
            added_tokens: parts.added_tokens.map(|list| list.0).unwrap_or_default(),
            normalizer: steps.read("normalizer", "normalizers", parts.normalizer.0)?,
            pre_tokenizer: steps.read("pre_tokenizer", "pretokenizers", parts.pre_tokenizer.0)?,
            post_processor: steps.read("post_processor", "processors", parts.post_processor.0)?,
            decoder: decoder.map(|decoder| steps.read("decoder", "decoders", decoder)).transpose()?,
            model: parts.model,
        })
    }
}

/// Flattens sequences of steps, and types each of them.
struct Steps<'a> {
    path: &'a Path,
}

impl Steps<'_> {
    /// All steps of a part; `list` is the key of a sequence's steps.
    fn read<T: DeserializeOwned>(&self, key: &str, list: &str, value: Value) -> Result<Vec<T>> {
        let mut steps = Vec::new();
        if !value.is_null() {
            self.flatten(key.to_owned(), list, value, &mut steps)?;
        }
        Ok(steps)
    }

    fn flatten<T: DeserializeOwned>(
        &self,
        key: String,
        list: &str,
        value: Value,
        into: &mut Vec<T>,
    ) -> Result<()> {
        let invalid = |key: String, reason: String| Error::invalid_key(self.path, key, reason);
        let Value::Object(mut step) = value else {
            return Err(invalid(key, "expected an object with a `type`".to_owned()));
        };
        match step.get("type") {
            Some(Value::String(kind)) if kind == "Sequence" => {}
            Some(Value::String(_)) => {
                if into.len() >= MAX_STEPS {
                    return Err(invalid(key, format!("is one step too many, expected at most {MAX_STEPS}")));
                }
                let step = serde_json::from_value(Value::Object(step))
                    .map_err(|error| invalid(key, error.to_string()))?;
                into.push(step);
                return Ok(());
            }
            Some(_) => return Err(invalid(key + ".type", "expected a string".to_owned())),
            None => return Err(invalid(key, "has no `type`, which says what it does".to_owned())),
        }
        let Some(Value::Array(steps)) = step.remove(list) else {
            return Err(invalid(format!("{key}.{list}"), "expected a list of steps".to_owned()));
        };
        step.remove("type");
        if let Some(other) = step.keys().next() {
            return Err(invalid(
                format!("{key}.{other}"),
                format!("unknown key, expected `type` and `{list}`"),
            ));
        }
        // Depth is bounded by serde_json, length by the limit on steps and on the part's size.
        for (at, step) in steps.into_iter().enumerate() {
            self.flatten(format!("{key}.{list}[{at}]"), list, step, into)?;
        }
        Ok(())
    }
}

/// Added tokens, refused before they are too many.
struct AddedTokenList(Vec<AddedTokenEntry>);

impl<'de> Deserialize<'de> for AddedTokenList {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = AddedTokenList;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tokens")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Self::Value, A::Error> {
                let (mut tokens, mut bytes) = (Vec::<AddedTokenEntry>::new(), 0);
                while let Some(token) = seq.next_element::<AddedTokenEntry>()? {
                    bytes += token.content.len();
                    tokens.push(token);
                    if tokens.len() > MAX_ADDED_TOKENS || bytes > MAX_ADDED_BYTES {
                        return Err(A::Error::custom(format!(
                            "more than {MAX_ADDED_TOKENS} tokens, or more than {MAX_ADDED_BYTES} bytes of them"
                        )));
                    }
                }
                Ok(AddedTokenList(tokens))
            }
        }
        deserializer.deserialize_seq(List)
    }
}

fn isolated() -> Behavior {
    Behavior::Isolated
}

fn five() -> usize {
    5
}

fn yes() -> bool {
    true
}

fn always() -> PrependScheme {
    PrependScheme::Always
}
