//! Counts a text into a model's folder: `cargo run --example learn TEXT FOLDER`.

use std::{error::Error, fs, path::Path};

use abacus_backend::table::Table;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(text), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("usage: learn TEXT FOLDER".into());
    };
    let table = Table::count(&fs::read_to_string(&text)?);
    table.write(Path::new(&folder))?;
    println!("{folder}: {} characters", table.len());
    Ok(())
}
