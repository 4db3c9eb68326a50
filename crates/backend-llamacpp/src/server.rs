//! Which llama-server runs the child, and what it can do.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use child_process::{Output, on_path, run};

/// What to do where there is none.
const REMEDY: &str = "install llama.cpp (https://github.com/ggml-org/llama.cpp), and put llama-server on PATH or its path \
    into LLAMA_SERVER";

/// Options without which the child cannot be used.
const NEEDED: [&str; 5] = ["--api-key", "--slot-save-path", "--no-kv-unified", "--ubatch-size", "--parallel"];

/// It takes 50 ms on a warm machine; drivers of GPUs may take seconds.
const PROBE_DEADLINE: Duration = Duration::from_secs(30);

/// The program that the whole process was told to use.
static CHOSEN: Mutex<Option<PathBuf>> = Mutex::new(None);

type Inspected = Result<Arc<Server>, String>;

/// What was found, by path: a program is asked once in the life of the process.
static INSPECTED: LazyLock<Mutex<HashMap<PathBuf, Inspected>>> = LazyLock::new(Mutex::default);

/// A llama-server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Server {
    pub(crate) path: PathBuf,
    /// What it says of its version: a build's number and commit.
    pub(crate) version: String,
    /// The options that it knows, in their long forms.
    options: BTreeSet<String>,
    /// The devices that it finds, without the CPU.
    pub(crate) devices: Vec<Device>,
}

/// A device of llama.cpp.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Device {
    /// llama.cpp's name for it: the kind and a number, `ROCm0`.
    pub(crate) name: String,
    /// The product: `AMD Radeon RX 7800 XT`.
    pub(crate) description: String,
    /// Bytes of its memory.
    pub(crate) memory: u64,
    /// Bytes of its memory that were free.
    pub(crate) free: u64,
}

/// Makes every later probe and load of this process use this llama-server, before the one that the environment names. A load's
/// [`LlamaCppOptions::server`](crate::LlamaCppOptions::server) still takes precedence.
pub fn use_server(path: impl Into<PathBuf>) {
    *lock(&CHOSEN) = Some(path.into());
}

/// The first llama-server in the order of the crate's documentation, or why there is none.
pub(crate) fn find() -> Inspected {
    let chosen = lock(&CHOSEN).clone();
    // One that was named is the one, right or wrong.
    if let Some(path) = chosen {
        return inspect(&path);
    }
    if let Some(path) = std::env::var_os("LLAMA_SERVER").filter(|path| !path.is_empty()) {
        return inspect(Path::new(&path)).map_err(|reason| format!("LLAMA_SERVER: {reason}"));
    }
    match on_path("llama-server") {
        Some(path) => inspect(&path),
        None => Err(format!(
            "no llama-server was found: LLAMA_SERVER is not set, and there is none on PATH; {REMEDY}"
        )),
    }
}

/// Asks a llama-server what it is.
pub(crate) fn inspect(path: &Path) -> Inspected {
    if let Some(known) = lock(&INSPECTED).get(path) {
        return known.clone();
    }
    let inspected = ask(path).map(Arc::new);
    lock(&INSPECTED).insert(path.to_owned(), inspected.clone());
    inspected
}

fn ask(path: &Path) -> Result<Server, String> {
    let shown = path.display();
    let said = answer(path, "--version")?;
    let Some(version) = version(&said) else {
        return Err(format!(
            "{shown} is no llama-server: asked for its version it said {:?}",
            first_line(&said)
        ));
    };
    let options = options(&answer(path, "--help")?.stdout);
    if let Some(missing) = NEEDED.iter().find(|option| !options.contains(**option)) {
        return Err(format!(
            "{shown} (version {version}) is too old: it has no {missing}, which llama.cpp has from 2026 on"
        ));
    }
    let devices = devices(&answer(path, "--list-devices")?.stdout);
    Ok(Server { path: path.to_owned(), version, options, devices })
}

fn answer(path: &Path, question: &str) -> Result<Output, String> {
    let said = run(path, &[question], PROBE_DEADLINE)?;
    if said.status.success() {
        return Ok(said);
    }
    let (shown, status) = (path.display(), said.status);
    Err(format!(
        "{shown} cannot be used: asked for {question} it ended with {status}, and said {:?}",
        first_line(&said)
    ))
}

