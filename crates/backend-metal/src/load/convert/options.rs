//! What a caller chooses of a conversion.

use inference_core::{Dtype, Error, Quantization};

/// How a checkpoint is converted. Quantising leaves experts that were published packed, gpt-oss's, as they are.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ConvertOptions {
    /// The quantisation of matrices; unset: none.
    pub quantization: Option<Quantization>,
    /// Exceptions: patterns of names, and the quantisation of the matrices whose name matches, `None` for none. The last rule that
    /// matches counts. `*` in a pattern matches any characters.
    pub rules: Vec<(String, Option<Quantization>)>,
    /// The type of weights that are not quantised, and of the scales of those that are; unset: unchanged.
    pub dtype: Option<Dtype>,
    /// What is quantised stays as it is, and nothing else is quantised.
    pub keep: bool,
}

/// The error of an option.
pub(super) fn invalid_option(option: &'static str, reason: String) -> Error {
    Error::invalid_option(option, reason)
}
