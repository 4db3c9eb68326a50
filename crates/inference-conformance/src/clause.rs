//! What a clause is, and what it may answer.

use std::{error::Error as _, fmt};

use futures::future::BoxFuture;
use inference_core::{Error, Feature};

use crate::Subject;

/// What a clause answers: nothing where the promise is kept.
pub type ClauseResult = Result<(), Failure>;

/// Why a clause is not simply kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The promise is broken: what was found, and what was expected.
    Broken(String),
    /// This subject gives the clause nothing to judge; the reason says what would.
    Inconclusive(String),
}

impl Failure {
    /// A broken promise.
    pub fn broken(found: impl Into<String>) -> Self {
        Self::Broken(found.into())
    }

    /// Nothing to judge.
    pub fn inconclusive(reason: impl Into<String>) -> Self {
        Self::Inconclusive(reason.into())
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let mut found = format!("{error}");
        let mut cause = error.source();
        while let Some(source) = cause {
            found.push_str(&format!(": {source}"));
            cause = source.source();
        }
        Self::Broken(found)
    }
}

/// One promise of the contract, and the features without which it cannot be asked.
#[derive(Clone, Copy)]
pub struct Clause {
    /// Its path: `cancelling::during_decode`.
    pub name: &'static str,
    /// A backend that lacks one of these has to refuse it instead.
    pub needs: &'static [Feature],
    pub(crate) run: for<'a> fn(&'a Subject) -> BoxFuture<'a, ClauseResult>,
}

impl fmt::Debug for Clause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clause").field("name", &self.name).field("needs", &self.needs).finish_non_exhaustive()
    }
}

/// The table of a module's clauses: `clauses!("theme": name [Feature, …], …)`.
macro_rules! clauses {
    ($theme:literal: $($name:ident [$($feature:ident)*],)+) => {
        /// This module's clauses.
        pub(crate) const CLAUSES: &[crate::Clause] = &[$(crate::Clause {
            name: concat!($theme, "::", stringify!($name)),
            needs: &[$(inference_core::Feature::$feature),*],
            run: |subject| Box::pin($name(subject)),
        }),+];
    };
}

/// Fails the clause unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($found:tt)+) => {{
        // Bound first: a comparison with NaN has to fail, whichever way it is written.
        let holds: bool = $condition;
        if !holds {
            return Err(crate::Failure::broken(format!($($found)+)));
        }
    }};
}

pub(crate) use {clauses, ensure};