fn first_line(said: &Output) -> &str {
    let lines = said.stdout.lines().chain(said.stderr.lines());
    lines.map(str::trim).find(|line| !line.is_empty()).unwrap_or_default()
}

/// `version: 6325 (c6a3…)`, on stdout or stderr, among what drivers may say.
fn version(said: &Output) -> Option<String> {
    let mut lines = said.stdout.lines().chain(said.stderr.lines());
    let version = lines.find_map(|line| line.strip_prefix("version:"))?.trim();
    (!version.is_empty()).then(|| version.to_owned())
}

/// The long forms of the options in the help: lines that begin with a dash.
fn options(help: &str) -> BTreeSet<String> {
    let lines = help.lines().filter(|line| line.starts_with('-'));
    let words = lines.flat_map(|line| line.split([' ', ',']));
    words.filter(|word| word.starts_with("--")).map(str::to_owned).collect()
}

/// The list of devices: `  ROCm0: AMD Radeon RX 7800 XT (16368 MiB, 15942 MiB free)`.
pub(crate) fn devices(list: &str) -> Vec<Device> {
    let lines = list.lines().skip_while(|line| !line.starts_with("Available devices")).skip(1);
    lines.filter_map(device).collect()
}

fn device(line: &str) -> Option<Device> {
    let (name, rest) = line.trim().split_once(": ")?;
    let (description, memory) = rest.strip_suffix(" free)")?.rsplit_once(" (")?;
    let (memory, free) = memory.split_once(", ")?;
    let bytes = |text: &str| Some(text.strip_suffix(" MiB")?.parse::<u64>().ok()?.saturating_mul(1 << 20));
    Some(Device {
        name: name.to_owned(),
        description: description.to_owned(),
        memory: bytes(memory)?,
        free: bytes(free)?,
    })
}

impl Server {
    /// One that has these devices, for tests.
    #[cfg(test)]
    pub(crate) fn with_devices(devices: Vec<Device>) -> Self {
        Self { path: "llama-server".into(), version: "1".to_owned(), options: BTreeSet::new(), devices }
    }

    /// Whether it knows this option.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.contains(option)
    }

    /// What it computes on, for people.
    pub(crate) fn device(&self) -> String {
        match self.devices.as_slice() {
            [] => format!("the CPU, by {}", self.path.display()),
            devices => {
                let names: Vec<_> = devices.iter().map(|device| device.description.as_str()).collect();
                format!("{}, by {}", names.join(", "), self.path.display())
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_llama_server_says_so() {
        assert!(ask(Path::new("/nonexistent/llama-server")).unwrap_err().contains("cannot be run"));
        assert!(ask(Path::new("/bin/echo")).unwrap_err().contains("is no llama-server"));
        assert!(ask(Path::new("/bin/false")).unwrap_err().contains("ended with exit status: 1"));
    }

    #[test]
    fn options_are_read_from_the_help() {
        let help = "----- common params -----\n\n-kvu,  --kv-unified, -no-kvu, --no-kv-unified\n        use --this or not\n\
            -b,    --batch-size N                   logical maximum batch size (default: 2048)\n";
        let known = options(help);
        assert!(
            ["--kv-unified", "--no-kv-unified", "--batch-size"].iter().all(|option| known.contains(*option))
        );
        assert!(!known.contains("--this"));
    }

    #[test]
    fn devices_are_read_from_their_list() {
        // llama-server --list-devices of a build with HIP, and of one without any device.
        let list = "ggml_cuda_init: found 2 ROCm devices:\n  Device 0: AMD Radeon RX 7800 XT, gfx1101 (0x1101), VMM: no, \
            Wave Size: 32\nAvailable devices:\n  ROCm0: AMD Radeon RX 7800 XT (16368 MiB, 15942 MiB free)\n  \
            ROCm1: AMD Radeon Graphics (512 MiB, 480 MiB free)\n";
        let found = devices(list);
        assert_eq!(found.iter().map(|device| device.name.as_str()).collect::<Vec<_>>(), ["ROCm0", "ROCm1"]);
        assert_eq!(found[0].description, "AMD Radeon RX 7800 XT");
        assert_eq!((found[0].memory, found[0].free), (16368 << 20, 15942 << 20));
        assert!(devices("Available devices:\n  (none)\n").is_empty());
        assert!(devices("").is_empty());
    }
}
