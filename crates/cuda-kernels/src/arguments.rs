//! The arguments of kernels, as the sources declare them.

use std::sync::Arc;

use crate::{
    DevicePtr,
    spec::{NormWeight, Stack, Weight},
};

/// `Matrix`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct MatrixArg {
    data: DevicePtr,
    scales: DevicePtr,
    biases: DevicePtr,
    bias: DevicePtr,
    rows: u32,
    reserved: u32,
}

impl From<&Weight> for MatrixArg {
    fn from(weight: &Weight) -> Self {
        Self {
            data: weight.data,
            scales: weight.scales,
            biases: weight.biases,
            bias: weight.bias,
            rows: weight.rows as u32,
            reserved: 0,
        }
    }
}

impl From<&Stack> for MatrixArg {
    fn from(stack: &Stack) -> Self {
        Self { rows: stack.stride as u32, ..Self::from(&stack.first) }
    }
}

/// `Vector`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct VectorArg {
    data: DevicePtr,
    single: u32,
    offset: f32,
}

impl From<&NormWeight> for VectorArg {
    fn from(norm: &NormWeight) -> Self {
        Self { data: norm.data, single: u32::from(norm.single), offset: norm.offset }
    }
}

/// `GemvArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct GemvArgs {
    pub(crate) matrices: [MatrixArg; 3],
    pub(crate) x: DevicePtr,
    pub(crate) y: DevicePtr,
    pub(crate) x_out: DevicePtr,
    pub(crate) a: DevicePtr,
    pub(crate) norm: VectorArg,
    pub(crate) post: VectorArg,
    pub(crate) out: DevicePtr,
    pub(crate) best: DevicePtr,
    pub(crate) best_index: DevicePtr,
    pub(crate) ticket: DevicePtr,
    pub(crate) next: DevicePtr,
    pub(crate) token: DevicePtr,
    pub(crate) position: DevicePtr,
    pub(crate) history: DevicePtr,
    pub(crate) steps: DevicePtr,
    pub(crate) k: u32,
    pub(crate) n: u32,
    pub(crate) tiles: u32,
    pub(crate) history_len: u32,
    pub(crate) pieces: u32,
    pub(crate) piece: u32,
    pub(crate) stages: u32,
    pub(crate) slots: u32,
    pub(crate) row_bytes: u32,
    pub(crate) stride: u32,
    pub(crate) scale_bytes: u32,
    pub(crate) out_stride: u32,
    pub(crate) eps: f32,
    pub(crate) cap: f32,
    pub(crate) scale: f32,
    pub(crate) inverse_k: f32,
}

/// `AttentionArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct AttentionArgs {
    pub(crate) qkv: DevicePtr,
    pub(crate) out: DevicePtr,
    pub(crate) keys: DevicePtr,
    pub(crate) values: DevicePtr,
    pub(crate) capacity: DevicePtr,
    pub(crate) position: DevicePtr,
    pub(crate) frequencies: DevicePtr,
    pub(crate) sinks: DevicePtr,
    pub(crate) part: DevicePtr,
    pub(crate) part_state: DevicePtr,
    pub(crate) ticket: DevicePtr,
    pub(crate) q_norm: VectorArg,
    pub(crate) k_norm: VectorArg,
    pub(crate) heads: u32,
    pub(crate) kv_heads: u32,
    pub(crate) rotated: u32,
    pub(crate) window: u32,
    pub(crate) interleaved: u32,
    pub(crate) cluster: u32,
    pub(crate) scale: f32,
    pub(crate) cap: f32,
    pub(crate) eps: f32,
    pub(crate) magnitude: f32,
}

/// `PackArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct PackArgs {
    pub(crate) x: DevicePtr,
    pub(crate) y: DevicePtr,
    pub(crate) x_out: DevicePtr,
    pub(crate) a: DevicePtr,
    pub(crate) out: DevicePtr,
    pub(crate) sums: DevicePtr,
    pub(crate) norm: VectorArg,
    pub(crate) post: VectorArg,
    pub(crate) k: u32,
    pub(crate) eps: f32,
}

