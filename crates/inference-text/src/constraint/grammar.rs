//! What may be said, as llguidance reads it.

use inference_core::{Constraint, Result};

use super::{
    invalid::invalid,
    schema::{self, MAX_SOURCE},
};

/// Brackets within brackets of a grammar or a regular expression at most.
const MAX_DEPTH: usize = 100;

/// A grammar: its parts by name, the first of which is where a text begins. Its content is its identity.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Grammar {
    kind: &'static str,
    parts: Vec<(String, Source)>,
}

/// How a part is written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Source {
    Lark(String),
    Regex(String),
    /// Checked, and with llguidance's own options.
    JsonSchema(String),
}

impl Source {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Lark(text) | Self::Regex(text) | Self::JsonSchema(text) => text.len(),
        }
    }
}

impl Grammar {
    /// The grammar of a constraint that is not the caller's own.
    ///
    /// # Errors
    /// It is too large, or a schema has what cannot be held to.
    pub(super) fn of(constraint: &Constraint) -> Result<Self> {
        let (kind, source) = match constraint {
            Constraint::JsonSchema(schema) => ("JSON schema", Source::JsonSchema(schema::prepare(schema)?)),
            Constraint::Regex(text) => {
                ("regular expression", Source::Regex(checked("regular expression", text)?))
            }
            Constraint::Lark(text) => ("grammar", Source::Lark(checked("grammar", text)?)),
            Constraint::Choice(texts) => {
                let texts: Vec<String> = texts.iter().map(|text| regex_syntax::escape(text)).collect();
                ("choice", Source::Regex(sized("choice", texts.join("|"))?))
            }
            other => return Err(invalid(format!("{other:?} is of a kind that this engine does not know"))),
        };
        Ok(Self { kind, parts: vec![("main".to_owned(), source)] })
    }

    /// A grammar of several parts, which name each other with `@`.
    ///
    /// # Errors
    /// Together they are too large.
    pub(super) fn of_parts(kind: &'static str, parts: Vec<(String, Source)>) -> Result<Self> {
        let grammar = Self { kind, parts };
        match grammar.bytes() {
            bytes if bytes > MAX_SOURCE => Err(too_large(kind, bytes)),
            _ => Ok(grammar),
        }
    }

    /// Its parts, of which the first is the one that a text is of.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&str, &Source)> {
        self.parts.iter().map(|(name, source)| (name.as_str(), source))
    }

    /// Its first part.
    pub(super) fn into_source(self) -> Option<Source> {
        self.parts.into_iter().next().map(|(_, source)| source)
    }

    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    pub(super) fn bytes(&self) -> usize {
        self.parts.iter().map(|(name, source)| name.len() + source.bytes()).sum()
    }
}

fn too_large(kind: &str, bytes: usize) -> inference_core::Error {
    invalid(format!("{kind}: {bytes} bytes, expected at most {MAX_SOURCE}"))
}

fn sized(kind: &str, text: String) -> Result<String> {
    if text.len() > MAX_SOURCE { Err(too_large(kind, text.len())) } else { Ok(text) }
}

/// Refuses what a recursive parser should not see.
fn checked(kind: &str, text: &str) -> Result<String> {
    let mut depth = 0_usize;
    for byte in text.bytes() {
        match byte {
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > MAX_DEPTH {
            return Err(invalid(format!("{kind}: more than {MAX_DEPTH} brackets within brackets")));
        }
    }
    sized(kind, text.to_owned())
}
