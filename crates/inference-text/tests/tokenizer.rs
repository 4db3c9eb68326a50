//! Reading tokenizers, and refusing what is none.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

mod support;

use std::sync::LazyLock;

use inference_core::Error;
use inference_text::{EncodeLimits, MAX_TEXT_BYTES, Tokenizer};
use proptest::prelude::*;
use serde_json::{Value, json};
use support::*;

#[test]
fn special_tokens_are_added_to_text_and_not_to_rendered_templates() {
    let tokenizer = load(&byte_fallback(true));
    let hello = tokenizer.token_to_id("▁hello").unwrap();
    assert_eq!(tokenizer.encode("hello", true).unwrap(), [1, hello]);
    assert_eq!(tokenizer.encode("hello", false).unwrap(), [hello]);
    assert_eq!(tokenizer.encode("<s>hello", false).unwrap()[0], 1);
    assert_eq!(tokenizer.decode(&[1, hello], true), "hello");
    assert_eq!(tokenizer.decode(&[1, hello], false), "<s> hello");
}

#[test]
fn a_file_cannot_cut_or_fill_up_a_prompt() {
    // This tokenizer.json asks for truncation to 4 and padding to 8.
    let tokenizer = load(&byte_level(WORDS));
    assert_eq!(tokenizer.encode("abcdef", true).unwrap().len(), 6);
    assert_eq!(tokenizer.encode("a", true).unwrap().len(), 1);
}

#[test]
fn ends_come_from_the_first_file_that_has_them_and_from_the_tokenizer() {
    let tokenizer = byte_fallback(true);
    let files = |generation, config, eos| {
        folder(&[
            ("tokenizer.json", &tokenizer),
            ("generation_config.json", &generation),
            ("config.json", &config),
            (
                "tokenizer_config.json",
                &json!({"eos_token": eos, "bos_token": {"content": "<s>"}, "add_bos_token": true}),
            ),
        ])
    };
    let eos = |folder: tempfile::TempDir| Tokenizer::load(folder.path()).unwrap().eos_ids().to_vec();
    assert_eq!(
        eos(files(json!({"eos_token_id": [9, 7]}), json!({"eos_token_id": 5}), json!("</s>"))),
        [2, 7, 9]
    );
    assert_eq!(eos(files(json!({}), json!({"eos_token_id": 5}), json!(null))), [5]);
    assert_eq!(eos(files(json!({}), json!({"text_config": {"eos_token_id": [6]}}), json!("</s>"))), [2, 6]);

    let folder = files(json!({}), json!({}), json!("</s>"));
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert_eq!((tokenizer.bos_id(), tokenizer.special_tokens().get("bos_token")), (Some(1), Some("<s>")));

    let folder = files(json!({"eos_token_id": "</s>"}), json!({}), json!(null));
    let error = Tokenizer::load(folder.path()).unwrap_err();
    assert!(matches!(&error, Error::InvalidModel { key: Some(key), .. } if key == "eos_token_id"), "{error}");
}

#[test]
fn tokens_that_only_the_configuration_lists_are_added() {
    let json = byte_level(WORDS);
    let next = json["added_tokens"][1]["id"].as_u64().unwrap() + 1;
    let config =
        |id: u64| json!({"added_tokens_decoder": {id.to_string(): {"content": "<|new|>", "special": true}}});
    let good = folder(&[("tokenizer.json", &json), ("tokenizer_config.json", &config(next))]);
    let tokenizer = Tokenizer::load(good.path()).unwrap();
    assert_eq!(tokenizer.encode("a<|new|>", false).unwrap(), [u32::from(b'a'), next as u32]);
    assert_eq!(tokenizer.vocab_size(), next as usize + 1);

    let bad = folder(&[("tokenizer.json", &json), ("tokenizer_config.json", &config(next + 5))]);
    let error = Tokenizer::load(bad.path()).unwrap_err().to_string();
    assert!(error.contains("added_tokens_decoder") && error.contains("<|new|>"), "{error}");
}

