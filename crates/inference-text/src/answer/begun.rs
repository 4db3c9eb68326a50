//! A call that is told while it is written: whom it calls, then its arguments in pieces.
//!
//! Only notations that write the name first and the arguments as JSON are followed; other calls are known at their end.

use super::{calls::recipient, format::Kind};

/// How far a call was followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    /// What stands before the arguments is not complete.
    Head,
    /// Within the arguments.
    Arguments {
        /// Bytes of the body that were read.
        read: usize,
        /// Objects and lists that are open.
        depth: usize,
        in_string: bool,
        escaped: bool,
    },
    /// The arguments are complete, or are not followed.
    Over,
}

/// Whom a call calls, and where its arguments begin in the body.
#[derive(Debug, PartialEq)]
pub(super) struct Head {
    /// The call's id, where the model gives one before the arguments.
    pub(super) id: Option<String>,
    pub(super) name: String,
    pub(super) arguments: usize,
}

/// Why a head cannot be read.
#[derive(Debug, PartialEq)]
pub(super) enum Unread {
    /// It is not complete.
    Incomplete,
    /// It is of a form that is not followed.
    Other,
}

/// Reads the head of a call from what there is of its body. `opened` is the text that began it.
pub(super) fn head(kind: Kind, opened: &str, body: &str) -> Result<Head, Unread> {
    let mut cursor = Cursor { text: body, at: 0 };
    let head = match kind {
        Kind::Tagged if opened == "<tool_call>" => {
            cursor.character('{')?;
            cursor.key(&["name"])?;
            let name = cursor.string()?;
            cursor.character(',')?;
            cursor.key(&["arguments", "parameters"])?;
            (None, name)
        }
        Kind::Mistral => {
            if cursor.next()? == '[' || cursor.next()? == '{' {
                return Err(Unread::Other);
            }
            let (head, _) = body.split_once("[ARGS]").ok_or(Unread::Incomplete)?;
            cursor.at = head.len() + "[ARGS]".len();
            match head.split_once("[CALL_ID]") {
                Some((name, id)) => (Some(id.trim().to_owned()), name.trim().to_owned()),
                None => (None, head.trim().to_owned()),
            }
        }
        Kind::ChannelCall => (None, recipient(opened).to_owned()),
        _ => return Err(Unread::Other),
    };
    match head {
        (_, name) if name.is_empty() => Err(Unread::Other),
        _ if cursor.next()? != '{' => Err(Unread::Other),
        (id, name) => Ok(Head { id, name, arguments: cursor.at }),
    }
}

impl Begun {
    /// The arguments begin here.
    pub(super) fn arguments(read: usize) -> Self {
        Self::Arguments { read, depth: 0, in_string: false, escaped: false }
    }

    /// The next piece of the arguments, from what there is of the body; empty where there is none.
    pub(super) fn advance<'b>(&mut self, body: &'b str) -> &'b str {
        let Self::Arguments { read, depth, in_string, escaped } = self else { return "" };
        let new = body.get(*read..).unwrap_or_default();
        for (at, byte) in new.bytes().enumerate() {
            match (*in_string, byte) {
                (true, _) if std::mem::take(escaped) => {}
                (true, b'\\') => *escaped = true,
                (_, b'"') => *in_string = !*in_string,
                (false, b'{' | b'[') => *depth += 1,
                (false, b'}' | b']') => {
                    *depth = depth.saturating_sub(1);
                    if *depth == 0 {
                        *self = Self::Over;
                        return &new[..=at];
                    }
                }
                _ => {}
            }
        }
        *read += new.len();
        new
    }
}

/// A place in a text that is still arriving.
struct Cursor<'t> {
    text: &'t str,
    at: usize,
}

impl Cursor<'_> {
    /// The next character that is not blank; it stays the next one.
    fn next(&mut self) -> Result<char, Unread> {
        let rest = self.text.get(self.at..).unwrap_or_default();
        self.at += rest.len() - rest.trim_start().len();
        self.text.get(self.at..).and_then(|rest| rest.chars().next()).ok_or(Unread::Incomplete)
    }

    fn character(&mut self, expected: char) -> Result<(), Unread> {
        if self.next()? != expected {
            return Err(Unread::Other);
        }
        self.at += expected.len_utf8();
        Ok(())
    }

    fn string(&mut self) -> Result<String, Unread> {
        if self.next()? != '"' {
            return Err(Unread::Other);
        }
        let rest = &self.text[self.at..];
        let mut escaped = false;
        for (at, byte) in rest.bytes().enumerate().skip(1) {
            match byte {
                _ if std::mem::take(&mut escaped) => {}
                b'\\' => escaped = true,
                b'"' => {
                    self.at += at + 1;
                    return serde_json::from_str(&rest[..=at]).map_err(|_| Unread::Other);
                }
                _ => {}
            }
        }
        Err(Unread::Incomplete)
    }

    /// One of these keys, and the colon behind it.
    fn key(&mut self, keys: &[&str]) -> Result<(), Unread> {
        if !keys.contains(&self.string()?.as_str()) {
            return Err(Unread::Other);
        }
        self.character(':')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(kind: Kind, opened: &str, body: &str) -> Result<(Option<String>, String, usize), Unread> {
        head(kind, opened, body).map(|head| (head.id, head.name, head.arguments))
    }

    #[test]
    fn heads_are_read_as_soon_as_the_arguments_begin() {
        let qwen = "\n{\"name\": \"we\\\"ather\", \"arguments\": {\"city\": 1}}\n";
        let begins = qwen.find("{\"city").unwrap();
        for end in 0..qwen.len() {
            let expected = match end {
                end if end <= begins => Err(Unread::Incomplete),
                _ => Ok((None, "we\"ather".to_owned(), begins)),
            };
            assert_eq!(read(Kind::Tagged, "<tool_call>", &qwen[..end]), expected, "{end}");
        }
        let mistral = "add[CALL_ID]a1[ARGS]{";
        assert_eq!(read(Kind::Mistral, "[TOOL_CALLS]", mistral), Ok((Some("a1".into()), "add".into(), 20)));
        let opened = "<|channel|>commentary to=functions.add <|constrain|>json<|message|>";
        assert_eq!(read(Kind::ChannelCall, opened, " {"), Ok((None, "add".into(), 1)));
    }

    #[test]
    fn other_forms_are_left_to_the_end() {
        for body in [
            "{\"arguments\": {}",
            "<function=f>",
            "[{",
            "{\"name\": \"f\", \"arguments\": \"{",
            "{\"name\": \"\", \"arguments\": {",
        ] {
            assert_eq!(read(Kind::Tagged, "<tool_call>", body), Err(Unread::Other), "{body}");
        }
        assert_eq!(read(Kind::Mistral, "[TOOL_CALLS]", "[{"), Err(Unread::Other));
        assert_eq!(read(Kind::DeepSeek, "", "x"), Err(Unread::Other));
    }

    #[test]
    fn pieces_end_with_the_arguments() {
        let body = r#"x{"a": "}\"]", "b": [1, {}]} and more"#;
        let expected = r#"{"a": "}\"]", "b": [1, {}]}"#;
        for step in 1..body.len() {
            let (mut begun, mut pieces) = (Begun::arguments(1), String::new());
            for end in (1..body.len()).step_by(step).chain([body.len()]) {
                pieces.push_str(begun.advance(&body[..end]));
            }
            assert_eq!((pieces.as_str(), begun), (expected, Begun::Over));
        }
    }
}
