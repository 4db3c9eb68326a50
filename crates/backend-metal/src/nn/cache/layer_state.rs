//! What the layers of a model keep of a text.

/// What one layer keeps of a text. A layer may have attention and a recurrent state side by side, or neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct LayerState {
    /// Keys and values, or what stands for them.
    pub(crate) attention: Option<AttentionState>,
    /// The sizes of a recurrent state.
    pub(crate) recurrent: Option<RecurrentState>,
}

/// Keys and values of positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionState {
    /// The sliding window, its own position included; `None` is all positions.
    pub(crate) window: Option<usize>,
    /// Elements that are kept of one position: of keys and values together.
    pub(crate) elements: usize,
}

/// A state of fixed size, which cannot be rewound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecurrentState {
    /// Elements in single precision.
    pub(crate) floats: usize,
    /// Elements of the activations' type.
    pub(crate) activations: usize,
}

impl LayerState {
    /// Attention alone.
    pub(crate) fn attention(window: Option<usize>, elements: usize) -> Self {
        Self { attention: Some(AttentionState { window, elements }), recurrent: None }
    }

    /// A recurrent state alone.
    pub(crate) fn recurrent(floats: usize, activations: usize) -> Self {
        Self { attention: None, recurrent: Some(RecurrentState { floats, activations }) }
    }
}
