//! The program finds the backend by itself.

use std::process::Command;

#[test]
fn load_model_picks_the_linked_backend() {
    let output = Command::new(env!("CARGO_BIN_EXE_abacus-program")).output().expect("the program runs");
    let (said, complaint) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{complaint}");
    assert!(said.starts_with("abacus: The "), "{said}");
    assert!(said.trim_end().len() > "abacus: The ".len(), "{said}");
}
