//! tokenizer.json, tokenizer_config.json and generation_config.json from metadata.

use std::collections::{BTreeSet, HashSet};

use serde_json::{Map, Value, json};

use super::{
    merges::{MOST_MERGES, merges},
    pre_tokenizer::{PreTokenizer, byte_level},
    word_piece,
};
use crate::{Error, Metadata, Result, Strings};

const TOKENS: &str = "tokenizer.ggml.tokens";
const PRE: &str = "tokenizer.ggml.pre";
const MODEL: &str = "tokenizer.ggml.model";

/// The most tokens of a vocabulary.
const MOST_TOKENS: usize = 1 << 20;

/// Control tokens that end an answer in some family, whatever the file names as its end: llama.cpp knows them by their texts, too.
const ENDS: [&str; 9] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<end_of_turn>",
    "<turn|>",
    "<|endoftext|>",
    "<EOT>",
];

/// The kinds of tokens, by their numbers in files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

/// How words become tokens.
#[derive(Debug, Clone, Copy)]
enum Model {
    /// Byte-level BPE with merges.
    ByteLevel(PreTokenizer),
    /// SentencePiece, and whether a space is put before a text; its merges are listed, or there are scores for them.
    SentencePiece { space: bool, listed: bool },
    /// Whole words, or their longest beginnings.
    WordPiece,
}

/// The files of a model that say how text becomes tokens, each made when it is asked for.
#[derive(Debug)]
pub struct TextFiles<'a> {
    metadata: &'a Metadata,
    model: Model,
    tokens: Vec<String>,
    kinds: Vec<Kind>,
}

impl Model {
    fn read(metadata: &Metadata) -> Result<Self> {
        match metadata.text(MODEL)? {
            Some("gpt2") => {
                let Some(name) = metadata.text(PRE)? else {
                    let reason =
                        "is missing, so how words are cut is not known: use a file made after May 2024";
                    return Err(Error::at(PRE, reason));
                };
                let unknown = || Error::at(PRE, format!("is {name:?}, a way to cut words that is not known"));
                PreTokenizer::named(name).map(Self::ByteLevel).ok_or_else(unknown)
            }
            Some("llama") => {
                let space = metadata.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
                Ok(Self::SentencePiece { space, listed: false })
            }
            Some("gemma4") => Ok(Self::SentencePiece { space: false, listed: true }),
            Some("bert") => Ok(Self::WordPiece),
            Some(other) => {
                Err(Error::at(MODEL, format!("is {other:?}, expected gpt2, llama, gemma4 or bert")))
            }
            None => Err(Error::at(MODEL, "is missing: the file has no tokenizer")),
        }
    }
}