#[test]
fn what_is_no_tokenizer_is_named() {
    let fails = |files: &[(&str, &Value)]| {
        let error = Tokenizer::load(folder(files).path()).unwrap_err();
        assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
        error.to_string()
    };
    assert!(fails(&[]).contains("tokenizer.json: is missing"));
    assert!(fails(&[("tokenizer.model", &json!("x"))]).contains("tokenizer.model alone"));
    assert!(fails(&[("tokenizer.json", &json!([1, 2]))]).contains("tokenizer.json"));
    assert!(fails(&[("tokenizer.json", &json!({"version": "1.0"}))]).contains("is not a tokenizer"));
    let mut far = byte_fallback(true);
    far["model"]["vocab"]["far"] = json!(4_000_000_000u32);
    assert!(fails(&[("tokenizer.json", &far)]).contains("4000000000"));
    // Memory goes by the tokens that there are, not by the ids that one claims.
    far["model"]["vocab"]["far"] = json!((1 << 24) - 1);
    assert!(fails(&[("tokenizer.json", &far)]).contains("16777215"));
    let mut bad = byte_level(WORDS);
    bad["decoder"] = json!({"type": "CTC", "pad_token": "x", "word_delimiter_token": "|", "cleanup": false});
    assert!(fails(&[("tokenizer.json", &bad)]).contains("CTC"));
    let mut echo = byte_fallback(true);
    echo["post_processor"]["single"] = json!(vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 9]);
    assert!(fails(&[("tokenizer.json", &echo)]).contains("repeats the text 9 times"));
    bad["decoder"] = json!({"type": "Strip", "content": "x", "start": 0, "stop": 1000});
    assert!(fails(&[("tokenizer.json", &bad)]).contains("decoder"));
}

/// A text that a file makes expensive is refused in bounded time.
fn refuses(json: &Value, text: &str) -> String {
    let folder = folder(&[("tokenizer.json", json)]);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let started = std::time::Instant::now();
    let error = tokenizer.encode(text, true).unwrap_err();
    assert!(matches!(error, Error::InvalidPrompt { .. }), "{error}");
    assert!(started.elapsed().as_secs() < 10, "{error}");
    error.to_string()
}

#[test]
fn a_pattern_that_backtracks_without_measure_is_refused() {
    // Nearly a million steps at each letter: just within what the engine allows a match.
    let json = byte_level(r"[\s\S]{0,400}[\s\S]{0,400}(?=\x00)|[\s\S]");
    assert!(refuses(&json, &"a".repeat(5000)).contains("takes too long"));
    // Each search runs to the text's end.
    assert!(refuses(&byte_level("z+Q|."), &"z".repeat(1_000_000)).contains("takes too long"));
}

#[test]
fn an_added_token_that_swallows_spaces_again_and_again_is_refused() {
    let mut json = byte_level(WORDS);
    let mut space = special(262, " ");
    space["rstrip"] = json!(true);
    json["added_tokens"].as_array_mut().unwrap().push(space);
    refuses(&json, &" ".repeat(4_000_000));
}

#[test]
fn a_caller_can_stop_tokenizing() {
    let tokenizer = load(&byte_level(WORDS));
    let limits = EncodeLimits::default();
    limits.cancel.cancel();
    assert!(matches!(tokenizer.encode_within("hello", false, &limits), Err(Error::Cancelled)));
}

#[test]
fn a_text_that_cannot_fit_is_refused_before_it_is_cut() {
    let limits = EncodeLimits { max_tokens: 100, ..EncodeLimits::default() };
    for json in [byte_level(WORDS), byte_fallback(true)] {
        let tokenizer = load(&json);
        let error = tokenizer.encode_within(&"hello ".repeat(1_000_000), false, &limits).unwrap_err();
        assert!(matches!(error, Error::ContextExceeded { limit: 100, .. }), "{error}");
        assert_eq!(tokenizer.encode_within(&"a".repeat(90), false, &limits).unwrap().len() / 2, 45);
    }
    // Unknown words are one token however long they are: here only counting tells.
    let tokenizer = load(&word_piece(true));
    let error = tokenizer.encode_within(&"hello ".repeat(1_000_000), false, &limits).unwrap_err();
    assert!(matches!(error, Error::ContextExceeded { limit: 100, tokens: 101, .. }), "{error}");
    assert_eq!(tokenizer.encode_within(&"x".repeat(1_000_000), false, &limits).unwrap(), [0]);
}

