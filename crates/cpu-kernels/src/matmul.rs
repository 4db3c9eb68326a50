//! Matrix products: `x · wᵀ`, and the same with the matrix of an expert for each row.

use std::{borrow::Cow, marker::PhantomData};

#[cfg(target_arch = "x86_64")]
use half::bf16;

use crate::{
    ahead::Span,
    element::to_f32_vec,
    error::{Error, Result},
    gemm::{Gemm, MAX_STRIP, UnpackPanel, panel_rows},
    gemv::{GEMV_ROWS, Gemv, PermuteRows},
    kernels::Kernels,
    matmul_kernel::MatmulKernel,
    matmul_output::{Bias, MatmulOutput},
    operand::{Floats, FloatsMut, Matrices, length, product, row_count},
    scales::element_bytes,
    scratch::Scratch,
    storage::{Storage, with_storage},
};
#[cfg(target_arch = "x86_64")]
use crate::{
    bf16_dot::{Bf16Dot, Bf16Gemv, Bf16InterleavedGemv, Bf16Rows, InterleavedRows},
    isa::Isa,
    matmul_kernel::Bf16Storage,
    storage::{AlignedInt, Dense, Fp4},
    tiles::{Bf16Exact, PackedRows, SplitPacking, TILE_ROWS, TileGemm, TilePacking},
};

/// Bytes of a matrix that one GEMV task reads, at least and at most. Few tasks cost less, but every thread needs some.
const TASK_BYTES: (usize, usize) = (32 << 10, 256 << 10);
/// GEMV tasks for each thread, unless that makes them too small.
const TASKS_PER_THREAD: usize = 8;

/// Runs `$body` with the type `$storage` bound to a [`Bf16Storage`].
#[cfg(target_arch = "x86_64")]
macro_rules! with_bf16_storage {
    ($value:expr, $storage:ident => $body:expr) => {
        match $value {
            Bf16Storage::Int4 => {
                type $storage = AlignedInt<4>;
                $body
            }
            Bf16Storage::Int8 => {
                type $storage = AlignedInt<8>;
                $body
            }
            Bf16Storage::Fp4 => {
                type $storage = Fp4;
                $body
            }
            Bf16Storage::Bf16 => {
                type $storage = Dense<bf16>;
                $body
            }
        }
    };
}

impl Kernels {
    /// `x · wᵀ + bias`: `x` `[rows, inputs]`, one matrix, `bias` `[outputs]` → `out` `[rows, outputs]`.
    ///
    /// # Errors
    /// Operands whose sizes do not match, or an unsupported quantisation.
    pub fn matmul(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        bias: Option<Floats<'_>>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        w.check_single()?;
        let rows = row_count(w.outputs, out.len(), "out")?;
        length("x", x.len(), product("x", &[rows, w.inputs])?)?;
        if let Some(bias) = &bias {
            length("bias", bias.len(), w.outputs)?;
        }
        let bias = bias.map(to_f32_vec);
        self.matmul_batches(x, w, bias.as_deref(), &vec![0; rows], 1, out);
        Ok(())
    }

    /// Row `i` of `out` is `x[i / k] · w[e]ᵀ + bias[e]`, where e is `expert_ids[i]`: `x` `[rows, inputs]`, `bias` `[matrices, outputs]`,
    /// `expert_ids` `[rows · k]` → `out` `[rows · k, outputs]`. Here k is the number of experts that share a row of `x`: 1, or the experts
    /// of a token.
    ///
    /// # Errors
    /// Operands whose sizes do not match, an expert id beyond the stack, or an unsupported quantisation.
    pub fn gather_matmul(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        bias: Option<Floats<'_>>,
        expert_ids: &[u32],
        out: FloatsMut<'_>,
    ) -> Result<()> {
        w.check()?;
        if let Some(bias) = &bias {
            length("bias", bias.len(), product("bias", &[w.count, w.outputs])?)?;
        }
        length("out", out.len(), product("out", &[expert_ids.len(), w.outputs])?)?;
        if let Some(id) = expert_ids.iter().find(|id| **id as usize >= w.count) {
            let expected = format!("less than the {} matrices", w.count);
            return Err(Error::Invalid { name: "an expert id", found: *id as usize, expected });
        }
        let rows = row_count(w.inputs, x.len(), "x")?;
        if rows == 0 || !expert_ids.len().is_multiple_of(rows) {
            if expert_ids.is_empty() {
                return Ok(());
            }
            let (name, found) = ("the number of expert ids", expert_ids.len());
            return Err(Error::Invalid {
                name,
                found,
                expected: format!("a multiple of the {rows} rows of x"),
            });
        }
        let bias = bias.map(to_f32_vec);
        self.matmul_batches(x, w, bias.as_deref(), expert_ids, expert_ids.len() / rows, out);
        Ok(())
    }

