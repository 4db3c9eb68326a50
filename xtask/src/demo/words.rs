//! What the demo model is told, as data: xtask/demo/*.json.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::Deserialize;

/// What it says to anything else.
pub(super) const UNKNOWN: &str = "I don't know. I am only a small demo model.";

/// All word lists.
pub(super) struct Words {
    pub(super) wordings: Wordings,
    /// In the order of the file, which is that of the labels.
    pub(super) domains: Vec<(String, Domain)>,
    /// Wordings of a question, and the answer.
    pub(super) facts: Vec<(Vec<String>, String)>,
    /// Test questions written by hand, in lower case and without their punctuation: no training text may be one.
    pub(super) hand_written: BTreeSet<String>,
}

/// The wordings that questions are put in. `{a}`, `{b}` are the numbers of a sum, `{s}` is a sentence, `{t}`, `{u}` are topics
/// and `{d}` is something to do.
#[derive(Deserialize)]
pub(super) struct Wordings {
    pub(super) system_prompts: Vec<String>,
    pub(super) leads: Vec<String>,
    pub(super) ask_domain: Vec<String>,
    pub(super) phrasings: BTreeMap<String, Vec<String>>,
    pub(super) bare: BTreeMap<String, Vec<String>>,
    pub(super) signs: BTreeMap<String, String>,
    pub(super) before: Vec<String>,
    pub(super) after: Vec<String>,
    pub(super) number_words: Vec<String>,
    /// Words that say nothing about a domain.
    pub(super) fillers: Vec<String>,
    pub(super) frames: Vec<String>,
    pub(super) starters: Vec<String>,
    pub(super) tails: Vec<String>,
    pub(super) unknown: Unknown,
}

/// Questions to decline, and the names in them.
#[derive(Deserialize)]
pub(super) struct Unknown {
    pub(super) templates: Vec<String>,
    pub(super) places: Vec<String>,
    pub(super) people: Vec<String>,
    pub(super) things: Vec<String>,
    pub(super) words: Vec<String>,
}

/// A domain's vocabulary: noun phrases, those that can act, what they did, and things to do.
#[derive(Deserialize)]
pub(super) struct Domain {
    pub(super) topics: Vec<String>,
    pub(super) subjects: Vec<String>,
    pub(super) actions: Vec<String>,
    pub(super) doings: Vec<String>,
}

impl Words {
    pub(super) fn load() -> Result<Self> {
        let mut domains: serde_json::Map<String, serde_json::Value> =
            read(include_str!("../../demo/domains.json"))?;
        let domains = std::mem::take(&mut domains)
            .into_iter()
            .map(|(label, lists)| Ok((label, serde_json::from_value(lists)?)))
            .collect::<Result<_>>()?;
        Ok(Self {
            wordings: read(include_str!("../../demo/wordings.json"))?,
            domains,
            facts: read(include_str!("../../demo/facts.json"))?,
            hand_written: read(include_str!("../../demo/hand_written.json"))?,
        })
    }

    /// The labels of the domains, in order.
    pub(super) fn labels(&self) -> impl Iterator<Item = &str> {
        self.domains.iter().map(|(label, _)| label.as_str())
    }
}

fn read<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).context("a word list of xtask/demo")
}
