//! One child process: start, read, write, watch for hangs, kill, reap.
//!
//! The *supervisor* thread starts the child, reads its messages and reaps it. It lives as long as the child, because Linux
//! kills the child when the thread that started it ends. The *writer* thread feeds the child's stdin, and a third thread
//! reads its stderr.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io::{self, Read, Write},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{net::UnixStream, process::CommandExt as _},
    },
    path::PathBuf,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        mpsc::{self, Receiver, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid},
};

use crate::{
    ending::{describe, excerpt},
    lock,
};

/// How many of the last stderr lines an error quotes.
const LAST_LINES: usize = 20;

/// Longer lines of stderr are split, in bytes.
const MAX_STDERR_LINE: usize = 4096;

/// How long a child may take to exit after it closes its stdout, and then to close its stderr.
const GRACE: Duration = Duration::from_secs(2);

/// The shell's program for [`Launch::end_with_parent`]: beside the child, in its group, a shell waits for the end of stdin and
/// kills the group. The child's own stdin is empty.
const GUARD: &str = "exec 3<&0 </dev/null; (while read -r _; do :; done; kill -9 0) <&3 3<&- >/dev/null 2>&1 & exec 3<&-; exec \"$0\" \"$@\"";

/// How to start a child.
#[derive(Debug, Clone)]
pub struct Launch {
    /// What it is called in errors: `the Python process`.
    pub what: &'static str,
    /// The beginning of its threads' names on this side.
    pub thread_name: &'static str,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Variables that it gets besides the parent's own.
    pub environment: Vec<(OsString, OsString)>,
    /// Variables of the parent that it does not get.
    pub hidden_environment: Vec<OsString>,
    /// For a program that does not look at its stdin: it is killed when the [`Handle`] is dropped or the parent has ended, however
    /// that came. A program that reads its stdin, and ends with it, needs no such guard.
    pub end_with_parent: bool,
    /// The longest line that is accepted from its stdout, in bytes.
    pub max_line_bytes: usize,
}

impl Launch {
    fn command(&self) -> Command {
        let mut command = if self.end_with_parent {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", GUARD]).arg(&self.program);
            command
        } else {
            Command::new(&self.program)
        };
        command.args(&self.arguments);
        for name in &self.hidden_environment {
            command.env_remove(name);
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        command
    }
}

/// Receives what the supervisor reads and decides when the child has hung.
pub trait Watcher: Send + Sync + 'static {
    /// Handles one line of stdout, without its newline.
    ///
    /// # Errors
    /// Why the line violates the protocol: the supervisor kills the child.
    fn line(&self, line: &[u8]) -> Result<(), String>;

    /// The next deadline. Read after each line, each [`Handle::wake`] and each deadline that did not kill.
    fn deadline(&self) -> Option<Deadline>;

    /// Takes one line of stderr.
    fn log(&self, line: &str);

    /// The child has ended, for this reason. The last call.
    fn ended(&self, reason: String);
}

/// When the supervisor acts unless the child sends something before.
#[derive(Debug, Clone)]
pub struct Deadline {
    /// When.
    pub at: Instant,
    /// Why it then kills the child; without a reason it only reads the deadline again.
    pub kill: Option<String>,
}

/// The parent's handle on a child. Dropping it closes the child's stdin, and the child exits or is killed.
#[derive(Debug)]
pub struct Handle {
    input: mpsc::Sender<String>,
    wake: UnixStream,
    group: Arc<Group>,
}

impl Handle {
    /// Sends a line; the newline is added. Ignored if the child has ended.
    pub fn send(&self, line: String) {
        // The writer thread ends with the child, and the watcher reports that.
        let _ = self.input.send(line);
    }

    /// Makes the supervisor read the deadline again.
    pub fn wake(&self) {
        // A full buffer has woken it already.
        let _ = (&self.wake).write(&[0]);
    }

    /// Kills the child's process group.
    pub fn kill(&self) {
        self.group.kill();
    }

    /// The child's process id, while it lives.
    #[must_use]
    pub fn id(&self) -> Option<u32> {
        lock(&self.group.pid).and_then(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok())
    }

    /// What can kill the child without keeping it alive.
    #[must_use]
    pub fn killer(&self) -> Killer {
        Killer(self.group.clone())
    }
}

/// Starts a child. A failure to start it reaches the watcher as its end.
///
/// # Errors
/// The system has no thread or socket to spare.
pub fn start(launch: Launch, watcher: Arc<dyn Watcher>) -> io::Result<Handle> {
    let (input, lines) = mpsc::channel();
    let (wake, woken) = UnixStream::pair()?;
    wake.set_nonblocking(true)?;
    woken.set_nonblocking(true)?;
    let group = Arc::new(Group::default());
    let supervisor = Supervisor { launch, watcher, woken, group: group.clone() };
    let name = format!("{} supervisor", supervisor.launch.thread_name);
    thread::Builder::new().name(name).spawn(move || supervisor.run(lines))?;
    Ok(Handle { input, wake, group })
}

/// Kills a child for a reason, which the error about its end gives.
#[derive(Debug, Clone)]
pub struct Killer(Arc<Group>);

impl Killer {
    /// Kills the child's process group. Where it is killed for several reasons, the first stands.
    pub fn kill(&self, reason: &str) {
        lock(&self.0.cause).get_or_insert_with(|| reason.to_owned());
        self.0.kill();
    }
}

/// The child's process group.
#[derive(Debug, Default)]
struct Group {
    /// `None` once the child is reaped, because the id may then be reused.
    pid: Mutex<Option<Pid>>,
    /// Why it was killed from this side.
    cause: Mutex<Option<String>>,
}

