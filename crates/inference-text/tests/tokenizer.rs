//! Reading tokenizers, and refusing what is none.

mod support;

use std::sync::LazyLock;

use inference_core::Error;
use inference_text::{MAX_TEXT_BYTES, Tokenizer};
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
    assert!(fails(&[("tokenizer.json", &json!([1, 2]))]).contains("is no tokenizer"));
    assert!(fails(&[("tokenizer.json", &json!({"version": "1.0"}))]).contains("is no tokenizer"));
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

#[test]
fn a_pattern_that_backtracks_without_measure_is_refused() {
    // Nearly a million steps at each letter: just within what the engine allows a match.
    let json = byte_level(r"[\s\S]{0,400}[\s\S]{0,400}(?=\x00)|[\s\S]");
    let folder = folder(&[("tokenizer.json", &json)]);
    let error = Tokenizer::load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("backtrack"), "{error}");
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
fn texts_have_a_limit() {
    let tokenizer = load(&byte_level(WORDS));
    let error = tokenizer.encode(&"a ".repeat(MAX_TEXT_BYTES), true).unwrap_err();
    assert!(matches!(error, Error::InvalidPrompt { .. }), "{error}");
}

#[test]
fn normalisation_cannot_blow_a_text_up() {
    let mut json = byte_fallback(false);
    let double = json!({"type": "Replace", "pattern": {"String": "a"}, "content": "aa"});
    json["normalizer"] = json!({"type": "Sequence", "normalizers": vec![double; 40]});
    let error = load(&json).encode("aaaa", true).unwrap_err().to_string();
    assert!(error.contains("blow up"), "{error}");
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
