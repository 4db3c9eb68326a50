//! The demo model's data: turns of conversations, drawn from a seed. A turn is a question and its answer, which has nothing to
//! do with the turns before, so that the model learns to answer the last question on its own merits.
//!
//! What is held out (`split.rs`) is decided before capitals and punctuation are drawn, so that no held-out item can
//! reach training in another dress: of sums one unordered pair in ten (of differences one ordered pair, of products one
//! combination with the wording); of sentences one combination of subject and action, starter and doing, frame and topics in ten;
//! of facts one combination of lead-in and question; of the unknown one filled-in question, and every question with one of the
//! names, one in eight, that training never has.

use std::collections::BTreeSet;

use super::{
    random::Random,
    split::{
        Part::{Number, Text},
        held_out,
    },
    words::{Domain, UNKNOWN, Words},
};

/// One turn.
pub(super) struct Turn {
    pub(super) system: Option<String>,
    pub(super) user: String,
    pub(super) answer: String,
}

/// Draws turns.
pub(super) struct Generator<'a> {
    words: &'a Words,
    random: Random,
    /// Questions that have an answer.
    known: BTreeSet<String>,
    /// Each domain's telling words: nouns, and all.
    telling: Vec<(Vec<String>, Vec<String>)>,
    /// Names of what is not known, without those that are held out: places, people, things, words.
    places: Vec<&'a str>,
    people: Vec<&'a str>,
    things: Vec<&'a str>,
    unknown_words: Vec<&'a str>,
}

#[derive(Clone, Copy)]
enum Kind {
    Sum,
    Classification,
    Fact,
    Unknown,
}

#[derive(Clone, Copy)]
enum Form {
    Acting,
    Framed,
    Doing,
    Loose,
}

impl<'a> Generator<'a> {
    pub(super) fn new(words: &'a Words, seed: u64) -> Self {
        let questions = words.facts.iter().flat_map(|(questions, _)| questions);
        let known =
            questions.flat_map(|question| [plain(question), plain(without_what_is(question))]).collect();
        let names = |names: &'a [String]| -> Vec<&'a str> {
            names
                .iter()
                .map(String::as_str)
                .filter(|name| !held_out(&[Text("name"), Text(name)], 8))
                .collect()
        };
        let unknown = &words.wordings.unknown;
        Self {
            words,
            random: Random::new(seed),
            known,
            telling: telling(words),
            places: names(&unknown.places),
            people: names(&unknown.people),
            things: names(&unknown.things),
            unknown_words: names(&unknown.words),
        }
    }

    /// A turn to learn.
    pub(super) fn turn(&mut self) -> Turn {
        let kinds =
            [(Kind::Sum, 36.0), (Kind::Classification, 28.0), (Kind::Fact, 19.0), (Kind::Unknown, 17.0)];
        let kind = self.random.weighted(&kinds);
        let (mut user, answer) = match kind {
            Kind::Sum => self.sum(),
            Kind::Classification => self.classification(),
            Kind::Fact => self.fact(),
            Kind::Unknown => self.unknown(),
        };
        if matches!(kind, Kind::Sum | Kind::Unknown) && self.random.happens(0.1) {
            user.insert_str(0, self.random.choice(&self.words.wordings.leads).as_str());
        }
        if !matches!(kind, Kind::Classification) {
            user = self.dressed(user);
        }
        let prompts = &self.words.wordings.system_prompts;
        let system = self.random.happens(0.08).then(|| self.random.choice(prompts).clone());
        Turn { system, user, answer }
    }

