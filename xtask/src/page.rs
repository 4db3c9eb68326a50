//! The server's page in a browser.

use std::{
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, Result};

use crate::{python, sh};

/// The names that Chromium goes by.
const CHROMIUM: [&str; 2] = ["chromium", "chromium-browser"];

/// Whether Chromium is on the path.
pub(crate) fn can_run() -> bool {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let has = |folder: std::path::PathBuf| CHROMIUM.iter().any(|name| folder.join(name).is_file());
    std::env::split_paths(&folders).any(has)
}

/// A server that ends with this value.
struct Serving(Child);

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Serves the demo model and tries its page in Chromium; screenshots go to `out`.
///
/// # Errors
/// The program does not build, Chromium is missing, or the page does not do what it should.
pub(crate) fn run(out: &Path) -> Result<()> {
    let python = python::page()?;
    std::fs::create_dir_all(out)?;
    // The tests' own build of the program, so that nothing is compiled twice.
    let build =
        ["test", "--workspace", "--all-features", "--exclude", "xtask", "--test", "serve", "--no-run"];
    sh::run(&sh::cargo(), build)?;
    let mut command = Command::new("target/debug/inference");
    let child = command.args(["serve", "--port", "0"]).stderr(Stdio::piped()).spawn();
    let mut serving = Serving(child.context("cannot start the server")?);
    let stderr = serving.0.stderr.take().context("the server has no stderr")?;
    let mut lines = BufReader::new(stderr).lines().map_while(Result::ok);
    let line = lines.find(|line| line.contains("listening on ")).context("the server did not start")?;
    let url = line.rsplit(' ').next().unwrap_or_default();
    sh::run(sh::utf8(&python)?, ["xtask/python/page/test.py", url, sh::utf8(out)?])
}
