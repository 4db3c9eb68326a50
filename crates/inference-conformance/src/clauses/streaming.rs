//! How tokens travel.

use std::time::Duration;

use futures::StreamExt as _;
use inference_core::FinishReason;

use super::{CHANNEL, ENDLESS, alone, drain, ids, some_prompts, was_cancelled, within};
use crate::{
    ClauseResult, Subject,
    clause::{clauses, ensure},
};

clauses!("streaming":
    a_stream_ends_once_with_a_finish [Generate],
    a_slow_reader_misses_nothing [Generate],
    an_unread_stream_blocks_nobody [Generate],
    a_reader_holds_its_own_request_back [Generate],
    tokens_arrive_as_they_are_made [Generate],
    the_parts_of_an_answer_are_all_of_it [Generate],
);

/// After the last token the stream gives `None` however often it is asked, and the same finish each time.
pub async fn a_stream_ends_once_with_a_finish(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut stream = model.generate(subject.prompt.clone(), subject.greedy(5)?).await?;
    let (_, finish) = drain(&mut stream).await?;
    ensure!(stream.next().await.is_none(), "a token came after the end");
    let again = stream.finish().await?;
    ensure!(again == finish, "first {finish:?}, then {again:?}");
    Ok(())
}

/// A stream that is read long after its tokens were made has all of them, in order.
pub async fn a_slow_reader_misses_nothing(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(200.min(model.info().context_length / 2))?;
    let expected = ids(&alone(&*model, &subject.prompt, &options).await?);
    let mut stream = model.generate(subject.prompt.clone(), options.clone()).await?;
    // Time to fill the channel, and for one that loses what does not fit to lose it.
    within(Duration::from_millis(250), || model.stats().active == 0);
    let (tokens, finish) = drain(&mut stream).await?;
    let found: Vec<u32> = tokens.iter().map(|token| token.id).collect();
    ensure!(found == expected, "read late {found:?}, read at once {expected:?}");
    // One that loses tokens may have lost the same ones both times.
    let generated = finish.metrics.generated_tokens;
    ensure!(found.len() == generated, "{} tokens came of {generated}", found.len());
    Ok(())
}

/// A stream that is held and not read keeps nobody else from an answer.
pub async fn an_unread_stream_blocks_nobody(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let expected = ids(&alone(&*model, &subject.prompt, &subject.greedy(12)?).await?);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(model.generate(subject.prompt.clone(), subject.greedy(ENDLESS)?).await?);
    }
    for _ in 0..3 {
        super::still_right(subject, &*model, &expected).await?;
    }
    Ok(())
}

/// A request runs ahead of its reader by what the channel holds, and no further.
pub async fn a_reader_holds_its_own_request_back(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(ENDLESS)?;
    let cancel = options.cancel.clone();
    let mut stream = model.generate(subject.prompt.clone(), options).await?;
    // Time for the engine to run away in, were it to.
    within(Duration::from_millis(500), || model.stats().active == 0);
    cancel.cancel();
    let (tokens, finish) = drain(&mut stream).await?;
    was_cancelled(&finish)?;
    ensure!(tokens.len() <= CHANNEL, "{} tokens had been made for a reader that read none", tokens.len());
    Ok(())
}

/// The first token can be read while the request still runs.
pub async fn tokens_arrive_as_they_are_made(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(ENDLESS)?;
    let cancel = options.cancel.clone();
    let mut stream = model.generate(subject.prompt.clone(), options).await?;
    if let Some(token) = stream.next().await {
        token?;
    }
    let running = model.stats().active;
    cancel.cancel();
    let (_, finish) = drain(&mut stream).await?;
    ensure!(
        running > 0 || matches!(finish.reason, FinishReason::Stop(_)),
        "the first token came when nothing ran any more"
    );
    was_cancelled(&finish)
}

/// The answer's parts, whatever they are taken for, hold the text of every token in order: what a model says is never lost.
pub async fn the_parts_of_an_answer_are_all_of_it(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for prompt in some_prompts(subject, &*model) {
        let text = alone(&*model, &prompt, &subject.greedy(24)?).await?.text;
        let mut events = model.generate(prompt, subject.greedy(24)?).await?.events();
        let mut raw = String::new();
        while let Some(event) = events.next().await {
            raw.push_str(event?.raw());
        }
        // Marks that are special tokens have no text of their own.
        let mut parts = raw.chars();
        let all = text.chars().all(|c| parts.any(|part| part == c));
        ensure!(all, "the parts are {raw:?}, the text is {text:?}");
        events.finish().await?;
    }
    Ok(())
}
