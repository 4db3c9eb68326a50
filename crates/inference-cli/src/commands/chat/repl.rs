//! A conversation of many turns.

use std::{path::Path, process::ExitCode};

use anyhow::Context as _;
use inference::{FinishReason, Message};

use super::{
    conversation::{Conversation, ToolResult},
    input::{Input, Typed},
    turn::{HELP, Turn},
};
use crate::{
    failure::{self, INTERRUPTED},
    interrupt::Scope,
    render::{self, OutputClosed},
    stream::Printed,
};

/// What comes after a turn.
enum Next {
    /// The next turn; the answer was interrupted, so that another Ctrl-C leaves.
    Turn {
        interrupted: bool,
    },
    Leave,
}

const GO_ON: Next = Next::Turn { interrupted: false };

pub(super) async fn run(conversation: &mut Conversation) -> anyhow::Result<ExitCode> {
    let mut input = Input::open()?;
    if input.is_terminal() && !conversation.settings.quiet {
        render::remark(&format!("{} · /help for commands", conversation.model_name()));
    }
    // A first Ctrl-C stops an answer or warns; the next one leaves.
    let mut warned = false;
    let status = loop {
        let typed = input.next()?;
        let turn = match &typed {
            Typed::Text(text) => Turn::parse(text),
            Typed::Quoted(text) if text.trim().is_empty() => Turn::Nothing,
            Typed::Quoted(text) => Turn::Question(text),
            Typed::End => break ExitCode::SUCCESS,
            Typed::Interrupted if warned => break ExitCode::from(INTERRUPTED),
            Typed::Interrupted => {
                warned = true;
                render::remark("Ctrl-C again, /exit or Ctrl-D leaves");
                continue;
            }
        };
        match take(conversation, turn).await? {
            Next::Turn { interrupted } => warned = interrupted,
            Next::Leave => break ExitCode::SUCCESS,
        }
    };
    input.close();
    Ok(status)
}

/// Does what a turn asks for. A failure is told, and the conversation goes on.
async fn take(conversation: &mut Conversation, turn: Turn<'_>) -> anyhow::Result<Next> {
    match turn {
        Turn::Nothing => {}
        Turn::Exit => return Ok(Next::Leave),
        Turn::Question(question) => return send(conversation, Message::user(question)).await,
        Turn::ToolResult(result) => match conversation.tool_result(result) {
            ToolResult::Last(message) => return send(conversation, message).await,
            ToolResult::Kept { open } => {
                render::remark(&format!("{} still without a result", render::things(open, "tool call")));
            }
            ToolResult::NotAsked => render::remark("no tool call waits for a result"),
        },
        Turn::Retry => {
            let scope = Scope::enter();
            return match conversation.retry(&scope).await {
                None => {
                    render::remark("there is no question yet");
                    Ok(GO_ON)
                }
                Some(answered) => after(answered, conversation, &scope),
            };
        }
        Turn::Help => render::remark(HELP),
        Turn::Clear => {
            conversation.clear();
            render::remark("the conversation is forgotten");
        }
        Turn::System(text) => {
            conversation.set_system(text);
            render::remark(if text.is_empty() { "no instructions" } else { "instructions set" });
        }
        Turn::Settings => render::remark(&conversation.settings.list()),
        Turn::Set { name, value } => match conversation.settings.set(name, value) {
            Ok(()) => render::remark(&format!("{name} set")),
            Err(reason) => render::remark(&render::harmless(&reason)),
        },
        Turn::WhichModel => render::remark(&conversation.model_name()),
        Turn::Model(named) => {
            let scope = Scope::enter();
            let switched = conversation.switch(named, &scope).await;
            done(switched, &conversation.model_name());
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
        Turn::Back => match conversation.back().await {
            Ok(true) => render::remark("back at the fork"),
            Ok(false) => render::remark("there was no /fork"),
            Err(error) => tell(&error, false),
        },
        Turn::Mistake(message) => render::remark(&message),
    }
    Ok(GO_ON)
}

/// Sends a message, and prints the answer.
async fn send(conversation: &mut Conversation, message: Message) -> anyhow::Result<Next> {
    let scope = Scope::enter();
    let answered = conversation.send(message, &scope).await;
    after(answered, conversation, &scope)
}

/// What comes after an answer. A failure is told, unless nobody reads any more.
fn after(
    answered: anyhow::Result<Printed>,
    conversation: &Conversation,
    scope: &Scope,
) -> anyhow::Result<Next> {
    match answered {
        Ok(printed) => Ok(Next::Turn { interrupted: printed.finish.reason == FinishReason::Cancelled }),
        Err(error) if error.is::<OutputClosed>() => Err(error),
        Err(error) => {
            tell(&error, conversation.settings.json);
            Ok(Next::Turn { interrupted: scope.interrupted() })
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

fn export(conversation: &Conversation, file: &Path) -> anyhow::Result<()> {
    let json = serde_json::to_string_pretty(&conversation.messages)?;
    std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", render::path(file)))
}