impl<'a> TextFiles<'a> {
    /// Whether [`read`](Self::read) knows the kind of tokenizer, without the work that it is.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn check(metadata: &Metadata) -> Result<()> {
        Model::read(metadata).map(drop)
    }

    /// Reads the vocabulary.
    ///
    /// # Errors
    /// [`Error::Invalid`] names the key that is missing, makes no sense or asks for a tokenizer that is not known here; so do
    /// all methods here.
    pub fn read(metadata: &'a Metadata) -> Result<Self> {
        let model = Model::read(metadata)?;
        let listed = metadata.texts(TOKENS)?.ok_or_else(|| Error::at(TOKENS, "is missing"))?;
        if listed.len() > MOST_TOKENS {
            return Err(Error::at(
                TOKENS,
                format!("has {} tokens, expected at most {MOST_TOKENS}", listed.len()),
            ));
        }
        let kinds = kinds(metadata, listed.len())?;
        let name = |(id, token): (usize, &str)| match token {
            "" => format!("[EMPTY_{id}]"),
            token if matches!(model, Model::WordPiece) => {
                word_piece::unmarked(token, matches!(kinds[id], Kind::Control | Kind::Unknown))
            }
            token => token.to_owned(),
        };
        let tokens: Vec<String> = listed.iter().enumerate().map(name).collect();
        let mut seen = HashSet::new();
        if let Some(twice) = tokens.iter().find(|token| !seen.insert(token.as_str())) {
            return Err(Error::at(TOKENS, format!("has {twice:?} twice")));
        }
        Ok(Self { metadata, model, tokens, kinds })
    }

    /// tokenizer.json.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn tokenizer(&self) -> Result<Vec<u8>> {
        let mut file = Map::new();
        let mut put = |key: &str, value: Value| file.insert(key.to_owned(), value);
        put("version", json!("1.0"));
        put("truncation", Value::Null);
        put("padding", Value::Null);
        put("added_tokens", self.added_tokens());
        put("normalizer", self.normalizer());
        put(
            "pre_tokenizer",
            match self.model {
                Model::ByteLevel(pre) => pre.json(),
                Model::SentencePiece { .. } => Value::Null,
                Model::WordPiece => word_piece::pre_tokenizer(),
            },
        );
        put("post_processor", self.post_processor()?);
        put("decoder", self.decoder());
        put("model", self.model()?);
        Ok(serde_json::to_vec(&file).unwrap_or_default())
    }

    fn added_tokens(&self) -> Value {
        let entry = |(id, kind): (usize, &Kind)| {
            let special = match kind {
                Kind::Control | Kind::Unknown => true,
                Kind::UserDefined => false,
                _ => return None,
            };
            Some(json!({
                "id": id, "content": self.tokens[id], "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        };
        self.kinds.iter().enumerate().filter_map(entry).collect()
    }

    fn normalizer(&self) -> Value {
        let replace = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        match self.model {
            Model::ByteLevel(pre) if pre.composes => json!({"type": "NFC"}),
            Model::ByteLevel(_) => Value::Null,
            Model::SentencePiece { space: false, .. } => replace,
            Model::WordPiece => word_piece::normalizer(),
            Model::SentencePiece { space: true, .. } => {
                json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, replace]})
            }
        }
    }

    fn decoder(&self) -> Value {
        let space = match self.model {
            Model::SentencePiece { space, .. } => space,
            Model::ByteLevel(_) => return byte_level(),
            Model::WordPiece => return word_piece::decoder(),
        };
        let mut steps = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if space {
            steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        json!({"type": "Sequence", "decoders": steps})
    }

    /// What is put around a text that is no conversation.
    fn post_processor(&self) -> Result<Value> {
        let adds = |name: &str, default: bool| {
            self.metadata
                .flag(&format!("tokenizer.ggml.add_{name}_token"))
                .map(|flag| flag.unwrap_or(default))
        };
        let default = match self.model {
            Model::ByteLevel(pre) => pre.adds_bos,
            Model::SentencePiece { .. } => true,
            Model::WordPiece => {
                let begin = self.needed(&["bos", "cls"])?;
                return Ok(word_piece::post_processor(begin, self.needed(&["seperator", "eos"])?));
            }
        };
        let mut single = vec![json!({"Sequence": {"id": "A", "type_id": 0}})];
        let mut tokens = Map::new();
        let mut special = |id: Option<usize>| {
            let token = &self.tokens[id?];
            tokens.insert(token.clone(), json!({"id": token, "ids": [id], "tokens": [token]}));
            Some(json!({"SpecialToken": {"id": token, "type_id": 0}}))
        };
        if let Some(bos) = special(self.id("bos")?).filter(|_| matches!(adds("bos", default), Ok(true))) {
            single.insert(0, bos);
        }
        if let Some(eos) = special(self.id("eos")?).filter(|_| matches!(adds("eos", false), Ok(true))) {
            single.push(eos);
        }
        if single.len() == 1 {
            return Ok(Value::Null);
        }
        Ok(json!({"type": "TemplateProcessing", "single": single, "pair": single, "special_tokens": tokens}))
    }

    fn model(&self) -> Result<Value> {
        let vocab: Map<String, Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        if matches!(self.model, Model::WordPiece) {
            return Ok(word_piece::model(&vocab, self.needed(&["unknown"])?.0));
        }
        let mut model = Map::new();
        let mut put = |key: &str, value: Value| model.insert(key.to_owned(), value);
        put("type", json!("BPE"));
        put("vocab", Value::Object(vocab));
        match self.model {
            Model::ByteLevel(pre) => {
                put("ignore_merges", json!(pre.ignore_merges));
                put("merges", self.listed_merges()?);
            }
            Model::WordPiece => {}
            Model::SentencePiece { listed, .. } => {
                put("byte_fallback", json!(true));
                put("fuse_unk", json!(true));
                put("unk_token", self.id("unknown")?.map_or(Value::Null, |id| json!(self.tokens[id])));
                put("merges", if listed { self.listed_merges()? } else { self.scored_merges()? });
            }
        }
        Ok(Value::Object(model))
    }

    fn listed_merges(&self) -> Result<Value> {
        const MERGES: &str = "tokenizer.ggml.merges";
        pairs(self.metadata.texts(MERGES)?.ok_or_else(|| Error::at(MERGES, "is missing"))?)
    }

    fn scored_merges(&self) -> Result<Value> {
        const SCORES: &str = "tokenizer.ggml.scores";
        let scores = self.metadata.floats(SCORES)?.ok_or_else(|| Error::at(SCORES, "is missing"))?;
        if scores.len() != self.tokens.len() {
            let reason = format!("has {} entries for {} tokens", scores.len(), self.tokens.len());
            return Err(Error::at(SCORES, reason));
        }
        let merged = |kind: &Kind| matches!(kind, Kind::Normal | Kind::UserDefined | Kind::Unused);
        let known = self.tokens.iter().zip(scores).zip(&self.kinds).filter(|(_, kind)| merged(kind));
        let known: Vec<(&str, f32)> = known.map(|((token, score), _)| (token.as_str(), *score)).collect();
        Ok(merges(&known)?.into_iter().map(|(left, right)| json!([left, right])).collect())
    }

    /// tokenizer_config.json: the special tokens by name, and the chat template.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn tokenizer_config(&self) -> Result<Map<String, Value>> {
        let mut config = Map::new();
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        for (name, key) in [("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")] {
            if let Some(id) = self.id(key)? {
                config.insert(format!("{name}_token"), json!(self.tokens[id]));
            }
        }
        if let Some(templates) = self.chat_templates()? {
            config.insert("chat_template".to_owned(), templates);
        }
        Ok(config)
    }

    /// The chat template, or several by name.
    fn chat_templates(&self) -> Result<Option<Value>> {
        const KEY: &str = "tokenizer.chat_template";
        let default = self.metadata.text(KEY)?.filter(|text| !text.is_empty());
        let mut named = Vec::new();
        for name in self.metadata.texts("tokenizer.chat_templates")?.iter().flat_map(|names| names.iter()) {
            if let Some(template) = self.metadata.text(&format!("{KEY}.{name}"))? {
                named.push(json!({"name": name, "template": template}));
            }
        }
        Ok(match default {
            Some(template) if named.is_empty() => Some(json!(template)),
            Some(template) => {
                named.insert(0, json!({"name": "default", "template": template}));
                Some(Value::Array(named))
            }
            None => None,
        })
    }

    /// generation_config.json: the ids that begin and end a text.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn generation_config(&self) -> Result<Map<String, Value>> {
        let mut ends = BTreeSet::new();
        for name in ["eos", "eot", "eom"] {
            ends.extend(self.id(name)?);
        }
        let control = |id: &usize| self.kinds[*id] == Kind::Control;
        let has = |text: &str| self.tokens.iter().any(|token| token == text);
        // Where answers have several messages, <|end|> ends one of them only.
        let harmony = has("<|return|>") && has("<|call|>");
        let known = |id: &usize| {
            let text = self.tokens[*id].as_str();
            ENDS.contains(&text) && !(harmony && text == "<|end|>")
        };
        ends.extend((0..self.tokens.len()).filter(control).filter(known));
        let mut config = Map::new();
        config.insert("eos_token_id".to_owned(), json!(ends));
        if let Some(bos) = self.id("bos")? {
            config.insert("bos_token_id".to_owned(), json!(bos));
        }
        Ok(config)
    }

    /// The token with the first of these roles that the file has, and its id.
    fn needed(&self, roles: &[&str]) -> Result<(&str, usize)> {
        for role in roles {
            if let Some(id) = self.id(role)? {
                return Ok((&self.tokens[id], id));
            }
        }
        Err(Error::at(format!("tokenizer.ggml.{}_token_id", roles[0]), "is missing"))
    }

    /// The id of a token with a role.
    fn id(&self, role: &str) -> Result<Option<usize>> {
        let key = format!("tokenizer.ggml.{role}_token_id");
        let Some(id) = self.metadata.unsigned(&key)? else { return Ok(None) };
        // Some writers give roles that a model lacks the largest number.
        if id == u64::from(u32::MAX) {
            return Ok(None);
        }
        let found = usize::try_from(id).ok().filter(|id| *id < self.tokens.len());
        let beyond = || Error::at(key, format!("is {id}, expected one of the {} tokens", self.tokens.len()));
        found.map(Some).ok_or_else(beyond)
    }
}

