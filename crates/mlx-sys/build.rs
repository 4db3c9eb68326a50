//! Links MLX: fetches its published wheel, compiles mlx-c over it, and tells cargo where the result is.
//!
//! The README explains the arrangement and the variables that steer it.

use std::env;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

#[path = "build/mlxc.rs"]
mod mlxc;
#[path = "build/verify.rs"]
mod verify;
#[path = "build/wheel.rs"]
mod wheel;

/// What stops the build: what went wrong, and what to do about it.
type Result<T> = std::result::Result<T, String>;

fn main() {
    for file in ["build.rs", "build", "native", "wheels"] {
        println!("cargo::rerun-if-changed={file}");
    }
    // docs.rs has no network and builds no program.
    if env::var_os("DOCS_RS").is_some() {
        return;
    }
    let (host, target) = (variable("HOST"), variable("TARGET"));
    if host != target {
        println!(
            "cargo::warning=MLX is not linked: nothing native can be made for {target} on {host}. \
             `cargo check` works; to link a program, build it on a machine of that kind."
        );
        return;
    }
    if let Err(message) = link() {
        // These fail the build. A status of failure on top would make cargo bury them under all that was printed here.
        for line in message.lines().filter(|line| !line.trim().is_empty()) {
            println!("cargo::error={line}");
        }
    }
}

fn link() -> Result<()> {
    let mlx = wheel::locate()?;
    let library = mlxc::build(&mlx)?;
    // They can vanish with the cache: then this script has to make them again.
    println!("cargo::rerun-if-changed={}", mlx.library().display());
    println!("cargo::rerun-if-changed={}", library.file.display());
    println!("cargo::rustc-link-search=native={}", library.folder().display());
    println!("cargo::rustc-link-lib=dylib=mlxc");
    // Dependents read these as DEP_MLX_*; the README documents them.
    println!("cargo::metadata=version={}", wheel::VERSION);
    println!("cargo::metadata=lib={}", mlx.lib.display());
    println!("cargo::metadata=home={}", mlx.home.display());
    println!("cargo::metadata=rpath={}", mlx.rpath);
    let include = env::join_paths([&mlx.include, &library.include])
        .map_err(|error| format!("a folder's name holds the separator of path lists: {error}"))?;
    println!("cargo::metadata=include={}", include.display());
    Ok(())
}

/// Dates a file that this script made to before any build.
///
/// cargo runs a script again when a file that it watches is newer than the script's last run, as what the script itself
/// made is: without this, the build after the first would compile all dependents anew.
fn backdate(file: &Path) -> Result<()> {
    let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let result = File::options().write(true).open(file).and_then(|file| file.set_modified(long_ago));
    result.map_err(|error| format!("cannot set the date of {}: {error}", file.display()))
}

/// A variable that cargo sets for every build script.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
