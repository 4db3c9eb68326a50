//! Ids are those of the `tokenizers` crate, whatever a file combines.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};

use inference_text::Tokenizer;
use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;

/// Text with what normalizers and patterns care for.
fn text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "a", "b", "hello", "lo", "HELLO", " ", "  ", "\n", "\r\n", "\t", "é", "e\u{301}", "ß", "İ", "你",
        "好", "🙂", "👍🏽", "'s", "1", "23", "!", "...", "▁", "Ġ", "</s>", "<s>", "<unk>", "<|end|>", "<tool>",
        "<x>", " <x> ", "ab<x>", "\u{301}", "\u{a0}", "\u{3000}", "_", "ﷺ", "ﬁ", "각", "ᄀ", "ᅡ", "\u{0}",
        "\u{1b}", "<0x41>", "[UNK]", "##ld", "\u{200d}", "عربي",
    ]);
    // Long enough at times to be normalized in chunks, and for words to be cut.
    (prop::collection::vec(pieces, 0..30), prop::sample::select(vec![1, 1, 1, 1, 40, 400]))
        .prop_map(|(pieces, times)| pieces.concat().repeat(times))
}

/// Some patterns match between characters.
fn pattern() -> impl Strategy<Value = Value> {
    prop::sample::select(vec![
        json!({"String": " "}),
        json!({"String": "lo"}),
        json!({"String": "e"}),
        json!({"Regex": "\\s+"}),
        json!({"Regex": "[0-9]"}),
        json!({"Regex": WORDS}),
        json!({"Regex": "l*"}),
        json!({"Regex": "(?=l)"}),
        json!({"Regex": "^"}),
        json!({"Regex": "$|(?<=o)"}),
        json!({"String": ""}),
    ])
}

fn normalizer() -> impl Strategy<Value = Value> {
    let plain = prop::sample::select(vec![
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Lowercase",
        "StripAccents",
        "Nmt",
        "ByteLevel",
    ]);
    let content = prop::sample::select(vec!["", "▁", "lo", " "]);
    prop_oneof![
        plain.prop_map(|kind| json!({"type": kind})),
        (any::<bool>(), any::<bool>())
            .prop_map(|(left, right)| json!({"type": "Strip", "strip_left": left, "strip_right": right})),
        prop::sample::select(vec!["▁", " x"]).prop_map(|text| json!({"type": "Prepend", "prepend": text})),
        (pattern(), content).prop_map(|(pattern, content)| json!({"type": "Replace", "pattern": pattern, "content": content})),
        (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(clean, chinese, lower)| json!({
            "type": "BertNormalizer", "clean_text": clean, "handle_chinese_chars": chinese, "strip_accents": null,
            "lowercase": lower
        })),
        Just(json!("charsmap")),
    ]
}

fn pre_tokenizer() -> impl Strategy<Value = Value> {
    let behavior = || {
        prop::sample::select(vec![
            "Removed",
            "Isolated",
            "MergedWithPrevious",
            "MergedWithNext",
            "Contiguous",
        ])
    };
    let plain = prop::sample::select(vec!["BertPreTokenizer", "Whitespace", "WhitespaceSplit"]);
    prop_oneof![
        plain.prop_map(|kind| json!({"type": kind})),
        (pattern(), behavior(), any::<bool>()).prop_map(|(pattern, behavior, invert)| json!({
            "type": "Split", "pattern": pattern, "behavior": behavior, "invert": invert
        })),
        (any::<bool>(), any::<bool>()).prop_map(|(space, regex)| json!({
            "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true, "use_regex": regex
        })),
        (prop::sample::select(vec!["always", "never"]), any::<bool>()).prop_map(|(scheme, split)| json!({
            "type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split
        })),
        behavior().prop_map(|behavior| json!({"type": "Punctuation", "behavior": behavior})),
        any::<bool>().prop_map(|each| json!({"type": "Digits", "individual_digits": each})),
        Just(json!({"type": "CharDelimiterSplit", "delimiter": "o"})),
        (1usize..4).prop_map(|length| json!({"type": "FixedLength", "length": length})),
    ]
}

fn added_token() -> impl Strategy<Value = Value> {
    let content = prop::sample::select(vec!["<x>", "lo", " ", "\n", "é", "E", "▁"]);
    (content, prop::array::uniform5(any::<bool>())).prop_map(|(content, [single, left, right, normalized, special])| {
        // The library panics over spaces that two tokens swallow.
        let strips = !content.trim().is_empty();
        json!({
            "id": 0, "content": content, "single_word": single, "lstrip": left && strips, "rstrip": right && strips,
            "normalized": normalized, "special": special
        })
    })
}

