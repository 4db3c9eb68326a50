//! Ctrl-C, SIGTERM and SIGHUP: the first ends what is running in good order, the second ends the program.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::Context as _;
use inference::CancellationToken;

use crate::{failure::INTERRUPTED, render};

/// Work that ends within this time after Ctrl-C needs no word.
const PATIENCE: Duration = Duration::from_secs(3);

/// What a signal cancels; `None` where it ends the program.
static RUNNING: Mutex<Option<CancellationToken>> = Mutex::new(None);

/// Work that Ctrl-C cancels for as long as this value lives.
#[derive(Debug)]
#[must_use = "Ctrl-C ends the program as soon as the scope is dropped"]
pub(crate) struct Scope {
    token: CancellationToken,
}

impl Scope {
    /// From now on Ctrl-C cancels [`token`](Self::token), and ends the program only when pressed again.
    pub(crate) fn enter() -> Self {
        let token = CancellationToken::new();
        *running() = Some(token.clone());
        Self { token }
    }

    /// What Ctrl-C cancels.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Whether Ctrl-C was pressed.
    pub(crate) fn interrupted(&self) -> bool {
        self.token.is_cancelled()
    }
}

impl Drop for Scope {
    fn drop(&mut self) {
        *running() = None;
    }
}

/// Takes over SIGINT, SIGTERM and, unless it is ignored, SIGHUP.
pub(crate) fn install() -> anyhow::Result<()> {
    #[cfg(unix)]
    let ignored = hangup_is_ignored();
    ctrlc::set_handler(|| match &*running() {
        Some(token) if !token.is_cancelled() => {
            token.cancel();
            std::thread::spawn(remind);
        }
        _ => end_at_once(),
    })
    .context("cannot take over Ctrl-C")?;
    #[cfg(unix)]
    if ignored {
        // Under `nohup` the program goes on when its terminal closes.
        // SAFETY: ignoring a signal has no handler that could run.
        unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
    }
    Ok(())
}

/// Says how to end the program, if the work that was cancelled takes long to end.
fn remind() {
    std::thread::sleep(PATIENCE);
    // A later scope has a token of its own.
    if running().as_ref().is_some_and(CancellationToken::is_cancelled) {
        render::tell("ending what is under way; Ctrl-C again ends the program at once\n");
    }
}

#[cfg(unix)]
fn hangup_is_ignored() -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: without a new action the call only writes the present one to `action`, which is large enough; zeros are a valid value.
    unsafe {
        libc::sigaction(libc::SIGHUP, std::ptr::null(), action.as_mut_ptr()) == 0
            && action.assume_init().sa_sigaction == libc::SIG_IGN
    }
}

fn end_at_once() -> ! {
    // An engine's threads are at work: the destructors that `exit` runs would pull its library from under them.
    // SAFETY: `_exit` takes any status and touches no memory of this process.
    #[cfg(unix)]
    unsafe {
        libc::_exit(i32::from(INTERRUPTED))
    }
    #[cfg(not(unix))]
    std::process::exit(i32::from(INTERRUPTED))
}

fn running() -> MutexGuard<'static, Option<CancellationToken>> {
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}
