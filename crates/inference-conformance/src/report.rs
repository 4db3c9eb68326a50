//! What a run of the kit found.

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Serialize, Serializer};

/// The outcome of every clause, in the kit's order.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The backend's id.
    pub backend: String,
    /// The engine, its version and device, as far as the backend could be opened.
    pub engine: String,
    /// The model's folder.
    pub model: PathBuf,
    /// The clauses.
    pub clauses: Vec<ClauseReport>,
    /// Expected failures that name no clause of the kit.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unknown: Vec<String>,
}

/// What became of one clause.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ClauseReport {
    /// The clause's path.
    pub name: &'static str,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// How long it took.
    #[serde(serialize_with = "seconds", rename = "seconds")]
    pub took: Duration,
}

/// How a clause ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
#[non_exhaustive]
pub enum Outcome {
    /// The promise is kept.
    Passed,
    /// The backend lacks what the clause needs, and refuses it as it has to.
    Refused {
        /// What it lacks, by name.
        lacking: Vec<&'static str>,
    },
    /// The subject gives the clause nothing to judge.
    Inconclusive {
        /// What would.
        reason: String,
    },
    /// The promise is broken.
    Failed {
        /// What was found.
        found: String,
    },
    /// The promise is broken, as was expected.
    #[serde(rename = "xfail")]
    XFail {
        /// Why it was expected.
        reason: String,
        /// What was found.
        found: String,
    },
    /// The promise was expected to be broken, and is not.
    #[serde(rename = "xpass")]
    XPass {
        /// Why a failure was expected.
        reason: String,
    },
}

impl Outcome {
    /// Whether the run fails for it.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        match self {
            Self::Failed { .. } | Self::XPass { .. } => true,
            Self::Passed | Self::Refused { .. } | Self::Inconclusive { .. } | Self::XFail { .. } => false,
        }
    }
}

impl Report {
    /// Whether every clause is kept, refused as it has to be, or fails as expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures().next().is_none() && self.unknown.is_empty()
    }

    /// The clauses for which the run fails.
    pub fn failures(&self) -> impl Iterator<Item = &ClauseReport> {
        self.clauses.iter().filter(|clause| clause.outcome.is_failure())
    }

    /// The outcome of a clause, by its path.
    #[must_use]
    pub fn outcome(&self, name: &str) -> Option<&Outcome> {
        self.clauses.iter().find(|clause| clause.name == name).map(|clause| &clause.outcome)
    }

    /// Ends the test unless the run passed.
    ///
    /// # Panics
    /// With every failure, every expected failure that passed, and every expectation that names no clause.
    pub fn assert_passed(&self) {
        if self.passed() {
            return;
        }
        let mut message = format!("{} does not keep the contract on {}:", self.backend, self.model.display());
        for clause in self.failures() {
            message.push_str(&format!("\n  {clause}"));
        }
        for name in &self.unknown {
            message.push_str(&format!("\n  {name}: expected to fail, and no clause of the kit"));
        }
        panic!("{message}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({}) on {}", self.backend, self.engine, self.model.display())?;
        let mut theme = "";
        for clause in &self.clauses {
            let (of, name) = clause.name.split_once("::").unwrap_or(("", clause.name));
            if of != theme {
                theme = of;
                writeln!(f, "\n{theme}")?;
            }
            writeln!(f, "  {name:<46} {:>7.3} s  {}", clause.took.as_secs_f64(), clause.outcome)?;
        }
        for name in &self.unknown {
            writeln!(f, "\n{name}: expected to fail, and no clause of the kit")?;
        }
        let count = |is: fn(&Outcome) -> bool| self.clauses.iter().filter(|c| is(&c.outcome)).count();
        write!(
            f,
            "\n{} clauses: {} passed, {} refused, {} inconclusive, {} xfail, {} failed",
            self.clauses.len(),
            count(|o| matches!(o, Outcome::Passed)),
            count(|o| matches!(o, Outcome::Refused { .. })),
            count(|o| matches!(o, Outcome::Inconclusive { .. })),
            count(|o| matches!(o, Outcome::XFail { .. })),
            count(Outcome::is_failure) + self.unknown.len(),
        )
    }
}

impl fmt::Display for ClauseReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.outcome)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passed => f.write_str("passed"),
            Self::Refused { lacking } => write!(f, "refused: lacks {}", lacking.join(", ")),
            Self::Inconclusive { reason } => write!(f, "inconclusive: {reason}"),
            Self::Failed { found } => write!(f, "FAILED: {found}"),
            Self::XFail { reason, found } => {
                write!(f, "xfail ({reason}): {found}")
            }
            Self::XPass { reason } => {
                write!(f, "XPASS: expected to fail ({reason}): remove the expectation")
            }
        }
    }
}

fn seconds<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(duration.as_secs_f64())
}
