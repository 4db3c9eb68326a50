//! Running the program and reading what it says.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(dead_code, unreachable_pub, unused_imports, reason = "each test file uses a part")]

mod serving;

use std::{
    io::Write as _,
    process::{Child, Command, Output, Stdio},
};

use serde_json::Value;

pub use self::serving::Serving;

pub fn inference(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_inference"));
    command
        .args(arguments)
        .stdin(Stdio::null())
        .env_remove("INFERENCE_DEMO_MODEL")
        .env_remove("INFERENCE_LOG");
    command
}

pub fn run(arguments: &[&str]) -> Output {
    inference(arguments).output().unwrap()
}

pub fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

pub fn with_input(command: &mut Command, input: &str) -> Output {
    let mut child = spawn(command.stdin(Stdio::piped()));
    // A program that refuses its arguments ends before it has read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

#[cfg(unix)]
pub fn interrupt(child: &Child) {
    let sent = Command::new("kill").args(["-INT", &child.id().to_string()]).stderr(Stdio::null()).status();
    sent.unwrap();
}

pub fn text(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn errors(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn json_lines(output: &Output) -> Vec<Value> {
    text(output).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn succeeded(output: &Output) {
    assert_eq!(output.status.code(), Some(0), "{}{}", text(output), errors(output));
}
