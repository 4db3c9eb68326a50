//! The error of a constraint.

use inference_core::Error;

/// What is wrong with a constraint.
pub(super) fn invalid(reason: impl Into<String>) -> Error {
    Error::invalid_option("constraint", reason)
}
