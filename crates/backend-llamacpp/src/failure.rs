//! What a child says went wrong, as the contract's errors.

use inference_core::Error;

use crate::protocol::ServerError;

/// The error of a request that the server refused or gave up.
pub(crate) fn refused(backend: &'static str, action: &str, error: &ServerError) -> Error {
    if is_out_of_memory(&error.message) {
        let what = format!("the attempt to {action} ({})", error.message);
        return Error::out_of_memory(what, 0, 0);
    }
    let kind = if error.kind.is_empty() { "error" } else { &error.kind };
    Error::backend(backend, action, format!("llama-server: {} ({kind})", error.message))
}

/// The error of a child that ended while it loaded the model, by its last words.
pub(crate) fn failed_load(backend: &'static str, path: &std::path::Path, reason: String) -> Error {
    if is_out_of_memory(&reason) {
        return Error::out_of_memory(format!("loading the model ({reason})"), 0, 0);
    }
    if let Some(why) = broken_file(&reason) {
        return Error::invalid_file(path, format!("llama-server cannot load it: {why}"));
    }
    Error::stopped(backend, reason)
}

/// What llama.cpp says of a file that it cannot load: `llama_model_load: error loading model: missing tensor 'output_norm.weight'`.
fn broken_file(words: &str) -> Option<&str> {
    let after = |sign| words.lines().find_map(|line: &str| Some(line.split_once(sign)?.1.trim()));
    let whole = |sign| words.lines().find(|line| line.contains(sign)).map(str::trim);
    after("error loading model: ")
        .or_else(|| whole("failed to load model"))
        .or_else(|| whole("invalid magic"))
}

/// Whether these are words of llama.cpp for memory that cannot be had.
fn is_out_of_memory(words: &str) -> bool {
    let words = words.to_lowercase();
    ["out of memory", "failed to allocate", "cannot allocate", "unable to allocate", "bad_alloc", "oom"]
        .iter()
        .any(|sign| words.contains(sign))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn words_become_kinds() {
        let said =
            |message: &str| ServerError { message: message.to_owned(), kind: "server_error".to_owned() };
        assert!(matches!(
            refused("x", "decode", &said("failed to allocate buffer")),
            Error::OutOfMemory { .. }
        ));
        assert!(matches!(refused("x", "decode", &said("decode failed")), Error::Backend { .. }));
        // The end of what llama-server b10434 says of a file that is cut short, and of one that does not fit.
        let path = Path::new("m.gguf");
        let broken = "exited with code 1; its last lines on stderr:\nllama_model_load: error loading model: tensor data is not \
            within the file bounds";
        let reason = match failed_load("x", path, broken.to_owned()) {
            Error::InvalidModel { reason, .. } => reason,
            other => panic!("{other:?}"),
        };
        assert_eq!(reason, "llama-server cannot load it: tensor data is not within the file bounds");
        let large = "llama_kv_cache: failed to allocate buffer for kv cache";
        assert!(matches!(failed_load("x", path, large.to_owned()), Error::OutOfMemory { .. }));
        let killed = "was killed by signal 9";
        assert!(matches!(failed_load("x", path, killed.to_owned()), Error::Stopped { .. }));
    }
}
