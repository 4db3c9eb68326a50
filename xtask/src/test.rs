//! Every test of the project.

use std::path::Path;

use anyhow::Result;

use crate::{page, python, sh};

/// Runs `cargo test` with these arguments; without any, everything: the workspace, the server's page where Chromium is installed, and the
/// out-of-tree example. Property tests
/// try the same cases each time, unless `PROPTEST_RNG_SEED` says which others.
///
/// # Errors
/// A test fails, or what it needs cannot be had.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let (python, clients) = (python::mlx_lm()?, python::clients()?);
    let (gguf, smollm2, minilm) = (python::gguf()?, python::smollm2()?, python::minilm()?);
    let minilm_gguf = python::minilm_gguf()?;
    python::llama_server()?;
    let seed = std::env::var("PROPTEST_RNG_SEED").unwrap_or_else(|_| "1".to_owned());
    let variables = || {
        [
            ("INFERENCE_PYTHON", python.display().to_string()),
            ("INFERENCE_CLIENTS_PYTHON", clients.display().to_string()),
            ("GGUF_PYTHON", gguf.display().to_string()),
            ("SMOLLM2_GGUF", smollm2.display().to_string()),
            ("MINILM_FOLDER", minilm.display().to_string()),
            ("MINILM_GGUF", minilm_gguf.display().to_string()),
            ("PROPTEST_RNG_SEED", seed.clone()),
        ]
    };
    let cargo = sh::cargo();
    if !args.is_empty() {
        return sh::run_with(&cargo, std::iter::once(&"test".to_owned()).chain(args), variables());
    }
    sh::run_with(
        &cargo,
        ["test", "--workspace", "--all-features", "--exclude", "xtask", "--no-fail-fast"],
        variables(),
    )?;
    if page::can_run() {
        page::run(Path::new("target/page"))?;
    } else {
        eprintln!("Chromium is not installed: the server's page is NOT tested");
    }
    let example = "examples/abacus-backend/Cargo.toml";
    sh::run(&cargo, ["test", "--workspace", "--manifest-path", example, "--target-dir", "target/examples"])
}
