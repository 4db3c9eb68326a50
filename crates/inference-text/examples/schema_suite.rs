//! Holds JSON schemas to a test suite in the form of `JSON-Schema-Test-Suite`: files of schemas with values that are valid by them or
//! not. A schema may be refused; a value that is not valid must never be taken.
//!
//! ```text
//! cargo run --release --example schema_suite -- JSON-Schema-Test-Suite/tests/draft2020-12
//! ```

use std::{collections::BTreeMap, error::Error, fs, path::Path};

use futures::executor::block_on;
use inference_core::{
    Constraint, Error as InferenceError, GenerateOptions, ModelInfo, Prompt, TemplateOptions,
    backend::ConstraintRun,
};
use inference_text::{PromptLimits, TextPipeline};
use serde_json::Value;

#[derive(Default)]
struct Counts {
    refused: usize,
    schemas: usize,
    valid_taken: usize,
    valid: usize,
    invalid_taken: usize,
    invalid: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args().nth(1).ok_or("the folder of a draft's tests is missing")?;
    let text = TextPipeline::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo")))?;
    let mut counts = Counts::default();
    let mut reasons: BTreeMap<String, usize> = BTreeMap::new();
    let mut files: Vec<_> = fs::read_dir(folder)?.collect::<Result<_, _>>()?;
    files.sort_by_key(fs::DirEntry::path);
    for file in files.iter().filter(|file| file.path().extension().is_some_and(|end| end == "json")) {
        let groups: Vec<Value> = serde_json::from_slice(&fs::read(file.path())?)?;
        for group in &groups {
            counts.schemas += 1;
            match judge(&text, group, &mut counts) {
                Ok(wrong) => wrong.iter().for_each(|wrong| println!("{}: {wrong}", file.path().display())),
                Err(InferenceError::InvalidOption { reason, .. }) => {
                    counts.refused += 1;
                    *reasons.entry(reason.chars().take(90).collect()).or_default() += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    for (reason, count) in reasons {
        println!("{count:4}  {reason}");
    }
    let Counts { refused, schemas, valid_taken, valid, invalid_taken, invalid } = counts;
    println!(
        "{refused} of {schemas} schemas are refused; of the others' values {valid_taken} of {valid} that are valid are taken as they are written, and {invalid_taken} of {invalid} that are not"
    );
    if invalid_taken > 0 { Err("values that are not valid were taken".into()) } else { Ok(()) }
}

/// Judges the values of one schema; those that are taken and should not be.
fn judge(text: &TextPipeline, group: &Value, counts: &mut Counts) -> Result<Vec<String>, InferenceError> {
    start(text, &group["schema"])?;
    let mut wrong = Vec::new();
    for test in group["tests"].as_array().into_iter().flatten() {
        let taken = takes(text, &mut start(text, &group["schema"])?, &test["data"].to_string())?;
        if test["valid"] == true {
            counts.valid += 1;
            counts.valid_taken += usize::from(taken);
        } else {
            counts.invalid += 1;
            counts.invalid_taken += usize::from(taken);
            if taken {
                wrong.push(format!("{} is taken by {}", test["data"], group["schema"]));
            }
        }
    }
    Ok(wrong)
}

fn start(text: &TextPipeline, schema: &Value) -> Result<ConstraintRun, InferenceError> {
    let mut info = ModelInfo::default();
    (info.vocab_size, info.context_length) = (text.tokenizer().vocab_size(), 1024);
    let limits = PromptLimits::new(&info, 0);
    let options = GenerateOptions::new().constraint(Constraint::json_schema(schema.clone()));
    block_on(async {
        let prompt = text.prepare(Prompt::from("a"), &TemplateOptions::new(), limits.clone()).await?;
        let run = text.constraint(&prompt, &options, limits).await?;
        run.ok_or_else(|| InferenceError::invalid_prompt("there is no constraint"))
    })
}

fn takes(text: &TextPipeline, run: &mut ConstraintRun, said: &str) -> Result<bool, InferenceError> {
    for id in text.tokenizer().encode(said, false)? {
        if !run.mask()?.allows(id) {
            return Ok(false);
        }
        run.accept(id)?;
    }
    let mask = run.mask()?;
    Ok(text.tokenizer().eos_ids().iter().any(|id| mask.allows(*id)))
}
