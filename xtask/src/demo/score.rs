//! Scores on the held-out questions of xtask/demo/questions.jsonl: an answer counts only if it is the right one, character by
//! character. A *false refusal* is "I don't know" to a question that the model should answer.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::words::UNKNOWN;
use crate::sh;

const QUESTIONS: &str = "xtask/demo/questions.jsonl";

/// Scores by group, in the order of the questions.
pub(super) struct Scores {
    groups: Vec<Group>,
}

struct Group {
    name: String,
    asked: usize,
    right: usize,
    /// `None` where refusing is right.
    refused: Option<usize>,
}

/// Asks the model in `folder` and counts.
pub(super) fn score(program: &Path, folder: &Path, work: &Path) -> Result<Scores> {
    let answers = work.join("answers.jsonl");
    if answers.exists() {
        fs::remove_file(&answers)?;
    }
    let arguments = ["batch", "--model", sh::utf8(folder)?, QUESTIONS, "--output", sh::utf8(&answers)?];
    sh::run(
        sh::utf8(program)?,
        arguments.into_iter().chain(["--max-tokens", "80", "--concurrency", "64", "--quiet"]),
    )?;
    let questions = fs::read_to_string(QUESTIONS)?;
    let mut groups: Vec<Group> = Vec::new();
    for line in questions.lines() {
        let line: Value = serde_json::from_str(line)?;
        let (group, answer) = identity(&line)?;
        if groups.last().is_none_or(|last| last.name != group) {
            groups.push(Group { name: group.to_owned(), asked: 0, right: 0, refused: None });
        }
        let Some(last) = groups.last_mut() else { continue };
        last.asked += 1;
        if answer != UNKNOWN {
            last.refused.get_or_insert(0);
        }
    }
    let mut given = 0;
    for line in fs::read_to_string(&answers)?.lines() {
        let line: Value = serde_json::from_str(line)?;
        let (name, answer) = identity(&line)?;
        let text = line["text"].as_str().with_context(|| format!("no answer: {line}"))?;
        let group = groups.iter_mut().find(|group| group.name == name).context("an answer of no group")?;
        group.right += usize::from(text == answer);
        let refused = answer != UNKNOWN && text.starts_with("I don't know");
        group.refused = group.refused.map(|count| count + usize::from(refused));
        given += 1;
    }
    let asked: usize = groups.iter().map(|group| group.asked).sum();
    ensure!(given == asked, "{given} answers to {asked} questions");
    Ok(Scores { groups })
}

fn identity(line: &Value) -> Result<(&str, &str)> {
    let (group, answer) = (&line["id"]["group"], &line["id"]["answer"]);
    group.as_str().zip(answer.as_str()).with_context(|| format!("a line without group and answer: {line}"))
}

impl Scores {
    /// The scores as a Markdown table.
    pub(super) fn table(&self) -> String {
        let mut lines = vec![
            "| held-out questions | asked | right | false refusals |".to_owned(),
            "| --- | ---: | ---: | ---: |".to_owned(),
        ];
        lines.extend(self.groups.iter().map(|Group { name, asked, right, refused }| {
            let share = 100.0 * *right as f64 / *asked as f64;
            let refused = refused.map_or_else(|| "–".to_owned(), |refused| refused.to_string());
            format!("| {name} | {asked} | {share:.1} % | {refused} |")
        }));
        lines.join("\n")
    }
}
