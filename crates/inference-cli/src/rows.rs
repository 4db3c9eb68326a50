//! Files of prompts: a line each, as plain text or as a JSON object.

use std::path::Path;

use inference::{GenerateOptions, Message, Prompt};
use serde::Deserialize;
use serde_json::Value;

use crate::{failure::Usage, render, text_input};

/// What the help of a command says about such files.
pub(crate) const FORMAT: &str = "\
A line of FILE is a JSON object, or the text of a prompt:

  {\"prompt\": \"Once upon a time\"}
  {\"id\": \"q7\", \"messages\": [{\"role\": \"user\", \"content\": \"What is 2+2?\"}], \"max_tokens\": 20}
  {\"tokens\": [1, 2, 3], \"temperature\": 0.8, \"top_p\": 0.9, \"seed\": 1, \"stop\": [\"\\n\"]}";

/// One line of a file of prompts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// The line's number in the file, from 1; empty lines count.
    pub(crate) line: usize,
    /// The prompt's own identifier, if the file gives one.
    pub(crate) id: Option<Value>,
    /// The line as read.
    pub(crate) source: String,
    prompt: Prompt,
    own: Object,
}

/// A line that is an object. Its options stand above those of the command line.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Object {
    id: Option<Value>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    tokens: Option<Vec<u32>>,
    max_tokens: Option<usize>,
    thinking_budget: Option<usize>,
    tools: Option<Vec<Value>>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    top_k: Option<usize>,
    min_p: Option<f32>,
    seed: Option<u64>,
    repetition_penalty: Option<f32>,
    stop: Option<Vec<String>>,
}

impl Row {
    /// The command line's options with the row's own in their place.
    pub(crate) fn options(&self, mut options: GenerateOptions) -> GenerateOptions {
        fn set<T: Clone>(option: &mut Option<T>, own: &Option<T>) {
            if own.is_some() {
                option.clone_from(own);
            }
        }
        let sampling = &mut options.sampling;
        set(&mut sampling.temperature, &self.own.temperature);
        set(&mut sampling.top_p, &self.own.top_p);
        set(&mut sampling.top_k, &self.own.top_k);
        set(&mut sampling.min_p, &self.own.min_p);
        set(&mut sampling.seed, &self.own.seed);
        set(&mut sampling.repetition_penalty, &self.own.repetition_penalty);
        set(&mut options.max_tokens, &self.own.max_tokens);
        set(&mut options.thinking_budget, &self.own.thinking_budget);
        if let Some(tools) = &self.own.tools {
            options = options.tools(tools.iter().cloned());
        }
        match &self.own.stop {
            Some(stop) => options.stop(stop.iter().cloned()),
            None => options,
        }
    }

    /// The prompt; a plain text as a conversation of its own with `chat`.
    pub(crate) fn prompt_for(&self, chat: bool) -> Prompt {
        match &self.prompt {
            Prompt::Text(text) if chat => Prompt::Chat(vec![Message::user(text)]),
            prompt => prompt.clone(),
        }
    }

    fn parse(line: usize, source: String) -> Result<Self, String> {
        let text = source.trim();
        if !text.starts_with('{') {
            let prompt = Prompt::Text(text.to_owned());
            return Ok(Self { line, id: None, prompt, own: Object::default(), source });
        }
        let mut own: Object = serde_json::from_str(text).map_err(|error| error.to_string())?;
        let prompt = match (own.prompt.take(), own.messages.take(), own.tokens.take()) {
            (Some(text), None, None) => Prompt::Text(text),
            (None, Some(messages), None) => Prompt::Chat(messages),
            (None, None, Some(tokens)) => Prompt::Tokens(tokens),
            _ => return Err("expected one of the keys prompt, messages and tokens".to_owned()),
        };
        Ok(Self { line, id: own.id.take(), prompt, own, source })
    }
}

/// Reads a file of prompts. Empty lines are left out.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Row>> {
    let text = text_input::read_file(path)?;
    parse(&text).map_err(|error| Usage(format!("{}: {error}", render::path(path))).into())
}

/// Reads prompts from a text, a line each.
pub(crate) fn parse(text: &str) -> Result<Vec<Row>, Usage> {
    let lines =
        text.lines().map(text_input::without_mark).enumerate().filter(|(_, line)| !line.trim().is_empty());
    let rows: Result<Vec<Row>, Usage> = lines
        .map(|(index, line)| {
            let row = Row::parse(index + 1, line.to_owned());
            row.map_err(|reason| Usage(format!("line {}: {reason}", index + 1)))
        })
        .collect();
    match rows {
        Ok(rows) if rows.is_empty() => Err(Usage("there are no prompts in it".to_owned())),
        rows => rows,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Row, String> {
        Row::parse(1, text.to_owned())
    }

    #[test]
    fn a_line_is_text_or_an_object() {
        assert_eq!(parse("Once upon").unwrap().prompt, Prompt::from("Once upon"));
        assert_eq!(parse(r#"{"prompt": "a"}"#).unwrap().prompt, Prompt::from("a"));
        assert_eq!(parse(r#"{"tokens": [1, 2]}"#).unwrap().prompt, Prompt::Tokens(vec![1, 2]));
        let chat = parse(r#"{"id": 7, "messages": [{"role": "user", "content": "a"}]}"#).unwrap();
        assert_eq!((chat.prompt, chat.id), (Prompt::Chat(vec![Message::user("a")]), Some(7.into())));
    }

    #[test]
    fn what_is_not_understood_is_refused() {
        assert!(parse("{").is_err());
        assert!(parse("{}").unwrap_err().contains("prompt, messages and tokens"));
        assert!(parse(r#"{"prompt": "a", "tokens": [1]}"#).is_err());
        assert!(parse(r#"{"prompt": "a", "max_tokenz": 1}"#).unwrap_err().contains("max_tokenz"));
    }

    #[test]
    fn a_rows_options_replace_those_of_the_command_line() {
        let row = parse(r#"{"prompt": "a", "max_tokens": 0, "seed": 3, "stop": ["x"]}"#).unwrap();
        let options = row.options(GenerateOptions::new().max_tokens(9).temperature(0.5).stop(["y"]));
        assert_eq!((options.max_tokens, options.sampling.seed), (Some(0), Some(3)));
        assert_eq!(options.sampling.temperature, Some(0.5));
        assert_eq!(options.stop.as_deref(), Some(&["x".to_owned()][..]));
    }
}
