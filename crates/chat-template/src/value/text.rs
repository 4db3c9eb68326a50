//! Strings, made through a builder that charges for every byte.

use std::{cell::Cell, fmt, ops::Deref, rc::Rc};

use crate::{
    budget::{Budget, Hold},
    error::{Error, Result},
};

/// About what a string takes beside its bytes.
const OVERHEAD: usize = 96;

/// A string.
#[derive(Clone)]
pub(crate) struct Text(Rc<Data>);

struct Data {
    text: String,
    /// Whether it is what Python calls `Markup`: added to another string, it has that one escaped for HTML.
    markup: bool,
    /// How many characters it has; `usize::MAX` until they are counted.
    chars: Cell<usize>,
    hold: Hold,
}

impl Text {
    pub(crate) fn is_markup(&self) -> bool {
        self.0.markup
    }

    /// How many characters it has. They are counted once.
    pub(crate) fn chars_count(&self) -> Result<usize> {
        if self.0.chars.get() == usize::MAX {
            self.0.hold.budget().charge(self.len())?;
            self.0.chars.set(self.chars().count());
        }
        Ok(self.0.chars.get())
    }

    /// Where the character with that number begins, and the end of the text for one beyond it.
    pub(crate) fn offset(&self, char_index: usize) -> Result<usize> {
        if self.chars_count()? == self.len() {
            return Ok(char_index.min(self.len()));
        }
        self.0.hold.budget().charge(char_index.min(self.len()))?;
        Ok(self.char_indices().nth(char_index).map_or(self.len(), |(at, _)| at))
    }
}

impl Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0.text
    }
}

impl fmt::Debug for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Text").field(&self.0.text).field(&self.0.markup).finish()
    }
}

/// A string in the making. Each byte is charged before it is written, and its memory is held.
#[derive(Debug)]
pub(crate) struct TextBuilder {
    text: String,
    hold: Hold,
    /// Why a formatter's write failed, as [`fmt::Error`] does not say.
    failure: Option<Error>,
}

impl TextBuilder {
    pub(super) fn new(budget: &Rc<Budget>) -> Self {
        Self { text: String::new(), hold: budget.hold_nothing(), failure: None }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }

    /// Charges for so many bytes and makes room for them.
    pub(crate) fn reserve(&mut self, bytes: usize) -> Result<()> {
        self.hold.budget().charge(bytes)?;
        let (needed, limit) = (self.text.len().saturating_add(bytes), self.hold.budget().max_text());
        if needed > limit {
            return Err(Error::limit(format_args!("the template makes a text of more than {limit} bytes")));
        }
        let before = self.text.capacity();
        if needed > before {
            let after = needed.max(before.saturating_mul(2).min(limit)).max(16);
            // While it moves, both are in memory.
            self.hold.grow(after)?;
            self.text.reserve_exact(after - self.text.len());
            self.hold.shrink(before);
        }
        Ok(())
    }

    pub(crate) fn push_str(&mut self, text: &str) -> Result<()> {
        self.reserve(text.len())?;
        self.text.push_str(text);
        Ok(())
    }

    pub(crate) fn push(&mut self, c: char) -> Result<()> {
        self.reserve(c.len_utf8())?;
        self.text.push(c);
        Ok(())
    }

    pub(crate) fn extend(&mut self, chars: impl IntoIterator<Item = char>) -> Result<()> {
        chars.into_iter().try_for_each(|c| self.push(c))
    }

    /// Adds a text so many times.
    pub(crate) fn push_repeated(&mut self, text: &str, count: usize) -> Result<()> {
        let total = text.len().saturating_mul(count);
        if total == 0 {
            return Ok(());
        }
        self.reserve(total)?;
        let start = self.text.len();
        self.text.push_str(text);
        // Each step copies all that is there, up to what is missing.
        while self.text.len() - start < total {
            let made = self.text.len() - start;
            self.text.extend_from_within(start..start + made.min(total - made));
        }
        Ok(())
    }

    pub(crate) fn push_char_repeated(&mut self, c: char, count: usize) -> Result<()> {
        self.push_repeated(c.encode_utf8(&mut [0; 4]), count)
    }

    /// Adds what a formatter writes. It must be short, such as a number.
    pub(crate) fn write(&mut self, written: fmt::Arguments<'_>) -> Result<()> {
        fmt::Write::write_fmt(self, written).map_err(|_| {
            self.failure.take().unwrap_or_else(|| Error::limit(format_args!("a number cannot be written")))
        })
    }

    /// Adds a text with all its letters upper case or lower case.
    pub(crate) fn push_cased(&mut self, text: &str, upper: bool) -> Result<()> {
        // In pieces, as what the standard library makes is not charged. A sigma is a final one by the letters of its word,
        // so that pieces end at a blank if there is one.
        const PIECE: usize = 4_096;
        let mut rest = text;
        while !rest.is_empty() {
            let end = rest.floor_char_boundary(PIECE);
            let end = if end < rest.len() {
                rest[..end].rfind(char::is_whitespace).filter(|at| *at > 0).unwrap_or(end)
            } else {
                end
            };
            let (piece, tail) = rest.split_at(end);
            self.hold.budget().charge(piece.len())?;
            self.push_str(&if upper { piece.to_uppercase() } else { piece.to_lowercase() })?;
            rest = tail;
        }
        Ok(())
    }

    /// The text as it leaves the rendering.
    pub(crate) fn into_string(self) -> String {
        self.text
    }

    pub(crate) fn finish(self) -> Result<Text> {
        self.done(false)
    }

    pub(crate) fn finish_markup(self) -> Result<Text> {
        self.done(true)
    }

    pub(crate) fn done(mut self, markup: bool) -> Result<Text> {
        self.hold.grow(OVERHEAD)?;
        Ok(Text(Rc::new(Data { text: self.text, markup, chars: Cell::new(usize::MAX), hold: self.hold })))
    }
}

impl fmt::Write for TextBuilder {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push_str(text).map_err(|error| {
            self.failure = Some(error);
            fmt::Error
        })
    }
}
