//! Which kernel computes a matrix product. The table of the crate's documentation is what [`MatmulKernel::choose`] returns.

#[cfg(target_arch = "x86_64")]
use crate::{
    gemv::GEMV_ROWS,
    operand::Floats,
    quantization::{QuantMode, Quantization},
};
use crate::{
    isa::Isa,
    operand::{FloatType, Weights},
};

/// Rows up to which unpacking the matrix to memory takes longer than unpacking it in registers, once for every
/// [`GEMV_ROWS`](crate::gemv::GEMV_ROWS) rows.
const MAX_GEMV_ROWS: usize = 8;
/// The same with the bf16 dot products, whose GEMV is faster.
#[cfg(target_arch = "x86_64")]
const MAX_BF16_GEMV_ROWS: usize = 2 * GEMV_ROWS;
/// Rows up to which summing across lanes is faster than interleaving the rows.
#[cfg(target_arch = "x86_64")]
const MAX_ACROSS_ROWS: usize = 4;

/// The kernel that multiplies some rows of `x` with one matrix. Kernels without `Bf16` or `Tile` in their name use the `f32`
/// vectors of any instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MatmulKernel {
    /// `gemv.rs`: unpacks the matrix in registers, once for every 8 rows.
    Gemv,
    /// `gemm.rs`: unpacks panels of the matrix to `f32`.
    Gemm,
    /// `bf16_dot/gemv.rs`: the bf16 dot products of AVX-512, up to 4 rows.
    #[cfg(target_arch = "x86_64")]
    Bf16Gemv(Bf16Storage),
    /// `bf16_dot/interleaved.rs`: the same for interleaved rows, 8 at a time.
    #[cfg(target_arch = "x86_64")]
    Bf16InterleavedGemv(Bf16Storage),
    /// `tiles/` with `bf16_exact.rs`: unpacks panels to bf16 tiles, and scales the sums of groups.
    #[cfg(target_arch = "x86_64")]
    Bf16TileGemm {
        /// The storage of the matrix.
        storage: Bf16Storage,
        /// Elements of a group, if they have a scale.
        group_size: Option<usize>,
    },
    /// `tiles/` with `bf16_split.rs`: unpacks panels to `f32` and splits the elements into bf16 tiles.
    #[cfg(target_arch = "x86_64")]
    SplitTileGemm(SplitBf16),
}

/// Storages whose elements bf16 holds exactly, before they are scaled.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bf16Storage {
    /// Integers of 4 bits.
    Int4,
    /// Integers of 8 bits.
    Int8,
    /// Floats of type E2M1.
    Fp4,
    /// bf16.
    Bf16,
}

/// How many bf16 numbers an element is split into, and which of their products are computed.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SplitBf16 {
    /// Parts of an element of `x`.
    pub(crate) x: usize,
    /// Parts of an element of the matrix.
    pub(crate) w: usize,
    /// Part i is multiplied with part j if i + j is less than this.
    pub(crate) order: usize,
}

impl MatmulKernel {
    /// The kernel for so many rows of `x`, products of type `out`, and one matrix with these weights.
    pub(crate) fn choose(isa: Isa, x: FloatType, w: &Weights<'_>, out: FloatType, rows: usize) -> Self {
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (isa, x, w, out);
        #[cfg(target_arch = "x86_64")]
        match (isa, x, Bf16Storage::new(w)) {
            (Isa::Avx512Bf16 | Isa::Amx, FloatType::Bf16, Some(storage)) if rows <= MAX_ACROSS_ROWS => {
                return Self::Bf16Gemv(storage);
            }
            (Isa::Avx512Bf16, FloatType::Bf16, Some(storage)) if rows <= MAX_BF16_GEMV_ROWS => {
                return Self::Bf16InterleavedGemv(storage);
            }
            (Isa::Amx, FloatType::Bf16, Some(storage)) if rows <= MAX_GEMV_ROWS => {
                return Self::Bf16InterleavedGemv(storage);
            }
            (Isa::Avx512Bf16 | Isa::Amx, ..) if rows > MAX_GEMV_ROWS => return Self::tiles(isa, x, w, out),
            _ => {}
        }
        if rows <= MAX_GEMV_ROWS { Self::Gemv } else { Self::Gemm }
    }

    /// Whether the kernel is one for many rows.
    pub(crate) fn is_gemm(self) -> bool {
        match self {
            Self::Gemv => false,
            Self::Gemm => true,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16Gemv(_) | Self::Bf16InterleavedGemv(_) => false,
            #[cfg(target_arch = "x86_64")]
            Self::Bf16TileGemm { .. } | Self::SplitTileGemm(_) => true,
        }
    }

