//! Matrices and vectors, as addresses.

use crate::{DevicePtr, Error, Result};

/// The type of activations, norms, caches and dense weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    /// The upper half of single precision.
    Bf16 = 0,
    /// IEEE half precision.
    F16 = 1,
}

/// How the elements of a matrix are stored, row by row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Halves.
    Dense,
    /// MLX's affine quantisation: `scale · q + bias` with an integer `q`, scale and bias shared by a group of neighbours in a row.
    Affine {
        /// 2, 3, 4, 5, 6 or 8.
        bits: u32,
        /// 32, 64 or 128.
        group: u32,
    },
    /// Floats of 4 bits (E2M1), 32 neighbours with one scale that is a power of two (E8M0).
    Mxfp4,
    /// Floats of 8 bits (E4M3), likewise.
    Mxfp8,
    /// Floats of 4 bits (E2M1), 16 neighbours with one scale of 8 bits (E4M3).
    Nvfp4,
}

impl Layout {
    /// Bits of an element (16 where it is dense), and the size of a group.
    pub(crate) fn parameters(self) -> (u32, u32) {
        match self {
            Self::Dense => (16, 64),
            Self::Affine { bits, group } => (bits, group),
            Self::Mxfp4 => (4, 32),
            Self::Mxfp8 => (8, 32),
            Self::Nvfp4 => (4, 16),
        }
    }

    /// How the sources call its scales.
    pub(crate) fn scale_kind(self) -> u32 {
        match self {
            Self::Dense | Self::Affine { .. } => 0,
            Self::Mxfp4 | Self::Mxfp8 => 1,
            Self::Nvfp4 => 2,
        }
    }

    /// Bytes of a row of `columns` elements, without scales and biases.
    pub(crate) fn row_bytes(self, columns: usize) -> usize {
        columns * self.parameters().0 as usize / 8
    }

    /// Groups in a row.
    pub(crate) fn groups(self, columns: usize) -> usize {
        match self {
            Self::Dense => 0,
            _ => columns / self.parameters().1 as usize,
        }
    }

    /// Bytes of the scales of a row.
    pub(crate) fn scale_bytes(self, columns: usize) -> usize {
        self.groups(columns) * if self.scale_kind() == 0 { 2 } else { 1 }
    }
}

/// A matrix `[rows, columns]`, which multiplies vectors of `columns` elements.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    /// How it is stored.
    pub layout: Layout,
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub columns: usize,
    /// The elements.
    pub data: DevicePtr,
    /// `[rows, columns / group]`, halves or the bytes that the layout says; null where the matrix is dense.
    pub scales: DevicePtr,
    /// `[rows, columns / group]`, halves; null where the layout has none.
    pub biases: DevicePtr,
    /// What is added to outputs, `[rows]`, halves; or null.
    pub bias: DevicePtr,
}

impl Weight {
    /// Its rows from `first` on: a part of matrices that are stored as one.
    #[must_use]
    pub fn slice(self, first: usize, rows: usize) -> Self {
        let at = |ptr: DevicePtr, bytes| if ptr.is_null() { ptr } else { ptr.offset(first * bytes) };
        let groups = self.layout.scale_bytes(self.columns);
        Self {
            rows,
            data: at(self.data, self.layout.row_bytes(self.columns)),
            scales: at(self.scales, groups),
            biases: at(self.biases, groups),
            bias: at(self.bias, 2),
            ..self
        }
    }

    pub(super) fn check(&self, name: &str, rows: usize, columns: usize) -> Result<()> {
        if (self.rows, self.columns) != (rows, columns) {
            let found = format!("[{}, {}]", self.rows, self.columns);
            return Err(Error::invalid(
                format!("the shape of {name}"),
                found,
                format!("[{rows}, {columns}]"),
            ));
        }
        if let Layout::Affine { bits, group } = self.layout
            && (!matches!(bits, 2..=6 | 8) || !matches!(group, 32 | 64 | 128))
        {
            let expected = "2, 3, 4, 5, 6 or 8 bits in groups of 32, 64 or 128";
            return Err(Error::invalid(name, format!("{bits} bits in groups of {group}"), expected));
        }
        let quantized = self.layout != Layout::Dense;
        let (_, group) = self.layout.parameters();
        if quantized && !columns.is_multiple_of(group as usize) {
            return Err(Error::invalid(name, columns, format!("columns that groups of {group} divide")));
        }
        let biased = matches!(self.layout, Layout::Affine { .. });
        let there =
            !self.data.is_null() && self.scales.is_null() != quantized && self.biases.is_null() != biased;
        if !there {
            return Err(Error::invalid(name, "an address that is null, or not", "those of its layout"));
        }
        Ok(())
    }
}

/// The weights of a norm.
#[derive(Debug, Clone, Copy)]
pub struct NormWeight {
    /// The elements.
    pub data: DevicePtr,
    /// Whether they are single precision rather than halves.
    pub single: bool,
    /// What is added to each.
    pub offset: f32,
}
