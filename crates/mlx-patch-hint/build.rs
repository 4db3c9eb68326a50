//! Says how to patch mlx-sys, if the program that is built does not.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=MLX_SYS_UPSTREAM");
    if env::var_os("DOCS_RS").is_some() || env::var_os("MLX_SYS_UPSTREAM").is_some() {
        return;
    }
    let Some((lock, text)) = lock_file() else { return };
    println!("cargo::rerun-if-changed={}", lock.display());
    if source(&text, "mlx-sys").is_none_or(|source| !source.starts_with("registry+")) {
        return;
    }
    let apple = env::var("CARGO_CFG_TARGET_VENDOR").is_ok_and(|vendor| vendor == "apple");
    let can_build = apple && Command::new("cmake").arg("--version").output().is_ok();
    let (level, problem) = if can_build {
        ("warning", "compiles MLX from source, which takes minutes.")
    } else if apple {
        ("error", "compiles MLX from source and needs CMake, Xcode and libclang, and CMake is missing here.")
    } else {
        ("error", "compiles MLX from source and can be linked on macOS only.")
    };
    println!("cargo::{level}=This build uses the mlx-sys of crates.io, which {problem}");
    println!(
        "cargo::{level}=To link MLX's published wheel instead, add these lines to the Cargo.toml of your workspace:"
    );
    println!("cargo::{level}=    [patch.crates-io]");
    println!("cargo::{level}=    mlx-sys = {{ {} }}", place(&text));
    println!("cargo::{level}=MLX_SYS_UPSTREAM=1 builds without this patch.");
}

/// The lock file of the program: that of the workspace whose target folder is in use, or of the folder where cargo was called.
fn lock_file() -> Option<(PathBuf, String)> {
    let start = ["OUT_DIR", "PWD"].into_iter().filter_map(env::var_os).map(PathBuf::from);
    let mut found = start.filter_map(|start| {
        let lock = start.ancestors().map(|folder| folder.join("Cargo.lock")).find(|lock| lock.is_file())?;
        let text = fs::read_to_string(&lock).ok()?;
        names(&text, "mlx-sys").then_some((lock, text))
    });
    found.next()
}

/// Where the mlx-sys that links the wheel is: beside this crate, or in the repository that this crate came from.
fn place(lock: &str) -> String {
    let repository = source(lock, env!("CARGO_PKG_NAME")).and_then(|source| source.strip_prefix("git+"));
    if let Some(repository) = repository {
        // "https://…?branch=main#commit"
        let repository = repository.split('#').next().unwrap_or(repository);
        let (url, reference) = repository.split_once('?').unwrap_or((repository, ""));
        let reference = reference.split_once('=').map(|(kind, name)| format!(", {kind} = \"{name}\""));
        return format!("git = \"{url}\"{}", reference.unwrap_or_default());
    }
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("mlx-sys");
    let folder = if beside.is_dir() { beside.display().to_string() } else { "…/crates/mlx-sys".into() };
    format!("path = \"{folder}\"")
}

/// The package's entry in a lock file.
fn entry<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let name = format!("name = \"{name}\"");
    lock.split("[[package]]").find(|entry| entry.lines().any(|line| line == name))
}

fn names(lock: &str, name: &str) -> bool {
    entry(lock, name).is_some()
}

/// Where a lock file says that a package comes from: `None` for a path.
fn source<'a>(lock: &'a str, name: &str) -> Option<&'a str> {
    let line = entry(lock, name)?.lines().find_map(|line| line.strip_prefix("source = \""))?;
    line.strip_suffix('"')
}