    /// The kernel for many rows, on a machine with AVX-512 bf16 or AMX.
    #[cfg(target_arch = "x86_64")]
    fn tiles(isa: Isa, x: FloatType, w: &Weights<'_>, out: FloatType) -> Self {
        let split = SplitBf16::new(x, w, out);
        if isa == Isa::Amx {
            return Self::SplitTileGemm(split);
        }
        if let (FloatType::Bf16, Some(storage)) = (x, Bf16Storage::new(w)) {
            match w {
                Weights::Dense(_) => return Self::Bf16TileGemm { storage, group_size: None },
                // A block of 64 elements must not belong to several groups.
                Weights::Quantized {
                    quantization: Quantization { mode: QuantMode::Affine, group_size, .. },
                    ..
                } if group_size.is_multiple_of(64) => {
                    return Self::Bf16TileGemm { storage, group_size: Some(*group_size) };
                }
                Weights::Quantized { .. } => {}
            }
        }
        // Products of several parts take longer than products in `f32`, without AMX.
        if (split.x, split.w) == (1, 1) { Self::SplitTileGemm(split) } else { Self::Gemm }
    }
}

#[cfg(target_arch = "x86_64")]
impl Bf16Storage {
    fn new(w: &Weights<'_>) -> Option<Self> {
        match w {
            Weights::Dense(Floats::Bf16(_)) => Some(Self::Bf16),
            Weights::Dense(_) => None,
            Weights::Quantized { quantization: Quantization { mode, bits, .. }, .. } => match (mode, bits) {
                (QuantMode::Affine, 4) => Some(Self::Int4),
                (QuantMode::Affine, 8) => Some(Self::Int8),
                (QuantMode::Mxfp4 | QuantMode::Nvfp4, _) => Some(Self::Fp4),
                _ => None,
            },
        }
    }
}

#[cfg(target_arch = "x86_64")]
impl SplitBf16 {
    /// Elements that are bf16 already.
    pub(crate) const NONE: Self = Self { x: 1, w: 1, order: 1 };

    /// Products in `f32` keep three parts of each element. Others keep two, 16 bits, before they are rounded to 8 or 11.
    fn new(x: FloatType, w: &Weights<'_>, out: FloatType) -> Self {
        let parts = |float| match float {
            FloatType::Bf16 => 1,
            FloatType::F16 => 2,
            FloatType::F32 => 3,
        };
        let order = if out == FloatType::F32 { 3 } else { 2 };
        let w = match w {
            Weights::Dense(floats) => parts(floats.float_type()),
            Weights::Quantized { quantization, .. } if quantization.mode == QuantMode::Affine => 3,
            // A few bits, times a power of two or a scale of four bits.
            Weights::Quantized { .. } => 1,
        };
        Self { x: parts(x).min(order), w: w.min(order), order }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        operand::{Floats, Scales},
        quantization::{QuantMode, Quantization},
    };

    const FLOATS: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

