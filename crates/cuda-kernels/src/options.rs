//! What a caller chooses of an executor.

use crate::DevicePtr;

/// What is fixed when steps are captured.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// How many of the last tokens of each row are remembered on the GPU.
    pub history: usize,
    /// Where steps store logits that are kept: `[32, vocabulary]` in single precision. `None`: in memory of the executor's own.
    pub logits: Option<DevicePtr>,
    /// Whether a kernel may start while the one before it runs.
    pub early_start: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { history: 256, logits: None, early_start: true }
    }
}
