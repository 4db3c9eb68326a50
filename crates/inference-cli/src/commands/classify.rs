//! `inference classify`: what a model would say next, from one forward pass over each prompt.

use std::{
    path::PathBuf,
    process::ExitCode,
    str::FromStr,
    time::{Duration, Instant},
};

use comfy_table::Cell;
use inference::{CancellationToken, Classification, ClassifyOptions, Message, Prompt};

use crate::{
    commands::shortened,
    failure::Usage,
    interrupt::Scope,
    model,
    options::LoadArgs,
    render::{self, Out},
    text_input,
};

/// Say what a model would answer next: the likeliest token, or the likeliest of some labels
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  inference classify --chat --labels weather,sport,food 'Classify: The goalkeeper saved a penalty.'
  inference classify --model ~/models/gemma-3-1b-it --labels ' yes',' no' - < questions.txt
  inference classify --prompt-tokens '[[1,40],[1,41]]' --logits --json

A label is scored as the prompt's continuation, token for token: after a plain text it mostly begins with a space, after \
a chat template it does not.")]
#[command(group(clap::ArgGroup::new("input").required(true).multiple(false).args(["prompts", "prompt_tokens"])))]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    model: Option<PathBuf>,

    /// The texts to classify; - reads one from each line of stdin
    #[arg(value_name = "PROMPT")]
    prompts: Vec<String>,

    /// Prompts as a JSON list of lists of token ids, in place of texts
    #[arg(long, value_name = "IDS")]
    prompt_tokens: Option<TokenLists>,

    /// The labels to choose from, separated by commas [default: the whole vocabulary]
    #[arg(long, value_name = "LABELS", value_delimiter = ',')]
    labels: Vec<String>,

    /// Put each prompt into the model's chat template
    #[arg(long)]
    chat: bool,

    /// With --chat: instructions before each prompt
    #[arg(long, value_name = "TEXT", requires = "chat")]
    system: Option<String>,

    #[command(flatten)]
    load: LoadArgs,

    /// With --json: the next token's logits, one for each id of the vocabulary
    #[arg(long, requires = "json", help_heading = "Output")]
    logits: bool,

    /// Print JSON Lines: a prompt each, in their order
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no figures and no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

pub(crate) async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let options = args.options(scope.token());
    options.validate()?;
    let (prompts, names) = args.prompts()?;
    let path = model::or_demo(args.model.as_ref())?;
    let model = model::load(&path, &args.load, scope.token(), args.quiet || args.json).await?;
    let began = Instant::now();
    let (classified, took) = model::using(model, async |model| {
        let classified = model.classify(prompts, options).await?;
        Ok((classified, began.elapsed()))
    })
    .await?;
    print(&args, &names, &classified)?;
    if !args.quiet && !args.json {
        render::remark(&figures(&classified, took));
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn options(&self, cancel: CancellationToken) -> ClassifyOptions {
        let options = ClassifyOptions::new().logits(self.logits).cancel(cancel);
        if self.labels.is_empty() { options } else { options.labels(self.labels.iter().cloned()) }
    }

    /// The prompts, and what a table calls them.
    fn prompts(&self) -> anyhow::Result<(Vec<Prompt>, Vec<String>)> {
        if let Some(TokenLists(lists)) = &self.prompt_tokens {
            let names = lists.iter().map(|ids| render::things(ids.len(), "token")).collect();
            return Ok((lists.iter().cloned().map(Prompt::Tokens).collect(), names));
        }
        let mut texts = Vec::new();
        for prompt in &self.prompts {
            if prompt == "-" {
                let text = text_input::read_stdin()?;
                texts.extend(text.lines().map(|line| text_input::without_mark(line).to_owned()));
            } else {
                texts.push(prompt.clone());
            }
        }
        texts.retain(|text| !text.trim().is_empty());
        if texts.is_empty() {
            return Err(Usage("there is nothing to classify: every prompt is empty".to_owned()).into());
        }
        Ok((texts.iter().map(|text| self.prompt(text)).collect(), texts))
    }

    fn prompt(&self, text: &str) -> Prompt {
        if !self.chat {
            return Prompt::from(text);
        }
        let system = self.system.iter().map(Message::system);
        Prompt::Chat(system.chain([Message::user(text)]).collect())
    }
}

fn print(args: &Args, names: &[String], classified: &[Classification]) -> anyhow::Result<()> {
    let mut out = Out::new();
    if args.json {
        return classified.iter().try_for_each(|classification| out.json(classification));
    }
    let mut table = render::table(if args.labels.is_empty() {
        &["prompt", "token", "text"]
    } else {
        &["prompt", "label", "probability"]
    });
    for (name, classification) in names.iter().zip(classified) {
        let name = Cell::new(render::harmless(&shortened(name)));
        table.add_row(match classification.best() {
            Some(best) => {
                [name, Cell::new(&best.label), render::right(format!("{:.1} %", best.probability * 100.0))]
            }
            None => {
                [name, render::right(classification.token), Cell::new(format!("{:?}", classification.text))]
            }
        });
    }
    out.table(&table)
}

fn figures(classified: &[Classification], took: Duration) -> String {
    let tokens: usize = classified.iter().map(|classification| classification.prompt_tokens).sum();
    let per_second = |count: usize| render::rate(count as f64 / took.as_secs_f64().max(1e-9));
    format!(
        "{} in {} · {} prompts/s · {} tokens/s",
        render::things(classified.len(), "prompt"),
        render::duration(took),
        per_second(classified.len()),
        per_second(tokens),
    )
}

/// Lists of token ids as JSON: `[[1,2],[3]]`.
#[derive(Debug, Clone, PartialEq)]
struct TokenLists(Vec<Vec<u32>>);

impl FromStr for TokenLists {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map(Self).map_err(|error| {
            format!("expected a JSON list of lists of token ids, such as [[1,2],[3]]: {error}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_lists_are_json() {
        assert_eq!("[[1,2],[3]]".parse(), Ok(TokenLists(vec![vec![1, 2], vec![3]])));
        assert!("[1,2]".parse::<TokenLists>().unwrap_err().contains("[[1,2],[3]]"));
    }
}
