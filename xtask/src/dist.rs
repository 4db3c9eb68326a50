//! `cargo xtask dist`: a folder with the program and all that it loads, which works wherever it is moved.
//!
//! ```text
//! bin/inference                    names ../lib/mlxc/libmlxc relative to itself
//! lib/mlxc/libmlxc.{so,dylib}      names ../mlx/lib relative to itself, as it did in the cache
//! lib/mlx/lib/                     MLX, and on macOS its Metal kernels
//! lib/…                            what else came in MLX's wheel
//! share/inference/models/demo/     the model that `inference chat` talks to
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use crate::sh::{self, cargo};

const MAC: bool = cfg!(target_os = "macos");
const MLXC: &str = if MAC { "libmlxc.dylib" } else { "libmlxc.so" };
/// "The folder of the program", to the dynamic linker.
const ORIGIN: &str = if MAC { "@executable_path" } else { "$ORIGIN" };

/// Of MLX's headers, those that its CUDA kernels include when MLX compiles them at run time.
const RUN_TIME_HEADERS: [&str; 3] = ["cccl", "cute", "cutlass"];

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
    sh::run(&cargo(), ["build", "--release", "--package", "inference-cli"])?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| sh::root().join("target"), PathBuf::from);
    let program =
        fs::read(target.join("release/inference")).context("cannot read target/release/inference")?;

    let mlxc = needed(&program)
        .context("target/release/inference names no libmlxc: is a backend over MLX enabled?")?;
    let wheel = mlxc.ancestors().nth(2).context("libmlxc lies in no wheel's folder")?;
    ensure!(wheel.join("mlx/lib").is_dir(), "{} holds no mlx/lib: is it a wheel's?", wheel.display());
    let (bin, lib) = (out.join("bin"), out.join("lib"));
    copy(&mlxc, &lib.join("mlxc").join(MLXC))?;
    copy_folder(wheel, &lib, &|path| {
        let path = path.strip_prefix(wheel).unwrap_or(path);
        let first = path.to_string_lossy();
        let headers = path.strip_prefix("mlx/include").ok().and_then(|rest| rest.iter().next());
        !first.starts_with("mlxc-")
            && !path.starts_with("mlx/share")
            && !path.starts_with("mlx/lib/cmake")
            && headers.is_none_or(|name| RUN_TIME_HEADERS.iter().any(|known| name == *known))
    })?;
    copy(&target.join("release/inference"), &bin.join("inference"))?;
    rename(&bin.join("inference"), &mlxc)?;
    rename(&lib.join("mlxc").join(MLXC), &mlxc)?;

    copy_folder(&sh::root().join("models/demo"), &out.join("share/inference/models/demo"), &|_| true)?;
    for file in ["LICENSE", "README.md"] {
        copy(&sh::root().join(file), &out.join(file))?;
    }
    check(out)?;
    println!("{} is ready: run {}", out.display(), bin.join("inference").display());
    Ok(())
}

/// The absolute path under which a program names mlx-c's library.
fn needed(program: &[u8]) -> Option<PathBuf> {
    let name = format!("/{MLXC}\0");
    let end = program.windows(name.len()).position(|window| window == name.as_bytes())? + name.len() - 1;
    // In ELF and in Mach-O alike, it is a string between zeros.
    let start = program[..end].iter().rposition(|byte| *byte == 0)? + 1;
    let path = PathBuf::from(str::from_utf8(&program[start..end]).ok()?);
    path.is_absolute().then_some(path)
}

/// Has a file of ours name mlx-c's library by a path that is relative to the program.
fn rename(file: &Path, mlxc: &Path) -> Result<()> {
    let relative = format!("{ORIGIN}/../lib/mlxc/{MLXC}");
    if MAC {
        let old = mlxc.as_os_str();
        let command =
            if file.ends_with(MLXC) { ["-id".as_ref()].to_vec() } else { vec!["-change".as_ref(), old] };
        let arguments = command.into_iter().chain([relative.as_ref(), file.as_os_str()]);
        sh::run("install_name_tool", arguments)?;
        // Apple silicon runs nothing unsigned, and the change broke the signature.
        return sh::run("codesign", ["--force".as_ref(), "--sign".as_ref(), "-".as_ref(), file.as_os_str()]);
    }
    let mut bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    replace(&mut bytes, &mlxc.to_string_lossy(), &relative).with_context(|| file.display().to_string())?;
    fs::write(file, bytes).with_context(|| format!("cannot write {}", file.display()))
}

