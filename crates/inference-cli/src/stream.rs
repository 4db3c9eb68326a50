//! Printing an answer as it comes.

use std::process::ExitCode;

use futures::StreamExt as _;
use inference::{AssistantMessage, ChatEvent, Finish, FinishReason, Metrics, Token, TokenStream, ToolCall};
use serde_json::json;

use crate::{
    failure::INTERRUPTED,
    render::{self, Out},
};

/// How answers are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub(crate) show: Show,
    /// Without figures and reasoning on stderr.
    pub(crate) quiet: bool,
}

/// Which parts of an answer are printed, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// The text as it stands.
    Text,
    /// Its parts: text, tool calls as blocks, and reasoning on stderr.
    Parts,
    /// JSON Lines: a line a token, then one with the parts and the finish.
    Json,
}

impl Show {
    /// As JSON, or this.
    pub(crate) fn or_json(self, json: bool) -> Self {
        if json { Self::Json } else { self }
    }
}

/// An answer that was printed.
#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) answer: AssistantMessage,
    pub(crate) finish: Finish,
}

impl Printed {
    /// The exit status of a program whose work this answer was.
    pub(crate) fn status(&self) -> ExitCode {
        match self.finish.reason {
            FinishReason::Cancelled => ExitCode::from(INTERRUPTED),
            _ => ExitCode::SUCCESS,
        }
    }
}

/// Prints an answer to stdout as it comes, then the figures to stderr.
///
/// An error that ends the stream is returned after what came before it was printed.
pub(crate) async fn print(mut stream: TokenStream, style: Style, out: &mut Out) -> anyhow::Result<Printed> {
    let mut reader = stream.take_parser();
    let mut page = Page { out, style, open: Open::Nothing };
    let (mut answer, mut events) = (AssistantMessage::default(), Vec::new());
    let failure = loop {
        match stream.next().await {
            Some(Ok(token)) => {
                page.token(&token)?;
                reader.push(&token, &mut events);
            }
            Some(Err(error)) => break Some(error),
            None => break None,
        }
        page.events(&events)?;
        answer.extend(events.drain(..));
    };
    reader.finish(&mut events);
    page.events(&events)?;
    answer.extend(events);
    page.end()?;
    if let Some(error) = failure {
        return Err(error.into());
    }
    let finish = stream.finish().await?;
    if style.show == Show::Json {
        out.json(&json!({ "answer": answer, "finish": finish }))?;
    } else if !style.quiet {
        render::remark(&figures(&finish));
    }
    Ok(Printed { answer, finish })
}

/// Where an answer is printed.
struct Page<'a> {
    out: &'a mut Out,
    style: Style,
    open: Open,
}

/// The kind of text that began the current line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    /// Nothing was printed at all.
    Nothing,
    /// It is empty: a line was ended.
    Empty,
    Text,
    Thinking,
}

impl Page<'_> {
    fn token(&mut self, token: &Token) -> anyhow::Result<()> {
        match self.style.show {
            Show::Json => self.out.json(&json!({ "token": token })),
            Show::Text => self.text(&token.text),
            Show::Parts => Ok(()),
        }
    }

    fn events(&mut self, events: &[ChatEvent]) -> anyhow::Result<()> {
        if self.style.show != Show::Parts {
            return Ok(());
        }
        for event in events {
            match event {
                ChatEvent::Text(text) => self.text(text)?,
                ChatEvent::Thinking(text) => self.thinking(text)?,
                ChatEvent::ToolCall { call, .. } => self.block(&tool_call(call))?,
                ChatEvent::UnparsedToolCall { raw, reason } => {
                    self.block(&format!("a tool call that cannot be read: {reason}\n{raw}"))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> anyhow::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        if self.open == Open::Thinking {
            self.end_line()?;
        }
        self.open = if text.ends_with('\n') { Open::Empty } else { Open::Text };
        self.out.text(text)
    }

    fn thinking(&mut self, text: &str) -> anyhow::Result<()> {
        if self.style.quiet {
            return Ok(());
        }
        if self.open == Open::Text {
            self.end_line()?;
        }
        self.open = Open::Thinking;
        render::aside(text);
        Ok(())
    }

    fn block(&mut self, text: &str) -> anyhow::Result<()> {
        if matches!(self.open, Open::Text | Open::Thinking) {
            self.end_line()?;
        }
        self.open = Open::Empty;
        self.out.text(text)?;
        self.out.line("")
    }

    /// Puts what follows on a line of its own.
    fn end(&mut self) -> anyhow::Result<()> {
        if self.style.show != Show::Json && self.open != Open::Empty { self.end_line() } else { Ok(()) }
    }

    fn end_line(&mut self) -> anyhow::Result<()> {
        match std::mem::replace(&mut self.open, Open::Empty) {
            Open::Thinking => {
                render::aside("\n");
                Ok(())
            }
            _ => self.out.line(""),
        }
    }
}

/// A call as a block of lines: the tool's name, then its arguments.
fn tool_call(call: &ToolCall) -> String {
    let arguments = call.arguments.iter().map(|(name, value)| format!("\n  {name}: {value}"));
    format!("tool call {}{}", call.name, arguments.collect::<String>())
}

/// What an answer cost, in a line.
fn figures(finish: &Finish) -> String {
    let metrics = &finish.metrics;
    let mut parts = vec![prompt(metrics), generated(metrics)];
    if let Some(first) = metrics.time_to_first_token {
        parts.push(format!("first token after {}", render::duration(first)));
    }
    match finish.reason {
        FinishReason::Length => parts.push("cut at the limit on tokens".to_owned()),
        FinishReason::Cancelled => parts.push("cancelled".to_owned()),
        _ => {}
    }
    parts.join(" · ")
}

fn prompt(metrics: &Metrics) -> String {
    let mut text = format!("prompt {}", render::things(metrics.prompt_tokens, "token"));
    if metrics.cached_tokens > 0 {
        text.push_str(&format!(", {} cached", metrics.cached_tokens));
    }
    with_rate(text, metrics.prefill_tokens_per_second())
}

fn generated(metrics: &Metrics) -> String {
    with_rate(
        format!("answer {}", render::things(metrics.generated_tokens, "token")),
        metrics.decode_tokens_per_second(),
    )
}

fn with_rate(text: String, per_second: f64) -> String {
    if per_second > 0.0 { format!("{text}, {} tokens/s", render::rate(per_second)) } else { text }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn figures_leave_out_what_was_not_measured() {
        let mut metrics = Metrics::default();
        (metrics.prompt_tokens, metrics.generated_tokens) = (12, 0);
        let finish = Finish::new(FinishReason::Cancelled, metrics.clone());
        assert_eq!(figures(&finish), "prompt 12 tokens · answer 0 tokens · cancelled");

        (metrics.cached_tokens, metrics.generated_tokens) = (2, 5);
        (metrics.prefill, metrics.decode) = (Duration::from_millis(50), Duration::from_millis(100));
        metrics.time_to_first_token = Some(Duration::from_millis(51));
        let finish = Finish::new(FinishReason::Length, metrics);
        assert_eq!(
            figures(&finish),
            "prompt 12 tokens, 2 cached, 200 tokens/s · answer 5 tokens, 40.0 tokens/s · \
             first token after 51 ms · cut at the limit on tokens"
        );
    }
}
