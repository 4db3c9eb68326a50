//! `inference chat`: a conversation, of one turn or of many.

mod conversation;
mod input;
mod repl;
mod settings;
mod turn;

use std::{path::PathBuf, process::ExitCode};

use inference::Message;

use self::{conversation::Conversation, settings::Settings};
use crate::{
    interrupt::Scope,
    model,
    options::{GenerateArgs, LoadArgs, TemplateArgs},
    shape::ShapeArgs,
};

/// Talk to a model: one answer to PROMPT, or a conversation without it
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference chat 'What is 2+2?'
  inference chat --model ~/models/Qwen3-0.6B --system 'Answer in one sentence.'
  inference chat --model ~/models/Qwen3-0.6B --var enable_thinking=false --temperature 0.7
  inference chat --choice positive --choice negative 'I love it. Positive or negative?'
  git diff | inference chat --model ~/models/Qwen3-0.6B - --system 'Describe this change.'

Reasoning goes to stderr, dimmed on a terminal; --quiet leaves it out. In a conversation, /help lists its commands, /tool \
answers a tool call and Ctrl-C stops an answer. A text between \"\"\" and \"\"\" has several lines, and so has one whose lines end \
with \\. Where the input is no terminal, each of its other lines is a turn.")]
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

    #[command(flatten)]
    shape: ShapeArgs,

    /// Print JSON Lines
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no figures and no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let Args { model, prompt, template, load, generate, shape, json, quiet } = args;
    let prompt = prompt.map(super::prompt_or_stdin).transpose()?;
    let system = template.system.clone();
    // Checked before a load that may take a while: the options, and whether there is a model at all.
    let settings = Settings::new((generate, shape, template), load, (json, quiet))?;
    let path = model::or_demo(model.as_ref())?;
    let scope = Scope::enter();
    let model = model::load(&path, &settings.load, scope.token(), quiet || json).await?;
    let mut conversation = Conversation::new(model, system.as_deref(), settings).await?;
    let ended = match prompt {
        Some(prompt) => {
            conversation.send(Message::user(prompt), &scope).await.map(|printed| printed.status())
        }
        None => {
            drop(scope);
            repl::run(&mut conversation).await
        }
    };
    // Also where it failed: an engine that still runs when the program ends would be torn down under its own threads.
    let closed = conversation.close().await;
    let status = ended?;
    closed?;
    Ok(status)
}
