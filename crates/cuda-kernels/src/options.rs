//! What a caller chooses of an executor.

/// What is fixed when steps are captured.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many of the last tokens of each row are remembered on the GPU.
    pub history: usize,
    /// Whether logits are stored, for [`Executor::logits`](crate::Executor::logits).
    pub keep_logits: bool,
    /// Whether a kernel may start while the one before it runs.
    pub early_start: bool,
    /// Whether products fetch into the second cache what later ones read first. Measured slower so far.
    pub look_ahead: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { history: 256, keep_logits: true, early_start: true, look_ahead: false }
    }
}
