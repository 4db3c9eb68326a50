//! MLX's libraries, which a program names by absolute path, and how it is changed to find them in its own folder.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail, ensure};

use crate::render;

const MAC: bool = cfg!(target_os = "macos");

/// The folder of the program, as the dynamic linker calls it.
const ORIGIN: &str = if MAC { "@executable_path" } else { "$ORIGIN" };

/// The names of the libraries, and the folders under `lib` where they go.
const LIBRARIES: [(&str, &str); 3] = if MAC {
    [("libmlxc.dylib", "mlxc"), ("libmlx_primitive.dylib", "mlxc"), ("libmlx.dylib", "mlx/lib")]
} else {
    [("libmlxc.so", "mlxc"), ("libmlx_primitive.so", "mlxc"), ("libmlx.so", "mlx/lib")]
};

/// A library that a program names by an absolute path.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Library {
    /// Where it was when the program was linked.
    pub(super) path: PathBuf,
    name: &'static str,
    folder: &'static str,
}

/// The libraries of MLX that the program names by an absolute path.
pub(super) fn named_by(program: &[u8]) -> Vec<Library> {
    let library = |(name, folder)| Some(Library { path: named(program, name)?, name, folder });
    LIBRARIES.into_iter().filter_map(library).collect()
}

/// The absolute path under which a program names a library. In ELF and in Mach-O alike, it is a string between zeros.
fn named(program: &[u8], library: &str) -> Option<PathBuf> {
    let name = format!("/{library}\0");
    let end = program.windows(name.len()).position(|window| window == name.as_bytes())? + name.len() - 1;
    let start = program[..end].iter().rposition(|byte| *byte == 0)? + 1;
    let path = PathBuf::from(str::from_utf8(&program[start..end]).ok()?);
    path.is_absolute().then_some(path)
}

impl Library {
    /// The folder of the wheel that the library belongs to.
    pub(super) fn wheel(&self) -> Option<PathBuf> {
        let wheel = self.path.ancestors().skip(1).find(|folder| folder.join("mlx/lib").is_dir())?;
        Some(wheel.to_owned())
    }

    /// Its place under `lib`.
    pub(super) fn place(&self) -> PathBuf {
        Path::new(self.folder).join(self.name)
    }

    /// The path by which a packed program names it.
    fn relative(&self) -> String {
        format!("{ORIGIN}/../lib/{}/{}", self.folder, self.name)
    }

    /// Makes a program name the library relative to itself.
    pub(super) fn rename_in(&self, program: &Path) -> anyhow::Result<()> {
        if MAC {
            let relative = self.relative();
            execute(
                "install_name_tool",
                &["-change".as_ref(), self.path.as_os_str(), relative.as_ref(), program.as_os_str()],
            )?;
            return sign(program);
        }
        self.replace(program)
    }

    /// Makes the library's own name, which other libraries may refer to, the relative one. MLX's wheel has relative names already.
    pub(super) fn rename_itself(&self, file: &Path) -> anyhow::Result<()> {
        if MAC {
            let relative = self.relative();
            execute("install_name_tool", &["-id".as_ref(), relative.as_ref(), file.as_os_str()])?;
            return sign(file);
        }
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", render::path(file)))?;
        if named(&bytes, self.name).is_none() {
            return Ok(());
        }
        self.replace(file)
    }

    fn replace(&self, file: &Path) -> anyhow::Result<()> {
        let context = || render::path(file);
        let mut bytes = fs::read(file).with_context(context)?;
        replace(&mut bytes, &self.path.to_string_lossy(), &self.relative()).with_context(context)?;
        fs::write(file, bytes).with_context(context)
    }
}

