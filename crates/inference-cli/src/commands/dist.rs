//! `inference dist`: packs a program with MLX, so that it runs on machines where it was not built.

mod library;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use serde_json::json;

use crate::{
    failure::Usage,
    render::{self, Out},
};

/// The headers that MLX's CUDA kernels include when MLX compiles them at run time; the others are for compiling programs.
const RUN_TIME_HEADERS: [&str; 3] = ["cccl", "cute", "cutlass"];

/// Pack a program with the MLX that it loads into a folder that runs wherever it is moved
#[derive(Debug, clap::Args)]
#[command(
    after_help = "A program that uses the MLX engine names MLX's libraries where they were when it was built, in the user's cache \
folder. OUTPUT gets a copy of the program and of these libraries, which it finds beside itself:

  bin/PROGRAM        the program
  lib/mlxc/          MLX's C interface
  lib/mlx/lib/       MLX, and on macOS its Metal kernels

Everything else that the program needs, such as models, is not packed. The program runs on machines with the same \
operating system and processor.

Examples:
  cargo build --release
  inference dist target/release/my-program dist
  tar czf my-program.tar.gz dist"
)]
pub(crate) struct Args {
    /// The program, as cargo built it
    program: PathBuf,

    /// The folder to write: new, or empty
    output: PathBuf,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let new = !args.output.exists();
    if !new && fs::read_dir(&args.output).is_ok_and(|mut entries| entries.next().is_some()) {
        let message =
            format!("{} is not empty: remove it, or name another folder", render::path(&args.output));
        return Err(Usage(message).into());
    }
    let packed = pack(&args.program, &args.output);
    if packed.is_err() && new {
        // A partial folder is useless; files that cannot be removed only take space.
        let _ = fs::remove_dir_all(&args.output);
    }
    let program = packed?;
    let mut out = Out::new();
    if args.json {
        out.json(&json!({ "path": args.output, "program": program }))?;
    } else {
        out.line(&format!("{}: run {}", render::path(&args.output), render::path(&program)))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Packs the program. Returns the path of its copy.
fn pack(program: &Path, output: &Path) -> anyhow::Result<PathBuf> {
    let context = || format!("cannot read {}", render::path(program));
    let name = program.file_name().context("PROGRAM is no file")?;
    let bytes = fs::read(program).with_context(context)?;
    let libraries = library::named_by(&bytes);
    let Some(first) = libraries.first() else {
        bail!(
            "{} names no library of MLX by its place: it does not use the MLX engine, or was packed already",
            render::path(program)
        );
    };
    let wheel = first.wheel().with_context(|| {
        let library = render::path(&first.path);
        format!("{library} is not MLX's published wheel: was the program built with MLX_ROOT?")
    })?;
    let (bin, lib) = (output.join("bin"), output.join("lib"));
    copy_folder(&wheel, &lib, &|path| is_loaded(path.strip_prefix(&wheel).unwrap_or(path)))?;
    let copy = bin.join(name);
    copy_file(program, &copy)?;
    for library in &libraries {
        let place = lib.join(library.place());
        if !place.exists() {
            copy_file(&library.path, &place)?;
        }
        library.rename_in(&copy)?;
        library.rename_itself(&place)?;
    }
    library::check(&copy, &lib)?;
    Ok(copy)
}

/// Whether a file or folder of the wheel is needed at run time. The C interface, which was compiled over the wheel, is copied by its
/// name.
fn is_loaded(path: &Path) -> bool {
    let first = path.to_string_lossy();
    let header = path.strip_prefix("mlx/include").ok().and_then(|rest| rest.iter().next());
    !first.starts_with("mlxc-")
        && !path.ends_with("verified.txt")
        && !path.starts_with("mlx/share")
        && !path.starts_with("mlx/lib/cmake")
        && header.is_none_or(|name| RUN_TIME_HEADERS.iter().any(|known| name == *known))
}

fn copy_file(from: &Path, to: &Path) -> anyhow::Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", render::path(folder)))?;
    fs::copy(from, to)
        .with_context(|| format!("cannot copy {} to {}", render::path(from), render::path(to)))?;
    Ok(())
}

/// Copies the files under a folder for which `wanted` returns true. A folder for which it returns false is left out.
fn copy_folder(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> anyhow::Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", render::path(from)))? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| wanted(&path)) else { continue };
        if path.is_dir() {
            copy_folder(&path, &to.join(name), wanted)?;
        } else {
            copy_file(&path, &to.join(name))?;
        }
    }
    Ok(())
}
