//! Decode steps of language models as one CUDA graph, captured once and replayed.
//!
//! | kernel | serves | source |
//! | --- | --- | --- |
//! | `gemv` | every product of 1 to 8 rows with a matrix, dense or quantised: projections, gate and up with their activation, down, head. It normalises its input first, and adds to the residual or finds the best logit at the end | `kernels/gemv.cuh`, `kernels/tiles.cuh`, `kernels/unpack.cuh` |
//! | `batch`, `pack` | every product of 16 and 32 rows, and what puts their input in order | `kernels/batch.cuh` |
//! | `attention` | norms and rotates queries and the key, writes the cache, attends | `kernels/attention.cuh` |
//! | `route`, `expert_gate_up`, `expert_down` | mixtures of experts: the choice of a few for each row, and their products, which read no other matrices | `kernels/experts.cuh` |
//! | `embed` | embeddings of tokens | `kernels/token.cuh` |
//! | `draw` | draws tokens from their logits: temperature, top-p, min-p, top-k | `kernels/draw.cuh` |
//! | `plain`, `norm_only`, `argmax_rows` | the same, where a shape or an address is no multiple of what `gemv` and `batch` take; the choice of tokens of 16 and 32 rows | `kernels/token.cuh` |
//!
//! A step of a layer is five launches, or nine of 16 and 32 rows; with experts seven, or more where one of them is shared. [`DecoderSpec`] describes a decoder, [`Executor`] captures its steps, [`Compiler`] compiles
//! kernels with NVRTC and keeps them on disk, [`Device::probe`] says whether this machine can run them, or why not. Neither a
//! driver nor a toolkit is needed to build.
//!
//! ```
//! match cuda_kernels::Device::probe(0) {
//!     Ok(device) => println!("{} with {} multiprocessors", device.name(), device.multiprocessors()),
//!     Err(why) => println!("no steps on a GPU: {why}"),
//! }
//! ```

mod arguments;
mod batch;
mod class;
mod compile;
mod device;
mod error;
mod executor;
mod geometry;
mod guard;
mod instance;
mod memory;
mod options;
mod product;
mod sampling;
mod spec;
mod state;
mod step;
mod stream;

pub use class::{BUCKETS, Logits};
pub use compile::Compiler;
pub use device::Device;
pub use error::{Error, Result};
pub use executor::{Executor, Pending, Row};
pub use memory::{Buffer, DevicePtr, Plain};
pub use options::Options;
pub use product::Part;
pub use sampling::Sampling;
pub use spec::{
    Activation, AttentionSpec, Cache, DecoderSpec, ExpertsSpec, FeedForwardSpec, Gating, Half, LayerSpec,
    Layout, MlpSpec, NormWeight, RopeSpec, RoutingSpec, Scoring, SharedExpertSpec, Stack, Weight,
};
pub use stream::{Event, Graph, Stream};
