//! `inference generate`: plain continuation of a text or of token ids.

use std::{path::PathBuf, process::ExitCode};

use inference::Prompt;

use crate::{
    interrupt::Scope,
    model,
    options::{GenerateArgs, LoadArgs, TokenIds},
    render::Out,
    shape::ShapeArgs,
    stream::{self, Show, Style},
};

/// Continue a text, as it stands: no chat template
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference generate 'The capital of'
  inference generate --model ~/models/Qwen3-0.6B 'Once upon a time'
  inference generate --model ~/models/Qwen3-0.6B - --max-tokens 500 --temperature 0.8 < story.txt
  inference generate --json-schema person.json 'Ada Lovelace, born in 1815, as JSON: '
  inference generate --model ~/models/Qwen3-0.6B --prompt-tokens '[151644,872,198]' --json

--json prints a line a token, {\"token\":{\"id\":…,\"text\":…}}, then \
{\"answer\":{\"text\":…},\"finish\":{\"reason\":…,\"metrics\":{…}}} or {\"error\":{\"kind\":…,\"message\":…}}.")]
#[command(group(clap::ArgGroup::new("input").required(true).multiple(false).args(["prompt", "prompt_tokens"])))]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// The text to continue; - reads it from stdin
    prompt: Option<String>,

    /// Token ids to continue, as a JSON list, in place of a text
    #[arg(long, value_name = "IDS")]
    prompt_tokens: Option<TokenIds>,

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
    let prompt = match (args.prompt, args.prompt_tokens) {
        (_, Some(TokenIds(ids))) => Prompt::Tokens(ids),
        (text, None) => Prompt::Text(super::prompt_or_stdin(text.unwrap_or_default())?),
    };
    let scope = Scope::enter();
    let options = args.shape.apply(args.generate.options(scope.token()))?;
    options.validate()?;
    let path = model::or_demo(args.model.as_ref())?;
    let model = model::load(&path, &args.load, scope.token(), args.quiet || args.json).await?;
    let style = Style { show: Show::Text.or_json(args.json), quiet: args.quiet };
    model::using(model, async |model| {
        let stream = model.generate(prompt, options).await?;
        Ok(stream::print(stream, style, &mut Out::new()).await?.status())
    })
    .await
}
