//! The program `inference`.
fn main() {}
