//! As much of a JSON text as is certain while it is written.

use serde_json::{Map, Number, Value};

/// Values within values that are read; deeper ones are left out.
const MAX_DEPTH: usize = 127;

/// The value of the beginning of a JSON text: strings, lists and objects as far as they came; numbers, `true`, `false` and `null`
/// once what follows shows that they are whole. `None` where nothing is certain yet, or the text is no JSON.
pub(crate) fn partial(text: &str) -> Option<Value> {
    Reader { rest: text.trim_start() }.value(0)
}

struct Reader<'t> {
    rest: &'t str,
}

impl Reader<'_> {
    fn value(&mut self, depth: usize) -> Option<Value> {
        if depth > MAX_DEPTH {
            return None;
        }
        match self.rest.chars().next()? {
            '"' => self.string().map(|(text, _)| Value::String(text)),
            '[' => Some(Value::Array(self.list(depth))),
            '{' => Some(Value::Object(self.object(depth))),
            _ => self.word(),
        }
    }

    /// Whether the text goes on with this, which is skipped, with the white space behind it.
    fn skip(&mut self, mark: char) -> bool {
        let Some(rest) = self.rest.trim_start().strip_prefix(mark) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn list(&mut self, depth: usize) -> Vec<Value> {
        let mut values = Vec::new();
        self.skip('[');
        loop {
            if self.skip(']') {
                return values;
            }
            let Some(value) = self.value(depth + 1) else { break };
            values.push(value);
            if !self.skip(',') && !self.rest.trim_start().starts_with(']') {
                break;
            }
        }
        self.rest = "";
        values
    }

    fn object(&mut self, depth: usize) -> Map<String, Value> {
        let mut fields = Map::new();
        self.skip('{');
        loop {
            if self.skip('}') {
                return fields;
            }
            let Some((key, true)) = self.string() else { break };
            if !self.skip(':') {
                break;
            }
            let Some(value) = self.value(depth + 1) else { break };
            fields.insert(key, value);
            if !self.skip(',') && !self.rest.trim_start().starts_with('}') {
                break;
            }
        }
        self.rest = "";
        fields
    }

    /// A string as far as it came, and whether it has ended.
    fn string(&mut self) -> Option<(String, bool)> {
        let body = self.rest.strip_prefix('"')?;
        let mut escaped = false;
        let end = body.bytes().position(|byte| {
            let ends = byte == b'"' && !escaped;
            escaped = byte == b'\\' && !escaped;
            ends
        });
        if let Some(end) = end {
            let whole = &self.rest[..end + 2];
            self.rest = &self.rest[end + 2..];
            return Some((serde_json::from_str(whole).ok()?, true));
        }
        self.rest = "";
        // The last escape may be incomplete: of a surrogate pair, up to twelve characters.
        let mut cut = body;
        for _ in 0..13 {
            if let Ok(text) = serde_json::from_str(&format!("\"{cut}\"")) {
                return Some((text, false));
            }
            cut = &cut[..cut.char_indices().next_back()?.0];
        }
        None
    }

    /// A number, `true`, `false` or `null` that something follows.
    fn word(&mut self) -> Option<Value> {
        let end = self.rest.find(|c: char| !(c.is_ascii_alphanumeric() || "+-.".contains(c)))?;
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        match word {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            "null" => Some(Value::Null),
            number => serde_json::from_str::<Number>(number).ok().map(Value::Number),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_grows_to_its_value_and_never_back() {
        let value = serde_json::json!({
            "name": "a \"b\" \u{1f600} \n", "list": [1, -2.5e3, [], {"x": null}], "yes": true, "deep": {"k": [false]},
        });
        for text in [value.to_string(), serde_json::to_string_pretty(&value).unwrap()] {
            let text = text.replace('\u{1f600}', "\\ud83d\\ude00");
            let mut last = None;
            for (at, _) in text.char_indices() {
                let found = partial(&text[..at]);
                assert!(found.is_some() || last.is_none(), "{:?} gave nothing", &text[..at]);
                if let (Some(Value::Object(found)), Some(Value::Object(last))) = (&found, &last) {
                    assert!(found.len() >= last.len(), "{:?} lost a field", &text[..at]);
                }
                last = found.or(last);
            }
            assert_eq!(partial(&text), Some(value.clone()));
        }
    }

    #[test]
    fn what_is_not_certain_is_left_out() {
        let read = |text: &str| partial(text).map(|value| value.to_string());
        assert_eq!(read("12"), None);
        assert_eq!(read("[12"), Some("[]".into()));
        assert_eq!(read("[12,"), Some("[12]".into()));
        assert_eq!(read("{\"a"), Some("{}".into()));
        assert_eq!(read("{\"a\": \"x\\u00"), Some("{\"a\":\"x\"}".into()));
        assert_eq!(read("{\"a\": tru"), Some("{}".into()));
        assert_eq!(read("no JSON"), None);
        assert_eq!(read(&"[".repeat(100_000)).map(|text| text.len()), Some(256));
    }
}
