//! mlx-c, MLX's C API: upstream's sources, compiled into one shared library that knows where MLX is.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::wheel::Mlx;
use crate::{Result, variable};

/// mlx-c, compiled.
#[derive(Debug)]
pub(crate) struct Library {
    /// `libmlxc.so` or `libmlxc.dylib`.
    pub(crate) file: PathBuf,
    /// The folder that holds `mlx/c/mlx.h`.
    pub(crate) include: PathBuf,
}

impl Library {
    /// The folder to give to the linker.
    pub(crate) fn folder(&self) -> &Path {
        self.file.parent().unwrap_or(&self.file)
    }
}

const FILE: &str = if cfg!(target_os = "macos") { "libmlxc.dylib" } else { "libmlxc.so" };

/// Compiles mlx-c over `mlx`, unless that was done before with the same sources, compiler and flags.
///
/// The result is a shared library that programs name by its absolute path, as dylibs are named on macOS. A build script
/// cannot put an rpath into the programs of the crates that depend on it, and with this it need not: the program finds
/// mlx-c by that path, and mlx-c finds MLX by its own rpath (RUNPATH on Linux, so that LD_LIBRARY_PATH goes first and can
/// put another build of MLX, such as that for CUDA, under the same program).
pub(crate) fn build(mlx: &Mlx) -> Result<Library> {
    let include = sources()?;
    let out = PathBuf::from(variable("OUT_DIR"));
    let unity = unity(&include)?;
    let mut compiler = cc::Build::new();
    compiler
        .cpp(true)
        .std("c++20")
        .opt_level(1)
        .debug(false)
        .warnings(false)
        .pic(true)
        // half.h has its types on some processors only; ours are in lib.rs.
        .define("MLX_HALF_H", None)
        .include(&include)
        .include(&mlx.include);
    let compiler = compiler.try_get_compiler().map_err(|error| no_compiler(&error.to_string()))?;
    let mut command = compiler.to_command();
    let native = Path::new(&variable("CARGO_MANIFEST_DIR")).join("native");
    command.arg("-include").arg(native.join("format.h")).arg("-x").arg("c++").arg(out.join("mlxc.cpp"));
    command.args(["-x", "none"]).arg("-L").arg(&mlx.lib).arg("-lmlx");

    let mut key = DefaultHasher::new();
    (&unity, format!("{command:?}"), &mlx.rpath, version(compiler.path())?).hash(&mut key);
    for file in [native.join("format.h"), PathBuf::from("build/mlxc.rs")] {
        fs::read(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?.hash(&mut key);
    }
    let folder = mlx.home.join(format!("mlxc-{:016x}", key.finish()));
    let library = Library { file: folder.join(FILE), include };
    if library.file.is_file() {
        return Ok(library);
    }

    write(&out.join("mlxc.cpp"), &unity)?;
    let aside = folder.join(format!(".{}-{FILE}", std::process::id()));
    fs::create_dir_all(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
    command.arg("-o").arg(&aside);
    if cfg!(target_os = "macos") {
        // MLX's own minimum, and the first with std::format.
        command.args(["-mmacosx-version-min=14.0", "-dynamiclib", "-install_name"]).arg(&library.file);
    } else {
        command.args(["-shared", "-Wl,-z,defs", "-Wl,--enable-new-dtags", "-Xlinker", "-soname"]);
        command.arg("-Xlinker").arg(&library.file);
    }
    command.args(["-Xlinker", "-rpath", "-Xlinker"]).arg(&mlx.rpath);
    let output = command.output().map_err(|error| no_compiler(&error.to_string()))?;
    if !output.status.success() {
        let _ = fs::remove_file(&aside);
        let text = String::from_utf8_lossy(&output.stderr);
        let errors: Vec<_> = text.lines().filter(|line| line.contains("error")).take(5).collect();
        return Err(format!(
            "{} cannot compile mlx-c, which needs C++20 (g++ 11, clang++ 15 or newer; CXX names another compiler):\n{}",
            compiler.path().display(),
            if errors.is_empty() { text.trim().to_owned() } else { errors.join("\n") }
        ));
    }
    // In one step, for builds beside this one.
    fs::rename(&aside, &library.file)
        .map_err(|error| format!("cannot create {}: {error}", library.file.display()))?;
    Ok(library)
}

/// mlx-c's sources: those of the crate that we stand in for, which cargo itself brings.
///
/// A manifest of its own, outside our workspace and its patch, depends on upstream's mlx-sys; `cargo metadata` fetches it as
/// it would any dependency, so registries' mirrors, vendored sources and offline work as the user has set them.
fn sources() -> Result<PathBuf> {
    let folder = PathBuf::from(variable("OUT_DIR")).join("upstream");
    let name = variable("CARGO_PKG_NAME");
    let manifest = format!(
        "[package]\nname = \"upstream\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n\
         [dependencies]\n{name} = {{ version = \"={}\", default-features = false }}\n\n[workspace]\n",
        variable("CARGO_PKG_VERSION")
    );
    write(&folder.join("Cargo.toml"), &manifest)?;
    write(&folder.join("src/lib.rs"), "")?;
    // What is there already needs no network, whatever cargo was told.
    let metadata = metadata(&folder, &["--offline"]).or_else(|_| metadata(&folder, &[])).map_err(|reason| {
        format!(
            "cargo cannot fetch the sources of {name} {}: {reason}\nThis needs the network, a mirror or vendored sources once.",
            variable("CARGO_PKG_VERSION")
        )
    })?;
    let mut manifests =
        metadata.split(r#""manifest_path":""#).skip(1).filter_map(|rest| rest.split('"').next());
    let found = manifests.find_map(|path| {
        let root = Path::new(&path.replace(r"\\", r"\")).parent()?.join("src/mlx-c");
        root.join("mlx/c/mlx.h").is_file().then_some(root)
    });
    found.ok_or_else(|| format!("{name} {} holds no src/mlx-c/mlx/c/mlx.h", variable("CARGO_PKG_VERSION")))
}

fn metadata(folder: &Path, options: &[&str]) -> Result<String> {
    let output = Command::new(variable("CARGO"))
        .args(["metadata", "--format-version=1", "--quiet"])
        .args(options)
        // From here cargo finds the configuration of the user's workspace, which holds the target folder.
        .current_dir(folder)
        .env_remove("RUSTC_WRAPPER")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .output()
        .map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// One source that includes all of mlx-c's: MLX's headers are parsed once, which takes a quarter of the time.
fn unity(include: &Path) -> Result<String> {
    let folder = include.join("mlx/c");
    let entries =
        fs::read_dir(&folder).map_err(|error| format!("cannot read {}: {error}", folder.display()))?;
    let mut names: Vec<_> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new("cpp")))
        .filter_map(|path| Some(path.file_name()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    Ok(names.iter().map(|name| format!("#include \"mlx/c/{name}\"\n")).collect())
}

/// What the compiler says it is.
fn version(compiler: &Path) -> Result<Vec<u8>> {
    let output = Command::new(compiler).arg("--version").output();
    Ok(output.map_err(|error| no_compiler(&format!("{}: {error}", compiler.display())))?.stdout)
}

fn no_compiler(reason: &str) -> String {
    format!(
        "no C++ compiler, which mlx-c needs: {reason}. Install one (Debian, Ubuntu: `apt-get install g++`; macOS: \
         `xcode-select --install`), or name it in CXX."
    )
}

fn write(file: &Path, text: &str) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    let result = fs::create_dir_all(folder).and_then(|()| fs::write(file, text));
    result.map_err(|error| format!("cannot write {}: {error}", file.display()))
}
