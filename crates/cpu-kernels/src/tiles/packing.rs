//! How rows of `x` and of a matrix become tiles.

use super::tile::{TILE_ROWS, Tile, transpose_tiles};
use crate::{
    matmul_kernel::SplitBf16,
    operand::{Floats, Matrices},
    shared_slice::SharedSlice,
};

/// A way to turn rows of `x` and of a matrix into tiles.
pub(crate) trait TilePacking: Copy + Send + Sync {
    /// The parts that elements are split into.
    fn split(self) -> SplitBf16;
    /// Tiles of a row with `inputs` elements, for each part.
    fn steps(self, inputs: usize) -> usize;
    /// Groups of a row whose sums are scaled; 0 if the elements are scaled while they are unpacked.
    fn groups(self, inputs: usize) -> usize;

    /// Writes up to 16 rows of `x`, `inputs` wide, into the rows of tiles, and the sums of their groups. For each step, the tiles of
    /// all parts are neighbours.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16.
    unsafe fn pack(
        self,
        x: Floats<'_>,
        inputs: usize,
        rows: &[usize],
        tiles: &mut [Tile],
        sums: &mut [[f32; TILE_ROWS]],
    );

    /// Unpacks `count` rows of a matrix from row `first` on, counted through all matrices.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16.
    unsafe fn unpack(self, w: &Matrices<'_>, first: usize, count: usize) -> TilePanel;
}

/// Some rows of a matrix as tiles: one for each 16 rows, each step and each part.
pub(crate) struct TilePanel {
    pub(super) tiles: Vec<Tile>,
    /// `None` if the elements are scaled already.
    pub(super) scales: Option<PanelScales>,
}

/// The scales and biases of a panel's groups.
pub(super) struct PanelScales {
    /// Steps of a group.
    pub(super) steps: usize,
    /// `[groups, width]`
    pub(super) scales: Vec<f32>,
    /// `[groups, width]`, multiplied with the sums of the groups of `x`.
    pub(super) biases: Vec<f32>,
    /// Rows, padded to pairs of tiles.
    pub(super) width: usize,
}

/// Rows of `x` as tiles: one for each 16 rows, each step and each part. The pairs of elements of a row are a column.
pub(crate) struct PackedRows<K> {
    pub(super) packing: K,
    tiles: Vec<Tile>,
    /// Tiles of a row, for each part.
    pub(super) steps: usize,
    /// For each block of 16 rows and each group of elements.
    sums: Vec<[f32; TILE_ROWS]>,
    groups: usize,
}

impl<K: TilePacking> PackedRows<K> {
    /// Room for blocks of 16 rows.
    pub(crate) fn new(packing: K, blocks: usize, inputs: usize) -> Self {
        let (steps, groups) = (packing.steps(inputs), packing.groups(inputs));
        let tiles = vec![Tile::ZERO; blocks * steps * packing.split().x];
        Self { packing, tiles, steps, sums: vec![[0.0; TILE_ROWS]; blocks * groups], groups }
    }

    /// Packs rows of `x`, `inputs` wide, into all blocks. `run(count, work)` calls `work` for each block, in any order and on any
    /// thread.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16.
    pub(crate) unsafe fn fill(
        &mut self,
        x: Floats<'_>,
        inputs: usize,
        rows: &[&[usize]],
        run: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
    ) {
        let (len, groups, packing) = (self.block_len(), self.groups, self.packing);
        let (tiles, sums) = (SharedSlice::new(&mut self.tiles), SharedSlice::new(&mut self.sums));
        run(rows.len(), &|block| {
            // SAFETY: the caller's; each call has a block of its own.
            unsafe {
                let tiles = tiles.part(block * len, len);
                packing.pack(x, inputs, rows[block], tiles, sums.part(block * groups, groups));
                transpose_tiles(tiles);
            }
        });
    }

    /// Tiles of a block of rows.
    fn block_len(&self) -> usize {
        self.steps * self.packing.split().x
    }

    pub(super) fn block(&self, index: usize) -> *const u8 {
        self.tiles[index * self.block_len()..][..self.block_len()].as_ptr().cast()
    }

    pub(super) fn sums(&self, block: usize, group: usize) -> &[f32; TILE_ROWS] {
        &self.sums[block * self.groups + group]
    }
}
