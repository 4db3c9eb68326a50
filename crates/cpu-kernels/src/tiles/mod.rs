//! Matrix products of many rows in tiles of bf16, which AMX or the dot products of AVX-512 multiply and sum in single precision.

mod amx;
mod bf16_exact;
mod bf16_split;
mod dot;
mod gemm;
mod packing;
mod tile;

pub(crate) use bf16_exact::Bf16Exact;
pub(crate) use bf16_split::SplitPacking;
pub(crate) use gemm::TileGemm;
pub(crate) use packing::{PackedRows, TilePacking};
pub(crate) use tile::TILE_ROWS;
