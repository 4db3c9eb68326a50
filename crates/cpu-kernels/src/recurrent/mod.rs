//! Recurrent layers: linear attention behind a causal convolution, with a gated norm of what comes out.
//!
//! A block of tokens goes through four kernels, each shared by all threads: the convolution, by channels; for the delta rule, the
//! lengths of queries and keys, by tokens; the scan, by heads; and the gated norm, by tokens. What lies between is in single
//! precision, and small enough for the caches.

mod conv;
mod gated_norm;
mod scan;
mod sequences;

use crate::{
    error::Result,
    kernels::Kernels,
    operand::{Floats, FloatsMut, length, product},
};

pub use conv::CausalConv;
pub use gated_norm::GatedNorm;
pub use scan::{LinearAttention, Rule};
pub use sequences::Sequences;

use sequences::Block;

/// Tokens, of one row or of several, that go through the kernels together.
const BLOCK: usize = 64;

/// A recurrent layer and its inputs.
#[derive(Debug, Clone, Copy)]
pub struct RecurrentLayer<'a> {
    /// Rows and tokens.
    pub sizes: [usize; 2],
    /// Tokens of each row that are not padding, `[rows]`; `None` is all. Padding is on the right, does not change the state, and
    /// its output is of no use.
    pub lengths: Option<&'a [i32]>,
    /// The inputs of the convolution.
    pub x: Sequences<'a>,
    /// The convolution.
    pub conv: CausalConv<'a>,
    /// What follows it.
    pub attention: LinearAttention<'a>,
    /// What the output is gated with, `[rows, tokens, heads · value_dim]`.
    pub gates: Sequences<'a>,
    /// How it is gated.
    pub norm: GatedNorm<'a>,
}

impl Kernels {
    /// The layer's output `[rows, tokens, heads · value_dim]` → the first output. `window` `[rows, kernel − 1, channels]` has the
    /// inputs of the convolution before the first token, of the type of `x`, and the second output gets those before the next one.
    /// `state` `[rows, heads, key_dim, value_dim]` is updated.
    ///
    /// # Errors
    /// Operands whose sizes or types do not match.
    pub fn recurrent_layer(
        &self,
        layer: &RecurrentLayer<'_>,
        window: Floats<'_>,
        state: &mut [f32],
        [mut out, window_after]: [FloatsMut<'_>; 2],
    ) -> Result<()> {
        let RecurrentLayer { sizes: [rows, tokens], lengths, x, conv, attention, gates, norm } = layer;
        let width = attention.check([*rows, *tokens], conv.channels)?;
        conv.check([*rows, *tokens], x, window)?;
        gates.check("gates", [*rows, *tokens, width])?;
        norm.check(width)?;
        length("out", out.len(), product("out", &[*rows, *tokens, width])?)?;
        length("state", state.len(), product("state", &[*rows, width, attention.key_dim])?)?;
        if let Some(lengths) = lengths {
            length("lengths", lengths.len(), *rows)?;
        }
        let row_step = (BLOCK / (*tokens).max(1)).max(1);
        let (mut mixed, mut attended) = (Vec::new(), Vec::new());
        for first_row in (0..*rows).step_by(row_step) {
            for first in (0..*tokens).step_by(BLOCK) {
                let block = Block {
                    rows: first_row..(first_row + row_step).min(*rows),
                    tokens: first..(first + BLOCK).min(*tokens),
                };
                mixed.resize(block.len() * conv.channels, 0.0);
                attended.resize(block.len() * width, 0.0);
                self.convolve(conv, x, window, &block, FloatsMut::F32(&mut mixed))?;
                self.make_unit(attention, &mut mixed, conv.channels);
                self.scan(attention, *lengths, &block, &mixed, state, &mut attended);
                self.gate(norm, gates, &block, &mut attended, [*tokens, width], &mut out);
            }
        }
        conv::shift_window([*rows, *tokens], *lengths, x, conv, window, window_after)
    }
}
