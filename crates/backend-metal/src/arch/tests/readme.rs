//! The README's table of families is that of the code. With `WRITE_README` set it is written.

use std::{fmt::Write as _, fs, path::Path};

use crate::arch::ARCHITECTURES;

const MARKS: [&str; 2] = ["<!-- families: written by a test of backend-metal -->\n", "<!-- families end -->"];

fn table() -> String {
    let mut table = String::from("| family | `model_type` | left out |\n| --- | --- | --- |\n");
    for family in ARCHITECTURES {
        let types: Vec<_> = family.model_types.iter().map(|name| format!("`{name}`")).collect();
        let skips: Vec<_> = family.skips.iter().map(|part| part.name()).collect();
        let skips = if skips.is_empty() { "–".to_owned() } else { skips.join(", ") };
        writeln!(table, "| {} | {} | {skips} |", family.name, types.join(", ")).unwrap();
    }
    table
}

#[test]
fn the_readme_lists_the_families() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = fs::read_to_string(&readme).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("the mark before the table");
    let (found, after) = rest.split_once(MARKS[1]).expect("the mark behind the table");
    let table = table();
    if std::env::var_os("WRITE_README").is_some() {
        return fs::write(&readme, [before, MARKS[0], &table, MARKS[1], after].concat()).unwrap();
    }
    assert_eq!(found, table, "run this test with WRITE_README=1");
}
