//! mlx-c, MLX's C API: upstream's sources, compiled into one shared library that knows where MLX is.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::wheel::Mlx;
use crate::{Result, backdate, variable};

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
/// The result is a shared library that programs name by its absolute path, as is usual on macOS. A build script cannot put
/// an rpath into the programs of the crates that depend on it, and with this it need not: a program finds mlx-c by that
/// path, and mlx-c finds MLX by its own rpath. On Linux that is a RUNPATH, so LD_LIBRARY_PATH goes first and can put
/// another build of MLX, such as that for CUDA, under the same program.
///
/// # Errors
///
/// No compiler, one without C++20, no sources, or a folder that cannot be written.
pub(crate) fn build(mlx: &Mlx) -> Result<Library> {
    let include = sources()?;
    let unity = unity(&include)?;
    let mut command = compiler(&include, mlx)?;
    let arguments: Vec<_> = command.get_args().map(|argument| argument.to_string_lossy()).collect();
    let key = key(&[&unity, &arguments.join(" "), &mlx.rpath, &version(&command)?]);
    let library = Library { file: mlx.home.join(format!("mlxc-{key:016x}")).join(FILE), include };
    if is_intact(&library.file) {
        return Ok(library);
    }

    let source = PathBuf::from(variable("OUT_DIR")).join("mlxc.cpp");
    write(&source, &unity)?;
    let aside = library.folder().join(format!(".{}-{FILE}", std::process::id()));
    fs::create_dir_all(library.folder())
        .map_err(|error| format!("cannot create {}: {error}", library.folder().display()))?;

    command.arg("-include").arg(Path::new(&variable("CARGO_MANIFEST_DIR")).join("native/format.h"));
    let (shared, name) = if cfg!(target_os = "macos") {
        ("-dynamiclib", "-install_name")
    } else {
        command.args(["-Wl,-z,defs", "-Wl,--enable-new-dtags"]);
        ("-shared", "-soname")
    };
    command.arg(shared).args(["-x", "c++"]).arg(source).args(["-x", "none"]);
    command.arg("-L").arg(&mlx.lib).arg("-lmlx").arg("-o").arg(&aside);
    for argument in [name.as_ref(), library.file.as_os_str(), "-rpath".as_ref(), mlx.rpath.as_ref()] {
        command.arg("-Xlinker").arg(argument);
    }
    let output = command.output().map_err(|error| no_compiler(&error.to_string()))?;
    if !output.status.success() {
        // Whether there is something to remove depends on how far the compiler came.
        let _ = fs::remove_file(&aside);
        return Err(explain(&command, &String::from_utf8_lossy(&output.stderr)));
    }
    backdate(&aside)?;
    let publish = || {
        fs::write(checksum_file(&library.file), checksum(&fs::read(&aside)?))?;
        // In one step, for builds beside this one.
        fs::rename(&aside, &library.file)
    };
    publish().map_err(|error| format!("cannot create {}: {error}", library.file.display()))?;
    Ok(library)
}

/// Whether a library is as it was compiled. It is small enough to be read at every run.
fn is_intact(library: &Path) -> bool {
    let recorded = fs::read_to_string(checksum_file(library)).unwrap_or_default();
    fs::read(library).is_ok_and(|bytes| checksum(&bytes) == recorded)
}

fn checksum_file(library: &Path) -> PathBuf {
    library.with_extension("checksum")
}

fn checksum(bytes: &[u8]) -> String {
    let mut hasher = DefaultHasher::new();
    bytes.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// mlx-c's sources: those of the crate that we stand in for, which cargo itself brings.
///
/// A manifest outside our workspace and its patch depends on upstream's mlx-sys; `cargo metadata` fetches it as it would any
/// dependency, so mirrors, vendored sources and offline work as the user has set them.
fn sources() -> Result<PathBuf> {
    let (name, version) = (variable("CARGO_PKG_NAME"), variable("CARGO_PKG_VERSION"));
    let folder = PathBuf::from(variable("OUT_DIR")).join("upstream");
    write(
        &folder.join("Cargo.toml"),
        &format!(
            "[package]\nname = \"upstream\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[dependencies]\n\
             {name} = {{ version = \"={version}\", default-features = false }}\n\n[workspace]\n"
        ),
    )?;
    write(&folder.join("src/lib.rs"), "")?;
    // What is there already needs no network, whatever cargo was told.
    let metadata =
        metadata(&folder, &["--offline"]).or_else(|_| metadata(&folder, &[])).map_err(|reason| {
            format!(
                "cargo cannot fetch {name} {version} from its registry, for the sources of mlx-c: {reason}\n\
             This needs the network once, or a mirror or vendored sources in cargo's configuration."
            )
        })?;
    let mut manifests =
        metadata.split(r#""manifest_path":""#).skip(1).filter_map(|rest| rest.split('"').next());
    let found = manifests.find_map(|path| {
        let root = Path::new(path).parent()?.join("src/mlx-c");
        root.join("mlx/c/mlx.h").is_file().then_some(root)
    });
    found.ok_or_else(|| format!("{name} {version} in cargo's registry holds no src/mlx-c/mlx/c/mlx.h"))
}

/// What cargo says of the package in `folder` and its dependencies, or why it cannot.
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
    let upstream: String = names.iter().map(|name| format!("#include \"mlx/c/{name}\"\n")).collect();
    Ok(upstream)
}

/// The C++ compiler with its flags, but neither source nor output: what says how the library is made, not where.
fn compiler(include: &Path, mlx: &Mlx) -> Result<Command> {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").opt_level(1).debug(false).warnings(false).pic(true).cargo_warnings(false);
    build.include(include).include(&mlx.include);
    // MLX's errors name the file and the line: mlx-c/mlx/c/…, wherever cargo keeps it.
    build.flag(format!("-fmacro-prefix-map={}=mlx-c", include.display()));
    // half.h has its types on some processors only: src/half.rs has them on all.
    build.define("MLX_HALF_H", None);
    if env::var_os("MACOSX_DEPLOYMENT_TARGET").is_none() {
        // MLX's own minimum; what rustc aims at is older than std::format.
        build.env("MACOSX_DEPLOYMENT_TARGET", "14.0");
    }
    let tool = build.try_get_compiler().map_err(|error| no_compiler(&error.to_string()))?;
    Ok(tool.to_command())
}

/// What the compiler says it is.
fn version(compiler: &Command) -> Result<String> {
    let output = Command::new(compiler.get_program()).arg("--version").output();
    let output =
        output.map_err(|error| no_compiler(&format!("{}: {error}", compiler.get_program().display())))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A number that changes with whatever the library is made of.
fn key(parts: &[&str]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    // These two hold the other half of the command, and a source.
    (include_str!("mlxc.rs"), include_str!("../native/format.h")).hash(&mut hasher);
    hasher.finish()
}

/// What a compiler's complaint comes down to.
fn explain(compiler: &Command, stderr: &str) -> String {
    let errors: Vec<_> = stderr.lines().filter(|line| line.contains("error")).take(5).collect();
    format!(
        "{} cannot compile mlx-c over MLX, which takes C++20 (g++ 11 or clang++ 15, or newer; CXX names another compiler):\n{}",
        compiler.get_program().display(),
        if errors.is_empty() { stderr.trim().to_owned() } else { errors.join("\n") }
    )
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
