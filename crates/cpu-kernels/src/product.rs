//! Products with matrices: `x · wᵀ`, and the same with one matrix of a stack for each row.

use std::{borrow::Cow, marker::PhantomData};

use half::{bf16, f16};

use crate::{
    Floats, FloatsMut, Isa, Kernels, Matrices, Result,
    element::{Element, Shared, narrow},
    error::Error,
    gemm::{Gemm, Panel, STRIP, panel},
    gemv::{Arrange, Arranged, Gemv, ROWS},
    isa::Kernel,
    operand::{length, product, with_slice},
    simd::Simd,
    storage::{Storage, with_storage},
};
#[cfg(target_arch = "x86_64")]
use crate::{
    pairs::{LaneGemv, Lanes, MOST, PairGemv, PairedRows, Pairs, with_pairs},
    tiles::{EDGE, Exact, InLimbs, Limbs, PackedRows, Packing, TileGemm},
};

/// What one task reads of a matrix, at least and at most: few tasks cost least, but threads want some to share.
const TASK_BYTES: (usize, usize) = (32 << 10, 256 << 10);
/// Tasks for each thread, where that is not too little for a task.
const TASKS: usize = 8;

impl Kernels {
    /// `x · wᵀ + bias`: `x` `[rows, inputs]`, one matrix, `bias` `[outputs]` → `out` `[rows, outputs]`.
    ///
    /// # Errors
    /// Operands whose sizes do not go together, or a storage that does not exist.
    pub fn matmul(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        bias: Option<Floats<'_>>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        single(w)?;
        let rows = rows(w.outputs, out.len(), "out")?;
        length("x", x.len(), product("x", &[rows, w.inputs])?)?;
        if let Some(bias) = &bias {
            length("bias", bias.len(), w.outputs)?;
        }
        let bias = bias.map(widened);
        self.gather(x, w, bias.as_deref(), &vec![0; rows], 1, out);
        Ok(())
    }

    /// Row `p` of `out` is `x[p / k] · w[expert_ids[p]]ᵀ`: `x` `[rows, inputs]`, `expert_ids` `[rows · k]` → `out`
    /// `[rows · k, outputs]`. Each run of k expert ids takes the same row of `x`: k is 1 or the experts of a token.
    ///
    /// # Errors
    /// Operands whose sizes do not go together, an expert id beyond the stack, or a storage that does not exist.
    pub fn gather_matmul(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        expert_ids: &[u32],
        out: FloatsMut<'_>,
    ) -> Result<()> {
        w.check()?;
        length("out", out.len(), product("out", &[expert_ids.len(), w.outputs])?)?;
        if let Some(expert) = expert_ids.iter().find(|expert| **expert as usize >= w.count) {
            let expected = format!("less than the {} matrices", w.count);
            return Err(Error::Invalid { name: "an expert id", found: *expert as usize, expected });
        }
        let rows = rows(w.inputs, x.len(), "x")?;
        if rows == 0 || !expert_ids.len().is_multiple_of(rows) {
            if expert_ids.is_empty() {
                return Ok(());
            }
            let expected = format!("a multiple of the {rows} rows of x");
            return Err(Error::Invalid {
                name: "the number of expert ids",
                found: expert_ids.len(),
                expected,
            });
        }
        self.gather(x, w, None, expert_ids, expert_ids.len() / rows, out);
        Ok(())
    }

