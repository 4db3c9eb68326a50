//! Printing an answer as it comes.

use std::process::ExitCode;

use futures::StreamExt as _;
use inference::{Finish, FinishReason, Metrics, TokenStream};
use serde_json::json;

use crate::{
    failure::INTERRUPTED,
    render::{self, Out},
};

/// How answers are printed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    /// As JSON Lines: a line a token, then one with the finish.
    pub(crate) json: bool,
    /// Without figures on stderr.
    pub(crate) quiet: bool,
}

/// An answer that was printed.
#[derive(Debug)]
pub(crate) struct Printed {
    pub(crate) text: String,
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

/// Prints tokens to stdout as they come, then the figures to stderr.
///
/// An error that ends the stream is returned after the text that came before it was printed.
pub(crate) async fn print(mut stream: TokenStream, style: Style, out: &mut Out) -> anyhow::Result<Printed> {
    let mut text = String::new();
    while let Some(token) = stream.next().await {
        let token = match token {
            Ok(token) => token,
            Err(error) => {
                end_line(&text, style, out)?;
                return Err(error.into());
            }
        };
        text.push_str(&token.text);
        if style.json {
            out.json(&json!({ "token": token }))?;
        } else if !token.text.is_empty() {
            out.text(&token.text)?;
        }
    }
    let finish = stream.finish().await?;
    end_line(&text, style, out)?;
    if style.json {
        out.json(&json!({ "finish": finish }))?;
    } else if !style.quiet {
        render::remark(&figures(&finish));
    }
    Ok(Printed { text, finish })
}

/// Puts what follows on a line of its own.
fn end_line(text: &str, style: Style, out: &mut Out) -> anyhow::Result<()> {
    if !style.json && !text.ends_with('\n') {
        out.line("")?;
    }
    Ok(())
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
        let finish = Finish { reason: FinishReason::Cancelled, metrics: metrics.clone() };
        assert_eq!(figures(&finish), "prompt 12 tokens · answer 0 tokens · cancelled");

        (metrics.cached_tokens, metrics.generated_tokens) = (2, 5);
        (metrics.prefill, metrics.decode) = (Duration::from_millis(50), Duration::from_millis(100));
        metrics.time_to_first_token = Some(Duration::from_millis(51));
        let finish = Finish { reason: FinishReason::Length, metrics };
        assert_eq!(
            figures(&finish),
            "prompt 12 tokens, 2 cached, 200 tokens/s · answer 5 tokens, 40.0 tokens/s · \
             first token after 51 ms · cut at the limit on tokens"
        );
    }
}
