//! The storages of matrix elements, and how each is unpacked into vectors.

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::{minifloat::FP4, simd::Simd};

/// A storage of matrix elements. A block unpacks into `VALUES` vectors: lane `i` of vector `j` holds element
/// `i · VALUES + j`, so the elements of a lane are neighbours in memory.
#[allow(clippy::missing_safety_doc, reason = "that of `Simd`, and a pointer to a whole block")]
pub(crate) trait Storage: Copy + Send + Sync + 'static {
    /// Bits of an element.
    const BITS: usize;
    /// Vectors of a block.
    const VALUES: usize;
    /// Whether groups of elements have a scale.
    const SCALED: bool = true;
    /// Lookup tables for unpacking.
    type Tables<S: Simd>: Copy;
    /// A block in registers, still packed.
    type Block<S: Simd>: Copy;

    unsafe fn tables<S: Simd>() -> Self::Tables<S>;
    unsafe fn load<S: Simd>(from: *const u8) -> Self::Block<S>;
    unsafe fn value<S: Simd>(block: Self::Block<S>, tables: Self::Tables<S>, j: usize) -> S::F;
}

/// Bytes of the largest block: sixteen lanes of eight 5-bit elements.
pub(crate) const MAX_BLOCK_BYTES: usize = 80;

/// Bytes of a block.
pub(crate) const fn block_bytes<T: Storage, S: Simd>() -> usize {
    S::LANES * T::VALUES * T::BITS / 8
}

/// Floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dense<E>(PhantomData<E>);

/// Unsigned integers whose size divides a 32-bit word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AlignedInt<const BITS: usize>;

/// Unsigned integers of 3, 5 or 6 bits, which straddle words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StraddlingInt<const BITS: usize>;

/// Floats of type E2M1.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fp4;

/// Floats of type E4M3.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fp8;

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Storage`")]
impl Storage for Dense<f32> {
    const BITS: usize = 32;
    const VALUES: usize = 1;
    const SCALED: bool = false;
    type Tables<S: Simd> = ();
    type Block<S: Simd> = S::F;

    #[inline(always)]
    unsafe fn tables<S: Simd>() {}
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::F {
        unsafe { S::load(from.cast()) }
    }
    #[inline(always)]
    unsafe fn value<S: Simd>(block: S::F, (): (), _: usize) -> S::F {
        block
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Storage`")]
impl Storage for Dense<f16> {
    const BITS: usize = 16;
    const VALUES: usize = 1;
    const SCALED: bool = false;
    type Tables<S: Simd> = ();
    type Block<S: Simd> = S::F;

