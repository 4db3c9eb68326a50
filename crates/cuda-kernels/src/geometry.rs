//! How a product is cut into tiles, and these into stages of a ring in shared memory.

use crate::{
    Device,
    spec::{Layout, Weight},
};

/// Stages of a ring, as the source bounds them.
pub(crate) const MAX_STAGES: usize = 16;
/// Warps that multiply.
pub(crate) const WARPS: usize = 8;
/// Bytes that a stage of a dense matrix has at most, without padding, and one of a quantised matrix.
const STAGE: [usize; 2] = [32 << 10, 16 << 10];
/// As many where rows of a dense matrix are not cut: copies of 2 KB read at 3.1 TB/s on an H100, of 1 KB at 2.9, of 512 bytes at 1.5.
const WHOLE_STAGE: usize = 40 << 10;
/// Bytes of shared memory that attention may need beside a dense product. (Quantised ones are bound by arithmetic.)
const ATTENTION: usize = 28 << 10;
/// Tiles of a dense matrix for each block from which on blocks ask for the next one.
const MANY: usize = 4;

/// A product whose matrix can be copied by 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) tiles: u32,
    pub(crate) grid: u32,
    pub(crate) pieces: u32,
    /// Columns of a piece; the last may have fewer.
    pub(crate) piece: u32,
    pub(crate) stages: u32,
    /// Tiles whose scales are in shared memory.
    pub(crate) slots: u32,
    /// Bytes from one row of a stage to the next.
    pub(crate) stride: u32,
    /// Bytes of the scales of eight rows.
    pub(crate) scale_bytes: u32,
    /// Whether pieces have even numbers of the columns that a warp multiplies at once, and rows of groups.
    pub(crate) even: bool,
    /// Eights of rows in a tile.
    pub(crate) subtiles: u32,
    /// Whether blocks take their tiles from a counter.
    pub(crate) asks: bool,
    /// Bytes of shared memory in all.
    pub(crate) shared: u32,
}

/// What a GPU offers.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) multiprocessors: usize,
    /// Shared memory of a block.
    pub(crate) shared: usize,
}

impl From<&Device> for Limits {
    fn from(device: &Device) -> Self {
        Self { multiprocessors: device.multiprocessors() as usize, shared: device.shared_memory() as usize }
    }
}

impl Limits {
    /// Shared memory of a product: all but what attention needs, unless x or the scales take most of it. Two blocks on one
    /// multiprocessor would let the next product's copy ahead, but they end up unevenly: Llama-3.1-8B lost a third of its speed.
    fn beside_attention(self, fixed: usize, quantized: bool) -> usize {
        if fixed > self.shared / 3 {
            0
        } else if quantized {
            self.shared * 3 / 4
        } else {
            self.shared.saturating_sub(ATTENTION)
        }
    }
}

impl Geometry {
    /// The geometry for `rows` rows of x; `None` where addresses or sizes are not multiples of what copies need, or
    /// where x does not fit into shared memory.
    pub(crate) fn new(weights: &[Weight], gated: bool, rows: usize, limits: Limits) -> Option<Self> {
        let Weight { layout, columns: k, .. } = *weights.first()?;
        let (bits, group) = layout.parameters();
        let (bits, group) = (bits as usize, group as usize);
        let quantized = layout != Layout::Dense;
        // Columns that a warp multiplies at once.
        let sub = if quantized { group.clamp(32, 64) } else { 32 };
        // Of eight rows.
        let scale_bytes = 8 * layout.scale_bytes(k);
        if !can_copy(weights) || k % sub != 0 || layout.row_bytes(k) % 16 != 0 || scale_bytes % 16 != 0 {
            return None;
        }
        let all: usize = weights.iter().map(|weight| weight.rows).sum();
        // Sixteen rows at once where every block has that many, or gate and up take eight each.
        let wide =
            all / 8 >= 2 * limits.multiprocessors && weights.iter().all(|weight| weight.rows % 16 == 0);
        let subtiles = if gated || wide { 2 } else { 1 };
        let tiles = all / (8 * subtiles);
        let grid = tiles.min(limits.multiprocessors);

        // Pieces of which every warp has its share, each a multiple of 16 bytes.
        let most = STAGE[usize::from(quantized)] / (8 * subtiles) * 8 / bits;
        let step = (WARPS * sub).max(128);
        let whole = !quantized && 8 * subtiles * layout.row_bytes(k) <= WHOLE_STAGE;
        let pieces = if whole { 1 } else { k.div_ceil(most / step * step) };
        let piece = if pieces == 1 { k } else { k.div_ceil(pieces).next_multiple_of(step) };
        let pieces = k.div_ceil(piece);
        let bytes = piece * bits / 8;
        let stride = row_stride(bytes, bits, sub);
        let stage = 8 * subtiles * stride;
        let slot = subtiles * 2 * scale_bytes;

        let sums = if quantized { rows * (k / sub) * 4 } else { 0 };
        let meeting = if rows == 1 { 4096 } else { 8192 };
        let fixed = 512 + 64 * rows + meeting * subtiles + rows * (2 * k + 16) + sums;
        let fixed = fixed.next_multiple_of(128);
        let slots_for = |stages: usize| if quantized { (stages / pieces + 2).min(MAX_STAGES) } else { 0 };
        let scales_for = |stages: usize| (slots_for(stages) * slot).next_multiple_of(128);
        let per_block = tiles.div_ceil(grid) * pieces;
        let most = MAX_STAGES.min(per_block).max(2);
        let all_but_attention = limits.beside_attention(fixed, quantized);
        let stages = [all_but_attention, limits.shared - 1024].into_iter().find_map(|budget| {
            let left = budget.checked_sub(fixed)?;
            (2..=most).rev().find(|&stages| stages * stage + scales_for(stages) <= left)
        })?;
        Some(Self {
            tiles: tiles as u32,
            grid: grid as u32,
            pieces: pieces as u32,
            piece: piece as u32,
            stages: stages as u32,
            slots: slots_for(stages).max(1) as u32,
            stride: stride as u32,
            scale_bytes: scale_bytes as u32,
            subtiles: subtiles as u32,
            asks: !quantized && tiles >= MANY * grid,
            even: (k / sub).is_multiple_of(2) && (piece / sub).is_multiple_of(2),
            shared: (fixed + stages * stage + scales_for(stages)) as u32,
        })
    }
}

