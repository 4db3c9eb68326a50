//! How a vector of elements is made of the memory of a matrix.

use std::marker::PhantomData;

use half::{bf16, f16};

use crate::{simd::Simd, unpack::FP4};

/// A storage of matrix elements. A block is what makes `VALUES` vectors: in lane `i` of vector `j` is element
/// `i · VALUES + j`, so that a lane's elements are next to each other in memory.
#[allow(clippy::missing_safety_doc, reason = "that of `Simd`, and a pointer to a whole block")]
pub(crate) trait Storage: Copy + Send + Sync + 'static {
    /// Bits of an element.
    const BITS: usize;
    /// Vectors that a block makes.
    const VALUES: usize;
    /// Whether groups of elements have a scale.
    const SCALED: bool = true;
    /// What the vectors are looked up in.
    type Tables<S: Simd>: Copy;
    /// A block in registers.
    type Block<S: Simd>: Copy;

    unsafe fn tables<S: Simd>() -> Self::Tables<S>;
    unsafe fn load<S: Simd>(from: *const u8) -> Self::Block<S>;
    unsafe fn value<S: Simd>(block: Self::Block<S>, tables: Self::Tables<S>, j: usize) -> S::F;
}

/// Bytes of the largest block: sixteen lanes of eight elements of five bits.
pub(crate) const LARGEST: usize = 80;

/// Bytes of a block of `S`.
pub(crate) const fn block_bytes<T: Storage, S: Simd>() -> usize {
    S::LANES * T::VALUES * T::BITS / 8
}

/// Elements in full.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dense<E>(PhantomData<E>);

/// Integers of so many bits, without sign, that divide a word.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whole<const BITS: usize>;

/// Integers of 3, 5 or 6 bits, without sign, which cross words.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Crossing<const BITS: usize>;

/// Four-bit floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fp4;

/// Eight-bit floats.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fp8;

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
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

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
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

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
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
        unsafe { S::cast(if j == 0 { S::shl(block, 16) } else { S::and(block, S::splat_u(0xffff_0000)) }) }
    }
}

/// Small integers as numbers, which repeat where the index has more bits than they.
fn integers(bits: usize) -> [f32; 16] {
    std::array::from_fn(|i| (i % (1 << bits)) as f32)
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl<const BITS: usize> Storage for Whole<BITS> {
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

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl<const BITS: usize> Storage for Crossing<BITS> {
    const BITS: usize = BITS;
    /// As many as fill whole bytes.
    const VALUES: usize = if BITS == 6 { 4 } else { 8 };
    type Tables<S: Simd> = S::Table;
    /// The first four bytes of each lane's elements, and the last four, where they are five.
    type Block<S: Simd> = [S::U; 2];

    #[inline(always)]
    unsafe fn tables<S: Simd>() -> S::Table {
        unsafe { S::table(&integers(BITS.min(4))) }
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u8) -> [S::U; 2] {
        unsafe { if BITS == 5 { S::load_fives(from) } else { [S::load_threes(from); 2] } }
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

/// The lowest bits as a number.
#[inline(always)]
unsafe fn integer<S: Simd, const BITS: usize>(code: S::U, table: S::Table) -> S::F {
    // SAFETY: the caller's.
    unsafe {
        if S::FAST_LOOKUP && BITS <= 4 {
            S::lookup(table, code)
        } else {
            S::convert(S::and(code, S::splat_u((1 << BITS) - 1)))
        }
    }
}

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
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

#[allow(clippy::undocumented_unsafe_blocks, reason = "the trait's contract is that of what it calls")]
impl Storage for Fp8 {
    const BITS: usize = 8;
    const VALUES: usize = 4;
    /// By the mantissa: its value. By the exponent: what that is multiplied by, and what is added.
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
        // Small numbers are no special case this way, and never pass through small `f32`, which are slow.
        unsafe {
            let (byte, exponent) = (S::shr(block, 8 * j as u32), S::shr(block, 8 * j as u32 + 3));
            let magnitude =
                S::fma(S::lookup(mantissas, byte), S::lookup(steps, exponent), S::lookup(starts, exponent));
            S::flip_sign(magnitude, S::shl(block, 24 - 8 * j as u32))
        }
    }
}

/// Runs `$body` with the type `$storage` bound to the storage of any `Weights`.
macro_rules! with_storage {
    ($weights:expr, $storage:ident => $body:expr) => {{
        use $crate::{Floats, QuantMode, Weights, storage};
        match $weights {
            Weights::Dense(Floats::F32(_)) => storage::with_storage!(@ $storage, storage::Dense<f32>, $body),
            Weights::Dense(Floats::F16(_)) => storage::with_storage!(@ $storage, storage::Dense<half::f16>, $body),
            Weights::Dense(Floats::Bf16(_)) => storage::with_storage!(@ $storage, storage::Dense<half::bf16>, $body),
            Weights::Quantized { quantization, .. } => match (quantization.mode, quantization.bits) {
                (QuantMode::Mxfp4 | QuantMode::Nvfp4, _) => storage::with_storage!(@ $storage, storage::Fp4, $body),
                (QuantMode::Mxfp8, _) => storage::with_storage!(@ $storage, storage::Fp8, $body),
                (QuantMode::Affine, 2) => storage::with_storage!(@ $storage, storage::Whole<2>, $body),
                (QuantMode::Affine, 3) => storage::with_storage!(@ $storage, storage::Crossing<3>, $body),
                (QuantMode::Affine, 4) => storage::with_storage!(@ $storage, storage::Whole<4>, $body),
                (QuantMode::Affine, 5) => storage::with_storage!(@ $storage, storage::Crossing<5>, $body),
                (QuantMode::Affine, 6) => storage::with_storage!(@ $storage, storage::Crossing<6>, $body),
                (QuantMode::Affine, _) => storage::with_storage!(@ $storage, storage::Whole<8>, $body),
            },
        }
    }};
    (@ $name:ident, $storage:ty, $body:expr) => {{
        type $name = $storage;
        $body
    }};
}
pub(crate) use with_storage;

/// A row of `x` as the vectors of a storage meet it: in whole blocks, in their order, with zeros behind the end. `out` is as
/// long as [`arranged_len`] says, and `x` in single precision has as many elements.
#[inline(always)]
pub(crate) fn arrange<T: Storage, S: Simd>(x: &[f32], out: &mut [f32]) {
    assert!(x.len() == out.len() && x.len().is_multiple_of(S::LANES * T::VALUES), "no whole blocks");
    for block in (0..x.len()).step_by(S::LANES * T::VALUES) {
        for j in 0..T::VALUES {
            // SAFETY: the block is whole; a lane's elements are `VALUES` apart.
            unsafe {
                let vector = S::load_strided(x.as_ptr().add(block + j), T::VALUES);
                S::store(out.as_mut_ptr().add(block + j * S::LANES), vector);
            }
        }
    }
}

/// Elements of whole blocks that hold `inputs`.
pub(crate) fn arranged_len<T: Storage, S: Simd>(inputs: usize) -> usize {
    inputs.next_multiple_of(S::LANES * T::VALUES)
}
