//! The child's errors as the contract's.

use inference_core::Error;

use crate::{ID, interpreter::REMEDY, protocol::ErrorKind};

/// The child's error as the contract's.
pub(crate) fn error_of(kind: ErrorKind, message: String, needed: u64, action: &str) -> Error {
    match kind {
        ErrorKind::OutOfMemory => {
            Error::out_of_memory(format!("the attempt to {action} ({message})"), needed, 0)
        }
        ErrorKind::Import => {
            let reason = format!("mlx_lm cannot be imported ({message}); {REMEDY}");
            Error::unavailable(ID, reason)
        }
        ErrorKind::Protocol | ErrorKind::InvalidModel | ErrorKind::InvalidAdapter | ErrorKind::Failed => {
            Error::backend(ID, action, message)
        }
    }
}