    fn sum(&mut self) -> (String, String) {
        let kind = self.random.weighted(&[("add", 42.0), ("sub", 38.0), ("mul", 20.0)]);
        let (a, b, phrasing) = loop {
            let (mut a, mut b);
            if kind == "mul" {
                (a, b) = (self.random.between(0, 12), self.random.between(0, 12));
            } else {
                let top = self.random.weighted(&[(12, 15.0), (99, 55.0), (999, 30.0)]);
                (a, b) = (self.random.between(0, top), self.random.between(0, top));
                if kind == "sub" && a < b && self.random.happens(0.7) {
                    std::mem::swap(&mut a, &mut b);
                }
            }
            let phrasing = self.wording(kind);
            let held = match kind {
                "mul" => held_out(&[Text("mul"), Number(a), Number(b), Text(&phrasing)], 10),
                "add" => held_out(&[Text("add"), Number(a.min(b)), Number(a.max(b))], 10),
                _ => held_out(&[Text(kind), Number(a), Number(b)], 10),
            };
            if !held {
                break (a, b, phrasing);
            }
        };
        let result = match kind {
            "add" => a + b,
            "sub" => a - b,
            _ => a * b,
        };
        let wordings = &self.words.wordings;
        let apart = format!(" {phrasing} ").contains(" {a} ") && !phrasing.contains("{b}=");
        let in_words = a.max(b) <= 20 && apart && self.random.happens(0.12);
        let shown = |n: i64| if in_words { wordings.number_words[n as usize].clone() } else { n.to_string() };
        let user = phrasing.replace("{a}", &shown(a)).replace("{b}", &shown(b));
        (user, format!("{a} {} {b} = {result}.", wordings.signs[kind]))
    }

    fn wording(&mut self, kind: &str) -> String {
        let wordings = &self.words.wordings;
        if self.random.happens(0.7) {
            return self.random.choice(&wordings.phrasings[kind]).clone();
        }
        let before = if self.random.happens(0.5) {
            self.noise(1, 7, true) + *self.random.choice(&[": ", ", ", " ", ". "])
        } else {
            self.random.choice(&wordings.before).clone()
        };
        let after = if self.random.happens(0.4) {
            let link = *self.random.choice(&[". ", ", ", " "]);
            format!("{link}{}{}", self.noise(1, 6, true), self.random.choice(&["?", ".", "!"]))
        } else {
            self.random.choice(&wordings.after).clone()
        };
        before + self.random.choice(&wordings.bare[kind]).as_str() + &after
    }

    /// A domain's place in the list, and a sentence of it.
    fn sentence(&mut self) -> (usize, String) {
        let words = self.words;
        let wordings = &words.wordings;
        let at = self.random.between(0, words.domains.len() as i64 - 1) as usize;
        let (label, Domain { topics, subjects, actions, doings }) = &words.domains[at];
        loop {
            let forms =
                [(Form::Acting, 35.0), (Form::Framed, 20.0), (Form::Doing, 20.0), (Form::Loose, 25.0)];
            let form = self.random.weighted(&forms);
            let mut key = vec![Text("sentence"), Text(label)];
            let mut text = match form {
                Form::Acting => {
                    let (subject, action) = (self.random.choice(subjects), self.random.choice(actions));
                    key.extend([Text(subject), Text(action)]);
                    let tail = self.random.happens(0.3).then(|| self.random.choice(&wordings.tails));
                    tail.map_or_else(
                        || format!("{subject} {action}."),
                        |tail| format!("{subject} {action} {tail}."),
                    )
                }
                Form::Framed => {
                    let frame = self.random.choice(&wordings.frames);
                    let (one, other) = loop {
                        let (one, other) = (self.random.choice(topics), self.random.choice(topics));
                        if one != other {
                            break (one, other);
                        }
                    };
                    key.extend([Text(frame), Text(one)]);
                    if frame.contains("{u}") {
                        key.push(Text(other));
                    }
                    frame.replace("{t}", one).replace("{u}", other)
                }
                Form::Doing => {
                    let (starter, doing) =
                        (self.random.choice(&wordings.starters), self.random.choice(doings));
                    key.extend([Text(starter), Text(doing)]);
                    starter.replace("{d}", doing)
                }
                Form::Loose => self.loose(at),
            };
            if !matches!(form, Form::Loose) && self.random.happens(0.35) {
                let mut worn: Vec<&str> = text.split_whitespace().collect();
                for word in &mut worn {
                    if self.random.happens(0.15) {
                        *word = self.random.choice(&wordings.fillers).as_str();
                    }
                }
                text = worn.join(" ");
            }
            text = capitalised(&text);
            let held = !matches!(form, Form::Loose) && held_out(&key, 10);
            if !held && !words.hand_written.contains(&plain(&text)) {
                return (at, text);
            }
        }
    }

    /// Two or three telling words among noise: one word has to weigh the same wherever it stands.
    fn loose(&mut self, domain: usize) -> String {
        let mut parts = vec![self.random.choice(&self.telling[domain].0).clone()];
        for _ in 0..self.random.between(1, 2) {
            parts.push(self.random.choice(&self.telling[domain].1).clone());
        }
        for _ in 0..self.random.between(1, 3) {
            parts.push(self.noise(1, 3, false));
        }
        self.random.shuffle(&mut parts);
        parts.join(" ") + "."
    }

