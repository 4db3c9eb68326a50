//! `inference chat`: a conversation, of one turn or of many.

mod repl;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::Context as _;
use inference::{Error, Message, Prompt, Role, Session, TextModel, ToolCall};

use crate::{
    interrupt::Scope,
    model,
    options::{GenerateArgs, LoadArgs, TemplateArgs},
    render::Out,
    stream::{self, Printed, Show, Style},
};

/// Talk to a model: one answer to PROMPT, or a conversation without it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference chat 'What is 2+2?'
  inference chat --model ~/models/Qwen3-0.6B --system 'Answer in one sentence.'
  inference chat --model ~/models/Qwen3-0.6B --var enable_thinking=false --temperature 0.7
  git diff | inference chat --model ~/models/Qwen3-0.6B - --system 'Describe this change.'

Reasoning goes to stderr, dimmed on a terminal; --quiet leaves it out. In a conversation, /help lists its commands, /tool \
answers a tool call and Ctrl-C stops an answer. Where the input is no terminal, each of its \
lines is a turn.")]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// The question; - reads it from stdin
    prompt: Option<String>,

    #[command(flatten)]
    template: TemplateArgs,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    generate: GenerateArgs,

    /// Print JSON Lines
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no figures and no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let prompt = args.prompt.clone().map(super::prompt_or_stdin).transpose()?;
    // Before a load that may take a while: the options, and whether there is a model at all.
    args.template.apply(args.generate.options(Default::default()))?.validate()?;
    let path = model::or_demo(args.model.as_ref())?;
    let scope = Scope::enter();
    let model = model::load(&path, &args.load, scope.token(), args.quiet || args.json).await?;
    model::using(model, async |model| {
        let mut conversation = Conversation::new(model, args).await?;
        match prompt {
            Some(prompt) => Ok(conversation.send(Message::user(prompt), &scope).await?.status()),
            None => {
                drop(scope);
                repl::run(&mut conversation).await
            }
        }
    })
    .await
}

/// A conversation: the messages so far and the model that goes on with them.
#[derive(Debug)]
struct Conversation<'a> {
    model: &'a dyn TextModel,
    messages: Vec<Message>,
    /// Calls of tools that have no result yet.
    open_calls: VecDeque<ToolCall>,
    /// What the model has computed of it; `None` where the backend has no sessions.
    session: Option<Session>,
    /// Where it was forked, the last fork last.
    forks: Vec<(Vec<Message>, Option<Session>)>,
    args: Args,
    out: Out,
}

impl<'a> Conversation<'a> {
    async fn new(model: &'a dyn TextModel, args: Args) -> anyhow::Result<Self> {
        let messages = args.template.system.iter().map(Message::system).collect();
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
            args,
            out: Out::new(),
        })
    }

    /// Sends a message, prints the answer, and keeps both. A message that fails is forgotten.
    async fn send(&mut self, message: Message, scope: &Scope) -> anyhow::Result<Printed> {
        self.messages.push(message);
        let printed = self.answer(scope).await;
        if printed.is_err() {
            self.messages.pop();
        }
        printed
    }

    /// The result of the oldest open call as the message that the model goes on from; `None` where no call is open. While
    /// others are, the message is kept until they have theirs.
    fn tool_result(&mut self, result: &str) -> Option<Result<Message, usize>> {
        let message = Message::tool_result(self.open_calls.front()?, result);
        if self.open_calls.len() == 1 {
            // The call stays open until there is an answer.
            return Some(Ok(message));
        }
        self.messages.push(message);
        self.open_calls.pop_front();
        Some(Err(self.open_calls.len()))
    }

    /// Has the model go on, prints what it says and keeps it.
    async fn answer(&mut self, scope: &Scope) -> anyhow::Result<Printed> {
        let options = self.args.template.apply(self.args.generate.options(scope.token()))?;
        let prompt = Prompt::Chat(self.messages.clone());
        let stream = match &mut self.session {
            Some(session) => session.generate(prompt, options).await?,
            None => self.model.generate(prompt, options).await?,
        };
        let style = Style { show: Show::Parts.or_json(self.args.json), quiet: self.args.quiet };
        let printed = stream::print(stream, style, &mut self.out).await?;
        self.messages.push(printed.answer.message());
        self.open_calls = printed.answer.tool_calls.iter().cloned().collect();
        Ok(printed)
    }

    /// Writes the conversation and what was computed of it to a file that `load` reads.
    async fn save(&mut self, file: &Path) -> anyhow::Result<()> {
        let session =
            self.session.as_mut().context("this backend has no sessions; /export writes the messages")?;
        session.set_metadata(serde_json::to_string(&self.messages)?);
        Ok(session.save(file).await?)
    }

    /// Goes on with a conversation from a file.
    async fn load(&mut self, file: &Path) -> anyhow::Result<()> {
        let session = self.model.load_session(file).await?;
        let messages = serde_json::from_str(session.metadata())
            .with_context(|| format!("{} holds a session, and no conversation", file.display()))?;
        (self.messages, self.session) = (messages, Some(session));
        self.open_calls.clear();
        Ok(())
    }

    /// Remembers where the conversation is, to come back to it.
    async fn fork(&mut self) -> anyhow::Result<()> {
        let fork = match &self.session {
            Some(session) => Some(session.fork().await?),
            None => None,
        };
        self.forks.push((self.messages.clone(), fork));
        Ok(())
    }

    /// Goes back to where it was forked last; whether it was.
    fn back(&mut self) -> bool {
        let Some((messages, session)) = self.forks.pop() else { return false };
        (self.messages, self.session) = (messages, session);
        self.open_calls.clear();
        true
    }

    /// Forgets everything but the instructions.
    fn clear(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
        self.open_calls.clear();
    }

    /// Replaces the instructions; an empty text removes them.
    fn set_system(&mut self, text: &str) {
        self.messages.retain(|message| message.role != Role::System);
        if !text.is_empty() {
            self.messages.insert(0, Message::system(text));
        }
    }
}
