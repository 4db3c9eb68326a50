//! What must hold of the sources: formatting, lints, documentation, and that the Apple path type-checks.

use anyhow::Result;

use crate::sh::{self, cargo};

/// The only target whose device no Linux machine has: its code is at least type-checked.
const APPLE: &str = "aarch64-apple-darwin";

/// Runs every check.
///
/// # Errors
/// The first that fails.
pub(crate) fn run() -> Result<()> {
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
    let deny = [("RUSTDOCFLAGS", "-D warnings".to_owned())];
    sh::run_with(
        &cargo,
        ["doc", "--workspace", "--no-deps", "--exclude", "xtask", "--exclude", "tests"],
        deny,
    )?;
    apple()
}

/// Type-checks the libraries for Apple silicon.
fn apple() -> Result<()> {
    sh::run("rustup", ["target", "add", APPLE])?;
    sh::run(
        &cargo(),
        [
            "check",
            "--target",
            APPLE,
            "-p",
            "inference",
            "-p",
            "inference-text",
            "-p",
            "inference-conformance",
        ],
    )
}
