//! What the lexer cuts a source into.

use std::fmt;

/// A token and the line that it begins on.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token<'s> {
    pub(super) kind: Kind<'s>,
    pub(super) line: u32,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind<'s> {
    /// Text outside of tags.
    Data(&'s str),
    /// `{{`
    PrintBegin,
    /// `}}`
    PrintEnd,
    /// `{%`
    BlockBegin,
    /// `%}`
    BlockEnd,
    Name(&'s str),
    /// A string, its escapes decoded.
    Text(String),
    /// As it is written, without underscores.
    Integer(String),
    Float(f64),
    Operator(Operator),
    End,
}

macro_rules! operators {
    ($($name:ident $text:literal),* $(,)?) => {
        /// An operator or a bracket.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub(super) enum Operator { $($name),* }

        impl Operator {
            /// All of them, the longest first.
            pub(super) const ALL: &[Self] = &[$(Self::$name),*];

            pub(super) const fn text(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

operators! {
    FloorDiv "//", Power "**", Equal "==", NotEqual "!=", GreaterEqual ">=", LessEqual "<=",
    Add "+", Subtract "-", Divide "/", Multiply "*", Modulo "%", Tilde "~", Greater ">", Less "<", Assign "=",
    ParenOpen "(", ParenClose ")", BracketOpen "[", BracketClose "]", BraceOpen "{", BraceClose "}",
    Dot ".", Colon ":", Pipe "|", Comma ",", Semicolon ";",
}

impl fmt::Display for Kind<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Data(_) => f.write_str("text"),
            Self::PrintBegin => f.write_str("'{{'"),
            Self::PrintEnd => f.write_str("'}}'"),
            Self::BlockBegin => f.write_str("'{%'"),
            Self::BlockEnd => f.write_str("'%}'"),
            Self::Name(name) => write!(f, "'{name}'"),
            Self::Text(_) => f.write_str("a string"),
            Self::Integer(number) => f.write_str(number),
            Self::Float(number) => write!(f, "{number}"),
            Self::Operator(operator) => write!(f, "'{}'", operator.text()),
            Self::End => f.write_str("the end of the template"),
        }
    }
}
