//! Proves that a backend keeps the contract: one documented function per clause.
//!
//! A backend's crate depends on this one for its tests, names its own entry and a model, and runs every clause:
//!
//! ```
//! use inference_conformance::{Subject, run};
//! use inference_core::mock;
//!
//! let folder = mock::folder();
//! let subject = Subject::new(mock::DESCRIPTOR, folder.path())
//!     .ending_prompt("one two <eos>")
//!     .expect_failure("sampling::draws_follow_the_temperature", "the mock draws evenly from the prompt's words")
//!     .expect_failure("classify::labels_are_no_likelier_than_their_beginning", "the mock counts letters")
//!     .expect_failure("errors::a_missing_tensor_is_named", "the mock reads no weights")
//!     .expect_failure("errors::weights_that_end_after_all_are_named", "the mock reads no weights");
//! let report = run(&subject);
//! println!("{report}");
//! report.assert_passed();
//! ```
//!
//! - **Chosen by capabilities.** A clause lists the [`Feature`](inference_core::Feature)s it needs. Where the backend lacks
//!   one, the clause becomes the question whether the backend refuses it with
//!   [`Error::Unsupported`](inference_core::Error::Unsupported), before any work. Nothing is skipped silently: what a
//!   subject cannot show is [`Outcome::Inconclusive`], with what would show it.
//! - **Expected failures** have a reason each ([`Subject::expect_failure`]), and fail the run once they pass.
//! - **A hung clause fails**, and the run goes on: each runs on a thread of its own with a deadline. That also proves that the
//!   backend needs no particular async runtime.
//! - **Proven able to fail.** For each clause, the kit's own tests hold a backend that breaks exactly that promise.
//!
//! The clauses are public functions, so that one can be run alone under any executor:
//! `inference_conformance::clauses::cancelling::during_decode(&subject).await`. [`sampler`] holds the contract's sampler in
//! plain `f64`, with golden cases, for an engine's own tests.
#![forbid(unsafe_code)]

mod clause;
pub mod clauses;
mod refusal;
mod report;
mod run;
pub mod sampler;
mod subject;

pub use clause::{Clause, ClauseResult, Failure};
pub use report::{ClauseReport, Outcome, Report};
pub use run::{all_clauses, run, run_matching};
pub use subject::Subject;