    /// Words without a bearing on the answer, with `names` one in five of what is not known.
    fn noise(&mut self, least: i64, most: i64, names: bool) -> String {
        let words: Vec<&str> = (0..self.random.between(least, most))
            .map(|_| {
                if names && self.random.happens(0.2) {
                    *self.random.choice(&self.unknown_words)
                } else {
                    self.random.choice(&self.words.wordings.fillers)
                }
            })
            .collect();
        words.join(" ")
    }

    /// A sentence in one of the wordings that ask for its domain.
    fn classification(&mut self) -> (String, String) {
        let (domain, mut text) = self.sentence();
        if self.random.happens(0.15) {
            text = text.to_lowercase();
        }
        if self.random.happens(0.3) {
            text.truncate(text.trim_end_matches('.').len());
        }
        let text = self.random.choice(&self.words.wordings.ask_domain).replace("{s}", &text);
        let drawn = self.random.unit();
        let text = match drawn {
            drawn if drawn < 0.12 => text.to_lowercase(),
            drawn if drawn < 0.14 => text.to_uppercase(),
            _ => text,
        };
        (text, self.words.domains[domain].0.clone())
    }

    fn fact(&mut self) -> (String, String) {
        loop {
            let (questions, answer) = self.random.choice(&self.words.facts);
            let mut question = self.random.choice(questions).as_str();
            if self.random.happens(0.06) {
                question = without_what_is(question);
            }
            if self.random.happens(0.75) {
                return (question.to_owned(), answer.clone());
            }
            let lead = self.random.choice(&self.words.wordings.leads);
            if !held_out(&[Text("fact"), Text(lead), Text(question)], 10) {
                return (format!("{lead}{question}"), answer.clone());
            }
        }
    }

    /// Something to decline: a filled-in question, a sum beyond the ranges, or a bare sentence.
    fn unknown(&mut self) -> (String, String) {
        let wordings = &self.words.wordings;
        let decline = |text: String| (text, UNKNOWN.to_owned());
        loop {
            if self.random.happens(0.08) {
                return decline(self.sentence().1);
            }
            let text = if self.random.happens(0.06) {
                let kind = *self.random.choice(&["add", "sub", "mul"]);
                let mut numbers = [self.random.between(1000, 99_999), self.random.between(0, 9999)];
                self.random.shuffle(&mut numbers);
                let phrasing = self.random.choice(&wordings.phrasings[kind]);
                phrasing.replace("{a}", &numbers[0].to_string()).replace("{b}", &numbers[1].to_string())
            } else {
                let template = self.random.choice(&wordings.unknown.templates);
                let pieces = template.split(['{', '}']).enumerate();
                let filled: String = pieces
                    .map(|(at, piece)| if at % 2 == 1 { self.filled(piece) } else { piece.to_owned() })
                    .collect();
                let text = capitalised(&filled);
                let plain = plain(&text);
                if self.known.contains(&plain) || self.words.hand_written.contains(&plain) {
                    continue;
                }
                text
            };
            if !held_out(&[Text("unknown"), Text(&text)], 10) {
                return decline(text);
            }
        }
    }

    /// What stands in a template's braces.
    fn filled(&mut self, name: &str) -> String {
        let (low, high) = match name {
            "number" => (10, 999),
            "digit" => (2, 12),
            "big" => (1000, 99_999),
            "year" => (1000, 2030),
            _ => {
                if name != "thing" && self.random.happens(0.15) {
                    return self.invented(name == "word");
                }
                let names = match name {
                    "place" => &self.places,
                    "person" => &self.people,
                    "thing" => &self.things,
                    _ => &self.unknown_words,
                };
                return (*self.random.choice(names)).to_owned();
            }
        };
        self.random.between(low, high).to_string()
    }

    /// A name that no one has heard of: whatever is not known is unknown.
    fn invented(&mut self, word: bool) -> String {
        const HEADS: [&str; 24] = [
            "b", "c", "d", "f", "g", "h", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "br", "ch", "dr",
            "gr", "pl", "sh", "st", "tr",
        ];
        const TAILS: [&str; 15] =
            ["a", "e", "i", "o", "u", "ai", "ea", "ou", "an", "en", "in", "or", "er", "al", "us"];
        let syllables = self.random.between(2, 3);
        let name: String = (0..syllables)
            .map(|_| format!("{}{}", self.random.choice(&HEADS), self.random.choice(&TAILS)))
            .collect();
        if word { name } else { capitalised(&name) }
    }

