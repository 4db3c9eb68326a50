//! The whole contract, clause by clause, on the `cpu` device and the demo model, or those that `BACKEND` and `MODEL` name. With
//! `CLAUSES` only those whose paths contain it; with `DRAWS` so many draws for each clause about a distribution.

mod support;

use std::env;

use backend_metal as _;
use inference_conformance::{Subject, run_matching};

#[test]
fn the_device_keeps_the_contract() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let named = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let subject = Subject::linked(&named("BACKEND", "cpu"), named("MODEL", demo));
    let reranker = support::folder("bert", |_, _| {});
    let subject =
        subject.expect("the backend is linked and the model is there").reranker_folder(reranker.path());
    let subject = match env::var("DRAWS") {
        Ok(draws) => subject.draws(draws.parse().expect("DRAWS is a number")),
        Err(_) => subject,
    };
    run_matching(&subject, &env::var("CLAUSES").unwrap_or_default()).assert_passed();
}
