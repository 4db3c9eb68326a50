//! A conversation with a model: its messages, its session, its forks.

use std::{collections::VecDeque, path::Path};

use anyhow::Context as _;
use inference::{Error, GenerateOptions, Message, Prompt, Role, Session, TextModel, ToolCall};

use crate::{
    interrupt::Scope,
    render::{self, Out},
    stream::{self, Printed, Show, Style},
};

/// How answers are generated and printed.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) options: GenerateOptions,
    pub(super) json: bool,
    pub(super) quiet: bool,
}

/// A conversation: the messages so far and the model that goes on with them.
#[derive(Debug)]
pub(super) struct Conversation<'a> {
    pub(super) model: &'a dyn TextModel,
    pub(super) messages: Vec<Message>,
    /// Tool calls that have no result yet.
    open_calls: VecDeque<ToolCall>,
    /// What the model has computed of it; `None` where the backend has no sessions.
    session: Option<Session>,
    /// Where it was forked, the last fork last.
    forks: Vec<(Vec<Message>, Option<Session>)>,
    pub(super) settings: Settings,
    out: Out,
}

/// What becomes of the result of a tool call.
#[derive(Debug)]
pub(super) enum ToolResult {
    /// No call is open.
    NotAsked,
    /// It was added to the conversation; these other calls have no result yet.
    Kept { open: usize },
    /// It was the last one missing: the message that the model goes on from.
    Last(Message),
}

impl<'a> Conversation<'a> {
    pub(super) async fn new(
        model: &'a dyn TextModel,
        system: Option<&str>,
        settings: Settings,
    ) -> anyhow::Result<Self> {
        let messages = system.into_iter().map(Message::system).collect();
        let session = match model.session().await {
            Err(Error::Unsupported { .. }) => None,
            session => Some(session?),
        };
        Ok(Self {
            model,
            messages,
            open_calls: VecDeque::new(),
            session,
            forks: Vec::new(),
            settings,
            out: Out::new(),
        })
    }

    /// Sends a message, prints the answer, and keeps both. A message that fails is forgotten.
    pub(super) async fn send(&mut self, message: Message, scope: &Scope) -> anyhow::Result<Printed> {
        self.messages.push(message);
        let printed = self.answer(scope).await;
        if printed.is_err() {
            self.messages.pop();
        }
        printed
    }

    /// Takes the result of the oldest open call.
    pub(super) fn tool_result(&mut self, result: &str) -> ToolResult {
        let Some(call) = self.open_calls.front() else { return ToolResult::NotAsked };
        let message = Message::tool_result(call, result);
        if self.open_calls.len() == 1 {
            // The call stays open until there is an answer.
            return ToolResult::Last(message);
        }
        self.messages.push(message);
        self.open_calls.pop_front();
        ToolResult::Kept { open: self.open_calls.len() }
    }

    /// Has the model go on, prints what it says and keeps it.
    async fn answer(&mut self, scope: &Scope) -> anyhow::Result<Printed> {
        let options = self.settings.options.clone().cancel(scope.token());
        let prompt = Prompt::Chat(self.messages.clone());
        let stream = match &mut self.session {
            Some(session) => session.generate(prompt, options).await?,
            None => self.model.generate(prompt, options).await?,
        };
        let style = Style { show: Show::Parts.or_json(self.settings.json), quiet: self.settings.quiet };
        let printed = stream::print(stream, style, &mut self.out).await?;
        self.messages.push(printed.answer.message());
        self.open_calls = printed.answer.tool_calls.iter().cloned().collect();
        Ok(printed)
    }

    /// Writes the conversation and what was computed of it to a file that `load` reads.
    pub(super) async fn save(&mut self, file: &Path) -> anyhow::Result<()> {
        let session =
            self.session.as_mut().context("this backend has no sessions; /export writes the messages")?;
        session.set_metadata(serde_json::to_string(&self.messages)?);
        Ok(session.save(file).await?)
    }

    /// Goes on with a conversation from a file.
    pub(super) async fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        let session = self.model.load_session(file).await?;
        let messages = serde_json::from_str(session.metadata())
            .with_context(|| format!("{} holds a session, and no conversation", render::path(file)))?;
        (self.messages, self.session) = (messages, Some(session));
        self.open_calls.clear();
        Ok(())
    }

    /// Remembers where the conversation is, to come back to it.
    pub(super) async fn fork(&mut self) -> anyhow::Result<()> {
        let fork = match &self.session {
            Some(session) => Some(session.fork().await?),
            None => None,
        };
        self.forks.push((self.messages.clone(), fork));
        Ok(())
    }

    /// Goes back to where it was forked last; whether it was.
    pub(super) fn back(&mut self) -> bool {
        let Some((messages, session)) = self.forks.pop() else { return false };
        (self.messages, self.session) = (messages, session);
        self.open_calls.clear();
        true
    }

    /// Forgets everything but the instructions.
    pub(super) fn clear(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
        self.open_calls.clear();
    }

    /// Replaces the instructions; an empty text removes them.
    pub(super) fn set_system(&mut self, text: &str) {
        self.messages.retain(|message| message.role != Role::System);
        if !text.is_empty() {
            self.messages.insert(0, Message::system(text));
        }
    }
}