    #[inline(always)]
    unsafe fn tables<S: Simd>() {}
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::F {
        unsafe { S::load_f16(from.cast()) }
    }
    #[inline(always)]
    unsafe fn value<S: Simd>(block: S::F, (): (), _: usize) -> S::F {
        block
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Storage`")]
impl Storage for Dense<bf16> {
    const BITS: usize = 16;
    const VALUES: usize = 2;
    const SCALED: bool = false;
    type Tables<S: Simd> = ();
    type Block<S: Simd> = S::U;

    #[inline(always)]
    unsafe fn tables<S: Simd>() {}
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::U {
        unsafe { S::load_u(from.cast()) }
    }
    #[inline(always)]
    unsafe fn value<S: Simd>(block: S::U, (): (), j: usize) -> S::F {
        unsafe {
            S::from_bits(if j == 0 { S::shl(block, 16) } else { S::and(block, S::splat_u(0xffff_0000)) })
        }
    }
}

/// The integers of `bits` bits as floats, repeated for indices with more bits.
fn integers(bits: usize) -> [f32; 16] {
    std::array::from_fn(|i| (i % (1 << bits)) as f32)
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Storage`")]
impl<const BITS: usize> Storage for AlignedInt<BITS> {
    const BITS: usize = BITS;
    const VALUES: usize = 32 / BITS;
    type Tables<S: Simd> = S::Table;
    type Block<S: Simd> = S::U;

    #[inline(always)]
    unsafe fn tables<S: Simd>() -> S::Table {
        unsafe { S::table(&integers(BITS.min(4))) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::U {
        unsafe { S::load_u(from.cast()) }
    }
    #[inline(always)]
    unsafe fn value<S: Simd>(block: S::U, table: S::Table, j: usize) -> S::F {
        unsafe { integer::<S, BITS>(S::shr(block, (j * BITS) as u32), table) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Storage`")]
impl<const BITS: usize> Storage for StraddlingInt<BITS> {
    const BITS: usize = BITS;
    /// The fewest that fill whole bytes for each lane, and fit five bytes.
    const VALUES: usize = if BITS == 6 { 4 } else { 8 };
    type Tables<S: Simd> = S::Table;
    /// The first four bytes of each lane's elements, and the last four if there are five.
    type Block<S: Simd> = [S::U; 2];

    #[inline(always)]
    unsafe fn tables<S: Simd>() -> S::Table {
        unsafe { S::table(&integers(BITS.min(4))) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> [S::U; 2] {
        unsafe { if BITS == 5 { S::load_u40(from) } else { [S::load_u24(from); 2] } }
    }
    #[inline(always)]
    unsafe fn value<S: Simd>(words: [S::U; 2], table: S::Table, j: usize) -> S::F {
        let shift = j * BITS;
        unsafe {
            let code = if shift + BITS <= 32 {
                S::shr(words[0], shift as u32)
            } else {
                S::shr(words[1], shift as u32 - 8)
            };
            integer::<S, BITS>(code, table)
        }
    }
}

/// The low bits as a float.
///
/// # Safety
/// The machine has the instruction set.
#[inline(always)]
unsafe fn integer<S: Simd, const BITS: usize>(code: S::U, table: S::Table) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        if S::FAST_LOOKUP && BITS <= 4 {
            S::lookup(table, code)
        } else {
            S::to_f32(S::and(code, S::splat_u((1 << BITS) - 1)))
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Storage`")]
impl Storage for Fp4 {
    const BITS: usize = 4;
    const VALUES: usize = 8;
    type Tables<S: Simd> = S::Table;
    type Block<S: Simd> = S::U;

    #[inline(always)]
    unsafe fn tables<S: Simd>() -> S::Table {
        unsafe { S::table(&FP4) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::U {
        unsafe { S::load_u(from.cast()) }
    }
    #[inline(always)]
    unsafe fn value<S: Simd>(block: S::U, table: S::Table, j: usize) -> S::F {
        unsafe { S::lookup(table, S::shr(block, (j * 4) as u32)) }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the contract of `Storage`")]
impl Storage for Fp8 {
    const BITS: usize = 8;
    const VALUES: usize = 4;
    /// By the mantissa: its value. By the exponent: a factor of that, and a term.
    type Tables<S: Simd> = [S::Table; 3];
    type Block<S: Simd> = S::U;

    #[inline(always)]
    unsafe fn tables<S: Simd>() -> [S::Table; 3] {
        let power = |exponent: usize| 2_f32.powi(exponent.max(1) as i32 - 7);
        unsafe {
            [
                S::table(&integers(3).map(|mantissa| mantissa / 8.0)),
                S::table(&std::array::from_fn(power)),
                S::table(&std::array::from_fn(|exponent| if exponent == 0 { 0.0 } else { power(exponent) })),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> S::U {
        unsafe { S::load_u(from.cast()) }
    }
    #[inline(always)]
    unsafe fn value<S: Simd>(block: S::U, [mantissas, steps, starts]: [S::Table; 3], j: usize) -> S::F {
        // Subnormal numbers need no special case, and no subnormal `f32` appears, which would be slow.
        unsafe {
            let (byte, exponent) = (S::shr(block, 8 * j as u32), S::shr(block, 8 * j as u32 + 3));
            let magnitude =
                S::fma(S::lookup(mantissas, byte), S::lookup(steps, exponent), S::lookup(starts, exponent));
            S::flip_sign(magnitude, S::shl(block, 24 - 8 * j as u32))
        }
    }
}

/// Runs `$body` with the type `$storage` bound to the storage of some `Weights`.
macro_rules! with_storage {
    ($weights:expr, $storage:ident => $body:expr) => {{
        use $crate::{operand::{Floats, Weights}, quantization::QuantMode, storage};
        match $weights {
            Weights::Dense(Floats::F32(_)) => storage::with_storage!(@ $storage, storage::Dense<f32>, $body),
            Weights::Dense(Floats::F16(_)) => storage::with_storage!(@ $storage, storage::Dense<half::f16>, $body),
            Weights::Dense(Floats::Bf16(_)) => storage::with_storage!(@ $storage, storage::Dense<half::bf16>, $body),
            Weights::Quantized { quantization, .. } => match (quantization.mode, quantization.bits) {
                (QuantMode::Mxfp4 | QuantMode::Nvfp4, _) => storage::with_storage!(@ $storage, storage::Fp4, $body),
                (QuantMode::Mxfp8, _) => storage::with_storage!(@ $storage, storage::Fp8, $body),
                (QuantMode::Affine, 2) => storage::with_storage!(@ $storage, storage::AlignedInt<2>, $body),
                (QuantMode::Affine, 3) => storage::with_storage!(@ $storage, storage::StraddlingInt<3>, $body),
                (QuantMode::Affine, 4) => storage::with_storage!(@ $storage, storage::AlignedInt<4>, $body),
                (QuantMode::Affine, 5) => storage::with_storage!(@ $storage, storage::StraddlingInt<5>, $body),
                (QuantMode::Affine, 6) => storage::with_storage!(@ $storage, storage::StraddlingInt<6>, $body),
                (QuantMode::Affine, _) => storage::with_storage!(@ $storage, storage::AlignedInt<8>, $body),
            },
        }
    }};
    (@ $name:ident, $storage:ty, $body:expr) => {{
        type $name = $storage;
        $body
    }};
}
pub(crate) use with_storage;

/// Reorders a row of `x` to match the unpacked vectors of a storage. Both slices have [`padded_len`] elements, and zeros behind
/// the row's end.
#[inline(always)]
pub(crate) fn permute_row<T: Storage, S: Simd>(x: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(S::LANES * T::VALUES), "whole blocks");
    for block in (0..x.len()).step_by(S::LANES * T::VALUES) {
        for j in 0..T::VALUES {
            // SAFETY: see `Isa::run`; the block is whole, and the elements of a vector are `VALUES` apart.
            unsafe {
                let vector = S::load_strided(x.as_ptr().add(block + j), T::VALUES);
                S::store(out.as_mut_ptr().add(block + j * S::LANES), vector);
            }
        }
    }
}

/// Elements of a row with `inputs` elements, padded to whole blocks.
pub(crate) fn padded_len<T: Storage, S: Simd>(inputs: usize) -> usize {
    inputs.next_multiple_of(S::LANES * T::VALUES)
}