/// Whether matrices of one layout and one number of columns lie where 16-byte copies can read them.
pub(crate) fn can_copy(weights: &[Weight]) -> bool {
    weights.iter().all(|weight| {
        let addresses = [weight.data, weight.scales, weight.biases];
        weight.layout == weights[0].layout
            && weight.columns == weights[0].columns
            && weight.rows % 8 == 0
            && addresses.iter().all(|ptr| ptr.0 % 16 == 0)
    })
}

/// Bytes from one row of a piece to the next in shared memory: four lanes that read rows at once meet no bank twice.
pub(crate) fn row_stride(bytes: usize, bits: usize, sub: usize) -> usize {
    // Bytes that four lanes read of a row at once. Rows that far apart (mod 128) share no bank.
    let wanted = match (bits, sub) {
        (16, _) => 64,
        (4 | 8, _) => sub * bits / 8,
        _ => 16,
    };
    bytes + (wanted + 128 - bytes % 128) % 128
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DevicePtr;

    const H100: Limits = Limits { multiprocessors: 132, shared: 227 << 10 };

    fn weight(layout: Layout, rows: usize, columns: usize) -> Weight {
        let given = |is_given| if is_given { DevicePtr(256) } else { DevicePtr::NULL };
        let scales = given(layout != Layout::Dense);
        let biases = given(matches!(layout, Layout::Affine { .. }));
        Weight { layout, rows, columns, data: DevicePtr(256), scales, biases, bias: DevicePtr::NULL }
    }

    #[test]
    fn stages_hold_all_columns_and_fit() {
        let mut layouts = vec![Layout::Dense, Layout::Mxfp4, Layout::Mxfp8, Layout::Nvfp4];
        for bits in [2, 3, 4, 5, 6, 8] {
            layouts.extend([32, 64, 128].map(|group| Layout::Affine { bits, group }));
        }
        for layout in layouts {
            let (bits, _) = layout.parameters();
            for columns in [128, 576, 1024, 1152, 2048, 4096, 6912, 8192, 14_336, 28_672] {
                if columns % layout.parameters().1 as usize != 0 {
                    continue;
                }
                for (rows, gated) in [(1, false), (1, true), (2, true), (4, false), (8, true), (8, false)] {
                    let one = weight(layout, 1536, columns);
                    let weights = if gated { vec![one; 2] } else { vec![one] };
                    let Some(g) = Geometry::new(&weights, gated, rows, H100) else {
                        let misfit = !(columns * bits as usize / 8).is_multiple_of(16)
                            || rows * columns * 2 > 100 << 10;
                        assert!(misfit, "{layout:?} {columns} {rows}");
                        continue;
                    };
                    assert!(g.shared as usize <= H100.shared, "{g:?}");
                    assert!(
                        g.pieces * g.piece >= columns as u32 && (g.pieces - 1) * g.piece < columns as u32
                    );
                    assert!(
                        g.piece * bits / 8 % 16 == 0 && g.stride % 16 == 0 && g.stride >= g.piece * bits / 8
                    );
                    let ring = g.shared - g.stages * 8 * g.subtiles * g.stride;
                    assert!(ring.is_multiple_of(128), "{g:?}");
                    assert!((2..=16).contains(&g.stages) && (1..=16).contains(&g.slots));
                    assert_eq!(g.tiles, 192);
                }
            }
        }
    }

    #[test]
    fn blocks_ask_for_tiles_where_a_dense_matrix_has_many() {
        let asks =
            |layout, rows| Geometry::new(&[weight(layout, rows, 1024)], false, 1, H100).map(|g| g.asks);
        assert_eq!(asks(Layout::Dense, 151_936), Some(true));
        assert_eq!(asks(Layout::Dense, 4096), Some(false));
        assert_eq!(asks(Layout::Affine { bits: 4, group: 64 }, 151_936), Some(false));
    }

    #[test]
    fn what_copies_cannot_take_is_refused() {
        let dense = weight(Layout::Dense, 64, 256);
        assert!(Geometry::new(&[dense], false, 1, H100).is_some());
        let odd = [
            Weight { rows: 63, ..dense },
            Weight { columns: 250, ..dense },
            Weight { data: DevicePtr(264), ..dense },
            weight(Layout::Affine { bits: 3, group: 64 }, 64, 64 * 5),
            // An odd number of scales of a byte, eight rows of which are no multiple of 16 bytes.
            weight(Layout::Mxfp8, 64, 32 * 5),
        ];
        for weight in odd {
            assert_eq!(Geometry::new(&[weight], false, 1, H100), None, "{weight:?}");
        }
    }
}