/// Files that ask for too much, or for something unknown, with what the error has to name.
#[test]
fn what_is_not_on_the_list_is_refused_by_name() {
    let doubling = |key: &str, list: &str, times: usize| {
        let step = json!({"type": "Replace", "pattern": {"String": "e"}, "content": "ee"});
        (key.to_owned(), json!({"type": "Sequence", list: vec![step; times]}))
    };
    let level = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true});
    let with = |key: &str, value: Value| (key.to_owned(), value);
    let cases = [
        (with("normalizer", json!({"type": "Magic"})), "Magic"),
        (with("normalizer", json!({"pattern": {"String": "z"}, "content": "y"})), "no `type`"),
        (with("normalizer", json!({"type": "NFC", "also": 1})), "also"),
        (
            with(
                "normalizer",
                json!({"type": "Sequence", "normalizers": [{"type": "Sequence", "normalizers": [{"type": 5}]}]}),
            ),
            "normalizer.normalizers[0].normalizers[0].type",
        ),
        (with("normalizer", json!({"type": "Prepend", "prepend": "x".repeat(100_000)})), "100000 bytes"),
        (
            with(
                "normalizer",
                json!({"type": "Replace", "pattern": {"String": "z"}, "content": "y".repeat(10_000)}),
            ),
            "content",
        ),
        (
            with("normalizer", json!({"type": "Replace", "pattern": {"Regex": "("}, "content": ""})),
            "not a valid pattern",
        ),
        (
            with(
                "normalizer",
                json!({"type": "Replace", "pattern": {"Regex": "(?:a{900}){900}"}, "content": ""}),
            ),
            "not a valid pattern",
        ),
        (
            with(
                "normalizer",
                json!({"type": "Replace", "pattern": {"Regex": "a".repeat(10_000)}, "content": ""}),
            ),
            "all patterns",
        ),
        (with("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "!"})), "base64"),
        (with("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="})), "trie"),
        (
            with(
                "normalizer",
                json!({"type": "Replace", "pattern": {"String": "z"}, "content": "y".repeat(2_000_000)}),
            ),
            "1048576",
        ),
        (with("normalizer", json!(vec![0; 100_000])), "1048576"),
        (with("pre_tokenizer", json!({"type": "UnicodeScripts"})), "UnicodeScripts"),
        (with("pre_tokenizer", json!({"type": "FixedLength", "length": 0})), "length"),
        (
            with(
                "pre_tokenizer",
                json!({"type": "Metaspace", "replacement": "▁", "add_prefix_space": false}),
            ),
            "prepend_scheme",
        ),
        (
            with("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": vec![level.clone(); 40]})),
            "pretokenizers[32]",
        ),
        (
            with("pre_tokenizer", json!({"type": "Sequence", "pretokenizers": [], "more": []})),
            "pre_tokenizer.more",
        ),
        (with("post_processor", json!({"add_prefix_space": true, "trim_offsets": true})), "no `type`"),
        (
            with("post_processor", template(&json!([{"SpecialToken": {"id": "A", "type_id": 0}}]), 1)),
            "repeats the text 0 times",
        ),
        (
            with("post_processor", template(&json!([{"Sequence": {"id": "B", "type_id": 0}}]), 1)),
            "expected \"A\"",
        ),
        (
            with(
                "post_processor",
                template(
                    &json!([{"SpecialToken": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]),
                    100,
                ),
            ),
            "more than 64 special tokens",
        ),
        (
            with(
                "post_processor",
                template(
                    &json!([{"SpecialToken": {"id": "no", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]),
                    1,
                ),
            ),
            "\"no\"",
        ),
        (doubling("decoder", "decoders", 40), "decoders[32]"),
        (doubling("decoder", "decoders", 30), "decoder"),
        (
            with("decoder", json!({"type": "Replace", "pattern": {"Regex": "(e+)+$"}, "content": ""})),
            "regular expression",
        ),
        (
            with("decoder", json!({"type": "Replace", "pattern": {"String": ""}, "content": "x"})),
            "empty pattern",
        ),
        (
            with("decoder", json!({"type": "Strip", "content": " ", "start": 1_000_000_000, "stop": 0})),
            "start",
        ),
        (with("decoder", json!({"pattern": {"String": "e"}, "content": "ee"})), "no `type`"),
        (with("truncate", json!(null)), "truncate"),
        (with("version", json!("2.0")), "version"),
        (with("added_tokens", json!([{"id": 1, "content": "x"}])), "single_word"),
        (with("added_tokens", json!([special(262, &"zy".repeat(1000))])), "2000 bytes"),
        (
            with(
                "added_tokens",
                json!(
                    (0..20_000)
                        .map(|id| special(id, &format!("{id}{}", "x".repeat(400))))
                        .collect::<Vec<_>>()
                ),
            ),
            "2097152 bytes",
        ),
        (with("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "dropout": 0.5})), "dropout"),
        (with("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [], "speed": 5})), "speed"),
        (with("model", json!({"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "a"]]})), "merges"),
        (
            with(
                "model",
                json!({"type": "BPE", "vocab": {"a": 0, "é": 1, "aé": 2}, "merges": ["a é"], "continuing_subword_prefix": "#"}),
            ),
            "merges",
        ),
        (with("model", json!({"type": "BPE", "vocab": {"a".repeat(5000): 0}, "merges": []})), "5000 bytes"),
        (
            with(
                "model",
                json!({"type": "WordPiece", "vocab": {"a": 0}, "unk_token": "a", "continuing_subword_prefix": "##",
                              "max_input_chars_per_word": 100_000}),
            ),
            "max_input_chars_per_word",
        ),
        (
            with("model", json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a", "unk_id": 0})),
            "unk_id",
        ),
        (
            with(
                "model",
                json!({"type": "Unigram", "vocab": [["<unk>", 0.0], ["b".repeat(300), -1.0]], "unk_id": 0}),
            ),
            "300 bytes",
        ),
        (with("model", json!({"type": "Unigram", "vocab": [["<unk>", 0.0]], "unk_id": 7})), "vocab"),
        (with("model", json!({"vocab": [["a", 0.0]], "merges": []})), "type"),
        (with("model", json!({"type": "Transformer", "vocab": {}})), "Transformer"),
    ];
    for ((key, value), expected) in cases {
        let mut file = byte_level(WORDS);
        file[&key] = value;
        let folder = folder(&[("tokenizer.json", &file)]);
        let started = std::time::Instant::now();
        let error = Tokenizer::load(folder.path()).unwrap_err();
        assert!(matches!(error, Error::InvalidModel { .. }), "{key}: {error:?}");
        assert!(error.to_string().contains(expected), "{key}: expected {expected:?} in {error}");
        assert!(started.elapsed().as_secs() < 10, "{error}");
    }
}

/// A post-processor whose token `A` stands for so many ids.
fn template(single: &Value, ids: usize) -> Value {
    json!({
        "type": "TemplateProcessing", "single": single, "pair": [],
        "special_tokens": {"A": {"id": "A", "ids": vec![1; ids], "tokens": vec!["x"; ids]}},
    })
}

#[test]
fn models_of_the_first_versions_have_no_type() {
    for mut file in [byte_level(WORDS), word_piece(true), unigram()] {
        let text = "hello wor";
        let expected = load(&file).encode(text, false).unwrap();
        file["model"].as_object_mut().unwrap().remove("type");
        assert_eq!(load(&file).encode(text, false).unwrap(), expected);
    }
}

#[test]
fn unigram_tokens_that_are_each_others_beginnings_are_bounded() {
    let mut file = unigram();
    file["pre_tokenizer"] = json!(null);
    let vocab = (1..250).map(|length| json!(["z".repeat(length), -1.0]));
    file["model"]["vocab"].as_array_mut().unwrap().extend(vocab);
    assert!(refuses(&file, &"z".repeat(2_000_000)).contains("one word"));
    assert!(load(&file).encode(&"z".repeat(1000), false).is_ok());
}

#[test]
fn flags_of_the_configuration_count() {
    let mut json = byte_level(WORDS);
    let next = json["added_tokens"][1]["id"].as_u64().unwrap() + 1;
    let mut think = special(next as usize, "<think>");
    think["special"] = json!(false);
    json["added_tokens"].as_array_mut().unwrap().push(think);
    let config = json!({"added_tokens_decoder": {next.to_string(): {
        "content": "<think>", "special": true, "lstrip": true, "rstrip": true, "normalized": false, "single_word": false
    }}});
    let plain = load(&json);
    let folder = folder(&[("tokenizer.json", &json), ("tokenizer_config.json", &config)]);
    let configured = Tokenizer::load(folder.path()).unwrap();
    let id = plain.token_to_id("<think>").unwrap();
    assert_eq!(plain.encode("x <think> y", false).unwrap(), [120, 32, id, 32, 121]);
    assert_eq!(configured.encode("x <think> y", false).unwrap(), [120, id, 121]);
    assert_eq!(plain.decode(&[120, id], true), "x<think>");
    assert_eq!(configured.decode(&[120, id], true), "x");
}

#[cfg(unix)]
#[test]
fn a_pipe_in_a_files_place_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let made =
        std::process::Command::new("mkfifo").arg(folder.path().join("tokenizer.json")).status().unwrap();
    assert!(made.success());
    assert!(Tokenizer::load(folder.path()).unwrap_err().to_string().contains("regular file"));
}

#[test]
fn a_beginning_that_a_token_may_take_a_part_of_is_refused() {
    let mut file = byte_fallback(true);
    file["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": true});
    load(&file);
    let mut token = special(3, "▁");
    token["normalized"] = json!(true);
    file["added_tokens"].as_array_mut().unwrap().push(token);
    let folder = folder(&[("tokenizer.json", &file)]);
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("pre_tokenizer.prepend_scheme: is \"first\""), "{error}");
}

#[test]
fn texts_have_a_limit() {
    let tokenizer = load(&byte_level(WORDS));
    let error = tokenizer.encode(&"a ".repeat(MAX_TEXT_BYTES), true).unwrap_err();
    assert!(matches!(error, Error::InvalidPrompt { .. }), "{error}");
}

#[test]
fn normalization_cannot_blow_a_text_up() {
    let mut json = byte_fallback(false);
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    json["normalizer"] = json!({"type": "Sequence", "normalizers": vec![double; 30]});
    refuses(&json, "aaaa");
    json["normalizer"] = json!({"type": "NFKC"});
    refuses(&json, &"ﷺ".repeat(1_000_000));
}

proptest! {
    #[test]
    fn a_byte_level_tokenizer_loses_nothing(text in any::<String>()) {
        static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| load(&byte_level(WORDS)));
        let tokenizer = &*TOKENIZER;
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&ids, false), text);
    }
}

/// Leaves of a JSON value, by path.
fn leaves(value: &Value, path: String, into: &mut Vec<String>) {
    match value {
        Value::Object(map) if !path.contains("/vocab/") => {
            map.iter()
                .for_each(|(key, value)| leaves(value, format!("{path}/{}", key.replace('/', "~1")), into));
        }
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(at, value)| leaves(value, format!("{path}/{at}"), into));
        }
        _ => into.push(path),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_broken_tokenizer_is_an_error_or_works(
        kind in 0usize..6,
        place in any::<prop::sample::Index>(),
        other in prop::sample::select(vec![
            json!(null), json!(-1), json!(0), json!(1e9), json!(4294967295u32), json!(""), json!("▁"), json!("ByteLevel"),
            json!("Fuse"), json!("(a+)+$"), json!("("), json!([]), json!({}), json!(true), json!(["a", "b"]),
        ]),
    ) {
        let mut file = [
            byte_level(WORDS), byte_fallback(true), byte_fallback(false), unigram(), word_piece(true), word_piece(false),
        ][kind]
        .clone();
        let mut paths = Vec::new();
        leaves(&file, String::new(), &mut paths);
        let path = place.get(&paths);
        if let Some(leaf) = file.pointer_mut(path) {
            *leaf = other;
        }
        let folder = folder(&[("tokenizer.json", &file)]);
        match Tokenizer::load(folder.path()) {
            Ok(tokenizer) => {
                let ids = tokenizer.encode("hello <s> wörld 你好!", true);
                let _ = tokenizer.decode(&ids.unwrap_or_default(), false);
                let _ = tokenizer.decode(&[0, 1, 2, 3, 255, 256, 260, u32::MAX], true);
            }
            Err(error) => prop_assert!(matches!(error, Error::InvalidModel { .. }), "{path}: {error:?}"),
        }
    }
}
