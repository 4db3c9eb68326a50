//! `inference chat`: a conversation, of one turn or of many.

mod repl;

use std::{path::PathBuf, process::ExitCode};

use inference::{Message, Role, TextModel, TextModelExt as _};

use crate::{
    interrupt::Scope,
    model,
    options::{GenerateArgs, LoadArgs, TemplateArgs},
    render::Out,
    stream::{self, Printed, Style},
};

/// Talk to a model: one answer to PROMPT, or a conversation without it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference chat 'What is 2+2?'
  inference chat --model ~/models/Qwen3-0.6B --system 'Answer in one sentence.'
  inference chat --model ~/models/Qwen3-0.6B --var enable_thinking=false --temperature 0.7
  git diff | inference chat --model ~/models/Qwen3-0.6B - --system 'Describe this change.'

In a conversation, /help lists its commands and Ctrl-C stops an answer. Where the input is no terminal, each of its \
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
        let mut conversation = Conversation::new(model, args);
        match prompt {
            Some(prompt) => Ok(conversation.ask(prompt, &scope).await?.status()),
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
    args: Args,
    out: Out,
}

impl<'a> Conversation<'a> {
    fn new(model: &'a dyn TextModel, args: Args) -> Self {
        let messages = args.template.system.iter().map(Message::system).collect();
        Self { model, messages, args, out: Out::new() }
    }

    /// Asks, prints the answer, and keeps both. A question that fails is forgotten.
    async fn ask(&mut self, question: String, scope: &Scope) -> anyhow::Result<Printed> {
        self.messages.push(Message::user(question));
        let printed = self.answer(scope).await;
        match &printed {
            Ok(printed) => self.messages.push(Message::assistant(&printed.text)),
            Err(_) => {
                self.messages.pop();
            }
        }
        printed
    }

    async fn answer(&mut self, scope: &Scope) -> anyhow::Result<Printed> {
        let options = self.args.template.apply(self.args.generate.options(scope.token()))?;
        let stream = self.model.chat(self.messages.clone(), options).await?;
        let style = Style { json: self.args.json, quiet: self.args.quiet };
        stream::print(stream, style, &mut self.out).await
    }

    /// Forgets everything but the instructions.
    fn clear(&mut self) {
        self.messages.retain(|message| message.role == Role::System);
    }

    /// Replaces the instructions; an empty text removes them.
    fn set_system(&mut self, text: &str) {
        self.messages.retain(|message| message.role != Role::System);
        if !text.is_empty() {
            self.messages.insert(0, Message::system(text));
        }
    }
}
