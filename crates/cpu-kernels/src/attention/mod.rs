//! Attention of new tokens to the KV cache, forward and backward.

mod backward;
mod block;
mod forward;
mod params;
mod scores;
mod softmax;
mod weighted_sum;

pub use backward::AttentionBackward;
pub use params::AttentionParams;
