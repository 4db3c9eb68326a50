//! One child process: started, read, written to, watched and buried.
//!
//! A *keeper* thread starts the child, reads its messages and reaps it; it lives as long as the child, because Linux kills
//! the child when the thread that started it ends. A *writer* thread feeds the child's stdin, a third one reads its stderr.

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

/// The child's program.
const PROGRAM: &str = include_str!("../python/child.py");

/// Lines of the child's stderr that are kept for the error that tells of its end.
const LAST_LINES: usize = 20;

/// The longest line of stderr that is kept whole, in bytes.
const LONGEST_STDERR_LINE: usize = 4096;

/// How long a child may take to end after it closed its stdout, and what is left of its stderr after that.
const GRACE: Duration = Duration::from_secs(2);

/// How a child is started.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) python: std::path::PathBuf,
    pub(crate) environment: Vec<(std::ffi::OsString, std::ffi::OsString)>,
    pub(crate) longest_line: usize,
}

/// What the keeper tells of.
pub(crate) trait Watcher: Send + Sync + 'static {
    /// A line, without its end. An error is a breach of the protocol, for which the child is killed.
    fn line(&self, line: &[u8]) -> Result<(), String>;

    /// Until when the child must have said something, or why it is to be killed now; asked after each line and each
    /// [`Handle::wake`].
    fn deadline(&self) -> Option<Deadline>;

    /// The child is gone, and why. The last call.
    fn ended(&self, reason: String);
}

/// A time at which a silent child is killed.
#[derive(Debug, Clone)]
pub(crate) struct Deadline {
    pub(crate) at: Instant,
    pub(crate) reason: String,
}

/// The parent's hold on a child. Dropping it ends the child's input, on which the child ends.
#[derive(Debug)]
pub(crate) struct Handle {
    input: mpsc::Sender<String>,
    wake: UnixStream,
    group: Arc<Group>,
}

impl Handle {
    /// Sends a line, to which the end is added. A child that is gone takes no notice.
    pub(crate) fn send(&self, line: String) {
        // The writer ends with the child; its end is told by the watcher.
        let _ = self.input.send(line);
    }

    /// Makes the keeper ask for the deadline.
    pub(crate) fn wake(&self) {
        // A full buffer wakes as well.
        let _ = (&self.wake).write(&[0]);
    }

    /// Kills the child and all that it started.
    pub(crate) fn kill(&self) {
        self.group.kill();
    }
}

/// Starts a child; the watcher learns of what becomes of it, also if that fails.
pub(crate) fn start(launch: Launch, watcher: Arc<dyn Watcher>) -> io::Result<Handle> {
    let (input, lines) = mpsc::channel();
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let group = Arc::new(Group::default());
    let keeper = Keeper { launch, watcher, woken, group: group.clone() };
    thread::Builder::new().name("mlx_lm keeper".to_owned()).spawn(move || keeper.run(lines))?;
    Ok(Handle { input, wake, group })
}

/// The child's process group, as long as its id belongs to it.
#[derive(Debug, Default)]
struct Group(Mutex<Option<Pid>>);