/// `EmbedArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct EmbedArgs {
    pub(crate) data: DevicePtr,
    pub(crate) scales: DevicePtr,
    pub(crate) biases: DevicePtr,
    pub(crate) token: DevicePtr,
    pub(crate) position: DevicePtr,
    pub(crate) out: DevicePtr,
    pub(crate) k: u32,
    pub(crate) vocabulary: u32,
    pub(crate) scale: f32,
    pub(crate) reserved: u32,
}

/// `PlainArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct PlainArgs {
    pub(crate) matrices: [MatrixArg; 3],
    pub(crate) a: DevicePtr,
    pub(crate) out: DevicePtr,
    pub(crate) rows: u32,
    pub(crate) k: u32,
    pub(crate) n: u32,
    pub(crate) out_stride: u32,
    pub(crate) cap: f32,
    pub(crate) scale: f32,
}

/// `NormArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct NormArgs {
    pub(crate) x: DevicePtr,
    pub(crate) y: DevicePtr,
    pub(crate) x_out: DevicePtr,
    pub(crate) out: DevicePtr,
    pub(crate) norm: VectorArg,
    pub(crate) post: VectorArg,
    pub(crate) k: u32,
    pub(crate) sandwich: u32,
    pub(crate) eps: f32,
    pub(crate) reserved: u32,
}

/// `ArgmaxArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct ArgmaxArgs {
    pub(crate) logits: DevicePtr,
    pub(crate) token: DevicePtr,
    pub(crate) position: DevicePtr,
    pub(crate) history: DevicePtr,
    pub(crate) steps: DevicePtr,
    pub(crate) n: u32,
    pub(crate) history_len: u32,
}

/// `DrawArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct DrawArgs {
    pub(crate) logits: DevicePtr,
    pub(crate) draws: DevicePtr,
    pub(crate) token: DevicePtr,
    pub(crate) position: DevicePtr,
    pub(crate) history: DevicePtr,
    pub(crate) steps: DevicePtr,
    pub(crate) n: u32,
    pub(crate) history_len: u32,
    pub(crate) cluster: u32,
    pub(crate) per: u32,
}

/// `RouteArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct RouteArgs {
    pub(crate) norm: NormArgs,
    pub(crate) gate: MatrixArg,
    pub(crate) scores: DevicePtr,
    pub(crate) bias: DevicePtr,
    pub(crate) picks: DevicePtr,
    pub(crate) weights: DevicePtr,
    pub(crate) shared: DevicePtr,
    pub(crate) experts: u32,
    pub(crate) top_k: u32,
    pub(crate) sigmoid: u32,
    pub(crate) normalize: u32,
    pub(crate) shared_k: u32,
    pub(crate) epsilon: f32,
    pub(crate) scale: f32,
    pub(crate) reserved: u32,
}

/// `ExpertArgs`
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct ExpertArgs {
    pub(crate) matrices: [MatrixArg; 2],
    pub(crate) a: DevicePtr,
    pub(crate) picks: DevicePtr,
    pub(crate) weights: DevicePtr,
    pub(crate) out: DevicePtr,
    pub(crate) k: u32,
    pub(crate) n: u32,
    pub(crate) top_k: u32,
    pub(crate) each: u32,
    pub(crate) step: u32,
    pub(crate) add: u32,
    pub(crate) alpha: f32,
    pub(crate) limit: f32,
}

/// Arguments that a kernel takes as one structure, without padding, aligned to 8 bytes.
pub(crate) trait Argument: Copy {
    /// Its bytes.
    fn words(&self) -> Arc<[u64]> {
        const { assert!(size_of::<Self>().is_multiple_of(8) && align_of::<Self>() == 8) };
        // SAFETY: the structure has that many words, is aligned to them and has no padding.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast::<u64>(), size_of::<Self>() / 8) }
            .into()
    }
}

macro_rules! arguments {
    ($($name:ty: $size:literal),*) => { $(
        impl Argument for $name {}
        // The size in the source, as the compiler of the kernels lays it out.
        const _: () = assert!(size_of::<$name>() == $size);
    )* };
}
arguments!(
    GemvArgs: 320,
    PackArgs: 88,
    AttentionArgs: 160,
    EmbedArgs: 64,
    PlainArgs: 160,
    NormArgs: 80,
    ArgmaxArgs: 48,
    DrawArgs: 64,
    RouteArgs: 192,
    ExpertArgs: 144
);
