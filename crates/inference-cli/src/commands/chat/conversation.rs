//! A conversation with a model: its messages, its session, its forks.

use std::{collections::VecDeque, path::Path, sync::Arc};

use anyhow::Context as _;
use inference::{Error, Message, Prompt, Role, Session, TextModel, ToolCall};

use super::settings::Settings;
use crate::{
    interrupt::Scope,
    model,
    render::{self, Out},
    stream::{self, Printed, Show, Style},
};

/// A conversation: the messages so far and the model that goes on with them.
#[derive(Debug)]
pub(super) struct Conversation {
    model: Arc<dyn TextModel>,
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

/// A new session of a model; `None` where its backend has none. The model is closed where that fails.
async fn new_session(model: &dyn TextModel) -> anyhow::Result<Option<Session>> {
    match model.session().await {
        Ok(session) => Ok(Some(session)),
        Err(Error::Unsupported { .. }) => Ok(None),
        Err(error) => {
            model.close().await?;
            Err(error.into())
        }
    }
}

impl Conversation {
    /// A conversation with this model, which it closes at its end.
    pub(super) async fn new(
        model: Arc<dyn TextModel>,
        system: Option<&str>,
        settings: Settings,
    ) -> anyhow::Result<Self> {
        let messages = system.into_iter().map(Message::system).collect();
        let session = new_session(&*model).await?;
        let (open_calls, forks, out) = (VecDeque::new(), Vec::new(), Out::new());
        Ok(Self { model, messages, open_calls, session, forks, settings, out })
    }

    /// Closes the model.
    pub(super) async fn close(self) -> anyhow::Result<()> {
        let Self { model, session, forks, .. } = self;
        drop((session, forks));
        Ok(model.close().await?)
    }

    /// The model's name, and the engine that runs it.
    pub(super) fn model_name(&self) -> String {
        let info = self.model.info();
        let path = info.path.canonicalize().unwrap_or_else(|_| info.path.clone());
        let name = path.file_name().map_or_else(|| render::path(&path), render::path);
        format!("{name} on {}", info.backend)
    }

    /// Goes on with another model, which is loaded beside the present one: a load that fails changes nothing.
    pub(super) async fn switch(&mut self, named: &Path, scope: &Scope) -> anyhow::Result<()> {
        let path = model::find(named)?;
        let quiet = self.settings.quiet || self.settings.json;
        let next = model::load(&path, &self.settings.load, scope.token(), quiet).await?;
        self.session = new_session(&*next).await?;
        // What the former model has computed is of no use to this one.
        self.forks.iter_mut().for_each(|(_, session)| *session = None);
        let former = std::mem::replace(&mut self.model, next);
        Ok(former.close().await?)
    }

    /// Has the last question answered again, and prints the answer; `None` where there is no question. If that fails, the former
    /// answer stays.
    pub(super) async fn retry(&mut self, scope: &Scope) -> Option<anyhow::Result<Printed>> {
        let question = self.messages.iter().rposition(|message| message.role == Role::User)?;
        let (former, calls) = (self.messages.split_off(question + 1), std::mem::take(&mut self.open_calls));
        let printed = self.answer(scope).await;
        if printed.is_err() {
            self.messages.extend(former);
            self.open_calls = calls;
        }
        Some(printed)
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
    pub(super) async fn back(&mut self) -> anyhow::Result<bool> {
        let Some((messages, session)) = self.forks.pop() else { return Ok(false) };
        let session = match session {
            Some(session) => Some(session),
            // It was forked with another model, or the backend has no sessions.
            None => new_session(&*self.model).await?,
        };
        (self.messages, self.session) = (messages, session);
        self.open_calls.clear();
        Ok(true)
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
