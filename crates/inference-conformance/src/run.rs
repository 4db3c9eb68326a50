//! Running the clauses, each on a thread of its own.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc::{self, RecvTimeoutError},
    time::Instant,
};

use futures::executor::block_on;
use inference_core::Feature;

use crate::{Clause, ClauseReport, ClauseResult, Failure, Outcome, Report, Subject, clauses, refusal};

/// Every clause of the kit, in its order.
pub fn all_clauses() -> impl Iterator<Item = &'static Clause> {
    clauses::ALL.iter().flat_map(|clauses| clauses.iter())
}

/// Runs every clause. Blocks until all have ended or run past their deadline; needs no async runtime.
#[must_use]
pub fn run(subject: &Subject) -> Report {
    run_matching(subject, "")
}

/// Runs the clauses whose path contains `part`: a theme (`cancelling`), or one clause.
#[must_use]
pub fn run_matching(subject: &Subject, part: &str) -> Report {
    let mut subject = subject.clone();
    let engine = match subject.backend() {
        Ok(backend) => format!("{}, {}", backend.info().version, backend.info().device),
        Err(error) => error.to_string(),
    };
    let mut reports = Vec::new();
    for clause in all_clauses().filter(|clause| clause.name.contains(part)) {
        let began = Instant::now();
        let (outcome, hung) = run_one(&subject, clause);
        let outcome = match subject.expected.get(clause.name) {
            Some(reason) => expected(outcome, reason.clone()),
            None => outcome,
        };
        reports.push(ClauseReport { name: clause.name, outcome, took: began.elapsed() });
        if hung {
            subject = subject.without_model();
        }
    }
    let unknown = |name: &&String| !all_clauses().any(|clause| clause.name == name.as_str());
    Report {
        backend: subject.descriptor().id.to_owned(),
        engine,
        model: subject.folder().to_owned(),
        clauses: reports,
        unknown: subject.expected.keys().filter(unknown).cloned().collect(),
    }
}

/// Runs one clause to its end or deadline; whether it hung.
fn run_one(subject: &Subject, clause: &'static Clause) -> (Outcome, bool) {
    let lacking: Vec<Feature> = match subject.capabilities() {
        Ok(capabilities) => clause.needs.iter().copied().filter(|f| !capabilities.has(*f)).collect(),
        Err(error) => return (failed(Failure::from(error)), false),
    };
    let (done, ended) = mpsc::channel();
    let (theirs, features) = (subject.clone(), lacking.clone());
    let body = move || -> ClauseResult {
        block_on(async {
            if features.is_empty() {
                (clause.run)(&theirs).await
            } else {
                refusal::refused(&theirs, &features).await
            }
        })
    };
    let spawned = std::thread::Builder::new().name(clause.name.to_owned()).spawn(move || {
        let result = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Failure::broken(format!("panicked: {text}")))
        });
        // Past the deadline nobody listens.
        let _ = done.send(result);
    });
    if let Err(error) = spawned {
        return (failed(Failure::broken(format!("no thread could be started: {error}"))), false);
    }
    match ended.recv_timeout(subject.deadline) {
        Ok(Ok(())) if lacking.is_empty() => (Outcome::Passed, false),
        Ok(Ok(())) => (Outcome::Refused { lacking: lacking.iter().map(|f| f.name()).collect() }, false),
        Ok(Err(objection)) => (failed(objection), false),
        Err(RecvTimeoutError::Timeout) => {
            let found = format!("it did not end within {:?}", subject.deadline);
            (Outcome::Failed { found }, true)
        }
        Err(RecvTimeoutError::Disconnected) => {
            (Outcome::Failed { found: "its thread ended without an answer".to_owned() }, true)
        }
    }
}

fn failed(objection: Failure) -> Outcome {
    match objection {
        Failure::Broken(found) => Outcome::Failed { found },
        Failure::Inconclusive(reason) => Outcome::Inconclusive { reason },
    }
}

fn expected(outcome: Outcome, reason: String) -> Outcome {
    match outcome {
        Outcome::Failed { found } => Outcome::XFail { reason, found },
        _ => Outcome::XPass { reason },
    }
}