    /// [`gather_matmul`](Self::gather_matmul) with checked operands, and a bias for every row.
    fn gather(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        bias: Option<&[f32]>,
        expert_ids: &[u32],
        k: usize,
        out: FloatsMut<'_>,
    ) {
        if w.outputs == 0 || expert_ids.is_empty() {
            return;
        }
        let memory = match out {
            FloatsMut::F32(out) => Memory::F32(Shared::new(out)),
            FloatsMut::F16(out) => Memory::F16(Shared::new(out)),
            FloatsMut::Bf16(out) => Memory::Bf16(Shared::new(out)),
        };
        let out = Output { memory, bias, outputs: w.outputs };
        if w.inputs == 0 {
            let places: Vec<_> = (0..expert_ids.len()).collect();
            return out.write(self.isa, &places, 0, &mut vec![0.0; expert_ids.len() * w.outputs]);
        }
        with_storage!(w.weights, T => {
            let most = self.few(&x, w);
            let (many, few): (Vec<_>, Vec<_>) = batches(expert_ids, k).into_iter().partition(|batch| batch.rows.len() > most);
            if !many.is_empty() {
                self.multiply_many::<T>(x, w, &many, &out);
            }
            if !few.is_empty() {
                self.multiply_few::<T>(x, w, &few, &out);
            }
        });
    }

    /// Rows up to which it does not pay to unpack the matrix before it is multiplied.
    fn few(&self, x: &Floats<'_>, w: &Matrices<'_>) -> usize {
        #[cfg(target_arch = "x86_64")]
        if let (Isa::Avx512Bf16, Floats::Bf16(_)) = (self.isa, x)
            && with_pairs!(w.weights, P => P::SCALED).is_some()
        {
            return 2 * ROWS;
        }
        ROWS
    }

