//! MLX itself: its published wheel, in a cache that all builds of this user share.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::{Result, backdate, variable, verify};

/// The MLX release that mlx-c 0.7.0, and so mlx-rs 0.33, is written against.
pub(crate) const VERSION: &str = "0.32.2";

/// An MLX to compile and link against.
#[derive(Debug)]
pub(crate) struct Mlx {
    /// The folder that holds `mlx/mlx.h`.
    pub(crate) include: PathBuf,
    /// The folder that holds `libmlx.so` or `libmlx.dylib`.
    pub(crate) lib: PathBuf,
    /// Where mlx-c's library for this MLX may be kept.
    pub(crate) home: PathBuf,
    /// How a library in a folder of `home` finds `lib`, in the terms of the dynamic linker.
    pub(crate) rpath: String,
}

impl Mlx {
    /// The shared library.
    pub(crate) fn library(&self) -> PathBuf {
        self.lib.join(FILE)
    }
}

/// The MLX that `MLX_ROOT` names, or the wheel for this machine, fetched if the cache lacks it.
pub(crate) fn locate() -> Result<Mlx> {
    for name in ["MLX_ROOT", "MLX_WHEEL", "XDG_CACHE_HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let cache = cache()?.join(VERSION);
    if let Some(root) = env::var_os("MLX_ROOT").filter(|root| !root.is_empty()) {
        return in_folder(Path::new(&root), cache.join("root"));
    }
    let wheel = Wheel::for_this_machine()?;
    let home = cache.join(wheel.name());
    let mlx = Mlx {
        include: home.join("mlx/include"),
        lib: home.join("mlx/lib"),
        rpath: format!("{ORIGIN}/../mlx/lib"),
        home,
    };
    if !mlx.library().is_file() {
        wheel.fetch(&cache, &mlx.home)?;
    }
    if !mlx.library().is_file() {
        return Err(format!("{} is incomplete: remove it and build again", mlx.home.display()));
    }
    for library in verify::verify(&mlx.home, &format!("mlx/lib/{FILE}"), &wheel.pins()?)? {
        println!("cargo::rerun-if-changed={}", mlx.home.join(library).display());
    }
    Ok(mlx)
}

const FILE: &str = if cfg!(target_os = "macos") { "libmlx.dylib" } else { "libmlx.so" };

/// "The folder of the file that says this", to the dynamic linker.
const ORIGIN: &str = if cfg!(target_os = "macos") { "@loader_path" } else { "$ORIGIN" };

/// An MLX that the user built or unpacked.
fn in_folder(root: &Path, home: PathBuf) -> Result<Mlx> {
    let root = root.canonicalize().map_err(|error| format!("MLX_ROOT is {}: {error}", root.display()))?;
    let lib = root.join("lib");
    let mlx = Mlx { include: root.join("include"), rpath: lib.display().to_string(), lib, home };
    let header = mlx.include.join("mlx/version.h");
    for file in [&header, &mlx.library()] {
        if !file.is_file() {
            return Err(format!(
                "MLX_ROOT is {}, which has no {}: it has to name a folder with include/mlx and lib, \
                 such as `mlx` in Python's site-packages",
                root.display(),
                file.display()
            ));
        }
    }
    let text = fs::read_to_string(&header).map_err(|error| format!("{}: {error}", header.display()))?;
    match version(&text) {
        Some(found) if found == VERSION => Ok(mlx),
        found => Err(format!(
            "MLX_ROOT is {}, which holds MLX {}: mlx-rs 0.33 needs {VERSION}",
            root.display(),
            found.as_deref().unwrap_or("of an unknown version")
        )),
    }
}

/// The version that MLX's `version.h` states.
fn version(header: &str) -> Option<String> {
    let part = |name: &str| {
        let line =
            header.lines().find_map(|line| line.strip_prefix("#define MLX_VERSION_")?.strip_prefix(name));
        line.map(str::trim)
    };
    Some(format!("{}.{}.{}", part("MAJOR")?, part("MINOR")?, part("PATCH")?))
}

/// The folder of our cache of MLX wheels.
fn cache() -> Result<PathBuf> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = || {
        absolute("HOME")
            .map(|home| home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }))
    };
    match absolute("XDG_CACHE_HOME").or_else(home) {
        Some(folder) => Ok(folder.join("inference/mlx")),
        // A sandbox without a home: the library then lives and dies with the target folder.
        None => Ok(PathBuf::from(variable("OUT_DIR")).join("mlx")),
    }
}

