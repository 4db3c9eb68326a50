//! Finding a program, and asking it what it is.

use std::{
    ffi::OsStr,
    io::Read,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process_group};

/// Bytes of each stream that are read of a program that is asked something.
const LONGEST_ANSWER: u64 = 1 << 20;

/// What a program said.
#[derive(Debug, Clone)]
pub struct Output {
    /// On its stdout.
    pub stdout: String,
    /// On its stderr.
    pub stderr: String,
    /// How it ended.
    pub status: ExitStatus,
}

/// The first program of this name on `PATH`.
#[must_use]
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    // An empty entry would be the working folder.
    std::env::split_paths(&path)
        .filter(|folder| folder.as_os_str() != OsStr::new(""))
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Runs a program with these arguments to its end and takes what it says. It is killed, with what it has started, when it has not
/// ended by the deadline.
///
/// # Errors
/// A reason that names the program: it cannot be run, or did not answer in time.
pub fn run(program: &Path, arguments: &[&str], deadline: Duration) -> Result<Output, String> {
    let shown = program.display();
    let mut command = Command::new(program);
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command.spawn().map_err(|error| format!("{shown} cannot be run: {error}"))?;
    let (stdout, stderr) = (child.stdout.take().map(read), child.stderr.take().map(read));
    let until = Instant::now() + deadline;
    let answers = [stdout, stderr].map(|answer| match answer {
        Some(answer) => answer.recv_timeout(until.saturating_duration_since(Instant::now())).ok(),
        None => Some(Ok(String::new())),
    });
    if answers.iter().any(Option::is_none)
        && let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw)
    {
        // It may have ended by itself.
        let _ = kill_process_group(group, Signal::KILL);
    }
    let status = child.wait().map_err(|error| format!("{shown} cannot be waited for: {error}"))?;
    let [Some(stdout), Some(stderr)] = answers else {
        return Err(format!("{shown} did not answer within {} s", deadline.as_secs_f32()));
    };
    let unread = |error| format!("{shown} cannot be read from: {error}");
    Ok(Output { stdout: stdout.map_err(unread)?, stderr: stderr.map_err(unread)?, status })
}

/// Reads a stream on a thread of its own.
fn read(stream: impl Read + Send + 'static) -> Receiver<std::io::Result<String>> {
    let (done, answer) = mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = stream.take(LONGEST_ANSWER).read_to_end(&mut bytes);
        // A reader that came too late is not missed.
        let _ = done.send(read.map(|_| String::from_utf8_lossy(&bytes).into_owned()));
    });
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_asked_and_one_that_hangs_is_killed() {
        let sh = Path::new("/bin/sh");
        let said = run(sh, &["-c", "echo one; echo two >&2; exit 3"], Duration::from_secs(20)).unwrap();
        assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("one\n", "two\n"));
        assert_eq!(said.status.code(), Some(3));
        let began = Instant::now();
        let hung = run(sh, &["-c", "sleep 60 & sleep 60"], Duration::from_millis(100));
        assert!(hung.unwrap_err().contains("did not answer within 0.1 s"));
        assert!(began.elapsed() < Duration::from_secs(20));
        let missing = run(Path::new("/nonexistent/program"), &[], Duration::from_secs(1));
        assert!(missing.unwrap_err().contains("/nonexistent/program cannot be run"));
    }

    #[test]
    fn programs_are_found_by_name() {
        assert!(on_path("sh").unwrap().is_file());
        assert_eq!(on_path("no such program"), None);
    }
}