    /// Weights without elements: the choice looks at their type alone.
    fn weights(storage: &str) -> Weights<'static> {
        let (mode, bits, group_size) = match storage {
            "f32" => return Weights::Dense(Floats::F32(&[])),
            "f16" => return Weights::Dense(Floats::F16(&[])),
            "bf16" => return Weights::Dense(Floats::Bf16(&[])),
            "mxfp4" => (QuantMode::Mxfp4, 4, 32),
            "nvfp4" => (QuantMode::Nvfp4, 4, 16),
            "mxfp8" => (QuantMode::Mxfp8, 8, 32),
            affine => {
                let (bits, group_size) = affine.split_once('g').expect("bits and group size");
                (QuantMode::Affine, bits.parse().expect("bits"), group_size.parse().expect("size"))
            }
        };
        let quantization = Quantization { mode, bits, group_size };
        Weights::Quantized { quantization, words: &[], scales: Scales::Bytes(&[]) }
    }

    fn storages() -> Vec<String> {
        let mut all: Vec<String> = ["f32", "f16", "bf16", "mxfp4", "nvfp4", "mxfp8"].map(String::from).into();
        for bits in [2, 3, 4, 5, 6, 8] {
            all.extend([32, 64, 128].map(|group_size| format!("{bits}g{group_size}")));
        }
        all
    }

    /// The kernels' names for 1, 4, 5, 8, 9, 16, 17 and 512 rows.
    fn chosen(isa: Isa, x: FloatType, storage: &str, out: FloatType) -> [String; 8] {
        [1, 4, 5, 8, 9, 16, 17, 512].map(|rows| {
            let kernel = format!("{:?}", MatmulKernel::choose(isa, x, &weights(storage), out, rows));
            kernel.split([' ', '(']).next().unwrap_or_default().to_owned()
        })
    }

    const F32_VECTORS: [&str; 8] = ["Gemv", "Gemv", "Gemv", "Gemv", "Gemm", "Gemm", "Gemm", "Gemm"];

    #[test]
    fn instruction_sets_without_bf16_use_f32_vectors() {
        for isa in Isa::ALL.iter().filter(|isa| !["Avx512Bf16", "Amx"].contains(&&*format!("{isa:?}"))) {
            for (x, out) in FLOATS.iter().flat_map(|x| FLOATS.map(|out| (*x, out))) {
                for storage in storages() {
                    assert_eq!(
                        chosen(*isa, x, &storage, out),
                        F32_VECTORS,
                        "{isa:?} {x:?} {storage} {out:?}"
                    );
                }
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn avx512_bf16_serves_rows_of_bf16() {
        const GEMV: [&str; 4] = ["Gemv"; 4];
        const BF16: [&str; 6] = [
            "Bf16Gemv",
            "Bf16Gemv",
            "Bf16InterleavedGemv",
            "Bf16InterleavedGemv",
            "Bf16InterleavedGemv",
            "Bf16InterleavedGemv",
        ];
        for (storages, expected) in [
            (&["bf16", "4g64", "4g128", "8g64", "8g128"][..], [&BF16[..], &["Bf16TileGemm"; 2]].concat()),
            (&["mxfp4", "nvfp4"], [&BF16[..], &["SplitTileGemm"; 2]].concat()),
            (&["4g32", "8g32"], [&BF16[..], &["Gemm"; 2]].concat()),
            (&["mxfp8"], [&GEMV[..], &["SplitTileGemm"; 4]].concat()),
            (&["f32", "f16", "2g64", "3g32", "5g64", "6g128"], F32_VECTORS.to_vec()),
        ] {
            for (storage, out) in storages.iter().flat_map(|storage| FLOATS.map(|out| (storage, out))) {
                assert_eq!(chosen(Isa::Avx512Bf16, FloatType::Bf16, storage, out)[..], expected, "{storage}");
            }
        }
        for x in [FloatType::F16, FloatType::F32] {
            for storage in storages() {
                assert_eq!(chosen(Isa::Avx512Bf16, x, &storage, x), F32_VECTORS, "{x:?} {storage}");
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn amx_serves_many_rows_of_every_type() {
        let bf16 = ["Bf16Gemv", "Bf16Gemv", "Bf16InterleavedGemv", "Bf16InterleavedGemv"];
        for (x, storage) in FLOATS.iter().flat_map(|x| storages().into_iter().map(|storage| (*x, storage))) {
            let exact = ["bf16", "mxfp4", "nvfp4", "4g32", "4g64", "4g128", "8g32", "8g64", "8g128"];
            let few = if x == FloatType::Bf16 && exact.contains(&&*storage) { bf16 } else { ["Gemv"; 4] };
            for out in FLOATS {
                let expected = [few, ["SplitTileGemm"; 4]].concat();
                assert_eq!(chosen(Isa::Amx, x, &storage, out)[..], expected, "{x:?} {storage} {out:?}");
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn numbers_are_split_into_as_many_parts_as_the_products_need() {
        let split = |x, storage, out| SplitBf16::new(x, &weights(storage), out);
        let (f32, f16, bf16) = (FloatType::F32, FloatType::F16, FloatType::Bf16);
        for (x, storage, out, expected) in [
            (f32, "f32", f32, [3, 3, 3]),
            (f32, "f32", bf16, [2, 2, 2]),
            (f16, "f16", f32, [2, 2, 3]),
            (bf16, "bf16", f32, [1, 1, 3]),
            (bf16, "4g64", bf16, [1, 2, 2]),
            (bf16, "mxfp4", f16, [1, 1, 2]),
            (f32, "mxfp8", f32, [3, 1, 3]),
        ] {
            let [x_parts, w_parts, order] = expected;
            let expected = SplitBf16 { x: x_parts, w: w_parts, order };
            assert_eq!(split(x, storage, out), expected, "{x:?} {storage} {out:?}");
        }
    }
}