impl Group {
    fn kill(&self) {
        if let Some(pid) = *lock(&self.0) {
            // It may be gone already.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

struct Keeper {
    launch: Launch,
    watcher: Arc<dyn Watcher>,
    woken: UnixStream,
    group: Arc<Group>,
}

impl Keeper {
    fn run(self, lines: Receiver<String>) {
        let reason = match self.spawn() {
            Ok(child) => self.keep(child, lines),
            Err(error) => format!("{} cannot be run: {error}", self.launch.python.display()),
        };
        self.watcher.ended(reason);
    }

    fn spawn(&self) -> io::Result<Child> {
        // Under the lock nobody can miss the child that is about to be.
        let mut group = lock(&self.group.0);
        let child = Command::new(&self.launch.python)
            .args(["-u", "-c", PROGRAM])
            .envs(self.launch.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        *group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(child)
    }

    /// Serves the child to its end; why it ended.
    fn keep(&self, mut child: Child, lines: Receiver<String>) -> String {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let writer = thread::Builder::new().name("mlx_lm writer".to_owned());
        let last_words = Arc::new(Mutex::new(VecDeque::new()));
        let (stderr_ended, stderr_end) = mpsc::channel();
        let words = last_words.clone();
        let started = writer.spawn(move || stdin.map(|stdin| write_lines(stdin, &lines))).and_then(|_| {
            thread::Builder::new().name("mlx_lm stderr".to_owned()).spawn(move || {
                if let Some(stderr) = stderr {
                    read_stderr(stderr, &words);
                }
                // The keeper may have stopped waiting.
                let _ = stderr_ended.send(());
            })
        });
        let cause = match (started, stdout) {
            (Ok(_), Some(stdout)) => self.read(stdout).err(),
            (Err(error), _) => Some(format!("a thread could not be started: {error}")),
            (Ok(_), None) => Some("it has no stdout".to_owned()),
        };
        if cause.is_some() {
            self.group.kill();
        }
        let status = self.bury(child);
        // A grandchild that left the group may hold stderr open for ever.
        if stderr_end.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
            tracing::debug!("the child's stderr is still open");
        }
        let last_words = lock(&last_words).iter().cloned().collect::<Vec<_>>();
        describe(cause, status, &last_words)
    }

    /// Reads messages until the child closes its stdout; the reason to kill it before that.
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
                Ok(0) => return Err(format!("it ended within a line: {}", excerpt(&buffer))),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(format!("it cannot be read from: {error}")),
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
            if buffer.len() > self.launch.longest_line {
                return Err(format!(
                    "it sent a line of more than {} bytes: {}",
                    self.launch.longest_line,
                    excerpt(&buffer)
                ));
            }
        }
    }

    /// Waits until there is something to read; false: ask again. The reason where the deadline has passed. A child whose handle
    /// was dropped is `abandoned` and has to end soon: its input has ended.
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
            Err(error) => return Err(format!("it cannot be waited for: {error}")),
        }
        let readable = !fds[0].revents().is_empty();
        if fds.get(1).is_some_and(|fd| !fd.revents().is_empty())
            && matches!((&self.woken).read(&mut [0; 64]), Ok(0))
        {
            let reason = "nobody needs it any more".to_owned();
            *abandoned = Some(Deadline { at: Instant::now() + GRACE, reason });
            return Ok(readable);
        }
        match deadline {
            Some(Deadline { at, reason }) if !readable && Instant::now() >= at => Err(reason),
            _ => Ok(readable),
        }
    }

    /// Waits for the child's end and makes sure that nothing of it stays behind.
    fn bury(&self, mut child: Child) -> io::Result<ExitStatus> {
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
        // As long as the child is not reaped, the group's id is its own.
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
            if *byte == b'\n' || line.len() == LONGEST_STDERR_LINE {
                keep(&mut line);
            }
            if *byte != b'\n' {
                line.push(*byte);
            }
        }
    }
    keep(&mut line);
}

/// The last that is known of a child.
fn describe(cause: Option<String>, status: io::Result<ExitStatus>, last_words: &[String]) -> String {
    let how = match status {
        Ok(status) => match (status.code(), status.signal()) {
            (Some(code), _) => format!("the Python process exited with code {code}"),
            (None, Some(signal)) => format!("the Python process was killed by {}", signal_name(signal)),
            (None, None) => format!("the Python process ended: {status}"),
        },
        Err(error) => format!("the Python process is gone: {error}"),
    };
    let mut text = match cause {
        Some(cause) => format!("the Python process was ended: {cause}"),
        None => how,
    };
    if !last_words.is_empty() {
        text.push_str("; its last words:\n");
        text.push_str(&last_words.join("\n"));
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

/// Numbers of signals, which differ between systems.
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

/// The beginning of what was received, for an error.
pub(crate) fn excerpt(line: &[u8]) -> String {
    const LONGEST: usize = 120;
    let text = String::from_utf8_lossy(&line[..line.len().min(LONGEST)]);
    let more = if line.len() > LONGEST { "…" } else { "" };
    format!("{text:?}{more}")
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
