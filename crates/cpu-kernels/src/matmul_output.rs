//! The output of a matrix product, which tasks write in parts.

use half::{bf16, f16};

use crate::{
    element::{Element, add_to, narrow},
    isa::Isa,
    operand::{FloatsMut, with_slice},
    shared_slice::SharedSlice,
    simd::{Kernel, Simd},
};

/// `[rows, outputs]`, and the bias that is added.
pub(crate) struct MatmulOutput<'a> {
    memory: Memory,
    bias: Option<Bias<'a>>,
    outputs: usize,
}

/// What is added to rows.
#[derive(Clone, Copy)]
pub(crate) struct Bias<'a> {
    /// `[matrices, outputs]`
    pub(crate) values: &'a [f32],
    /// The matrix of each row.
    pub(crate) matrices: &'a [u32],
}

impl<'a> Bias<'a> {
    #[inline(always)]
    fn of_row(self, row: usize, outputs: usize) -> &'a [f32] {
        &self.values[self.matrices[row] as usize * outputs..][..outputs]
    }
}

enum Memory {
    F32(SharedSlice<f32>),
    F16(SharedSlice<f16>),
    Bf16(SharedSlice<bf16>),
}

impl<'a> MatmulOutput<'a> {
    pub(crate) fn new(out: FloatsMut<'a>, bias: Option<Bias<'a>>, outputs: usize) -> Self {
        let memory = match out {
            FloatsMut::F32(out) => Memory::F32(SharedSlice::new(out)),
            FloatsMut::F16(out) => Memory::F16(SharedSlice::new(out)),
            FloatsMut::Bf16(out) => Memory::Bf16(SharedSlice::new(out)),
        };
        Self { memory, bias, outputs }
    }

    /// Adds the bias to products `[rows, count]` and writes them to these rows, from output `first` on. Each task has rows and
    /// outputs of its own.
    pub(crate) fn write(&self, isa: Isa, rows: &[usize], first: usize, products: &mut [f32]) {
        let (bias, outputs) = (self.bias, self.outputs);
        with_slice!(&self.memory, Memory, memory => {
            isa.run(WriteRows { memory, outputs, rows, first, products, bias });
        });
    }
}

struct WriteRows<'a, E> {
    memory: &'a SharedSlice<E>,
    outputs: usize,
    rows: &'a [usize],
    first: usize,
    products: &'a mut [f32],
    bias: Option<Bias<'a>>,
}

impl<E: Element> Kernel for WriteRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let count = self.products.len() / self.rows.len();
        for (row, products) in self.rows.iter().zip(self.products.chunks_exact_mut(count)) {
            if let Some(bias) = self.bias {
                add_to::<f32, S>(&bias.of_row(*row, self.outputs)[self.first..][..count], products);
            }
            // SAFETY: each task has rows and outputs of its own.
            let to = unsafe { self.memory.part(row * self.outputs + self.first, count) };
            narrow::<E, S>(products, to);
        }
    }
}