    fn multiply_few<T: Storage>(&self, x: Floats<'_>, w: &Matrices<'_>, batches: &[Batch], out: &Output<'_>) {
        let parts = batches.iter().flat_map(|batch| {
            let parts = batch.places.chunks(ROWS).zip(batch.rows.chunks(ROWS));
            parts.map(|(places, rows)| Few { matrix: batch.matrix, places, rows })
        });
        let parts: Vec<_> = parts.collect();
        let chunk = chunk(w, T::BITS, parts.len(), self.threads());
        let chunks = w.outputs.div_ceil(chunk);
        let each = |gemv: &FewRows<'_>| {
            self.pool.run(parts.len() * chunks, &|task| {
                let (index, first) = (task / chunks, task % chunks * chunk);
                let part = &parts[index];
                let mut products = vec![0.0; part.rows.len() * chunk.min(w.outputs - first)];
                gemv(index, part.matrix * w.outputs + first, &mut products);
                out.write(self.isa, part.places, first, &mut products);
            });
        };
        #[cfg(target_arch = "x86_64")]
        if let (Isa::Avx512Bf16 | Isa::Amx, Floats::Bf16(x)) = (self.isa, x) {
            let done = with_pairs!(w.weights, P => {
                // SAFETY: the machine has the instructions, or they were not chosen.
                let x = unsafe { PairedRows::new::<P>(x, w) };
                let side_by_side = |part: &Few<'_>| (part.rows.len() > MOST).then(|| Lanes::new(&x, part.rows));
                let lanes: Vec<_> = parts.iter().map(side_by_side).collect();
                each(&|index, first, out| {
                    let (rows, pairs) = (parts[index].rows, PhantomData::<P>);
                    match &lanes[index] {
                        // SAFETY: as above.
                        Some(x) => unsafe { LaneGemv { w, first, x, out, pairs }.run() },
                        // SAFETY: as above.
                        None => unsafe { PairGemv { w, first, x: &x, rows, out, pairs }.run() },
                    }
                });
            });
            if done.is_some() {
                return;
            }
        }
        let x = self.arrange::<T>(x, w);
        each(&|index, first, out| {
            let rows = parts[index].rows;
            self.isa.run(Gemv::<T> { w, first, x: &x, rows, out, storage: PhantomData });
        });
    }

    fn multiply_many<T: Storage>(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        batches: &[Batch],
        out: &Output<'_>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let Isa::Avx512Bf16 | Isa::Amx = self.isa {
            let limbs = Limbs::new(&x, &w.weights, matches!(out.memory, Memory::F32(_)));
            if let (Isa::Avx512Bf16, Floats::Bf16(_)) = (self.isa, x)
                && with_pairs!(w.weights, P => self.multiply_exact::<P>(x, w, batches, out)) == Some(true)
            {
                return;
            }
            if limbs.is_single() || self.isa == Isa::Amx {
                return self.multiply_tiles(x, w, batches, InLimbs::<T> { limbs, storage: PhantomData }, out);
            }
        }
        let x = match x {
            Floats::F32(x) => Cow::Borrowed(x),
            x => Cow::Owned(widened(x)),
        };
        let panel = panel(w.outputs, 4 * w.inputs, STRIP, self.threads());
        let panels = w.outputs.div_ceil(panel);
        self.pool.run(batches.len() * panels, &|task| {
            let batch = &batches[task / panels];
            let first = task % panels * panel;
            let count = panel.min(w.outputs - first);
            let matrix =
                Panel::<T> { w, first: batch.matrix * w.outputs + first, count, storage: PhantomData };
            let panel = self.isa.run(matrix);
            let emit = &mut |row: usize, products: &mut [f32]| {
                let places = &batch.places[row..][..products.len() / count];
                out.write(self.isa, places, first, products);
            };
            self.isa.run(Gemm { panel: &panel, count, x: &x, inputs: w.inputs, rows: &batch.rows, emit });
        });
    }

    /// [`multiply_many`](Self::multiply_many) of bf16 with elements that it holds exactly. Says whether it is done.
    #[cfg(target_arch = "x86_64")]
    fn multiply_exact<P: Pairs>(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        batches: &[Batch],
        out: &Output<'_>,
    ) -> bool {
        Exact::<P>::new(w).map(|packing| self.multiply_tiles(x, w, batches, packing, out)).is_some()
    }

    #[cfg(target_arch = "x86_64")]
    fn multiply_tiles<K: Packing>(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        batches: &[Batch],
        packing: K,
        out: &Output<'_>,
    ) {
        // Each batch begins a block of its own.
        let blocks: Vec<_> = batches.iter().flat_map(|batch| batch.rows.chunks(EDGE)).collect();
        let starts: Vec<_> = batches
            .iter()
            .scan(0, |next, batch| {
                let start = *next;
                *next += batch.rows.len().div_ceil(EDGE);
                Some(start)
            })
            .collect();
        let mut packed = PackedRows::new(packing, blocks.len(), w.inputs);
        // SAFETY: the machine has the instructions, or they were not chosen.
        unsafe { packed.fill(x, w.inputs, &blocks, |tasks, work| self.pool.run(tasks, work)) };
        let panel = panel(w.outputs, 4 * w.inputs, 2 * EDGE, self.threads());
        let panels = w.outputs.div_ceil(panel);
        self.pool.run(batches.len() * panels, &|task| {
            let (batch, block) = (&batches[task / panels], starts[task / panels]);
            let first = task % panels * panel;
            let count = panel.min(w.outputs - first);
            let mut emit = |row: usize, products: &mut [f32]| {
                let places = &batch.places[row..][..products.len() / count];
                out.write(self.isa, places, first, products);
            };
            let (rows, amx) = (batch.rows.len(), self.isa == Isa::Amx);
            // SAFETY: the machine has the instructions, or they were not chosen.
            unsafe {
                let panel = &packing.unpack(w, batch.matrix * w.outputs + first, count);
                TileGemm { panel, count, x: &packed, block, rows, amx }.each(&mut emit);
            }
        });
    }

    /// All rows of `x`, arranged for matrices like `w`.
    fn arrange<T: Storage>(&self, x: Floats<'_>, w: &Matrices<'_>) -> Arranged {
        self.isa.run(Arrange::<T>::new(x, w))
    }
}

/// Rows that are multiplied with the same matrix.
struct Batch {
    matrix: usize,
    /// Which rows of the output they make.
    places: Vec<usize>,
    /// Which rows of `x` they are.
    rows: Vec<usize>,
}

