//! One child process: start, read, write, watch for hangs, kill, reap.
//!
//! The *supervisor* thread starts the child, reads its messages and reaps it. It lives as long as the child, because Linux
//! kills the child when the thread that started it ends. The *writer* thread feeds the child's stdin, and a third thread
//! reads its stderr.

use std::{
    collections::VecDeque,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            net::UnixStream,
            process::{CommandExt as _, ExitStatusExt as _},
        },
    },
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};

/// The child's program. It travels in an environment variable, so that the command line in `ps` stays short.
const PROGRAM: &str = include_str!("../python/child.py");

/// The variable that holds [`PROGRAM`]; the child removes it before anything else runs.
const PROGRAM_VARIABLE: &str = "INFERENCE_MLX_LM_CHILD";

/// The command line's program: runs [`PROGRAM`].
const BOOTSTRAP: &str =
    "import os; exec(compile(os.environ.pop('INFERENCE_MLX_LM_CHILD'), 'mlx_lm_child.py', 'exec'))";

/// How many of the last stderr lines an error quotes.
const LAST_LINES: usize = 20;

/// Longer lines of stderr are split, in bytes.
const MAX_STDERR_LINE: usize = 4096;

/// How long a child may take to exit after it closes its stdout, and then to close its stderr.
const GRACE: Duration = Duration::from_secs(2);

/// How to start a child.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) python: std::path::PathBuf,
    pub(crate) environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    pub(crate) max_line_bytes: usize,
}

/// Receives what the supervisor reads and decides when the child has hung.
pub(crate) trait Watcher: Send + Sync + 'static {
    /// Handles one line, without its newline. An error is a protocol violation: the supervisor kills the child.
    fn line(&self, line: &[u8]) -> Result<(), String>;

    /// The next deadline. Read after each line, each [`Handle::wake`] and each deadline that did not kill.
    fn deadline(&self) -> Option<Deadline>;

    /// The child has ended, for this reason. The last call.
    fn ended(&self, reason: String);
}

/// When the supervisor acts unless the child sends something before.
#[derive(Debug, Clone)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    /// Why it then kills the child; without a reason it only reads the deadline again.
    pub(crate) kill: Option<String>,
}

/// The parent's handle on a child. Dropping it closes the child's stdin, and the child exits.
#[derive(Debug)]
pub(crate) struct Handle {
    input: mpsc::Sender<String>,
    wake: UnixStream,
    group: Arc<Group>,
}

impl Handle {
    /// Sends a line; the newline is added. Ignored if the child has ended.
    pub(crate) fn send(&self, line: String) {
        // The writer thread ends with the child, and the watcher reports that.
        let _ = self.input.send(line);
    }

    /// Makes the supervisor read the deadline again.
    pub(crate) fn wake(&self) {
        // A full buffer has woken it already.
        let _ = (&self.wake).write(&[0]);
    }

    /// Kills the child's process group.
    pub(crate) fn kill(&self) {
        self.group.kill();
    }
}

/// Starts a child. A failure to start it reaches the watcher as its end.
pub(crate) fn start(launch: Launch, watcher: Arc<dyn Watcher>) -> io::Result<Handle> {
    let (input, lines) = mpsc::channel();
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let group = Arc::new(Group::default());
    let supervisor = Supervisor { launch, watcher, woken, group: group.clone() };
    thread::Builder::new().name("mlx_lm supervisor".to_owned()).spawn(move || supervisor.run(lines))?;
    Ok(Handle { input, wake, group })
}

/// The child's process group. Empty once the child is reaped, because the id may then be reused.
#[derive(Debug, Default)]
struct Group(Mutex<Option<Pid>>);

