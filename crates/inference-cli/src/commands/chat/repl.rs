//! A conversation of many turns: reading lines, and the commands that begin with a slash.

use std::{
    io::{self, BufRead as _, IsTerminal as _},
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use directories::ProjectDirs;
use inference::{FinishReason, Message};
use rustyline::{Behavior, DefaultEditor, error::ReadlineError};

use super::conversation::{Conversation, ToolResult};
use crate::{
    failure::{self, INTERRUPTED},
    interrupt::Scope,
    render::{self, OutputClosed},
    text_input,
};

const HELP: &str = "\
/help           this list
/tool RESULT    the result of a tool call, the oldest first; after the last one the model goes on
/clear          forget the conversation, keep the instructions
/system [TEXT]  set the instructions; without TEXT, remove them
/fork           remember this place; /back returns to it
/save FILE      write the conversation to FILE, with what was computed of it
/load FILE      go on with the conversation in FILE
/export FILE    write the messages to FILE as JSON
/exit           leave; Ctrl-D does too
Ctrl-C stops an answer; pressed again at the prompt, it leaves.";

/// Lines of history that are kept.
const HISTORY: usize = 1000;

pub(super) async fn run(conversation: &mut Conversation<'_>) -> anyhow::Result<ExitCode> {
    let mut input = Input::open()?;
    if input.is_terminal() && !conversation.settings.quiet {
        let info = conversation.model.info();
        let name = info.path.canonicalize().unwrap_or_else(|_| info.path.clone());
        let name = name.file_name().map_or_else(|| render::path(&name), render::path);
        render::remark(&format!("{name} on {} · /help for commands", info.backend));
    }
    // A first Ctrl-C stops an answer or warns; the next one leaves.
    let mut warned = false;
    let status = loop {
        let line = match input.next()? {
            Line::Text(line) => line,
            Line::End => break ExitCode::SUCCESS,
            Line::Interrupted if warned => break ExitCode::from(INTERRUPTED),
            Line::Interrupted => {
                warned = true;
                render::remark("Ctrl-C again, /exit or Ctrl-D leaves");
                continue;
            }
        };
        warned = false;
        match Turn::parse(&line) {
            Turn::Nothing => {}
            Turn::Exit => break ExitCode::SUCCESS,
            Turn::Question(question) => warned = turn(conversation, Message::user(question)).await?,
            Turn::ToolResult(result) => match conversation.tool_result(result) {
                ToolResult::Last(message) => warned = turn(conversation, message).await?,
                ToolResult::Kept { open } => {
                    render::remark(&format!("{} still without a result", render::things(open, "tool call")));
                }
                ToolResult::NotAsked => render::remark("no tool call waits for a result"),
            },
            Turn::Help => render::remark(HELP),
            Turn::Clear => {
                conversation.clear();
                render::remark("the conversation is forgotten");
            }
            Turn::System(text) => {
                conversation.set_system(text);
                render::remark(if text.is_empty() { "no instructions" } else { "instructions set" });
            }
            Turn::Save(file) => {
                done(conversation.save(file).await, &format!("saved to {}", render::path(file)));
            }
            Turn::Load(file) => {
                done(conversation.load(file).await, &format!("loaded {}", render::path(file)));
            }
            Turn::Export(file) => {
                done(export(conversation, file), &format!("written to {}", render::path(file)));
            }
            Turn::Fork => done(conversation.fork().await, "/back returns here"),
            Turn::Back if conversation.back() => render::remark("back at the fork"),
            Turn::Back => render::remark("there was no /fork"),
            Turn::Mistake(message) => render::remark(&message),
        }
    };
    input.close();
    Ok(status)
}

/// Sends a message; whether the answer was cancelled. A failure is told and the conversation goes on.
async fn turn(conversation: &mut Conversation<'_>, message: Message) -> anyhow::Result<bool> {
    let scope = Scope::enter();
    match conversation.send(message, &scope).await {
        Ok(printed) => Ok(printed.finish.reason == FinishReason::Cancelled),
        Err(error) if error.is::<OutputClosed>() => Err(error),
        Err(error) => {
            tell(&error, conversation.settings.json);
            Ok(scope.interrupted())
        }
    }
}

fn tell(error: &anyhow::Error, json: bool) {
    // The conversation goes on: the status is for programs that end.
    let _ = failure::report(error, json, &failure::Place::Conversation);
}

fn done(result: anyhow::Result<()>, remark: &str) {
    match result {
        Ok(()) => render::remark(remark),
        Err(error) => tell(&error, false),
    }
}

fn export(conversation: &Conversation<'_>, file: &Path) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(&conversation.messages)?;
    std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", render::path(file)))
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Turn<'a> {
    Nothing,
    Question(&'a str),
    ToolResult(&'a str),
    Help,
    Clear,
    System(&'a str),
    Save(&'a Path),
    Load(&'a Path),
    Export(&'a Path),
    Fork,
    Back,
    Exit,
    Mistake(String),
}

impl<'a> Turn<'a> {
    fn parse(line: &'a str) -> Self {
        let line = text_input::without_mark(line).trim();
        if line.is_empty() {
            return Self::Nothing;
        }
        if !line.starts_with('/') {
            return Self::Question(line);
        }
        let (command, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        match command {
            "/help" | "/?" => Self::Help,
            "/tool" => Self::ToolResult(rest),
            "/clear" => Self::Clear,
            "/system" => Self::System(rest),
            "/save" | "/load" | "/export" if rest.is_empty() => {
                Self::Mistake(format!("{command} needs a file: {command} talk.session"))
            }
            "/save" => Self::Save(Path::new(rest)),
            "/load" => Self::Load(Path::new(rest)),
            "/export" => Self::Export(Path::new(rest)),
            "/fork" => Self::Fork,
            "/back" => Self::Back,
            "/exit" | "/quit" => Self::Exit,
            other => Self::Mistake(format!("there is no {other}; /help lists the commands")),
        }
    }
}

enum Line {
    Text(String),
    Interrupted,
    End,
}

/// Where lines come from: an editor on a terminal, plain lines otherwise.
enum Input {
    Terminal { editor: Box<DefaultEditor>, history: Option<PathBuf> },
    Lines,
}

impl Input {
    fn open() -> anyhow::Result<Self> {
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
        let mut editor = DefaultEditor::with_config(config)?;
        let history = history_file();
        if let Some(file) = &history {
            // The first conversation has no history.
            let _ = editor.load_history(file);
        }
        Ok(Self::Terminal { editor: Box::new(editor), history })
    }

    fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal { .. })
    }

    fn next(&mut self) -> anyhow::Result<Line> {
        match self {
            Self::Terminal { editor, .. } => match editor.readline("> ") {
                Ok(line) => Ok(Line::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(Line::Interrupted),
                Err(ReadlineError::Eof) => Ok(Line::End),
                Err(error) => Err(error).context("cannot read from the terminal"),
            },
            Self::Lines => {
                let mut line = String::new();
                let read = io::stdin().lock().read_line(&mut line).context("cannot read the input")?;
                Ok(if read == 0 { Line::End } else { Line::Text(line) })
            }
        }
    }

    /// Saves the history. A failure to save it is ignored.
    fn close(self) {
        if let Self::Terminal { mut editor, history: Some(file) } = self
            && let Err(error) = editor.save_history(&file)
        {
            render::remark(&format!("the history could not be kept in {}: {error}", render::path(file)));
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
    fn lines_are_questions_or_commands() {
        assert_eq!(Turn::parse("  \n"), Turn::Nothing);
        assert_eq!(Turn::parse("\u{feff}hello\r\n"), Turn::Question("hello"));
        assert_eq!(Turn::parse(" what is /help?\n"), Turn::Question("what is /help?"));
        assert_eq!(Turn::parse("/help"), Turn::Help);
        assert_eq!(Turn::parse("/system  be brief \n"), Turn::System("be brief"));
        assert_eq!(Turn::parse("/system"), Turn::System(""));
        assert_eq!(Turn::parse("/save a b.json"), Turn::Save(Path::new("a b.json")));
        assert_eq!(Turn::parse("/tool 18 °C"), Turn::ToolResult("18 °C"));
        assert_eq!(Turn::parse("/quit"), Turn::Exit);
    }

    #[test]
    fn what_is_no_command_is_said_and_not_asked() {
        assert!(matches!(Turn::parse("/save"), Turn::Mistake(m) if m.contains("file")));
        assert!(matches!(Turn::parse("/claer"), Turn::Mistake(m) if m.contains("/claer")));
    }
}
