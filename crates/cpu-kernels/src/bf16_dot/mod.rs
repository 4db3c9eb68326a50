//! Matrix products of up to eight rows of bf16 with the dot products of AVX-512 (`VDPBF16PS`), for matrices whose elements bf16
//! holds exactly before they are scaled.
//!
//! A 4-bit integer becomes the high bits of the mantissa of a number with a fixed exponent, which takes one instruction. This adds
//! a constant to each element, which the bias of the group takes back.

mod gemv;
mod interleaved;
mod rows;
mod unpack;

pub(crate) use gemv::Bf16Gemv;
pub(crate) use interleaved::{Bf16InterleavedGemv, InterleavedRows};
pub(crate) use rows::{Bf16Rows, permute_bf16_row, sum_groups};
pub(crate) use unpack::{BF16_BLOCK, Bf16Dot, MAX_BF16_BLOCK_BYTES};
