//! Where a conversation's turns come from: an editor on a terminal, plain lines otherwise.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    path::PathBuf,
};

use anyhow::Context as _;
use directories::ProjectDirs;
use rustyline::{
    Behavior, Editor, Helper,
    completion::Completer,
    error::ReadlineError,
    highlight::Highlighter,
    hint::Hinter,
    history::FileHistory,
    validate::{ValidationContext, ValidationResult, Validator},
};

use crate::{render, text_input};

/// Lines of history that are kept.
const HISTORY: usize = 1000;

/// What begins and ends a text of several lines.
const QUOTES: &str = "\"\"\"";

/// What was typed.
#[derive(Debug, PartialEq)]
pub(super) enum Typed {
    /// A line, or several that a backslash joins: a question or a command.
    Text(String),
    /// A text between quotes: a question, whatever it begins with.
    Quoted(String),
    Interrupted,
    End,
}

/// Where turns come from.
pub(super) enum Input {
    Terminal { editor: Box<Editor<Lines, FileHistory>>, history: Option<PathBuf> },
    Lines,
}

impl Input {
    pub(super) fn open() -> anyhow::Result<Self> {
        if !io::stdin().is_terminal() {
            return Ok(Self::Lines);
        }
        // Where answers go to a file, the editor's line still belongs on the terminal.
        let behavior = if io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = rustyline::Config::builder()
            .max_history_size(HISTORY)?
            .auto_add_history(true)
            .behavior(behavior)
            .build();
        let mut editor = Editor::with_config(config)?;
        editor.set_helper(Some(Lines));
        let history = history_file();
        if let Some(file) = &history {
            // The first conversation has no history.
            let _ = editor.load_history(file);
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    pub(super) fn next(&mut self) -> anyhow::Result<Typed> {
        match self {
            Self::Terminal { editor, .. } => match editor.readline("> ") {
                Ok(text) => Ok(typed(&text)),
                Err(ReadlineError::Interrupted) => Ok(Typed::Interrupted),
                Err(ReadlineError::Eof) => Ok(Typed::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Self::Lines => {
                let (mut text, mut stdin) = (String::new(), io::stdin().lock());
                loop {
                    let read = stdin.read_line(&mut text).context("cannot read the input")?;
                    match read {
                        0 if text.is_empty() => return Ok(Typed::End),
                        0 => return Ok(typed(&text)),
                        _ if is_complete(&text) => return Ok(typed(&text)),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Saves the history. A failure to save it is ignored.
    pub(super) fn close(self) {
        if let Self::Terminal { mut editor, history: Some(file) } = self
            && let Err(error) = editor.save_history(&file)
        {
            render::remark(&format!("the history could not be kept in {}: {error}", render::path(file)));
        }
    }
}

/// Has the editor go on with a text that is not complete.
pub(super) struct Lines;

impl Validator for Lines {
    fn validate(&self, context: &mut ValidationContext<'_>) -> rustyline::Result<ValidationResult> {
        Ok(match is_complete(context.input()) {
            true => ValidationResult::Valid(None),
            false => ValidationResult::Incomplete,
        })
    }
}

impl Completer for Lines {
    type Candidate = String;
}

impl Hinter for Lines {
    type Hint = String;
}

impl Highlighter for Lines {}

impl Helper for Lines {}

/// A command and what stands behind it; no command where the text is not one.
fn split(text: &str) -> (&str, &str) {
    let text = text_input::without_mark(text).trim_start();
    match text.split_once(char::is_whitespace) {
        Some((command, rest)) if text.starts_with('/') => (command, rest.trim_start()),
        _ => ("", text),
    }
}

/// Whether nothing more has to come: quotes that were opened are closed, and no backslash stands at the end.
fn is_complete(text: &str) -> bool {
    let (_, text) = split(text);
    match text.strip_prefix(QUOTES) {
        Some(quoted) => quoted.trim_end().ends_with(QUOTES),
        None => !text.trim_end_matches(['\n', '\r']).ends_with('\\'),
    }
}

/// The text without the marks that made it several lines. One that the input's end cut off is taken as it is.
fn typed(text: &str) -> Typed {
    let (command, text) = split(text);
    match text.strip_prefix(QUOTES) {
        Some(quoted) => {
            let quoted = quoted.trim_end();
            let quoted = quoted.strip_suffix(QUOTES).unwrap_or(quoted);
            match command {
                "" => Typed::Quoted(quoted.trim_matches(['\n', '\r']).to_owned()),
                command => Typed::Text(format!("{command} {}", quoted.trim_matches(['\n', '\r']))),
            }
        }
        None => {
            let text = text.replace("\\\r\n", "\n").replace("\\\n", "\n");
            Typed::Text(if command.is_empty() { text } else { format!("{command} {text}") })
        }
    }
}

/// In the user's state folder (`~/.local/state/inference` on Linux), which is made where it is missing.
fn history_file() -> Option<PathBuf> {
    let folders = ProjectDirs::from("", "", "inference")?;
    let folder = folders.state_dir().unwrap_or_else(|| folders.data_local_dir());
    std::fs::create_dir_all(folder).ok()?;
    Some(folder.join("history.txt"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_and_backslashes_make_one_text_of_several_lines() {
        for text in
            ["a", "", "a\\b\n", "\"\"\"a\nb\"\"\"", "\"\"\"\"\"\"", "/system \"\"\"a\nb\"\"\"\n", "a \"\"\""]
        {
            assert!(is_complete(text), "{text:?}");
        }
        for text in [
            "a\\\n",
            "a\\",
            "\"\"\"",
            "\"\"\"a\nb",
            "/system \"\"\"a\n",
            "\u{feff}\"\"\"a\r\n",
            "/set stop \\\r\n",
        ] {
            assert!(!is_complete(text), "{text:?}");
        }
    }

    #[test]
    fn the_marks_are_no_part_of_the_text() {
        let text = |text: &str| Typed::Text(text.to_owned());
        assert_eq!(typed("a\\\nb\n"), text("a\nb\n"));
        assert_eq!(typed("\"\"\"\n/usr\n  b\n\"\"\"\n"), Typed::Quoted("/usr\n  b".to_owned()));
        assert_eq!(typed("\"\"\"cut"), Typed::Quoted("cut".to_owned()));
        assert_eq!(typed("/system \"\"\"\na\nb\n\"\"\""), text("/system a\nb"));
        assert_eq!(typed("/exit"), text("/exit"));
    }
}
