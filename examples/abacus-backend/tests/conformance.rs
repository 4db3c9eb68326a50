//! The backend keeps the contract; the model in the folder is the one that the text gives; the walk-through quotes what is there.

use std::{fs, path::Path};

use abacus_backend::table::Table;
use inference_conformance::{Subject, run};

const HERE: &str = env!("CARGO_MANIFEST_DIR");

// ANCHOR: conformance
#[test]
fn it_keeps_the_contract() {
    // By id: this also shows that the crate registers itself.
    let subject = Subject::linked("abacus", Path::new(HERE).join("model")).expect("it is linked");
    let report = run(&subject);
    println!("{report}");
    report.assert_passed();
}
// ANCHOR_END: conformance

#[test]
fn the_model_is_what_the_text_gives() {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let text = fs::read_to_string(Path::new(HERE).join("text.txt")).expect("the text");
    Table::count(&text).write(folder.path()).expect("a writable folder");
    for file in ["config.json", "model.safetensors"] {
        let [new, old] =
            [folder.path().to_owned(), Path::new(HERE).join("model")].map(|f| fs::read(f.join(file)));
        assert!(
            new.expect("just written") == old.expect("committed"),
            "{file}: run the example `learn` again"
        );
    }
}

#[test]
fn every_quotation_of_the_walk_through_is_there() {
    let docs = Path::new(HERE).join("../../docs/src");
    let page = fs::read_to_string(docs.join("writing-a-backend.md")).expect("the walk-through");
    let quotations: Vec<&str> =
        page.split("{{#include ").skip(1).filter_map(|rest| rest.split("}}").next()).collect();
    assert!(!quotations.is_empty());
    for quotation in quotations {
        let (file, anchor) = quotation.split_once(':').unwrap_or((quotation, ""));
        let source = fs::read_to_string(docs.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        let marked =
            |mark: &str| source.lines().any(|line| line.trim_end().ends_with(&format!("{mark}: {anchor}")));
        assert!(anchor.is_empty() || (marked("ANCHOR") && marked("ANCHOR_END")), "{quotation} is not there");
    }
}
