//! Products of 16 and 32 rows: x is packed by a kernel of its own, and pieces of it are copied beside those of the matrix.

use crate::{
    geometry::{Limits, MAX_STAGES, WARPS, can_copy, row_stride},
    instance::Epilogue,
    product::Product,
    spec::Layout,
    stream::Size,
};

/// Eights of rows that a tile may have.
const SUBTILES: [usize; 5] = [1, 2, 3, 4, 6];
/// As many for quantised matrices: with six, registers would not do.
const QUANTIZED_SUBTILES: usize = 4;
/// Shared memory that a block leaves to the kernels before and after it.
const SPARE: usize = 4 << 10;
/// Threads of a block: warps that multiply, four that copy, and one for the copy engine.
const THREADS: u32 = 416;

/// How such a product is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) tiles: usize,
    grid: usize,
    pub(crate) pieces: usize,
    pub(crate) stages: usize,
    pub(crate) stride: usize,
    pub(crate) subtiles: usize,
    shared: usize,
}

impl Geometry {
    /// The fastest geometry; `None` where rows are few, or addresses and sizes are not multiples of what copies need.
    pub(crate) fn new(product: &Product<'_>, rows: usize, limits: Limits) -> Option<Self> {
        let weights = product.weights;
        let (layout, k) = (weights[0].layout, weights[0].columns);
        let scales_fit = layout == Layout::Dense || layout.groups(k).is_multiple_of(2);
        // Floats of 4 and 8 bits are unknown here.
        let known = layout.scale_kind() == 0;
        let fits = known
            && can_copy(weights)
            && k.is_multiple_of(sub(layout))
            && layout.row_bytes(k).is_multiple_of(16);
        if rows < 16 || !fits || !scales_fit {
            return None;
        }
        let gated = matches!(product.epilogue, Epilogue::Gated(_));
        let geometries = SUBTILES.into_iter().rev().filter_map(|subtiles| {
            let all: usize = weights.iter().map(|weight| weight.rows).sum();
            if layout != Layout::Dense && subtiles > QUANTIZED_SUBTILES {
                return None;
            }
            // Half of a gated tile is of each matrix.
            let fits = all.is_multiple_of(8 * subtiles) && (!gated || subtiles.is_multiple_of(2));
            fits.then(|| Self::of(layout, k, rows, subtiles, all / (8 * subtiles), limits)).flatten()
        });
        geometries.min_by_key(|geometry| geometry.cost(layout, k, rows))
    }

    fn of(
        layout: Layout,
        k: usize,
        rows: usize,
        subtiles: usize,
        tiles: usize,
        limits: Limits,
    ) -> Option<Self> {
        let (bits, group) = layout.parameters();
        let (bits, group, sub) = (bits as usize, group as usize, sub(layout));
        let quantized = layout != Layout::Dense;
        let piece = WARPS * sub;
        let stride = row_stride(piece * bits / 8, bits, sub);
        // As `Batch` in the source: x with sums of groups, W, scales and biases.
        let of_groups = |bytes: usize| if quantized { bytes } else { 0 };
        let stage = piece * rows * 2
            + of_groups(WARPS * rows * 4)
            + 8 * subtiles * (stride + of_groups(2 * (piece / group * 2)));
        let red_stride = subtiles * 4 + if subtiles.is_multiple_of(2) { 4 } else { 0 };
        let fixed = 2 * MAX_STAGES * 8 + WARPS * rows * red_stride * 8;
        let stages = (limits.shared - SPARE).checked_sub(fixed)? / stage;
        (stages >= 2).then(|| Self {
            tiles,
            grid: tiles.min(limits.multiprocessors),
            pieces: k.div_ceil(piece),
            stages: stages.min(MAX_STAGES),
            stride,
            subtiles,
            shared: fixed + stages.min(MAX_STAGES) * stage,
        })
    }

    /// The blocks.
    pub(crate) fn size(&self) -> Size {
        Size::new([self.grid, 1, 1], THREADS, self.shared as u32)
    }

    /// What a multiprocessor reads: the matrix from memory, x from the second cache, which takes half as long.
    fn cost(&self, layout: Layout, k: usize, rows: usize) -> usize {
        self.tiles.div_ceil(self.grid) * (8 * self.subtiles * layout.row_bytes(k) + rows * k)
    }
}

/// Columns that a warp multiplies at once.
fn sub(layout: Layout) -> usize {
    match layout {
        Layout::Affine { group: 64.., .. } => 64,
        _ => 32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        DevicePtr,
        product::{Input, Part},
        spec::{Activation, Weight},
    };

    const H100: Limits = Limits { multiprocessors: 132, shared: 227 << 10 };

    fn geometry(layout: Layout, [rows, columns]: [usize; 2], gated: bool, x_rows: usize) -> Option<Geometry> {
        let scales = if layout == Layout::Dense { DevicePtr::NULL } else { DevicePtr(256) };
        let data = DevicePtr(256);
        let weight = Weight { layout, rows, columns, data, scales, biases: scales, bias: DevicePtr::NULL };
        let product = Product {
            part: Part::Output,
            weights: if gated { &[weight; 2] } else { &[weight] },
            input: Input::Halves(data),
            epilogue: if gated { Epilogue::Gated(Activation::Silu) } else { Epilogue::Store },
            out: data,
            out_stride: rows,
        };
        Geometry::new(&product, x_rows, H100)
    }

    #[test]
    fn tiles_cover_all_rows_and_stages_fit() {
        let mut layouts = vec![Layout::Dense];
        for bits in [2, 3, 4, 5, 6, 8] {
            layouts.extend([32, 64, 128].map(|group| Layout::Affine { bits, group }));
        }
        for layout in layouts {
            for (rows, gated, x_rows) in
                [(1024, false, 16), (6144, false, 32), (14_336, true, 32), (8, false, 32)]
            {
                let found = geometry(layout, [rows, 4096], gated, x_rows);
                let found = found.unwrap_or_else(|| panic!("{layout:?} {rows}"));
                assert_eq!(
                    found.tiles * 8 * found.subtiles,
                    if gated { 2 * rows } else { rows },
                    "{found:?}"
                );
                assert!(found.stages >= 2 && found.shared <= H100.shared && found.grid <= 132, "{found:?}");
                assert!(!gated || found.subtiles.is_multiple_of(2));
            }
        }
    }

    #[test]
    fn tiles_are_as_large_as_fills_the_multiprocessors() {
        let subtiles = |rows| geometry(Layout::Dense, [rows, 4096], false, 32).map(|found| found.subtiles);
        assert_eq!(subtiles(4096), Some(4));
        assert_eq!(subtiles(6144), Some(6));
        assert_eq!(subtiles(1024), Some(1));
    }

    #[test]
    fn few_rows_and_what_copies_cannot_take_are_refused() {
        assert_eq!(geometry(Layout::Dense, [64, 256], false, 8), None);
        assert_eq!(geometry(Layout::Dense, [63, 256], false, 32), None);
        // Three scales of a row do not end at four bytes.
        assert_eq!(geometry(Layout::Affine { bits: 4, group: 64 }, [64, 192], false, 32), None);
    }
}
