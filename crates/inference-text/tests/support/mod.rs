//! Small tokenizers with the structure of published ones.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

use std::{collections::BTreeMap, path::Path};

use inference_text::Tokenizer;
use serde_json::{Value, json};

/// A model folder that holds these files.
pub fn folder(files: &[(&str, &Value)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, value) in files {
        std::fs::write(folder.path().join(name), value.to_string()).unwrap();
    }
    folder
}

/// Our tokenizer and the library's, from one tokenizer.json.
pub fn both(json: &Value) -> (Tokenizer, tokenizers::Tokenizer) {
    let folder = folder(&[("tokenizer.json", json)]);
    let ours = Tokenizer::load(folder.path()).unwrap();
    (ours, tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap())
}

/// Loads a folder with nothing but a tokenizer.json.
pub fn load(json: &Value) -> Tokenizer {
    both(json).0
}

/// A special token.
pub fn special(id: usize, content: &str) -> Value {
    json!({
        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
        "special": true
    })
}

/// The character by which byte-level vocabularies spell a byte.
pub fn spelling(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(0x100 + rank).unwrap()
}

/// Llama 3's, Qwen's, GPT-2's kind: ids 0–255 are the bytes, then merges, then `<|end|>` and `<tool>` (not special).
pub fn byte_level(pattern: &str) -> Value {
    let spell = |bytes: &[u8]| bytes.iter().map(|b| spelling(*b)).collect::<String>();
    let mut vocab: BTreeMap<String, usize> = (0..=255u8).map(|b| (spell(&[b]), b as usize)).collect();
    let mut merges = Vec::new();
    let mut merge = |left: &[u8], right: &[u8]| {
        let next = vocab.len();
        vocab.entry(spell(&[left, right].concat())).or_insert_with(|| {
            merges.push(json!([spell(left), spell(right)]));
            next
        });
    };
    for (left, right) in [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), (" ", "hello")] {
        merge(left.as_bytes(), right.as_bytes());
    }
    // Tokens that end within a character.
    let greeting = "你好".as_bytes();
    for end in 2..=greeting.len() {
        merge(&greeting[..end - 1], &greeting[end - 1..end]);
    }
    let end = vocab.len();
    let mut tool = special(end + 1, "<tool>");
    tool["special"] = json!(false);
    json!({
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 8}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                    "pad_type_id": 0, "pad_token": "!"},
        "added_tokens": [special(end, "<|end|>"), tool],
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false},
            {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    })
}

/// The pattern by which Llama 3 and Qwen cut a text into words.
pub const WORDS: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Llama 2's (`strip`) and Gemma's kind: `<unk>`, `<s>`, `</s>`, then 256 byte tokens from id 3, then characters and words.
pub fn byte_fallback(strip: bool) -> Value {
    let mut vocab: BTreeMap<String, usize> = BTreeMap::new();
    let mut add = |token: String| {
        let id = vocab.len();
        vocab.insert(token, id);
    };
    for token in ["<unk>", "<s>", "</s>"] {
        add(token.to_owned());
    }
    (0..=255u8).for_each(|byte| add(format!("<0x{byte:02X}>")));
    "▁helowrd!né".chars().for_each(|c| add(c.to_string()));
    let merges =
        [("h", "e"), ("l", "l"), ("he", "ll"), ("hell", "o"), ("▁", "hello"), ("▁", "w"), ("▁", "▁")];
    merges.iter().for_each(|(left, right)| add(format!("{left}{right}")));
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    let mut normalizers = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})];
    if strip {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
    }
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": null,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
        },
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {"type": "BPE", "unk_token": "<unk>", "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                  "merges": merges.map(|(left, right)| json!([left, right]))},
    })
}

/// T5's kind: Unigram, with a decoder that looks at whether a token is the first.
pub fn unigram() -> Value {
    let vocab = ["<unk>", "</s>", "▁", "▁hello", "▁wor", "ld", "a▁b", "h", "e", "l", "o", "!", "é"];
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "<unk>"), special(1, "</s>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "post_processor": null,
        "decoder": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": false,
                  "vocab": vocab.iter().enumerate().map(|(i, t)| json!([t, -(i as f64)])).collect::<Vec<_>>()},
    })
}

/// BERT's kind, with its clean-up of spaces; or with no decoder at all.
pub fn word_piece(decoder: bool) -> Value {
    let vocab =
        ["[UNK]", "[CLS]", "hello", "wor", "##ld", "don", "'", "t", "n't", ".", "!", "##!", "do", "not"];
    let vocab: BTreeMap<_, _> = vocab.iter().enumerate().map(|(id, token)| (*token, id)).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0, "[UNK]"), special(1, "[CLS]")],
        "normalizer": null, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null,
        "decoder": if decoder { json!({"type": "WordPiece", "prefix": "##", "cleanup": true}) } else { Value::Null },
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": vocab},
    })
}

/// Writes a tokenizer.json.
pub fn write(folder: &Path, json: &Value) {
    std::fs::write(folder.join("tokenizer.json"), json.to_string()).unwrap();
}
