//! What is held out for the test questions, by a hash of its content: the same on every machine, and the same that drew
//! xtask/demo/questions.jsonl.

use blake2::{
    Blake2bVar,
    digest::{Update as _, VariableOutput as _},
};

/// A part of the key that says what an item is.
pub(super) enum Part<'a> {
    Text(&'a str),
    Number(i64),
}

/// A number that depends on the content of the key alone.
pub(super) fn bucket(key: &[Part<'_>]) -> u64 {
    let parts: Vec<String> = key.iter().map(Part::spelt).collect();
    let mut bytes = [0; 6];
    let mut hasher = Blake2bVar::new(bytes.len()).expect("blake2b gives 1 to 64 bytes");
    hasher.update(format!("({})", parts.join(", ")).as_bytes());
    hasher.finalize_variable(&mut bytes).expect("as many bytes as asked for");
    bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// Whether one in `share` holds this item out.
pub(super) fn held_out(key: &[Part<'_>], share: u64) -> bool {
    bucket(key).is_multiple_of(share)
}

impl Part<'_> {
    /// As a tuple's item in Python's `repr`, which the first split was made with.
    fn spelt(&self) -> String {
        match self {
            Self::Number(number) => number.to_string(),
            Self::Text(text) => {
                let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
                let mut spelt = String::from(quote);
                for c in text.chars() {
                    match c {
                        '\n' => spelt.push_str("\\n"),
                        c if c == quote || c == '\\' => spelt.extend(['\\', c]),
                        c => spelt.push(c),
                    }
                }
                spelt.push(quote);
                spelt
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Part::{Number, Text},
        bucket,
    };

    #[test]
    fn the_split_is_the_one_that_drew_the_test_questions() {
        assert_eq!(
            bucket(&[Text("mul"), Number(3), Number(4), Text("What is {a}*{b}?")]),
            245_509_453_553_341
        );
        assert_eq!(bucket(&[Text("add"), Number(1), Number(2)]), 52_005_309_046_477);
        assert_eq!(
            bucket(&[Text("sentence"), Text("weather"), Text("the rain"), Text("it's \"cold\"")]),
            45_272_327_003_953
        );
        assert_eq!(bucket(&[Text("sentence"), Text("a"), Text("don't")]), 70_324_311_849_791);
        assert_eq!(bucket(&[Text("name"), Text("Zürich")]), 90_669_620_175_086);
        assert_eq!(bucket(&[Text("fact"), Text("Hey, "), Text("What's a×b?")]), 221_213_630_085_816);
        assert_eq!(bucket(&[Text("unknown"), Text("a\\b")]), 236_153_031_554_929);
    }
}