fn post_processor() -> impl Strategy<Value = Value> {
    let template = json!({
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "B", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                   {"SpecialToken": {"id": "E", "type_id": 0}}, {"SpecialToken": {"id": "B", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"B": {"id": "B", "ids": [1, 2], "tokens": ["b", "c"]}, "E": {"id": "E", "ids": [3], "tokens": ["e"]}},
    });
    let level =
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true});
    let roberta = json!({"type": "RobertaProcessing", "sep": ["a", 4], "cls": ["b", 5], "trim_offsets": true, "add_prefix_space": true});
    prop::sample::select(vec![
        Value::Null,
        level.clone(),
        template.clone(),
        json!({"type": "BertProcessing", "sep": ["a", 4], "cls": ["b", 5]}),
        roberta,
        json!({"type": "Sequence", "processors": [level, template]}),
    ])
}

/// A character map that makes `hi` of `é`, nothing of `!`, and `fi` of the ligature.
fn charsmap() -> String {
    use base64::Engine as _;
    // Units by place: the root's children lie at 256 ^ byte, theirs at places that no other uses.
    let mut units = vec![0u32; 4096];
    let unit =
        |label: u8, leaf: bool, offset: u32| (offset << 10) | (u32::from(leaf) << 8) | u32::from(label);
    units[0] = unit(0, false, 256);
    let mut free = 512;
    for (sequence, value) in [("é", 0u32), ("!", 3), ("ﬁ", 4)] {
        let mut base = 256;
        for (at, byte) in sequence.bytes().enumerate() {
            let place = base ^ u32::from(byte);
            let leaf = at + 1 == sequence.len();
            if units[place as usize] == 0 {
                units[place as usize] = unit(byte, leaf, place ^ free);
                base = free;
                free += 512;
            } else {
                base = place ^ (units[place as usize] >> 10);
            }
            if leaf {
                units[base as usize] = value | 1 << 31;
            }
        }
    }
    let mut bytes = (units.len() as u32 * 4).to_le_bytes().to_vec();
    units.iter().for_each(|unit| bytes.extend(unit.to_le_bytes()));
    bytes.extend(b"hi\0\0fi\0");
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

/// Both ways from text to ids; `None` where one of them does not take the file.
fn compare(file: &Value, text: &str) {
    let folder = folder(&[("tokenizer.json", file)]);
    // The library loses count of positions after some patterns that match between characters, and panics.
    let path = folder.path().join("tokenizer.json");
    let Ok(Ok(theirs)) = catch_unwind(|| tokenizers::Tokenizer::from_file(path)) else { return };
    let ours = match Tokenizer::load(folder.path()) {
        Ok(ours) => ours,
        Err(error) => {
            let reason = error.to_string();
            assert!(
                reason.contains("empty when normalized")
                    || reason.contains("are searched as")
                    || reason.contains("\"first\""),
                "{reason}"
            );
            return;
        }
    };
    let mut theirs = theirs;
    theirs.with_padding(None);
    theirs.with_truncation(None).unwrap();
    for special in [false, true] {
        let encoded = catch_unwind(AssertUnwindSafe(|| theirs.encode_fast(text, special)));
        let Ok(encoded) = encoded else { return };
        let expected = encoded.ok().map(|encoding| encoding.get_ids().to_vec());
        let found = ours.encode(text, special).ok();
        assert_eq!(found, expected, "{special} {text:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn ids_are_those_of_the_library(
        model in 0usize..4,
        normalizers in prop::collection::vec(normalizer(), 0..3),
        pre_tokenizers in prop::collection::vec(pre_tokenizer(), 0..3),
        first: bool,
        added in prop::collection::vec(added_token(), 0..3),
        post_processor in post_processor(),
        text in text(),
    ) {
        let mut file = [byte_level(WORDS), byte_fallback(true), unigram(), word_piece(true)][model].clone();
        let map = json!({"type": "Precompiled", "precompiled_charsmap": charsmap()});
        let normalizers = normalizers.into_iter().map(|step| if step.is_string() { map.clone() } else { step });
        file["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers.collect::<Vec<_>>()});
        let mut steps = pre_tokenizers;
        if first {
            steps.insert(0, json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true}));
        }
        file["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": steps});
        file["added_tokens"].as_array_mut().unwrap().extend(added);
        file["post_processor"] = post_processor;
        compare(&file, &text);
    }

    #[test]
    fn ids_are_those_of_the_library_where_the_file_is_a_published_kind(kind in 0usize..6, text in text()) {
        let file = [
            byte_level(WORDS), byte_fallback(true), byte_fallback(false), unigram(), word_piece(true), word_piece(false),
        ][kind].clone();
        compare(&file, &text);
    }
}