    /// [`gather_matmul`](Self::gather_matmul) of checked operands.
    fn matmul_batches(
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
        let (x_type, out_type) = (x.float_type(), out.float_type());
        let kernel = |rows| MatmulKernel::choose(self.isa, x_type, &w.weights, out_type, rows);
        let bias = bias.map(|values| Bias { values, matrices: expert_ids });
        let out = MatmulOutput::new(out, bias, w.outputs);
        if w.inputs == 0 {
            let rows: Vec<_> = (0..expert_ids.len()).collect();
            return out.write(self.isa, &rows, 0, &mut vec![0.0; expert_ids.len() * w.outputs]);
        }
        let is_gemm = |batch: &Batch| kernel(batch.x_rows.len()).is_gemm();
        let (gemm, gemv): (Vec<_>, Vec<_>) = batches(expert_ids, k).into_iter().partition(is_gemm);
        if let Some(batch) = gemm.first() {
            // From some number of rows on, the choice is the same for all.
            self.gemm(kernel(batch.x_rows.len()), x, w, &gemm, &out);
        }
        let parts: Vec<_> = gemv.iter().flat_map(Batch::gemv_parts).collect();
        if !parts.is_empty() {
            self.gemv(kernel, x, w, &parts, &out);
        }
    }

    /// The products of batches with few rows, in parts of up to [`GEMV_ROWS`].
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(unused_variables, reason = "the kernels of AVX-512 alone differ")
    )]
    fn gemv(
        &self,
        kernel: impl Fn(usize) -> MatmulKernel + Sync,
        x: Floats<'_>,
        w: &Matrices<'_>,
        parts: &[GemvPart<'_>],
        out: &MatmulOutput<'_>,
    ) {
        #[cfg(target_arch = "x86_64")]
        if let (MatmulKernel::Bf16Gemv(storage), Floats::Bf16(x)) = (kernel(1), x) {
            // SAFETY: `MatmulKernel::choose` returned a kernel for AVX-512 bf16, see `Isa::run`.
            unsafe {
                with_bf16_storage!(storage, P => self.bf16_gemv::<P>(kernel, x, w, parts, out));
            }
            return;
        }
        with_storage!(w.weights, T => {
            let x = self.isa.run(PermuteRows::<T>::new(x, w));
            self.for_each_part(w, T::BITS, parts, out, &|index, first, out| {
                let rows = parts[index].x_rows;
                self.isa.run(Gemv::<T> { w, first, x: &x, rows, out, storage: PhantomData });
            });
        });
    }

    /// [`gemv`](Self::gemv) by bf16 dot products.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16.
    #[cfg(target_arch = "x86_64")]
    unsafe fn bf16_gemv<P: Bf16Dot>(
        &self,
        kernel: impl Fn(usize) -> MatmulKernel + Sync,
        x: &[bf16],
        w: &Matrices<'_>,
        parts: &[GemvPart<'_>],
        out: &MatmulOutput<'_>,
    ) {
        // SAFETY: the caller's.
        let x = unsafe { Bf16Rows::new::<P>(x, w) };
        let interleaved: Vec<_> = parts
            .iter()
            .map(|part| match kernel(part.x_rows.len()) {
                MatmulKernel::Bf16InterleavedGemv(_) => Some(InterleavedRows::new(&x, part.x_rows)),
                _ => None,
            })
            .collect();
        self.for_each_part(w, P::BITS, parts, out, &|index, first, out| {
            let (rows, storage) = (parts[index].x_rows, PhantomData::<P>);
            // SAFETY: the caller's.
            unsafe {
                match &interleaved[index] {
                    Some(x) => Bf16InterleavedGemv { w, first, x, out, storage }.run(),
                    None => Bf16Gemv { w, first, x: &x, rows, out, storage }.run(),
                }
            }
        });
    }

    /// Calls `gemv` for some rows of the matrix of each part, and writes its products: with the index of the part, the first row
    /// of the matrix, counted through all matrices, and memory for `[rows of x, rows of the matrix]` products.
    fn for_each_part(
        &self,
        w: &Matrices<'_>,
        bits: usize,
        parts: &[GemvPart<'_>],
        out: &MatmulOutput<'_>,
        gemv: &(dyn Fn(usize, usize, &mut [f32]) + Sync),
    ) {
        let outputs = task_outputs(w, bits, parts.len(), self.threads());
        let tasks = w.outputs.div_ceil(outputs);
        let matrix = (w.count == 1).then(|| Span::of(element_bytes(&w.weights)));
        self.pool.run_reading(matrix, parts.len() * tasks, &|task| {
            let (index, first) = (task / tasks, task % tasks * outputs);
            let part = &parts[index];
            let mut products = Scratch::new(part.x_rows.len() * outputs.min(w.outputs - first));
            gemv(index, part.matrix * w.outputs + first, &mut products);
            out.write(self.isa, part.out_rows, first, &mut products);
        });
    }

    /// The products of batches with many rows.
    fn gemm(
        &self,
        kernel: MatmulKernel,
        x: Floats<'_>,
        w: &Matrices<'_>,
        batches: &[Batch],
        out: &MatmulOutput<'_>,
    ) {
        #[cfg(target_arch = "x86_64")]
        match kernel {
            MatmulKernel::Bf16TileGemm { storage, group_size } => {
                return with_bf16_storage!(storage, P => {
                    // SAFETY: `MatmulKernel::choose` returned a kernel for AVX-512 bf16, see `Isa::run`.
                    unsafe { self.tile_gemm(Bf16Exact::<P>::new(group_size), x, w, batches, out) }
                });
            }
            MatmulKernel::SplitTileGemm(split) => {
                return with_storage!(w.weights, T => {
                    let packing = SplitPacking::<T> { split, storage: PhantomData };
                    // SAFETY: as above.
                    unsafe { self.tile_gemm(packing, x, w, batches, out) }
                });
            }
            _ => {}
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = kernel;
        with_storage!(w.weights, T => self.f32_gemm::<T>(x, w, batches, out));
    }

    /// [`gemm`](Self::gemm) by vectors of `f32`.
    fn f32_gemm<T: Storage>(
        &self,
        x: Floats<'_>,
        w: &Matrices<'_>,
        batches: &[Batch],
        out: &MatmulOutput<'_>,
    ) {
        let x = match x {
            Floats::F32(x) => Cow::Borrowed(x),
            x => Cow::Owned(to_f32_vec(x)),
        };
        let panel = panel_rows(w.outputs, 4 * w.inputs, MAX_STRIP, self.threads());
        let panels = w.outputs.div_ceil(panel);
        self.pool.run(batches.len() * panels, &|task| {
            let batch = &batches[task / panels];
            let first = task % panels * panel;
            let count = panel.min(w.outputs - first);
            let unpack =
                UnpackPanel::<T> { w, first: batch.matrix * w.outputs + first, count, storage: PhantomData };
            let panel = self.isa.run(unpack);
            let write = &mut |row: usize, products: &mut [f32]| {
                let rows = &batch.out_rows[row..][..products.len() / count];
                out.write(self.isa, rows, first, products);
            };
            self.isa.run(Gemm { panel: &panel, count, x: &x, inputs: w.inputs, rows: &batch.x_rows, write });
        });
    }

    /// [`gemm`](Self::gemm) by tiles of bf16.
    ///
    /// # Safety
    /// The machine has AVX-512 bf16, and AMX if that is the instruction set.
    #[cfg(target_arch = "x86_64")]
    unsafe fn tile_gemm<K: TilePacking>(
        &self,
        packing: K,
        x: Floats<'_>,
        w: &Matrices<'_>,
        batches: &[Batch],
        out: &MatmulOutput<'_>,
    ) {
        // Each batch begins a block of its own.
        let blocks: Vec<_> = batches.iter().flat_map(|batch| batch.x_rows.chunks(TILE_ROWS)).collect();
        let first_blocks: Vec<_> = batches
            .iter()
            .scan(0, |next, batch| {
                let first = *next;
                *next += batch.x_rows.len().div_ceil(TILE_ROWS);
                Some(first)
            })
            .collect();
        let mut packed = PackedRows::new(packing, blocks.len(), w.inputs);
        // SAFETY: the caller's.
        unsafe { packed.fill(x, w.inputs, &blocks, |tasks, work| self.pool.run(tasks, work)) };
        let panel = panel_rows(w.outputs, 4 * w.inputs, 2 * TILE_ROWS, self.threads());
        let panels = w.outputs.div_ceil(panel);
        let bytes = element_bytes(&w.weights);
        let row_bytes = bytes.len() / (w.count * w.outputs);
        let matrix = (w.count == 1).then(|| Span::of(bytes));
        self.pool.run_reading(matrix, batches.len() * panels, &|task| {
            let (batch, block) = (&batches[task / panels], first_blocks[task / panels]);
            let first = task % panels * panel;
            let count = panel.min(w.outputs - first);
            let mut write = |row: usize, products: &mut [f32]| {
                let rows = &batch.out_rows[row..][..products.len() / count];
                out.write(self.isa, rows, first, products);
            };
            let (rows, amx) = (batch.x_rows.len(), self.isa == Isa::Amx);
            // What this thread unpacks next, mostly.
            let next = [first + count, w.outputs.min(first + count + panel)];
            let next = next.map(|row| (batch.matrix * w.outputs + row) * row_bytes);
            let next = &bytes[next[0]..next[1]];
            // SAFETY: the caller's.
            unsafe {
                let panel = &packing.unpack(w, batch.matrix * w.outputs + first, count);
                TileGemm { panel, count, x: &packed, block, rows, next, amx }.run(&mut write);
            }
        });
    }
}

/// Rows that are multiplied with the same matrix.
struct Batch {
    matrix: usize,
    /// The rows of the output.
    out_rows: Vec<usize>,
    /// The rows of `x`.
    x_rows: Vec<usize>,
}

impl Batch {
    fn gemv_parts(&self) -> impl Iterator<Item = GemvPart<'_>> {
        let parts = self.out_rows.chunks(GEMV_ROWS).zip(self.x_rows.chunks(GEMV_ROWS));
        parts.map(|(out_rows, x_rows)| GemvPart { matrix: self.matrix, out_rows, x_rows })
    }
}

/// Up to [`GEMV_ROWS`] rows of a [`Batch`].
struct GemvPart<'a> {
    matrix: usize,
    out_rows: &'a [usize],
    x_rows: &'a [usize],
}

/// Groups rows by their expert; `k` of them share a row of `x`.
fn batches(expert_ids: &[u32], k: usize) -> Vec<Batch> {
    let mut out_rows: Vec<_> = (0..expert_ids.len()).collect();
    out_rows.sort_by_key(|row| expert_ids[*row]);
    let groups = out_rows.chunk_by(|a, b| expert_ids[*a] == expert_ids[*b]);
    let batches = groups.map(|out_rows| Batch {
        matrix: expert_ids[out_rows[0]] as usize,
        out_rows: out_rows.to_vec(),
        x_rows: out_rows.iter().map(|row| row / k).collect(),
    });
    batches.collect()
}

/// Rows of a matrix for one GEMV task, if `parts` matrices are read: enough to be worth a task, and few enough for an even share.
fn task_outputs(w: &Matrices<'_>, bits: usize, parts: usize, threads: usize) -> usize {
    let row_bytes = (w.inputs * bits / 8).max(1);
    let bytes =
        (parts * w.outputs * row_bytes / (TASKS_PER_THREAD * threads)).clamp(TASK_BYTES.0, TASK_BYTES.1);
    (bytes / row_bytes).next_multiple_of(4).clamp(4, 1024)
}
