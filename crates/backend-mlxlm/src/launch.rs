//! The command that starts the child.

use std::path::PathBuf;

use child_process::Launch;

use crate::MlxLmOptions;

/// The child's program. It travels in an environment variable, so that the command line in `ps` stays short.
const PROGRAM: &str = include_str!("../python/child.py");

/// The variable that holds [`PROGRAM`]; the child removes it before anything else runs.
const PROGRAM_VARIABLE: &str = "INFERENCE_MLX_LM_CHILD";

/// The command line's program: runs [`PROGRAM`].
const BOOTSTRAP: &str =
    "import os; exec(compile(os.environ.pop('INFERENCE_MLX_LM_CHILD'), 'mlx_lm_child.py', 'exec'))";

/// How a child is started with this interpreter.
pub(crate) fn launch(python: PathBuf, options: &MlxLmOptions) -> Launch {
    let mut environment = options.environment.clone();
    environment.push((PROGRAM_VARIABLE.into(), PROGRAM.into()));
    Launch {
        what: "the Python process",
        thread_name: "mlx_lm",
        program: python,
        arguments: ["-u", "-c", BOOTSTRAP].map(Into::into).to_vec(),
        environment,
        hidden_environment: Vec::new(),
        // The child asks Linux for that, and reads its stdin to the end.
        end_with_parent: false,
        max_line_bytes: options.max_line_bytes,
    }
}