/// Puts one string in another's place in an ELF file's table of strings; what it leaves over becomes zeros.
fn replace(file: &mut [u8], old: &str, new: &str) -> Result<()> {
    ensure!(new.len() <= old.len(), "the library's path is too short to be replaced: {old}");
    let old: Vec<u8> = [b"\0", old.as_bytes(), b"\0"].concat();
    let found: Vec<_> =
        (0..file.len().saturating_sub(old.len() - 1)).filter(|at| file[*at..].starts_with(&old)).collect();
    let [at] = found[..] else { bail!("the library is named {} times, not once", found.len()) };
    let place = &mut file[at + 1..at + old.len()];
    place.fill(0);
    place[..new.len()].copy_from_slice(new.as_bytes());
    Ok(())
}

/// Runs the packed program as a user would elsewhere, and looks at what it loads.
fn check(out: &Path) -> Result<()> {
    let out = out.canonicalize()?;
    let program = out.join("bin/inference");
    let output = Command::new(&program).arg("--version").env_clear().output()?;
    ensure!(
        output.status.success(),
        "{} does not run: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    let variable = if MAC { "DYLD_PRINT_LIBRARIES" } else { "LD_TRACE_LOADED_OBJECTS" };
    let output = Command::new(&program).arg("--version").env_clear().env(variable, "1").output()?;
    let loaded = [output.stdout, output.stderr].concat();
    let loaded = String::from_utf8_lossy(&loaded);
    let lib = out.join("lib").display().to_string();
    let ours: Vec<_> = loaded.lines().filter(|line| line.contains("libmlx")).collect();
    ensure!(ours.len() >= 2, "{} loads no MLX:\n{loaded}", program.display());
    for line in ours {
        // "libmlx.so => /…/lib/mlx/lib/libmlx.so (0x…)", or a path alone; `..` may be in it.
        let path = line.split_whitespace().find(|word| word.starts_with('/')).unwrap_or_default();
        let path = Path::new(path).canonicalize().unwrap_or_default();
        ensure!(path.starts_with(&lib), "{} loads {} from outside {lib}", program.display(), path.display());
    }
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a file lies in a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Copies the files under a folder that `wanted` says yes to; a folder that it says no to is not entered.
fn copy_folder(from: &Path, to: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let path = entry?.path();
        let Some(name) = path.file_name().filter(|_| wanted(&path)) else { continue };
        if path.is_dir() {
            copy_folder(&path, &to.join(name), wanted)?;
        } else {
            copy(&path, &to.join(name))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_is_found_and_renamed() {
        let old = format!("/home/u/.cache/inference/mlx/0.32.2/mlx-cpu/mlxc-00/{MLXC}");
        let mut file = format!("\x7fELF\0libc.so.6\0{old}\0main\0").into_bytes();
        let length = file.len();
        assert_eq!(needed(&file).unwrap(), Path::new(&old));
        replace(&mut file, &old, "$ORIGIN/../lib").unwrap();
        assert_eq!(file.len(), length);
        assert_eq!(needed(&file), None);
        let text = String::from_utf8(file).unwrap();
        assert!(
            text.starts_with("\x7fELF\0libc.so.6\0$ORIGIN/../lib\0") && text.ends_with("\0main\0"),
            "{text:?}"
        );
    }

    #[test]
    fn what_cannot_be_renamed_is_refused() {
        let mut twice = b"\0/a/b\0/a/b\0".to_vec();
        assert!(replace(&mut twice, "/a/b", "b").unwrap_err().to_string().contains("2 times"));
        assert!(replace(&mut twice, "/c", "c").unwrap_err().to_string().contains("0 times"));
        assert!(replace(&mut twice, "/a/b", "/a/b/c").unwrap_err().to_string().contains("too short"));
    }
}