/// The expert ids by matrix; `k` share a row of `x`.
fn batches(expert_ids: &[u32], k: usize) -> Vec<Batch> {
    let mut places: Vec<_> = (0..expert_ids.len()).collect();
    places.sort_by_key(|place| expert_ids[*place]);
    let alike = places.chunk_by(|a, b| expert_ids[*a] == expert_ids[*b]);
    let batches = alike.map(|places| Batch {
        matrix: expert_ids[places[0]] as usize,
        places: places.to_vec(),
        rows: places.iter().map(|place| place / k).collect(),
    });
    batches.collect()
}

/// Where products go.
struct Output<'a> {
    /// `[places, outputs]`
    memory: Memory,
    /// `[outputs]`
    bias: Option<&'a [f32]>,
    outputs: usize,
}

/// Memory of a result, by its type.
enum Memory {
    F32(Shared<f32>),
    F16(Shared<f16>),
    Bf16(Shared<bf16>),
}

impl Output<'_> {
    /// Adds the bias to products `[places, count]` and writes them, from output `first` on. Each task has places and outputs
    /// of its own.
    fn write(&self, isa: Isa, places: &[usize], first: usize, products: &mut [f32]) {
        let count = products.len() / places.len();
        if let Some(bias) = self.bias {
            for products in products.chunks_exact_mut(count) {
                products.iter_mut().zip(&bias[first..]).for_each(|(product, bias)| *product += bias);
            }
        }
        with_slice!(&self.memory, Memory, memory => {
            isa.run(Write { memory, outputs: self.outputs, places, first, products });
        });
    }
}

struct Write<'a, E> {
    memory: &'a Shared<E>,
    outputs: usize,
    places: &'a [usize],
    first: usize,
    products: &'a [f32],
}

impl<E: Element> Kernel for Write<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let count = self.products.len() / self.places.len();
        for (place, products) in self.places.iter().zip(self.products.chunks_exact(count)) {
            // SAFETY: each task has places and outputs of its own.
            let to = unsafe { self.memory.part(place * self.outputs + self.first, count) };
            narrow::<E, S>(products, to);
        }
    }
}

/// A few rows that are multiplied with the same matrix at once.
struct Few<'a> {
    matrix: usize,
    /// Which rows of the output they make.
    places: &'a [usize],
    /// Which rows of `x` they are.
    rows: &'a [usize],
}

/// Multiplies a few rows of `x`, by their number, with rows of a matrix, from the given one on, as many as there is room for.
type FewRows<'a> = dyn Fn(usize, usize, &mut [f32]) + Sync + 'a;

/// Rows of a matrix for one task, where `parts` such matrices are read: enough to be worth handing out, few enough to share them
/// evenly.
fn chunk(w: &Matrices<'_>, bits: usize, parts: usize, threads: usize) -> usize {
    let row_bytes = (w.inputs * bits / 8).max(1);
    let bytes = (parts * w.outputs * row_bytes / (TASKS * threads)).clamp(TASK_BYTES.0, TASK_BYTES.1);
    (bytes / row_bytes).next_multiple_of(4).clamp(4, 1024)
}

fn widened(x: Floats<'_>) -> Vec<f32> {
    with_slice!(x, Floats, x => x.iter().map(|x| x.widen()).collect())
}

/// That the stack is a single matrix.
pub(crate) fn single(w: &Matrices<'_>) -> Result<()> {
    if w.count != 1 {
        return Err(Error::Invalid { name: "the number of matrices", found: w.count, expected: "1".into() });
    }
    w.check()
}

/// How many rows of this width there are.
pub(crate) fn rows(width: usize, len: usize, operand: &'static str) -> Result<usize> {
    let rows = len.checked_div(width).unwrap_or(0);
    length(operand, len, rows * width)?;
    Ok(rows)
}
