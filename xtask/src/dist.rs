//! `cargo xtask dist`: a folder with the program and all that it loads, which works wherever it is moved.
//!
//! `inference dist`, which packs any program with MLX, does most of it. To its folder come the demo model, which `inference chat` talks
//! to, the licence and the README.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::sh::{self, cargo};

/// Builds the program for release and packs it into `out`, which must be empty or not exist.
///
/// # Errors
///
/// The build fails, MLX does not come from a wheel (`MLX_ROOT`), the folder is not empty, or the packed program does not run.
pub(crate) fn run(out: &Path) -> Result<()> {
    if fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty: remove it, or name another folder", out.display());
    }
    ensure!(std::env::var_os("MLX_ROOT").is_none(), "dist packs MLX's wheel: unset MLX_ROOT");
    sh::run(&cargo(), ["build", "--release", "--package", "inferlm-cli"])?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| sh::root().join("target"), PathBuf::from);
    let program = target.join("release/inference");
    let arguments = ["dist".as_ref(), program.as_os_str(), out.as_os_str()];
    sh::run(&program.to_string_lossy(), arguments)?;

    copy_folder(&sh::root().join("models/demo"), &out.join("share/inference/models/demo"))?;
    for file in ["LICENSE", "README.md"] {
        copy(&sh::root().join(file), &out.join(file))?;
    }
    let packed = out.canonicalize()?.join("bin/inference");
    let output = Command::new(&packed).arg("--version").env_clear().output()?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{} does not run: {errors}", packed.display());
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name() else { continue };
        match path.is_dir() {
            true => copy_folder(&path, &to.join(name))?,
            false => copy(&path, &to.join(name))?,
        }
    }
    Ok(())
}
