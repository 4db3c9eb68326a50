//! The checks of the sources: structure, formatting, lints, documentation, and the type check for Apple silicon.

mod book;
mod modules;
mod rules;
mod sources;

use anyhow::{Result, bail};

use crate::sh::{self, cargo};

/// The only target whose device no Linux machine has: its code is at least type-checked.
const APPLE: &str = "aarch64-apple-darwin";

/// Runs every check.
///
/// # Errors
/// The first that fails.
pub(crate) fn run() -> Result<()> {
    structure()?;
    let cargo = cargo();
    sh::run(&cargo, ["fmt", "--all", "--check"])?;
    sh::run(
        &cargo,
        [
            "clippy",
            "--workspace",
            "--all-targets",
            "--all-features",
            "--exclude",
            "xtask",
            "--",
            "-D",
            "warnings",
        ],
    )?;
    sh::run(&cargo, ["clippy", "--package", "xtask", "--", "-D", "warnings"])?;
    sh::run(&cargo, ["test", "--quiet", "--package", "xtask"])?;
    // The book's code blocks, built with the features that all tests are built with: others would build everything again.
    let book = ["test", "--quiet", "--workspace", "--all-features", "--exclude", "xtask", "--doc", "book"];
    sh::run(&cargo, book)?;
    let deny = [("RUSTDOCFLAGS", "-D warnings".to_owned())];
    sh::run_with(
        &cargo,
        ["doc", "--workspace", "--no-deps", "--exclude", "xtask", "--exclude", "tests"],
        deny,
    )?;
    fuzz_targets()?;
    apple()
}

/// Module cycles, MLX outside its module, retired names, sizes, code blocks that nothing compiles.
///
/// # Errors
/// Something is against the rules; all of it was printed.
pub(crate) fn structure() -> Result<()> {
    let crates = sources::read(sh::root())?;
    let mut found = rules::violations(sh::root(), &crates)?;
    found.extend(crates.iter().flat_map(modules::cycles));
    found.extend(book::uncompiled(sh::root())?);
    found.iter().for_each(|violation| eprintln!("{violation}"));
    if !found.is_empty() {
        bail!("the structure of the sources has {} faults", found.len());
    }
    Ok(())
}

/// Type-checks the fuzz targets, which are a workspace of their own.
fn fuzz_targets() -> Result<()> {
    sh::run(&cargo(), ["check", "--manifest-path", "fuzz/Cargo.toml", "--target-dir", "target/fuzz"])
}

/// Type-checks the libraries for Apple silicon.
fn apple() -> Result<()> {
    sh::run("rustup", ["target", "add", APPLE])?;
    sh::run(
        &cargo(),
        ["check", "--target", APPLE, "-p", "inferlm", "-p", "inferlm-text", "-p", "inferlm-conformance"],
    )
}
