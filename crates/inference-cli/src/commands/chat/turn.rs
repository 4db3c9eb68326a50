//! What a turn asks for: a question, or a command that begins with a slash.

use std::path::Path;

pub(super) const HELP: &str = "\
/help             this list
/tool RESULT      the result of a tool call, the oldest first; after the last one the model goes on
/retry            have the last question answered again
/clear            forget the conversation, keep the instructions
/system [TEXT]    set the instructions; without TEXT, remove them
/set              list the settings
/set NAME VALUE   change one, such as /set temperature 0.7; the VALUE default undoes it
/model [MODEL]    go on with another model, by its folder or its name; without MODEL, say which it is
/fork             remember this place; /back returns to it
/save FILE        write the conversation to FILE, with what was computed of it
/load FILE        go on with the conversation in FILE
/export FILE      write the messages to FILE as JSON
/exit             leave; Ctrl-D does too
A text between lines of \"\"\" has several lines; so has one whose lines end with \\.
Ctrl-C stops an answer; pressed again at the prompt, it leaves.";

/// What a line asks for.
#[derive(Debug, PartialEq)]
pub(super) enum Turn<'a> {
    Nothing,
    Question(&'a str),
    ToolResult(&'a str),
    Help,
    Retry,
    Clear,
    System(&'a str),
    Settings,
    Set { name: &'a str, value: &'a str },
    WhichModel,
    Model(&'a Path),
    Save(&'a Path),
    Load(&'a Path),
    Export(&'a Path),
    Fork,
    Back,
    Exit,
    Mistake(String),
}

impl<'a> Turn<'a> {
    pub(super) fn parse(line: &'a str) -> Self {
        let line = line.trim();
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
            "/retry" => Self::Retry,
            "/clear" => Self::Clear,
            "/system" => Self::System(rest),
            "/set" if rest.is_empty() => Self::Settings,
            "/set" => {
                let (name, value) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
                Self::Set { name, value: value.trim() }
            }
            "/model" if rest.is_empty() => Self::WhichModel,
            "/model" => Self::Model(Path::new(rest)),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_questions_or_commands() {
        assert_eq!(Turn::parse("  \n"), Turn::Nothing);
        assert_eq!(Turn::parse("hello\r\n"), Turn::Question("hello"));
        assert_eq!(Turn::parse(" what is /help?\n"), Turn::Question("what is /help?"));
        assert_eq!(Turn::parse("/help"), Turn::Help);
        assert_eq!(Turn::parse("/system  be brief \n"), Turn::System("be brief"));
        assert_eq!(Turn::parse("/system"), Turn::System(""));
        assert_eq!(Turn::parse("/set"), Turn::Settings);
        assert_eq!(Turn::parse("/set stop a b"), Turn::Set { name: "stop", value: "a b" });
        assert_eq!(Turn::parse("/model"), Turn::WhichModel);
        assert_eq!(Turn::parse("/model org/name"), Turn::Model(Path::new("org/name")));
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