impl Group {
    fn kill(&self) {
        if let Some(pid) = *lock(&self.0) {
            // It may have ended already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

struct Supervisor {
    launch: Launch,
    watcher: Arc<dyn Watcher>,
    woken: UnixStream,
    group: Arc<Group>,
}

impl Supervisor {
    fn run(self, lines: Receiver<String>) {
        let reason = match self.spawn() {
            Ok(child) => self.keep(child, lines),
            Err(error) => format!("{} cannot be run: {error}", self.launch.python.display()),
        };
        self.watcher.ended(reason);
    }

    fn spawn(&self) -> io::Result<Child> {
        // Holds the lock while spawning, so that a concurrent `kill` waits for the new process id.
        let mut group = lock(&self.group.0);
        let child = Command::new(&self.launch.python)
            .args(["-u", "-c", BOOTSTRAP])
            .envs(self.launch.environment.iter().map(|(name, value)| (name, value)))
            .env(PROGRAM_VARIABLE, PROGRAM)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        *group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(child)
    }

    /// Serves the child until it ends and returns why it ended.
    fn keep(&self, mut child: Child, lines: Receiver<String>) -> String {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let writer = thread::Builder::new().name("mlx_lm writer".to_owned());
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let (stderr_ended, stderr_end) = mpsc::channel();
        let words = last_lines.clone();
        let started = writer.spawn(move || stdin.map(|stdin| write_lines(stdin, &lines))).and_then(|_| {
            thread::Builder::new().name("mlx_lm stderr".to_owned()).spawn(move || {
                if let Some(stderr) = stderr {
                    read_stderr(stderr, &words);
                }
                // The supervisor may no longer wait.
                let _ = stderr_ended.send(());
            })
        });
        let cause = match (started, stdout) {
            (Ok(_), Some(stdout)) => self.read(stdout).err(),
            (Err(error), _) => Some(format!("cannot start a thread: {error}")),
            (Ok(_), None) => Some("it has no stdout".to_owned()),
        };
        if cause.is_some() {
            self.group.kill();
        }
        let status = self.reap(child);
        // A grandchild that left the process group may keep stderr open.
        if stderr_end.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
            tracing::debug!("the child's stderr is still open");
        }
        let last_lines = lock(&last_lines).iter().cloned().collect::<Vec<_>>();
        describe(cause, status, &last_lines)
    }

    /// Reads messages until the child closes its stdout. An error is the reason to kill the child.
    fn read(&self, mut stdout: impl Read + AsFd) -> Result<(), String> {
        let mut buffer = Vec::new();
        let mut chunk = vec![0; 64 << 10];
        let mut abandoned = None;
        loop {
            if !self.wait(stdout.as_fd(), &mut abandoned)? {
                continue;
            }
            let count = match stdout.read(&mut chunk) {
                Ok(0) if buffer.is_empty() => return Ok(()),
                Ok(0) => return Err(format!("it exited in the middle of a line: {}", excerpt(&buffer))),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("reading its stdout failed: {error}")),
            };
            let mut rest = &chunk[..count];
            while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                let (line, after) = rest.split_at(end);
                rest = &after[1..];
                if buffer.is_empty() {
                    self.watcher.line(line)?;
                } else {
                    buffer.extend_from_slice(line);
                    self.watcher.line(&buffer)?;
                    buffer.clear();
                }
            }
            buffer.extend_from_slice(rest);
            if buffer.len() > self.launch.max_line_bytes {
                return Err(format!(
                    "it sent a line of more than {} bytes: {}",
                    self.launch.max_line_bytes,
                    excerpt(&buffer)
                ));
            }
        }
    }

