//! The flags that hold an answer to a shape.

use std::path::PathBuf;

use clap::Args;
use inference::{Constraint, GenerateOptions};

use crate::{failure::Usage, render, text_input};

/// The shape that an answer is held to.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Shape")]
#[group(multiple = false)]
pub(crate) struct ShapeArgs {
    /// Answer in JSON that is valid by the JSON schema in this file
    #[arg(long, value_name = "FILE")]
    json_schema: Option<PathBuf>,

    /// Answer with a text that this regular expression matches as a whole
    #[arg(long, value_name = "EXPRESSION", allow_hyphen_values = true)]
    regex: Option<String>,

    /// Answer with a text of the grammar in this file, in Lark's notation
    #[arg(long, value_name = "FILE")]
    grammar: Option<PathBuf>,

    /// Answer with this text; may be repeated, and then one of them is said
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    choice: Vec<String>,
}

impl ShapeArgs {
    /// The names of the flags, of which one at most is given.
    pub(crate) const NAMES: [&str; 4] = ["json-schema", "regex", "grammar", "choice"];

    /// Adds the shape to the options.
    pub(crate) fn apply(&self, options: GenerateOptions) -> anyhow::Result<GenerateOptions> {
        let constraint =
            if let Some(path) = &self.json_schema {
                let schema = serde_json::from_str(&text_input::read_file(path)?);
                Constraint::json_schema(schema.map_err(|error| {
                    Usage(format!("{}: expected a JSON schema: {error}", render::path(path)))
                })?)
            } else if let Some(expression) = &self.regex {
                Constraint::regex(expression)
            } else if let Some(path) = &self.grammar {
                Constraint::lark(text_input::read_file(path)?)
            } else if !self.choice.is_empty() {
                Constraint::choice(self.choice.iter().cloned())
            } else {
                return Ok(options);
            };
        Ok(options.constraint(constraint))
    }
}
