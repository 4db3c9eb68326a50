//! The incremental detokenizer and the stream decoder against the `tokenizers` library's own decoding.

#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

mod support;

use std::sync::LazyLock;

use inference_core::{
    Token,
    backend::{StopStrings, StreamDecoder},
};
use inference_text::Tokenizer;
use proptest::prelude::*;
use support::*;

/// A tokenizer of each kind: ours, and the library's on the same file.
static KINDS: LazyLock<Vec<(Tokenizer, tokenizers::Tokenizer)>> = LazyLock::new(|| {
    let files = [
        byte_level(WORDS),
        byte_fallback(true),
        byte_fallback(false),
        unigram(),
        word_piece(true),
        word_piece(false),
    ];
    files.iter().map(both).collect()
});

/// Ids, some outside the vocabulary; runs of byte tokens and of UTF-8 sequences are likely.
fn ids() -> impl Strategy<Value = Vec<u32>> {
    let bytes = prop::collection::vec(any::<u8>(), 0..4);
    let text = "[a-e 你é🙂▁\n]{0,4}".prop_map(String::into_bytes);
    let piece = prop_oneof![
        bytes.prop_map(|bytes| bytes.into_iter().map(u32::from).collect::<Vec<u32>>()),
        text.clone().prop_map(|bytes| bytes.into_iter().map(u32::from).collect()),
        text.prop_map(|bytes| bytes.into_iter().map(|b| u32::from(b) + 3).collect()),
        prop::collection::vec(0u32..300, 0..4),
        Just(vec![u32::MAX]),
    ];
    prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

/// All tokens, with their place among `ids` as their log-probability, and the stop string that ended them.
fn decode(tokenizer: &Tokenizer, stops: &[&str], ids: &[u32], skip: bool) -> (Vec<Token>, Option<String>) {
    let stops = StopStrings::new(stops.iter().copied()).unwrap();
    let mut decoder = StreamDecoder::new(tokenizer.detokenizer(skip), Some(stops));
    let (mut tokens, mut stopped) = (Vec::new(), None);
    for (at, id) in ids.iter().enumerate() {
        let mut token = Token::new(*id, "");
        token.log_probability = Some(at as f32);
        stopped = stopped.or(decoder.push(token, &mut tokens));
    }
    let stopped = stopped.or(decoder.finish(&mut tokens));
    (tokens, stopped)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn streaming_equals_decoding_at_once(ids in ids(), skip: bool) {
        for (ours, theirs) in KINDS.iter() {
            let expected = theirs.decode(&ids, skip).unwrap();
            prop_assert_eq!(&ours.decode(&ids, skip), &expected, "{:?}", theirs.get_decoder());

            let (tokens, stopped) = decode(ours, &[], &ids, skip);
            prop_assert_eq!(stopped, None);
            prop_assert_eq!(tokens.iter().map(|token| token.id).collect::<Vec<_>>(), ids.clone());
            prop_assert!(tokens.iter().enumerate().all(|(at, token)| token.log_probability == Some(at as f32)));
            prop_assert_eq!(tokens.iter().map(|token| token.text.as_str()).collect::<String>(), expected);
        }
    }

    #[test]
    fn stop_strings_cut_the_text_at_the_first_complete_match(
        ids in ids(),
        stops in prop::collection::vec("[a-c 你é\n]{1,3}", 1..4),
    ) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        for (ours, theirs) in KINDS.iter() {
            let (tokens, stopped) = decode(ours, &stops, &ids, false);
            prop_assert_eq!(tokens.len(), ids.len());
            let text: String = tokens.iter().map(|token| token.text.as_str()).collect();
            // What the text was when it first had a stop string: a run of bytes that is broken later had not been then.
            let expected = (0..=ids.len()).find_map(|end| {
                let whole = theirs.decode(&ids[..end], false).unwrap();
                let mut at = (0..=whole.len()).filter(|at| whole.is_char_boundary(*at));
                let end = at.find(|at| stops.iter().any(|stop| whole[..*at].ends_with(stop)))?;
                let stop = stops.iter().filter(|stop| whole[..end].ends_with(**stop)).max_by_key(|stop| stop.len())?;
                Some((whole[..end - stop.len()].to_owned(), (*stop).to_owned()))
            });
            match expected {
                Some((before, stop)) => prop_assert_eq!((text, stopped), (before, Some(stop))),
                None => prop_assert_eq!((text, stopped), (theirs.decode(&ids, false).unwrap(), None)),
            }
        }
    }
}