impl Group {
    fn kill(&self) {
        if let Some(pid) = *lock(&self.pid) {
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
            Err(error) => format!("{} cannot be run: {error}", self.launch.program.display()),
        };
        self.watcher.ended(reason);
    }

    fn spawn(&self) -> io::Result<Child> {
        // Holds the lock while spawning, so that a concurrent `kill` waits for the new process id.
        let mut group = lock(&self.group.pid);
        let child = self.launch.command().spawn()?;
        *group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        Ok(child)
    }

    /// Serves the child until it ends and returns why it ended.
    fn keep(&self, mut child: Child, lines: Receiver<String>) -> String {
        let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let named = |what: &str| thread::Builder::new().name(format!("{} {what}", self.launch.thread_name));
        let last_lines = Arc::new(Mutex::new(VecDeque::new()));
        let (stderr_ended, stderr_end) = mpsc::channel();
        let (words, watcher) = (last_lines.clone(), self.watcher.clone());
        let started =
            named("writer").spawn(move || stdin.map(|stdin| write_lines(stdin, &lines))).and_then(|_| {
                named("stderr").spawn(move || {
                    if let Some(stderr) = stderr {
                        read_stderr(stderr, &words, &*watcher);
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
        let cause = cause.or_else(|| lock(&self.group.cause).clone());
        let status = self.reap(child);
        // A grandchild that left the process group may keep stderr open.
        if stderr_end.recv_timeout(GRACE) == Err(RecvTimeoutError::Timeout) {
            tracing::debug!("the child's stderr is still open");
        }
        let last_lines = lock(&last_lines).iter().cloned().collect::<Vec<_>>();
        describe(self.launch.what, cause, status, &last_lines)
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
        let passed = |deadline: &Option<Deadline>| deadline.as_ref().is_some_and(|d| Instant::now() >= d.at);
        if readable || !passed(&deadline) {
            return Ok(readable);
        }
        // It may have been put off since it was read.
        let deadline = abandoned.clone().or_else(|| self.watcher.deadline());
        match deadline {
            Some(Deadline { at, kill: Some(reason) }) if Instant::now() >= at => Err(reason),
            _ => Ok(false),
        }
    }

    /// Waits for the child to exit, kills its process group and reaps it.
    fn reap(&self, mut child: Child) -> io::Result<ExitStatus> {
        let began = Instant::now();
        if let Some(pid) = *lock(&self.group.pid) {
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
        lock(&self.group.pid).take();
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

fn read_stderr(mut stderr: impl Read, last: &Mutex<VecDeque<String>>, watcher: &dyn Watcher) {
    let mut line = Vec::new();
    let mut chunk = [0; 4096];
    let keep = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line).trim_end().to_owned();
        line.clear();
        if text.is_empty() {
            return;
        }
        watcher.log(&text);
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::Sender;

    use super::*;

    /// Sends on what it is told.
    #[derive(Debug)]
    struct Told(Mutex<Sender<String>>, Option<Duration>);

    impl Watcher for Told {
        fn line(&self, line: &[u8]) -> Result<(), String> {
            let text = String::from_utf8_lossy(line).into_owned();
            let refused = text == "nonsense";
            lock(&self.0).send(text).unwrap();
            if refused { Err("it spoke nonsense".to_owned()) } else { Ok(()) }
        }

        fn deadline(&self) -> Option<Deadline> {
            self.1.map(|after| Deadline { at: Instant::now() + after, kill: Some("it was slow".to_owned()) })
        }

        fn log(&self, _line: &str) {}

        fn ended(&self, reason: String) {
            lock(&self.0).send(format!("ended: {reason}")).unwrap();
        }
    }

    fn launch(script: &str, end_with_parent: bool) -> Launch {
        Launch {
            what: "the test",
            thread_name: "test",
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("GIVEN".into(), "given".into())],
            hidden_environment: vec!["HOME".into()],
            end_with_parent,
            max_line_bytes: 64,
        }
    }

    fn started(script: &str, end_with_parent: bool) -> (Handle, Receiver<String>) {
        let (sender, told) = mpsc::channel();
        let handle =
            start(launch(script, end_with_parent), Arc::new(Told(Mutex::new(sender), None))).unwrap();
        (handle, told)
    }

    #[test]
    fn a_child_says_why_it_ended() {
        for guarded in [false, true] {
            let (_handle, told) = started("echo $GIVEN$HOME; echo why >&2; exit 7", guarded);
            assert_eq!(told.recv().unwrap(), "given");
            assert_eq!(
                told.recv().unwrap(),
                "ended: the test exited with code 7; its last lines on stderr:\nwhy"
            );
        }
        let (_handle, told) = started("echo nonsense; sleep 60", false);
        assert_eq!(told.iter().last().unwrap(), "ended: the test was killed: it spoke nonsense");
    }

    #[test]
    fn a_child_that_does_not_read_ends_when_the_handle_is_dropped() {
        // It has no stdin that could tell it, and neither has what it has started.
        let (handle, told) = started("echo $$; read line; sleep 60 & sleep 60", true);
        let id: u32 = told.recv().unwrap().parse().unwrap();
        assert_eq!(handle.id(), Some(id));
        drop(handle);
        assert!(told.recv().unwrap().contains("killed by signal 9"), "the group is gone");
    }

    #[test]
    fn a_killed_child_is_reaped() {
        let (handle, told) = started("sleep 60", true);
        while handle.id().is_none() {
            thread::yield_now();
        }
        let killer = handle.killer();
        killer.kill("the test wants it");
        killer.kill("too late");
        assert_eq!(told.recv().unwrap(), "ended: the test was killed: the test wants it");
        assert_eq!(handle.id(), None);
    }
}
