//! Whether a text that is still arriving stands within a string literal: a delimiter there is text.

/// How a notation quotes strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Quoting {
    /// No strings.
    None,
    /// Between double quotes, with escapes.
    Json,
    /// Between single or double quotes, with escapes.
    Python,
    /// Between two [`GEMMA_QUOTE`]s.
    Gemma,
}

/// What begins and ends a string in Gemma 4's notation.
pub(super) const GEMMA_QUOTE: &str = "<|\"|>";

/// Follows a text byte by byte.
#[derive(Debug, Clone)]
pub(super) struct StringScanner {
    quoting: Quoting,
    /// The quote that the current string began with.
    open: Option<u8>,
    escaped: bool,
    /// Bytes of [`GEMMA_QUOTE`] that the text ends with.
    matched: usize,
}

impl StringScanner {
    pub(super) fn new(quoting: Quoting) -> Self {
        Self { quoting, open: None, escaped: false, matched: 0 }
    }

    pub(super) fn step(&mut self, byte: u8) {
        match self.quoting {
            Quoting::None => {}
            Quoting::Gemma => self.step_gemma(byte),
            Quoting::Json | Quoting::Python if std::mem::take(&mut self.escaped) => {}
            Quoting::Json | Quoting::Python => match (self.open, byte) {
                (Some(_), b'\\') => self.escaped = true,
                (Some(open), byte) if open == byte => self.open = None,
                // Neither notation has line breaks in strings: what opened this one was no quote.
                (Some(_), b'\n') => self.open = None,
                (None, b'"') => self.open = Some(byte),
                (None, b'\'') if self.quoting == Quoting::Python => self.open = Some(byte),
                _ => {}
            },
        }
    }

    pub(super) fn in_string(&self) -> bool {
        self.open.is_some()
    }

    fn step_gemma(&mut self, byte: u8) {
        let quote = GEMMA_QUOTE.as_bytes();
        // No beginning of the quote repeats within it but its first byte.
        self.matched = match byte {
            byte if byte == quote[self.matched] => self.matched + 1,
            byte => usize::from(byte == quote[0]),
        };
        if self.matched == quote.len() {
            self.matched = 0;
            self.open = if self.open.is_some() { None } else { Some(b'<') };
        }
    }
}
