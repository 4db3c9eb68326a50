//! What the backends say of a model.

use std::fmt;

use serde::Serialize;

use crate::printable::Printable;

/// What one backend has to say about one model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Verdict {
    /// The backend's id.
    pub backend: String,
    /// Its priority.
    pub priority: i32,
    /// Whether it could run the model.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Whether a backend could run a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "reason")]
#[non_exhaustive]
pub enum Outcome {
    /// It can.
    Usable,
    /// It can, and does so only when it is named: its priority is negative.
    OnlyWhenNamed,
    /// It does not run on this machine.
    Unavailable(String),
    /// It does not run this model.
    Unsupported(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.backend)?;
        match &self.outcome {
            Outcome::Usable => f.write_str("usable"),
            Outcome::OnlyWhenNamed => f.write_str("usable, only when it is named"),
            Outcome::Unavailable(reason) => write!(f, "not available here: {}", Printable(reason)),
            Outcome::Unsupported(reason) => write!(f, "does not support this model: {}", Printable(reason)),
        }
    }
}
