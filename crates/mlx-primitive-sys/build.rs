//! Compiles `native/primitive.cpp` over the headers of MLX and mlx-c that mlx-sys names.
//!
//! The README explains both ways of linking.

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, UNIX_EPOCH},
};

const SOURCE: &str = "native/primitive.cpp";
const FILE: &str = if cfg!(target_os = "macos") { "libmlx_primitive.dylib" } else { "libmlx_primitive.so" };

type Result<T> = std::result::Result<T, String>;

fn main() {
    for file in ["build.rs", "native"] {
        println!("cargo::rerun-if-changed={file}");
    }
    println!("cargo::rerun-if-env-changed=MLX_INCLUDE");
    // docs.rs builds no program.
    if env::var_os("DOCS_RS").is_some() {
        return;
    }
    if variable("HOST") != variable("TARGET") && env::var_os("DEP_MLX_INCLUDE").is_none() {
        // mlx-sys linked nothing either, and says so.
        return;
    }
    if let Err(message) = build() {
        for line in message.lines().filter(|line| !line.trim().is_empty()) {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<()> {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").warnings(false).includes(includes()?);
    match env::var_os("DEP_MLX_HOME") {
        Some(home) => shared_library(build, Path::new(&home)),
        None => static_library(build),
    }
}

/// The folders with the headers of MLX and mlx-c.
fn includes() -> Result<Vec<PathBuf>> {
    let paths = env::var_os("MLX_INCLUDE")
        .filter(|paths| !paths.is_empty())
        .or_else(|| env::var_os("DEP_MLX_INCLUDE"))
        .ok_or(
            "this version of mlx-sys does not say where MLX's headers are: set MLX_INCLUDE to the folders that hold mlx/mlx.h \
             and mlx/c/mlx.h, separated like those of PATH",
        )?;
    let includes: Vec<_> = env::split_paths(&paths).collect();
    for header in ["mlx/mlx.h", "mlx/c/private/array.h"] {
        if !includes.iter().any(|folder| folder.join(header).is_file()) {
            return Err(format!("none of the folders {} holds {header}", paths.display()));
        }
    }
    Ok(includes)
}

/// A part of the program, as MLX is: upstream's mlx-sys links MLX statically.
fn static_library(mut build: cc::Build) -> Result<()> {
    let defines = env::var("DEP_MLX_DEFINES").unwrap_or_default();
    for define in defines.split([',', ';', ' ']).filter(|define| !define.is_empty()) {
        build.define(define, None);
    }
    build.file(SOURCE).try_compile("mlx_primitive").map_err(|error| error.to_string())
}

/// A shared library beside mlx-c's, which our mlx-sys links: programs name it by its absolute path, and it finds MLX by its rpath.
fn shared_library(mut build: cc::Build, home: &Path) -> Result<()> {
    let rpath = variable("DEP_MLX_RPATH");
    build.opt_level(1).debug(false).pic(true).cargo_warnings(false);
    // mlx-sys declares half-precision numbers itself, on all processors.
    build.define("MLX_HALF_H", None);
    if env::var_os("MACOSX_DEPLOYMENT_TARGET").is_none() {
        build.env("MACOSX_DEPLOYMENT_TARGET", "14.0");
    }
    let mut command = build.try_get_compiler().map_err(|error| error.to_string())?.to_command();
    let arguments: Vec<_> =
        command.get_args().map(|argument| argument.to_string_lossy().into_owned()).collect();
    let source = fs::read_to_string(SOURCE).map_err(|error| format!("cannot read {SOURCE}: {error}"))?;
    let key = hash(&(&source, &arguments, &rpath, compiler_version(&command)?, include_str!("build.rs")));
    let folder = home.join(format!("mlxc-primitive-{key:016x}"));
    let file = folder.join(FILE);
    if !is_intact(&file) {
        fs::create_dir_all(&folder)
            .map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        let aside = folder.join(format!(".{}-{FILE}", std::process::id()));
        let (shared, name) = if cfg!(target_os = "macos") {
            ("-dynamiclib", "-install_name")
        } else {
            command.args(["-Wl,-z,defs", "-Wl,--enable-new-dtags"]);
            ("-shared", "-soname")
        };
        command.args([shared, SOURCE, "-L"]).arg(variable("DEP_MLX_LIB")).args(["-lmlx", "-o"]).arg(&aside);
        for argument in [name.as_ref(), file.as_os_str(), "-rpath".as_ref(), rpath.as_ref()] {
            command.arg("-Xlinker").arg(argument);
        }
        compile(&mut command)?;
        publish(&aside, &file)?;
    }
    // It can vanish with the cache: then this script has to make it again.
    println!("cargo::rerun-if-changed={}", file.display());
    println!("cargo::rustc-link-search=native={}", folder.display());
    println!("cargo::rustc-link-lib=dylib=mlx_primitive");
    Ok(())
}

fn compile(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(|error| format!("cannot run the C++ compiler: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let errors: Vec<_> = stderr.lines().filter(|line| line.contains("error")).take(5).collect();
    let errors = if errors.is_empty() { stderr.trim().to_owned() } else { errors.join("\n") };
    Err(format!("{} cannot compile {SOURCE}:\n{errors}", command.get_program().display()))
}

/// Moves the library to its place, with its checksum beside it.
fn publish(aside: &Path, file: &Path) -> Result<()> {
    let publish = || {
        // cargo runs a script again if a file that it watches is newer than the script's last run.
        let long_ago = UNIX_EPOCH + Duration::from_secs(1_000_000_000);
        fs::File::options().write(true).open(aside)?.set_modified(long_ago)?;
        fs::write(checksum_file(file), format!("{:016x}", hash(&fs::read(aside)?)))?;
        // In one step, for builds beside this one.
        fs::rename(aside, file)
    };
    publish().map_err(|error: std::io::Error| format!("cannot create {}: {error}", file.display()))
}

/// Whether the library is as it was compiled. It is small enough to be read at every run.
fn is_intact(file: &Path) -> bool {
    let recorded = fs::read_to_string(checksum_file(file)).unwrap_or_default();
    fs::read(file).is_ok_and(|bytes| format!("{:016x}", hash(&bytes)) == recorded)
}

fn checksum_file(library: &Path) -> PathBuf {
    library.with_extension("checksum")
}

fn compiler_version(compiler: &Command) -> Result<String> {
    let output = Command::new(compiler.get_program()).arg("--version").output();
    let output =
        output.map_err(|error| format!("cannot run {}: {error}", compiler.get_program().display()))?;
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// A variable that cargo sets for this script.
fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
