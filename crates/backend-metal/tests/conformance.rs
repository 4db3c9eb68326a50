//! The whole contract, clause by clause, on the `cpu` device and the demo model.

use backend_metal as _;
use inference_conformance::{Subject, run};

#[test]
fn the_cpu_keeps_the_contract() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let subject = Subject::linked("cpu", demo).expect("the backend is linked and the demo model is there");
    run(&subject).assert_passed();
}
