//! Which Python runs the child, and what it has.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use child_process::on_path;
use serde::Deserialize;

/// The two commands that make an environment in which this backend works.
pub(crate) const REMEDY: &str = if cfg!(target_os = "linux") {
    "make an environment that has it with\n    python3 -m venv .venv && . .venv/bin/activate\n    pip install mlx-lm 'mlx[cpu]'"
} else {
    "make an environment that has it with\n    python3 -m venv .venv && . .venv/bin/activate\n    pip install mlx-lm"
};

const PROBE: &str = include_str!("../python/probe.py");

/// It takes 50 ms on a warm machine.
const PROBE_DEADLINE: Duration = Duration::from_secs(20);

/// The interpreter that the whole process was told to use.
static CHOSEN: Mutex<Option<PathBuf>> = Mutex::new(None);

type Inspected = Result<Arc<Interpreter>, String>;

/// What was found, by path: an interpreter is asked once in the life of the process.
static INSPECTED: LazyLock<Mutex<HashMap<PathBuf, Inspected>>> = LazyLock::new(Mutex::default);

/// An interpreter that has mlx_lm.
#[derive(Debug, Clone)]
pub(crate) struct Interpreter {
    pub(crate) path: PathBuf,
    pub(crate) python: String,
    pub(crate) mlx_lm: String,
    pub(crate) mlx: String,
    /// Architectures that mlx_lm has, and other names for them.
    models: Vec<String>,
    remapping: HashMap<String, String>,
}

/// Makes every later probe and load of this process use this interpreter, before any that the environment names. A load's
/// [`MlxLmOptions::python`](crate::MlxLmOptions::python) still takes precedence.
pub fn use_python(path: impl Into<PathBuf>) {
    *lock(&CHOSEN) = Some(path.into());
}

/// The first interpreter, in the order of the crate's documentation, that has mlx_lm; or why there is none.
pub(crate) fn find() -> Inspected {
    let chosen = lock(&CHOSEN).clone();
    // One that was named is the one, right or wrong.
    if let Some(path) = chosen {
        return inspect(&path).map_err(|reason| format!("{reason}; {REMEDY}"));
    }
    if let Some(path) = std::env::var_os("INFERENCE_PYTHON").filter(|path| !path.is_empty()) {
        return inspect(Path::new(&path)).map_err(|reason| format!("INFERENCE_PYTHON: {reason}; {REMEDY}"));
    }
    let environments = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os);
    let mut candidates: Vec<_> = environments.map(|folder| Path::new(&folder).join("bin/python")).collect();
    candidates.extend(on_path("python3"));
    let mut reasons = Vec::new();
    for path in candidates {
        match inspect(&path) {
            Ok(interpreter) => return Ok(interpreter),
            Err(reason) => reasons.push(reason),
        }
    }
    if reasons.is_empty() {
        reasons.push("no Python was found: INFERENCE_PYTHON is not set, no environment is active, and there is no python3 on \
            PATH"
            .to_owned());
    }
    Err(format!("{}; {REMEDY}", reasons.join("; ")))
}

impl Interpreter {
    /// Whether its mlx_lm knows this `model_type`.
    pub(crate) fn knows(&self, model_type: &str) -> bool {
        let name = self.remapping.get(model_type).map_or(model_type, String::as_str);
        self.models.iter().any(|model| model == name)
    }
}

/// Asks an interpreter what it has.
fn inspect(path: &Path) -> Inspected {
    if let Some(known) = lock(&INSPECTED).get(path) {
        return known.clone();
    }
    let inspected = ask(path).map(Arc::new);
    lock(&INSPECTED).insert(path.to_owned(), inspected.clone());
    inspected
}

fn ask(path: &Path) -> Result<Interpreter, String> {
    #[derive(Deserialize)]
    struct Found {
        python: String,
        mlx_lm: Option<String>,
        mlx: Option<String>,
        #[serde(default)]
        models: Vec<String>,
        #[serde(default)]
        remapping: HashMap<String, String>,
    }
    let shown = path.display();
    if asks_to_install(path) {
        return Err(format!("{shown} is a stub that offers to install developer tools"));
    }
    let output = run(path)?;
    let found: Found = serde_json::from_str(output.trim())
        .map_err(|_| format!("{shown} is no Python that can be used: it answered {:?}", output.trim()))?;
    let Some(mlx_lm) = found.mlx_lm else {
        return Err(format!("{shown} (Python {}) has no mlx_lm", found.python));
    };
    let Some(mlx) = found.mlx else {
        return Err(format!("{shown} (Python {}) has mlx_lm, but no mlx", found.python));
    };
    let Found { python, models, remapping, .. } = found;
    Ok(Interpreter { path: path.to_owned(), python, mlx_lm, mlx, models, remapping })
}

/// What the probe prints.
fn run(path: &Path) -> Result<String, String> {
    let said = child_process::run(path, &["-c", PROBE], PROBE_DEADLINE)?;
    if !said.status.success() {
        return Err(format!("{} is no Python that can be used: {}", path.display(), said.status));
    }
    Ok(said.stdout)
}

/// macOS has a /usr/bin/python3 that opens a dialogue where the developer tools are missing.
fn asks_to_install(path: &Path) -> bool {
    let tools = ["/Library/Developer/CommandLineTools/usr/bin/python3", "/Applications/Xcode.app"];
    cfg!(target_os = "macos")
        && path == Path::new("/usr/bin/python3")
        && !tools.into_iter().any(|tool| Path::new(tool).exists())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_python_says_so() {
        assert!(ask(Path::new("/nonexistent/python")).unwrap_err().contains("cannot be run"));
        assert!(ask(Path::new("/bin/echo")).unwrap_err().contains("no Python that can be used"));
        assert!(ask(Path::new("/bin/false")).unwrap_err().contains("no Python that can be used"));
    }

    #[test]
    fn other_names_of_an_architecture_are_known() {
        let interpreter = Interpreter {
            path: "python".into(),
            python: "3".into(),
            mlx_lm: "1".into(),
            mlx: "1".into(),
            models: vec!["llama".into()],
            remapping: HashMap::from([("mistral".into(), "llama".into())]),
        };
        assert!(interpreter.knows("llama") && interpreter.knows("mistral") && !interpreter.knows("abacus"));
    }
}