#[test]
fn a_character_belongs_to_the_token_that_completes_it() {
    let tokenizer = load(&byte_fallback(true));
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    let ids = [id("▁hello"), id("<0xE4>"), id("<0xBD>"), id("<0xA0>"), id("<0x0A>"), id("!")];
    let texts = |ids: &[u32]| {
        decode(&tokenizer, &[], ids, true).0.into_iter().map(|token| token.text).collect::<Vec<_>>()
    };
    assert_eq!(texts(&ids), ["hello", "", "", "你", "\n", "!"]);
    assert_eq!(texts(&ids[..3]), ["hello", "\u{fffd}", "\u{fffd}"]);

    let tokenizer = load(&byte_level(WORDS));
    let mut decoder = StreamDecoder::new(tokenizer.detokenizer(true), None);
    let mut tokens = Vec::new();
    decoder.push(Token::new(0xe4, ""), &mut tokens);
    assert!(tokens.is_empty(), "half a character was given out");
    decoder.push(Token::new(0xbd, ""), &mut tokens);
    decoder.push(Token::new(0xa0, ""), &mut tokens);
    assert_eq!(tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(), ["", "", "你"]);
}

#[test]
fn a_possible_stop_string_is_held_back_and_comes_out_whole() {
    let tokenizer = load(&byte_level(WORDS));
    let stops = StopStrings::new(["hey!", "hello world"]).unwrap();
    let mut decoder = StreamDecoder::new(tokenizer.detokenizer(true), Some(stops));
    let mut tokens = Vec::new();
    let hello = tokenizer.token_to_id("hello").unwrap();
    assert_eq!(decoder.push(Token::new(u32::from(b'a'), ""), &mut tokens), None);
    assert_eq!(decoder.push(Token::new(hello, ""), &mut tokens), None);
    assert_eq!(decoder.push(Token::new(u32::from(b' '), ""), &mut tokens), None);
    assert_eq!(tokens.len(), 1);
    assert_eq!(decoder.push(Token::new(u32::from(b'!'), ""), &mut tokens), None);
    let texts: Vec<_> = tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(texts, ["a", "hello", " ", "!"]);

    // Tokens within the stop string have no text, and neither has what comes after it.
    tokens.clear();
    for id in "xhey".bytes() {
        assert_eq!(decoder.push(Token::new(u32::from(id), ""), &mut tokens), None);
    }
    assert_eq!(decoder.push(Token::new(u32::from(b'!'), ""), &mut tokens), Some("hey!".to_owned()));
    assert_eq!(decoder.push(Token::new(u32::from(b'z'), ""), &mut tokens), None);
    assert_eq!(decoder.finish(&mut tokens), None);
    let texts: Vec<_> = tokens.iter().map(|token| token.text.as_str()).collect();
    assert_eq!(texts, ["x", "", "", "", "", ""]);
}

#[test]
fn a_stop_string_of_byte_tokens_is_seen_without_waiting_for_their_run_to_end() {
    let tokenizer = load(&byte_fallback(true));
    let newline = tokenizer.token_to_id("<0x0A>").unwrap();
    let stops = StopStrings::new(["\n\n"]).unwrap();
    let mut decoder = StreamDecoder::new(tokenizer.detokenizer(true), Some(stops));
    let mut tokens = Vec::new();
    assert_eq!(decoder.push(Token::new(tokenizer.token_to_id("h").unwrap(), ""), &mut tokens), None);
    assert_eq!(decoder.push(Token::new(newline, ""), &mut tokens), None);
    assert_eq!(decoder.push(Token::new(newline, ""), &mut tokens), Some("\n\n".to_owned()));
    assert_eq!(tokens.iter().map(|token| token.text.as_str()).collect::<Vec<_>>(), ["h", "", ""]);
}

#[test]
fn a_stop_string_may_hold_special_tokens() {
    let tokenizer = load(&byte_level(WORDS));
    let end = tokenizer.token_to_id("<|end|>").unwrap();
    let generate = |stop: &str, ids: &[u32]| {
        let stops = StopStrings::new([stop]).unwrap();
        let mut decoder = StreamDecoder::new(tokenizer.detokenizer(true), Some(stops));
        let (mut tokens, mut found) = (Vec::new(), None);
        for id in ids {
            found = found.or(decoder.push(Token::new(*id, ""), &mut tokens));
        }
        found = found.or(decoder.finish(&mut tokens));
        (tokens.into_iter().map(|token| token.text).collect::<String>(), found.is_some())
    };
    let (a, b) = (u32::from(b'a'), u32::from(b'b'));
    assert_eq!(generate("<|end|>", &[a, end, b]), ("a".to_owned(), true));
    assert_eq!(generate("a<|end|>", &[b, a, end, b]), ("b".to_owned(), true));
    assert_eq!(generate("<|end|>b", &[a, end, b, a]), ("a".to_owned(), true));
    assert_eq!(generate("b<|end|>ab", &[a, b, end, a, b]), ("a".to_owned(), true));
    assert_eq!(generate("<|end|>b", &[a, end, a, b]), ("aab".to_owned(), false));
    assert_eq!(generate("x<|end|>", &[a, end, b]), ("ab".to_owned(), false));
    // Half a character stands between.
    assert_eq!(generate("a<|end|>", &[a, 0xe4, end, b]), ("a\u{fffd}b".to_owned(), false));
    assert_eq!(generate("<|end|>", &[a, 0xe4, end, b]), ("a\u{fffd}".to_owned(), true));
}