/// The wheels that hold MLX.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wheel {
    Cpu,
    Cuda12,
    Cuda13,
    Metal,
}

impl Wheel {
    /// The wheel that `MLX_WHEEL` names, or the one that suits the processor and the driver.
    fn for_this_machine() -> Result<Self> {
        let target = variable("TARGET");
        let offered: &[Self] = match target.as_str() {
            "x86_64-unknown-linux-gnu" | "aarch64-unknown-linux-gnu" => {
                &[Self::Cpu, Self::Cuda12, Self::Cuda13]
            }
            "aarch64-apple-darwin" => &[Self::Metal],
            _ => {
                return Err(format!(
                    "MLX publishes no wheel for {target}: it has them for Linux with glibc (x86-64, aarch64) and for Apple \
                     silicon. Set MLX_ROOT to a folder with the include/ and lib/ of an MLX {VERSION} that you built."
                ));
            }
        };
        if let Some(name) = env::var("MLX_WHEEL").ok().filter(|name| !name.is_empty()) {
            let names: Vec<_> = offered.iter().map(|wheel| wheel.name()).collect();
            return offered
                .iter()
                .copied()
                .find(|wheel| wheel.name() == name)
                .ok_or_else(|| format!("MLX_WHEEL is `{name}`: for {target} there is {}", names.join(", ")));
        }
        if offered.contains(&Self::Metal) {
            return Ok(Self::Metal);
        }
        const DRIVER: &str = "/proc/driver/nvidia/version";
        Ok(match fs::read_to_string(DRIVER) {
            Ok(text) => Self::for_driver(driver_release(&text)),
            Err(_) => Self::Cpu,
        })
    }