/// The kind of each of so many tokens.
fn kinds(metadata: &Metadata, tokens: usize) -> Result<Vec<Kind>> {
    const KEY: &str = "tokenizer.ggml.token_type";
    match metadata.integers(KEY)? {
        None => Ok(vec![Kind::Normal; tokens]),
        Some(numbers) if numbers.len() == tokens => numbers.into_iter().map(kind).collect(),
        Some(numbers) => Err(Error::at(KEY, format!("has {} entries for {tokens} tokens", numbers.len()))),
    }
}

fn kind(number: i64) -> Result<Kind> {
    Ok(match number {
        0 | 1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => Kind::Byte,
        other => {
            let reason = format!("has the unknown type {other}");
            return Err(Error::at("tokenizer.ggml.token_type", reason));
        }
    })
}

/// Merges are two tokens with a space between, of which the first may begin with one.
fn pairs(merges: &Strings) -> Result<Value> {
    if merges.len() > MOST_MERGES {
        let reason = format!("has {} merges, expected at most {MOST_MERGES}", merges.len());
        return Err(Error::at("tokenizer.ggml.merges", reason));
    }
    let pair = |merge: &str| {
        let at = merge.char_indices().skip(1).find(|(_, c)| *c == ' ').map(|(at, _)| at);
        let at = at.ok_or_else(|| Error::at("tokenizer.ggml.merges", format!("has {merge:?}, no pair")))?;
        Ok(json!([&merge[..at], &merge[at + 1..]]))
    };
    merges.iter().map(pair).collect()
}
