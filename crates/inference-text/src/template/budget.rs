//! How much work and memory a template may use.

use std::cell::Cell;

use super::value::Fallible;

/// Units of one rendering. A unit is a byte written, read or compared, or a thirty-second of an evaluated expression: the
/// whole budget is spent in about a second. Published templates use some hundred thousand for a conversation.
const UNITS: usize = 256 << 20;

/// Bytes of text that a rendering may give, and that any text within it may have.
pub(super) const MAX_TEXT: usize = crate::MAX_TEXT_BYTES;

/// What one evaluated expression or statement costs.
pub(super) const STEP: usize = 32;

/// What one element of a list or one entry of a dict costs: about its bytes.
pub(super) const ELEMENT: usize = 64;

/// The budget of one rendering. Everything that takes time or memory in proportion to a value is charged before it is
/// done, so that a rendering ends with an error and neither hangs nor fills the memory.
#[derive(Debug)]
pub(super) struct Budget {
    left: Cell<usize>,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { left: Cell::new(UNITS) }
    }

    /// Takes units for work about to be done.
    pub(super) fn charge(&self, units: usize) -> Fallible<()> {
        match self.left.get().checked_sub(units) {
            Some(left) => {
                self.left.set(left);
                Ok(())
            }
            None => Err("it does not come to an end: its budget of work and memory is spent".to_owned()),
        }
    }

    /// Takes units for so many elements of a list or dict.
    pub(super) fn charge_elements(&self, count: usize) -> Fallible<()> {
        self.charge(count.saturating_mul(ELEMENT))
    }

    /// Takes units for a text about to be made.
    pub(super) fn charge_text(&self, bytes: usize) -> Fallible<()> {
        if bytes > MAX_TEXT {
            return Err(format!("it makes a text of {bytes} bytes, expected at most {MAX_TEXT}"));
        }
        self.charge(bytes)
    }
}