/// Puts one string in another's place in an ELF file's string table; the rest of the old one becomes zeros.
fn replace(file: &mut [u8], old: &str, new: &str) -> anyhow::Result<()> {
    ensure!(new.len() <= old.len(), "the library's path is too short to be replaced: {}", render::path(old));
    let old: Vec<u8> = [b"\0", old.as_bytes(), b"\0"].concat();
    let places: Vec<_> = file
        .windows(old.len())
        .enumerate()
        .filter(|(_, window)| *window == old.as_slice())
        .map(|(at, _)| at)
        .collect();
    let [at] = places[..] else { bail!("the library is named {} times, expected once", places.len()) };
    let place = &mut file[at + 1..at + old.len()];
    place.fill(0);
    place[..new.len()].copy_from_slice(new.as_bytes());
    Ok(())
}

/// Checks, without running the program, that all libraries of MLX are found under `lib`.
pub(super) fn check(program: &Path, lib: &Path) -> anyhow::Result<()> {
    if MAC {
        let bytes = fs::read(program).with_context(|| format!("cannot read {}", render::path(program)))?;
        ensure!(named_by(&bytes).is_empty(), "{} still names MLX by its old place", render::path(program));
        return Ok(());
    }
    let (program, lib) = (program.canonicalize()?, lib.canonicalize()?);
    // With this variable the dynamic linker prints what it finds, and does not start the program.
    let output = Command::new(&program).env_clear().env("LD_TRACE_LOADED_OBJECTS", "1").output();
    let output = output.with_context(|| format!("cannot run {}", render::path(&program)))?;
    let found = String::from_utf8_lossy(&output.stdout).into_owned();
    let ours: Vec<_> = found.lines().filter(|line| line.contains("libmlx")).collect();
    ensure!(!ours.is_empty(), "{} loads no MLX:\n{found}", render::path(&program));
    for line in ours {
        // "libmlx.so => /…/lib/mlx/lib/libmlx.so (0x…)", or a path alone; `..` may be in it.
        let path = line.split_whitespace().find(|word| word.starts_with('/')).unwrap_or_default();
        let path = Path::new(path).canonicalize().unwrap_or_default();
        ensure!(
            path.starts_with(&lib),
            "{} loads {} from outside {}",
            render::path(&program),
            render::path(&path),
            render::path(&lib)
        );
    }
    Ok(())
}

/// Apple silicon runs nothing unsigned, and a change breaks the signature.
fn sign(file: &Path) -> anyhow::Result<()> {
    execute("codesign", &["--force".as_ref(), "--sign".as_ref(), "-".as_ref(), file.as_os_str()])
}

fn execute(program: &str, arguments: &[&OsStr]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{program} failed: {}", errors.trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_and_renamed() {
        let (name, folder) = LIBRARIES[0];
        let old = format!("/home/u/.cache/inference/mlx/0.32.2/mlx-cpu/mlxc-00/{name}");
        let mut file = format!("\x7fELF\0libc.so.6\0{old}\0main\0").into_bytes();
        let length = file.len();
        let found = named_by(&file);
        assert_eq!(found, [Library { path: old.clone().into(), name, folder }]);
        assert_eq!(found[0].place(), Path::new("mlxc").join(name));
        replace(&mut file, &old, "$ORIGIN/../lib").unwrap();
        assert_eq!((file.len(), named_by(&file)), (length, Vec::new()));
        let text = String::from_utf8(file).unwrap();
        assert!(text.starts_with("\x7fELF\0libc.so.6\0$ORIGIN/../lib\0"), "{text:?}");
        assert!(text.ends_with("\0main\0"), "{text:?}");
    }

    #[test]
    fn what_cannot_be_renamed_is_refused() {
        let mut twice = b"\0/a/b\0/a/b\0".to_vec();
        assert!(replace(&mut twice, "/a/b", "b").unwrap_err().to_string().contains("2 times"));
        assert!(replace(&mut twice, "/c", "c").unwrap_err().to_string().contains("0 times"));
        assert!(replace(&mut twice, "/a/b", "/a/b/c").unwrap_err().to_string().contains("too short"));
    }
}
