//! Attention of new tokens to the KV cache, forward and backward, and of whole texts to themselves.

mod backward;
mod block;
mod forward;
mod packed;
mod params;
mod scores;
mod softmax;
mod weighted_sum;

pub use backward::AttentionBackward;
pub use packed::PackedTexts;
pub use params::AttentionParams;
