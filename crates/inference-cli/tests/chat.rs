//! Conversations: several lines, settings, another model, another answer; over a pipe and over a terminal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    io::Write as _,
    path::Path,
    process::{Output, Stdio},
};

use serde_json::{Value, json};
use support::*;

/// Talks to the mock, which says the words of the prompt again and again.
fn chat(folder: &Path, arguments: &[&str], lines: &str) -> Output {
    let mut command = inference(&["chat", "--backend=mock", "--model"]);
    command.arg(folder).args(arguments).stdin(Stdio::piped());
    let mut child = spawn(&mut command);
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// The messages that a conversation wrote to this file.
fn exported(file: &Path) -> Vec<(String, String)> {
    let messages: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    let field = |message: &Value, name: &str| message[name].as_str().unwrap_or_default().to_owned();
    messages.iter().map(|message| (field(message, "role"), field(message, "content"))).collect()
}

#[test]
fn a_turn_may_have_several_lines() {
    let folder = inference::mock::folder();
    let file = folder.path().join("messages.json");
    let lines = format!(
        "/system \"\"\"\nBe brief.\nBe kind.\n\"\"\"\na \\\nb\n\"\"\"\n/no command\n  c\n\"\"\"\n/export {}\n\"\"\"cut off\n",
        file.display()
    );
    let output = chat(folder.path(), &["--max-tokens=1", "--quiet"], &lines);
    succeeded(&output);
    let messages = exported(&file);
    let users: Vec<&str> =
        messages.iter().filter(|(role, _)| role == "user").map(|(_, text)| text.as_str()).collect();
    assert_eq!(messages[0], ("system".to_owned(), "Be brief.\nBe kind.".to_owned()));
    assert_eq!(users, ["a \nb", "/no command\n  c"]);
    // What the end of the input cut off is asked as well.
    assert_eq!(text(&output).lines().count(), 3, "{}", text(&output));
}

#[test]
fn settings_change_the_answers_that_follow() {
    let folder = inference::mock::folder();
    let lines = "/set max_tokens 2\na b c\n/clear\n/set max_tokens default\n/set stop c\na b c\n/set temperature hot\n/set nothing 1\n/set\n";
    let output = chat(folder.path(), &["--max-tokens=4", "--quiet"], lines);
    succeeded(&output);
    let answers: Vec<String> = text(&output).lines().map(|line| line.trim().to_owned()).collect();
    assert_eq!(answers, ["b c", "b"], "{}", errors(&output));
    for said in ["max_tokens set", "'hot'", "no setting nothing", "stop c", "top-p", "var NAME=VALUE"] {
        assert!(errors(&output).contains(said), "{said}: {}", errors(&output));
    }
}

#[test]
fn the_last_question_is_answered_again() {
    let folder = inference::mock::folder();
    let file = folder.path().join("messages.json");
    let lines = format!("/retry\na b c\n/set max-tokens 3\n/retry\n/export {}\n", file.display());
    let output = chat(folder.path(), &["--max-tokens=1", "--quiet"], &lines);
    succeeded(&output);
    assert_eq!(text(&output), " b\n b c a\n");
    assert!(errors(&output).contains("no question yet"), "{}", errors(&output));
    let expected =
        [("user", "a b c"), ("assistant", " b c a")].map(|(role, text)| (role.to_owned(), text.to_owned()));
    assert_eq!(exported(&file), expected);
}

#[test]
fn a_conversation_goes_on_with_another_model() {
    let (first, second) = (inference::mock::folder(), inference::mock::folder());
    let file = first.path().join("messages.json");
    let (named, name) = (second.path().display(), second.path().file_name().unwrap().to_str().unwrap());
    let lines = format!(
        "a b\n/fork\n/model /nowhere/model\n/model\n/model {named}\n/model\nc\n/export {}\n/back\nd\n",
        file.display()
    );
    let output = chat(first.path(), &["--max-tokens=1"], &lines);
    succeeded(&output);
    let said = errors(&output);
    // A model that cannot be had leaves the conversation as it is.
    assert!(said.contains("/nowhere/model"), "{said}");
    let former = said.find(first.path().file_name().unwrap().to_str().unwrap()).unwrap();
    assert!(said[former..].contains(&format!("{name} on mock")), "{said}");
    let users: Vec<(String, String)> =
        exported(&file).into_iter().filter(|(role, _)| role == "user").collect();
    assert_eq!(json!(users), json!([["user", "a b"], ["user", "c"]]));
    assert_eq!(text(&output).lines().count(), 3, "{}", text(&output));
}

#[cfg(unix)]
mod terminal {
    use std::{
        fs::File,
        io::Read as _,
        os::fd::{FromRawFd as _, OwnedFd},
        sync::mpsc,
        time::Duration,
    };

    use super::*;

    /// The longest that the program may be silent.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// A terminal: the side of the person, and the program's.
    fn open() -> (File, OwnedFd) {
        let (mut person, mut program) = (0, 0);
        let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the pointers are null or to values that outlive the call.
        let opened = unsafe { libc::openpty(&mut person, &mut program, name, settings, size) };
        assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
        // SAFETY: both were just opened, and nobody else has them.
        unsafe { (File::from_raw_fd(person), OwnedFd::from_raw_fd(program)) }
    }

    /// A person at a terminal.
    struct Person {
        keyboard: File,
        screen: mpsc::Receiver<Vec<u8>>,
        seen: String,
    }

    impl Person {
        fn new(keyboard: File) -> Self {
            let (sender, screen) = mpsc::channel();
            let mut reader = keyboard.try_clone().unwrap();
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                while let Ok(read) = reader.read(&mut buffer) {
                    if read == 0 || sender.send(buffer[..read].to_vec()).is_err() {
                        return;
                    }
                }
            });
            Self { keyboard, screen, seen: String::new() }
        }

        /// Waits until this is on the screen, behind what was waited for before.
        fn wait(&mut self, expected: &str) {
            while !self.seen.contains(expected) {
                let more = self.screen.recv_timeout(PATIENCE);
                let more = more.unwrap_or_else(|_| panic!("{expected:?} does not come: {:?}", self.seen));
                self.seen.push_str(&String::from_utf8_lossy(&more));
            }
            let end = self.seen.find(expected).unwrap() + expected.len();
            self.seen.drain(..end);
        }

        fn press(&mut self, keys: &str) {
            self.keyboard.write_all(keys.as_bytes()).unwrap();
        }
    }

    #[test]
    fn the_editor_takes_several_lines_and_commands() {
        let folder = inference::mock::folder();
        let file = folder.path().join("messages.json");
        let (person, program) = open();
        let mut command = inference(&["chat", "--backend=mock", "--max-tokens=2", "--model"]);
        command.arg(folder.path()).env("TERM", "xterm").env("XDG_STATE_HOME", folder.path());
        let end = || Stdio::from(program.try_clone().unwrap());
        let mut child = command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        drop((command, program));
        let mut person = Person::new(person);
        person.wait("/help for commands");
        person.wait("> ");
        person.press("one two\\\r");
        person.press("three\r");
        person.wait("first token after");
        person.wait("> ");
        person.press("\"\"\"four\rfive\"\"\"\r");
        person.wait("first token after");
        person.wait("> ");
        person.press(&format!("/export {}\r", file.display()));
        person.wait("written to");
        person.wait("> ");
        // The first Ctrl-C warns, and Ctrl-D leaves.
        person.press("\u{3}");
        person.wait("Ctrl-C again");
        person.wait("> ");
        person.press("\u{4}");
        assert!(child.wait().unwrap().success());
        let users: Vec<String> =
            exported(&file).into_iter().filter(|(role, _)| role == "user").map(|(_, text)| text).collect();
        assert_eq!(users, ["one two\nthree", "four\nfive"]);
        let history = std::fs::read_to_string(folder.path().join("inference/history.txt")).unwrap();
        assert!(history.contains("one two"), "{history}");
    }
}
