//! Backends that keep the contract pass, whatever they can do.

#[allow(dead_code, reason = "the sibling test uses the rest")]
mod engine;

use inference_conformance::{Outcome, Subject, run, run_matching};
use inference_core::{Feature, mock};

#[test]
fn an_engine_with_every_feature_keeps_every_clause() {
    let (_folder, subject) = engine::subject();
    let report = run(&subject);
    report.assert_passed();
    let others: Vec<_> = report.clauses.iter().filter(|clause| clause.outcome != Outcome::Passed).collect();
    assert!(others.is_empty(), "{others:#?}");
}

#[test]
fn the_cores_mock_passes_and_refuses_what_it_lacks() {
    let folder = mock::folder();
    let report = run(&Subject::new(mock::DESCRIPTOR, folder.path())
        .ending_prompt("one two <eos>")
        .expect_failure("sampling::draws_follow_the_temperature", "it draws evenly from the prompt's words")
        .expect_failure("classify::labels_are_no_likelier_than_their_beginning", "it counts letters")
        .expect_failure("errors::a_missing_tensor_is_named", "it reads no weights")
        .expect_failure("errors::weights_that_end_after_all_are_named", "it reads no weights"));
    println!("{report}");
    report.assert_passed();
    let lacking = vec![Feature::TopP.name()];
    assert_eq!(report.outcome("sampling::draws_follow_top_p"), Some(&Outcome::Refused { lacking }));
}

#[test]
fn a_report_says_what_was_found_and_what_was_expected() {
    let folder = mock::folder();
    let subject = Subject::new(mock::DESCRIPTOR, folder.path())
        .expect_failure("loading::a_probe_is_cheap", "a test")
        .expect_failure("loading::no_such_clause", "a test");
    let report = run_matching(&subject, "a_probe_is_cheap");
    assert!(!report.passed());
    let shown = report.to_string();
    assert!(shown.contains("XPASS: expected to fail (a test)"), "{shown}");
    assert!(shown.contains("loading::no_such_clause: expected to fail, and no clause of the kit"), "{shown}");
    assert!(shown.contains("1 clauses: 0 passed, 0 refused, 0 inconclusive, 0 xfail, 2 failed"), "{shown}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["clauses"][0]["outcome"], "xpass");
    assert!(std::panic::catch_unwind(|| report.assert_passed()).is_err());
}

#[test]
fn a_folder_that_is_no_model_fails_the_clauses_and_not_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let report = run_matching(&Subject::new(mock::DESCRIPTOR, folder.path()), "generate::");
    assert!(report.clauses.iter().any(|clause| clause.outcome.is_failure()));
    assert!(!report.passed());
}
