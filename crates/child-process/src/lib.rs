//! What backends share that run their engine in a child process: finding a program and asking what it is
//! ([`on_path`], [`run`]), starting it in a process group of its own and watching it ([`start`], [`Watcher`]), killing it, saying
//! why it ended, and starting it again ([`Keeper`]).
//!
//! Nothing here knows what the child computes or how it is spoken to. Needs Unix.
#![forbid(unsafe_code)]

mod ending;
mod keeper;
mod program;
mod supervisor;

pub use ending::excerpt;
pub use keeper::{Child, Keeper, KillOnDrop};
pub use program::{Output, on_path, run};
pub use supervisor::{Deadline, Handle, Killer, Launch, Watcher, start};

use std::sync::{Mutex, MutexGuard, PoisonError};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