    /// The wheel for a release of NVIDIA's driver: the one that the release is new enough for.
    fn for_driver(release: Option<u32>) -> Self {
        match release {
            Some(580..) => Self::Cuda13,
            Some(550..) => Self::Cuda12,
            other => {
                let found =
                    other.map_or_else(|| "of an unknown release".to_owned(), |release| release.to_string());
                println!(
                    "cargo::warning=NVIDIA's driver here is {found}; MLX wants 550 or newer, so this build is for the CPU"
                );
                Self::Cpu
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cpu => "mlx-cpu",
            Self::Cuda12 => "mlx-cuda-12",
            Self::Cuda13 => "mlx-cuda-13",
            Self::Metal => "mlx-metal",
        }
    }

    /// The file with the digests of the wheel.
    fn requirements(self) -> PathBuf {
        Path::new(&variable("CARGO_MANIFEST_DIR")).join(format!("wheels/{}.txt", self.name()))
    }

    /// The digests of libmlx in the wheels of this name, one for each platform.
    fn pins(self) -> Result<Vec<String>> {
        let file = self.requirements();
        let text =
            fs::read_to_string(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        let pin = |line: &str| line.strip_prefix("# libmlx ")?.split_whitespace().next().map(str::to_owned);
        Ok(text.lines().filter_map(pin).collect())
    }

    /// The tags of the wheels that this machine can use, in pip's terms.
    fn platforms(self) -> Result<Vec<String>> {
        if self == Self::Metal {
            let output = Command::new("sw_vers").arg("-productVersion").output();
            let output =
                output.map_err(|error| format!("cannot run sw_vers for the version of macOS: {error}"))?;
            let version = String::from_utf8_lossy(&output.stdout);
            let major = version.trim().split('.').next().unwrap_or_default().to_owned();
            return Ok(vec![format!("macosx_{major}_0_arm64")]);
        }
        let processor = variable("CARGO_CFG_TARGET_ARCH");
        // MLX's wheels have the first tag; the others are those of NVIDIA's.
        Ok(["manylinux_2_35", "manylinux_2_27", "manylinux2014"]
            .map(|tag| format!("{tag}_{processor}"))
            .to_vec())
    }

    /// Downloads the wheel, and those that it needs, and unpacks them into `home`.
    ///
    /// pip checks each file against the digests in `wheels/`. All happens in a folder aside, which takes its name in one
    /// step when it is whole: builds beside this one, and those after one that was killed, see all of it or nothing.
    fn fetch(self, cache: &Path, home: &Path) -> Result<()> {
        let aside = cache.join(format!(".{}-{}", self.name(), std::process::id()));
        let result = self.unpack_into(&aside).and_then(|()| match fs::rename(&aside, home) {
            Err(error) if !home.is_dir() => Err(format!("cannot create {}: {error}", home.display())),
            // Done, or another build was first.
            _ => Ok(()),
        });
        // Nothing is left to remove after a rename.
        let _ = fs::remove_dir_all(&aside);
        result
    }

    fn unpack_into(self, folder: &Path) -> Result<()> {
        let downloads = folder.join("wheels");
        fs::create_dir_all(&downloads).map_err(|error| {
            format!(
                "cannot create {}: {error}. XDG_CACHE_HOME names another folder to use.",
                downloads.display()
            )
        })?;
        let mut pip = Command::new("python3");
        pip.args(["-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"])
            .args([
                "--no-deps",
                "--only-binary=:all:",
                "--require-hashes",
                "--implementation=py",
                "--python-version=3.12",
            ])
            .args(self.platforms()?.iter().flat_map(|platform| ["--platform", platform]))
            .arg("--dest")
            .arg(&downloads)
            .arg("--requirement")
            .arg(self.requirements());
        let output = run(&mut pip)?;
        if !output.status.success() {
            return Err(self.explain(&String::from_utf8_lossy(&output.stderr)));
        }
        let entries =
            fs::read_dir(&downloads).map_err(|error| format!("{}: {error}", downloads.display()))?;
        for wheel in entries.flatten().map(|entry| entry.path()) {
            let output = run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(folder))?;
            if !output.status.success() {
                let reason = String::from_utf8_lossy(&output.stderr);
                let reason = reason.trim().lines().last().unwrap_or_default();
                return Err(format!("cannot unpack {} into {}: {reason}", wheel.display(), folder.display()));
            }
        }
        for library in verify::libraries(folder)? {
            backdate(&folder.join(library))?;
        }
        fs::remove_dir_all(&downloads)
            .map_err(|error| format!("cannot remove {}: {error}", downloads.display()))
    }

    /// What pip's complaint means, and what to do.
    fn explain(self, stderr: &str) -> String {
        let name = self.name();
        if stderr.contains("No module named pip") {
            return format!(
                "python3 has no pip, which fetches the wheel {name} {VERSION}: install it (Debian, Ubuntu: `apt-get install \
                 python3-pip`; elsewhere: `python3 -m ensurepip`), or set MLX_ROOT to a folder with MLX's include/ and lib/"
            );
        }
        if stderr.contains("DO NOT MATCH THE HASHES") {
            let got =
                stderr.lines().find_map(|line| line.trim().strip_prefix("Got")).unwrap_or_default().trim();
            return format!(
                "the wheel {name} {VERSION} that pip fetched is not the one this build pins (its SHA-256 is {got}): nothing of \
                 it was used. Look at what pip's index (PIP_INDEX_URL) or `pip cache` holds; the pins are in \
                 crates/mlx-sys/wheels/{name}.txt."
            );
        }
        let reason = stderr.lines().rfind(|line| line.starts_with("ERROR")).unwrap_or(stderr).trim();
        format!(
            "pip cannot fetch the wheel {name} {VERSION}: {reason}\n\
             This needs the network once (or a mirror: PIP_INDEX_URL, PIP_FIND_LINKS); later builds use the cache. Without \
             one, set MLX_ROOT to a folder with MLX's include/ and lib/."
        )
    }
}

/// The major release in `/proc/driver/nvidia/version`.
fn driver_release(text: &str) -> Option<u32> {
    let line = text.lines().find(|line| line.starts_with("NVRM version"))?;
    line.split_whitespace().find_map(|word| word.split_once('.')?.0.parse().ok())
}

/// Runs a command of Python's.
fn run(command: &mut Command) -> Result<Output> {
    command.output().map_err(|error| {
        format!(
            "cannot run python3, which fetches MLX {VERSION}: {error}. Install Python 3 with pip (Debian, Ubuntu: `apt-get \
             install python3-pip`), or set MLX_ROOT to a folder with MLX's include/ and lib/."
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drivers_release_picks_the_wheel() {
        let text = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.82.07  Fri Aug  1 00:00:00 UTC 2025\n\
                    GCC version:  gcc version 12.2.0\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  550.54.14  Release Build\n";
        assert_eq!(driver_release(text), Some(580));
        assert_eq!(driver_release(open), Some(550));
        assert_eq!(driver_release("GCC version:  gcc version 12.2.0\n"), None);
        assert_eq!(Wheel::for_driver(Some(595)), Wheel::Cuda13);
        assert_eq!(Wheel::for_driver(Some(580)), Wheel::Cuda13);
        assert_eq!(Wheel::for_driver(Some(579)), Wheel::Cuda12);
        assert_eq!(Wheel::for_driver(Some(535)), Wheel::Cpu);
        assert_eq!(Wheel::for_driver(None), Wheel::Cpu);
    }

    #[test]
    fn the_version_is_read_from_the_header() {
        let header =
            "#define MLX_VERSION_MAJOR 0\n#define MLX_VERSION_MINOR 32\n#define MLX_VERSION_PATCH 2\n";
        assert_eq!(version(header).as_deref(), Some("0.32.2"));
        assert_eq!(version("#define MLX_VERSION_MAJOR 0\n"), None);
    }

    #[test]
    fn every_complaint_of_pips_says_what_to_do() {
        let missing = Wheel::Cpu.explain("/usr/bin/python3: No module named pip\n");
        assert!(missing.contains("apt-get install python3-pip") && missing.contains("MLX_ROOT"), "{missing}");
        let other = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n    mlx-cpu==0.32.2:\n  \
                     Expected sha256 00\n     Got        fc5d31\n";
        let other = Wheel::Cpu.explain(other);
        assert!(other.contains("fc5d31") && other.contains("wheels/mlx-cpu.txt"), "{other}");
        let unreachable = Wheel::Metal.explain(
            "WARNING: Retrying\nERROR: Could not find a version that satisfies the requirement mlx-metal==0.32.2\n\
             ERROR: No matching distribution found for mlx-metal==0.32.2\n",
        );
        assert!(
            unreachable.contains("No matching distribution") && unreachable.contains("PIP_INDEX_URL"),
            "{unreachable}"
        );
    }

    #[test]
    fn a_folder_that_is_no_mlx_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refusal = |folder: &Path| in_folder(folder, PathBuf::new()).unwrap_err();
        assert!(refusal(&folder.path().join("absent")).contains("MLX_ROOT is"));
        assert!(refusal(folder.path()).contains("include/mlx and lib"));

        let mlx = folder.path().join("include/mlx");
        fs::create_dir_all(&mlx).unwrap();
        let header =
            "#define MLX_VERSION_MAJOR 0\n#define MLX_VERSION_MINOR 31\n#define MLX_VERSION_PATCH 0\n";
        fs::write(mlx.join("version.h"), header).unwrap();
        fs::create_dir_all(folder.path().join("lib")).unwrap();
        for name in ["libmlx.so", "libmlx.dylib"] {
            fs::write(folder.path().join("lib").join(name), "").unwrap();
        }
        assert!(refusal(folder.path()).contains("holds MLX 0.31.0: mlx-rs 0.33 needs 0.32.2"));

        fs::write(mlx.join("version.h"), header.replace("31", "32").replace("PATCH 0", "PATCH 2")).unwrap();
        assert!(in_folder(folder.path(), PathBuf::new()).is_ok());
    }

    #[test]
    fn every_wheel_is_pinned() {
        for wheel in [Wheel::Cpu, Wheel::Cuda12, Wheel::Cuda13, Wheel::Metal] {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("wheels/{}.txt", wheel.name()));
            let pins = fs::read_to_string(file).unwrap();
            assert!(pins.lines().any(|line| line.starts_with("# libmlx sha256=")), "{pins}");
            assert!(pins.contains(&format!("{}=={VERSION} \\\n    --hash=sha256:", wheel.name())), "{pins}");
        }
    }
}
