//! The whole contract, clause by clause, on the `cpu` device and the demo model, or those that `BACKEND` and `MODEL` name.

mod support;

use std::env;

use backend_metal as _;
use inference_conformance::{Subject, run};

#[test]
fn the_device_keeps_the_contract() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let named = |name, default: &str| env::var(name).unwrap_or_else(|_| default.to_owned());
    let subject = Subject::linked(&named("BACKEND", "cpu"), named("MODEL", demo));
    let subject = subject.expect("the backend is linked and the model is there");
    let reranker = support::folder("bert", |_, _| {});
    run(&subject.reranker_folder(reranker.path())).assert_passed();
}
