//! Running other programs.

use std::{ffi::OsStr, path::Path, process::Command, time::Instant};

use anyhow::{Context as _, Result, bail};

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// Runs a program to its end, with what it prints, and says how long it took.
///
/// # Errors
/// The program is missing or fails.
pub(crate) fn run(program: &str, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Result<()> {
    run_with(program, args, [])
}

/// [`run`] with variables set in the program's environment.
///
/// # Errors
/// As [`run`].
pub(crate) fn run_with(
    program: &str,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
    variables: impl IntoIterator<Item = (&'static str, String)>,
) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args).envs(variables);
    let line = std::iter::once(command.get_program()).chain(command.get_args());
    let line = line.map(OsStr::to_string_lossy).collect::<Vec<_>>().join(" ");
    eprintln!("$ {line}");
    let began = Instant::now();
    let status = command.status().with_context(|| format!("cannot start {program}: is it installed?"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    eprintln!("  took {:.0} s", began.elapsed().as_secs_f64());
    Ok(())
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> String {
    std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned())
}

/// The path as an argument of a program.
///
/// # Errors
/// It is not UTF-8.
pub(crate) fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
