//! Vocabularies of BERT: a file marks tokens that begin a word, tokenizer.json those that go on.

use serde_json::{Map, Value, json};

/// Before the first letter of a word, in a file.
const BEGINS: &str = "\u{2581}";

/// Before letters that are not the first, in tokenizer.json.
const GOES_ON: &str = "##";

/// Letters of a word beyond which it is unknown: the number of BERT's own, which the files do not say.
const LONGEST_WORD: usize = 100;

/// A token as tokenizer.json has it.
pub(super) fn unmarked(token: &str, special: bool) -> String {
    // The first files did not say which tokens are special.
    if special || token.starts_with('[') && token.ends_with(']') {
        return token.to_owned();
    }
    match token.strip_prefix(BEGINS) {
        Some(word) => word.to_owned(),
        None => format!("{GOES_ON}{token}"),
    }
}

/// The files do not say that text is put into lower case; llama.cpp takes it for granted.
pub(super) fn normalizer() -> Value {
    json!({"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true, "strip_accents": null, "lowercase": true})
}

pub(super) fn pre_tokenizer() -> Value {
    json!({"type": "BertPreTokenizer"})
}

pub(super) fn decoder() -> Value {
    json!({"type": "WordPiece", "prefix": GOES_ON, "cleanup": true})
}

/// What is put around one text, or two: tokens with their ids.
pub(super) fn post_processor(begin: (&str, usize), end: (&str, usize)) -> Value {
    let special =
        |(token, _): (&str, usize), kind: u8| json!({"SpecialToken": {"id": token, "type_id": kind}});
    let text = |name: &str, kind: u8| json!({"Sequence": {"id": name, "type_id": kind}});
    let single = [special(begin, 0), text("A", 0), special(end, 0)];
    let pair: Vec<Value> = single.iter().cloned().chain([text("B", 1), special(end, 1)]).collect();
    let tokens: Map<String, Value> = [begin, end]
        .into_iter()
        .map(|(token, id)| (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]})))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens})
}

pub(super) fn model(vocab: &Map<String, Value>, unknown: &str) -> Value {
    json!({
        "type": "WordPiece", "unk_token": unknown, "continuing_subword_prefix": GOES_ON,
        "max_input_chars_per_word": LONGEST_WORD, "vocab": vocab,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_change_sides() {
        assert_eq!(unmarked("\u{2581}hello", false), "hello");
        assert_eq!(unmarked("ing", false), "##ing");
        assert_eq!(unmarked("[unused0]", false), "[unused0]");
        assert_eq!(unmarked("<s>", true), "<s>");
    }
}