    /// With other capitals, apostrophes and punctuation, as people write.
    fn dressed(&mut self, mut text: String) -> String {
        if self.random.happens(0.15) {
            text = text.replace("What is ", "What's ");
        }
        let drawn = self.random.unit();
        if drawn < 0.25 {
            text = text.to_lowercase();
            if drawn < 0.03 {
                text = text.replace('\'', "");
            }
        } else if drawn < 0.28 {
            text = text.to_uppercase();
        }
        let drawn = self.random.unit();
        if drawn >= 0.29 {
            return text;
        }
        text.truncate(text.trim_end_matches(['?', '.', '!']).len());
        if drawn >= 0.26 {
            text += *self.random.choice(&["??", " ?", "!", ".", "?!"]);
        } else if drawn >= 0.22 {
            text += " please";
        }
        text
    }
}

/// Each domain's words that no other domain has: those of its noun phrases, which tell most, and all.
fn telling(words: &Words) -> Vec<(Vec<String>, Vec<String>)> {
    let of = |lists: &[&Vec<String>]| -> BTreeSet<String> {
        let entries = lists.iter().flat_map(|list| list.iter());
        let words = entries.flat_map(|entry| entry.split_whitespace());
        words.map(|word| word.to_lowercase().trim_matches([',', '.', '?', '!', ':']).to_owned()).collect()
    };
    let all = |domain: &Domain| of(&[&domain.topics, &domain.subjects, &domain.actions, &domain.doings]);
    let every: Vec<_> = words.domains.iter().map(|(_, domain)| all(domain)).collect();
    let own = |found: BTreeSet<String>, at: usize| -> Vec<String> {
        let others = |word: &String| {
            every.iter().enumerate().any(|(other, words)| other != at && words.contains(word))
        };
        let own = found.into_iter().filter(|word| {
            let letters = word.chars().all(char::is_alphabetic) && word.chars().count() > 2;
            letters && !words.wordings.fillers.contains(word) && !others(word)
        });
        own.collect()
    };
    let domains = words.domains.iter().enumerate();
    domains.map(|(at, (_, d))| (own(of(&[&d.topics, &d.subjects]), at), own(all(d), at))).collect()
}

fn without_what_is(question: &str) -> &str {
    question.strip_prefix("What is ").unwrap_or(question)
}

fn plain(text: &str) -> String {
    text.to_lowercase().trim_matches([' ', '?', '.', '!']).to_owned()
}

fn capitalised(text: &str) -> String {
    let mut characters = text.chars();
    let first = characters.next().into_iter().flat_map(char::to_uppercase);
    first.chain(characters).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_held_out_question_is_trained() {
        let words = Words::load().unwrap();
        let questions = include_str!("../../demo/questions.jsonl").lines().map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            let messages = line["messages"].as_array().unwrap().clone();
            (messages.len(), messages.last().unwrap()["content"].as_str().unwrap().to_owned())
        });
        // Of conversations the earlier turns are held out too; the last is one of the single ones.
        let held: BTreeSet<String> =
            questions.filter(|(turns, _)| *turns == 1).map(|(_, text)| text).collect();
        assert!(held.len() > 1500, "{}", held.len());
        let mut generator = Generator::new(&words, 7);
        let mut kinds = BTreeSet::new();
        for _ in 0..20_000 {
            let turn = generator.turn();
            assert!(!held.contains(&turn.user), "{}", turn.user);
            assert!(!turn.user.contains(['{', '}']) && !turn.answer.is_empty(), "{}", turn.user);
            kinds.insert(turn.answer);
        }
        assert!(words.labels().all(|label| kinds.contains(label)) && kinds.contains(UNKNOWN));
    }

    #[test]
    fn a_seed_makes_the_same_data() {
        let words = Words::load().unwrap();
        let draw = |seed| {
            let mut generator = Generator::new(&words, seed);
            (0..50).map(|_| generator.turn().user).collect::<Vec<_>>()
        };
        assert_eq!(draw(3), draw(3));
        assert_ne!(draw(3), draw(4));
    }
}
