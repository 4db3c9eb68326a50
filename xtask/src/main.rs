//! The project's chores: `cargo xtask help` lists them. CI runs the same ones.

#[cfg(feature = "bindings")]
mod bindings;
mod check;
mod demo;
mod dist;
mod page;
mod python;
mod sh;
mod test;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's chores")]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    /// Everything that CI runs: `check`, then `test`.
    Ci,
    /// Formatting, lints, documentation, and the type check for Apple silicon.
    Check,
    /// The part of `check` that needs no build: module cycles, MLX outside its module, retired names, sizes, code
    /// blocks that nothing compiles.
    Structure,
    /// Every test, the mlx_lm backend's with a Python environment that it makes under target/.
    Test {
        /// Given to `cargo test`: `-p inferlm-core`, say. Without it everything is tested.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<String>,
    },
    /// The server's page in Chromium, with the demo model. Needs Debian's `chromium`; `test` does it where that is installed.
    Page {
        /// The folder for screenshots.
        #[arg(long, default_value = "target/page")]
        out: PathBuf,
    },
    /// Makes the golden fixtures anew, from mlx_lm and transformers.
    Golden,
    /// Makes the demo model anew: data, training, quantisation, scores.
    DemoModel(demo::Args),
    /// A folder with the program and all that it loads, which works wherever it is moved.
    Dist {
        /// The folder to write.
        #[arg(long, default_value = "target/dist")]
        out: PathBuf,
    },
    /// Writes the bindings of mlx-sys anew. Needs libclang.
    #[cfg(feature = "bindings")]
    Bindings,
}

fn main() -> Result<()> {
    std::env::set_current_dir(sh::root())?;
    match Cli::parse().chore {
        Chore::Ci => {
            check::run()?;
            test::run(&[])
        }
        Chore::Check => check::run(),
        Chore::Structure => check::structure(),
        Chore::Test { args } => test::run(&args),
        Chore::Page { out } => page::run(&out),
        Chore::Golden => python::golden(),
        Chore::DemoModel(args) => demo::run(&args),
        Chore::Dist { out } => dist::run(&out),
        #[cfg(feature = "bindings")]
        Chore::Bindings => bindings::run(),
    }
}