    /// Waits until stdout is readable. Returns false if the deadline has to be read again, and the reason to kill the child
    /// once the deadline has passed. `abandoned` is set when the handle is dropped: the child must then exit soon.
    fn wait(&self, stdout: BorrowedFd<'_>, abandoned: &mut Option<Deadline>) -> Result<bool, String> {
        let deadline = abandoned.clone().or_else(|| self.watcher.deadline());
        let timeout = deadline.as_ref().map(|deadline| deadline.at.saturating_duration_since(Instant::now()));
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut fds = vec![PollFd::new(&stdout, PollFlags::IN)];
        if abandoned.is_none() {
            fds.push(PollFd::new(&self.woken, PollFlags::IN));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(format!("waiting for its stdout failed: {error}")),
        }
        let readable = !fds[0].revents().is_empty();
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty())
            && matches!((&self.woken).read(&mut [0; 64]), Ok(0))
        {
            let reason = "it did not exit after its stdin was closed".to_owned();
            *abandoned = Some(Deadline { at: Instant::now() + GRACE, kill: Some(reason) });
            return Ok(readable);
        }
        match deadline {
            Some(Deadline { at, kill: Some(reason) }) if !readable && Instant::now() >= at => Err(reason),
            _ => Ok(readable),
        }
    }

    /// Waits for the child to exit, kills its process group and reaps it.
    fn reap(&self, mut child: Child) -> io::Result<ExitStatus> {
        let began = Instant::now();
        if let Some(pid) = *lock(&self.group.0) {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
            while began.elapsed() < GRACE {
                match waitid(WaitId::Pid(pid), options | WaitIdOptions::NOHANG) {
                    Ok(None) => thread::park_timeout(Duration::from_millis(1)),
                    Ok(Some(_)) | Err(_) => break,
                }
            }
        }
        // Until the child is reaped, no other group can have this id.
        self.group.kill();
        lock(&self.group.0).take();
        child.wait()
    }
}

fn write_lines(mut stdin: ChildStdin, lines: &Receiver<String>) {
    while let Ok(mut line) = lines.recv() {
        line.push('\n');
        if stdin.write_all(line.as_bytes()).is_err() {
            return;
        }
    }
}

fn read_stderr(mut stderr: impl Read, last: &Mutex<VecDeque<String>>) {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    let keep = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            return;
        }
        tracing::debug!(target: "backend_mlxlm::child", "{text}");
        let mut last = lock(last);
        if last.len() == LAST_LINES {
            last.pop_front();
        }
        last.push_back(text);
    };
    while let Ok(count @ 1..) = stderr.read(&mut chunk) {
        for byte in &chunk[..count] {
            if *byte == b'\n' || line.len() == MAX_STDERR_LINE {
                keep(&mut line);
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    }
    keep(&mut line);
}

/// Describes how a child ended.
fn describe(cause: Option<String>, status: io::Result<ExitStatus>, last_lines: &[String]) -> String {
    let how = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("the Python process exited with code {code}"),
            (None, Some(signal)) => format!("the Python process was killed by {}", signal_name(signal)),
            (None, None) => format!("the Python process ended: {status}"),
        },
        Err(error) => format!("the Python process cannot be waited for: {error}"),
    };
    let mut text = match cause {
        Some(cause) => format!("the Python process was killed: {cause}"),
        None => how,
    };
    if !last_lines.is_empty() {
        text.push_str("; its last lines on stderr:\n");
        text.push_str(&last_lines.join("\n"));
    }
    text
}

fn signal_name(signal: i32) -> String {
    let name = match signal {
        number::ILL => "SIGILL",
        number::ABRT => "SIGABRT",
        number::BUS => "SIGBUS",
        number::FPE => "SIGFPE",
        number::KILL => "SIGKILL, as the system does when memory runs out",
        number::SEGV => "SIGSEGV",
        number::TERM => "SIGTERM",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}

/// Signal numbers, which differ between systems.
mod number {
    use rustix::process::Signal;

    pub(super) const ILL: i32 = Signal::ILL.as_raw();
    pub(super) const ABRT: i32 = Signal::ABORT.as_raw();
    pub(super) const BUS: i32 = Signal::BUS.as_raw();
    pub(super) const FPE: i32 = Signal::FPE.as_raw();
    pub(super) const KILL: i32 = Signal::KILL.as_raw();
    pub(super) const SEGV: i32 = Signal::SEGV.as_raw();
    pub(super) const TERM: i32 = Signal::TERM.as_raw();
}

/// The first bytes of a received line, for an error message.
pub(crate) fn excerpt(line: &[u8]) -> String {
    const LONGEST: usize = 120;
    let text = String::from_utf8_lossy(&line[..line.len().min(LONGEST)]);
    let more = if line.len() > LONGEST { "…" } else { "" };
    format!("{text:?}{more}")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
