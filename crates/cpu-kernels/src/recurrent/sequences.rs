//! Vectors of tokens in memory.

use std::ops::Range;

use crate::{
    error::{Error, Result},
    operand::{Floats, product},
};

/// Vectors of the tokens of several rows, `[rows, tokens, width]`, in a larger memory. The elements of a vector are contiguous.
#[derive(Debug, Clone, Copy)]
pub struct Sequences<'a> {
    /// The memory, from the first element of the first vector.
    pub data: Floats<'a>,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one token to the next.
    pub token_stride: usize,
}

impl Sequences<'_> {
    /// Checks that the memory holds so many vectors of this width.
    pub(super) fn check(&self, operand: &'static str, [rows, tokens, width]: [usize; 3]) -> Result<()> {
        if rows * tokens * width == 0 {
            return Ok(());
        }
        let last = product(operand, &[rows - 1, self.row_stride])?
            .saturating_add(product(operand, &[tokens - 1, self.token_stride])?)
            .saturating_add(width);
        let found = self.data.len();
        if last > found { Err(Error::Length { operand, found, expected: last }) } else { Ok(()) }
    }

    /// Where the vector of a token begins.
    pub(super) fn at(&self, row: usize, token: usize) -> usize {
        row * self.row_stride + token * self.token_stride
    }
}

/// Some tokens of some rows.
#[derive(Debug, Clone)]
pub(super) struct Block {
    pub(super) rows: Range<usize>,
    pub(super) tokens: Range<usize>,
}

impl Block {
    /// Row and token of the vector `index` of the block.
    pub(super) fn place(&self, index: usize) -> [usize; 2] {
        let tokens = self.tokens.len();
        [self.rows.start + index / tokens, self.tokens.start + index % tokens]
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len() * self.tokens.len()
    }
}
