//! Texts that are kept going: a session saves work and changes nothing.

use inference_core::{Completion, Error, FinishReason, Message, Prompt, Session};
use tempfile::TempDir;

use super::{
    ENDLESS, alone, drain, ended,
    errors::{Copy, weights},
    ids, some_ids,
};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("sessions":
    turns_go_on_from_the_text [Generate Session],
    a_turn_computes_only_what_is_new [Generate Session],
    a_conversation_is_the_whole_text [Generate Chat Session],
    forks_go_their_own_ways [Generate Session],
    a_cancelled_turn_leaves_a_session_that_goes_on [Generate Session],
    an_unread_turn_does_not_hold_the_next [Generate Session],
    a_saved_session_goes_on [Generate Session],
    a_damaged_session_is_refused [Generate Session],
    another_models_session_is_refused [Generate Session],
    a_closed_models_sessions_refuse [Generate Session],
);

/// Each turn gives what the model gives for the whole text, and the text grows by the prompt and the answer.
pub async fn turns_go_on_from_the_text(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(6)?;
    let mut session = model.session().await?;
    let mut text = Vec::new();
    for (turn, length) in [20, 1, 9].into_iter().enumerate() {
        let more = some_ids(&*model, length, 40 + turn);
        text.extend(&more);
        let whole = alone(&*model, &text.clone().into(), &options).await?;
        let answer = session.complete(more, options.clone()).await?;
        same(&answer, &whole, &format!("turn {turn}"))?;
        text.extend(ids(&answer));
        let held = session.tokens().await;
        ensure!(held == text, "after turn {turn} the session holds {held:?}, expected {text:?}");
    }
    Ok(())
}

/// What a session holds is not computed again: all but what the turn before left open, and the last token.
pub async fn a_turn_computes_only_what_is_new(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut session = model.session().await?;
    let given = session.append(some_ids(&*model, 40, 43)).await?;
    ensure!(given.generated_tokens == 0, "appending generated {} tokens", given.generated_tokens);
    for turn in 0..2 {
        let held = session.tokens().await.len();
        let answer = session.complete(some_ids(&*model, 5, 44 + turn), subject.greedy(4)?).await?;
        let (metrics, delivered) = (&answer.finish.metrics, answer.tokens.len());
        let all = metrics.prompt_tokens;
        ensure!(all == held + 5, "a prompt of {all} tokens, with {held} held and 5 new");
        // An answer's last token need not have been computed.
        let cached = metrics.cached_tokens;
        ensure!(cached + 1 >= held && cached < all, "{cached} of {held} tokens were cached, of {all}");
        ensure!(delivered == metrics.generated_tokens, "{delivered} tokens came of {metrics:?}");
    }
    Ok(())
}

/// A conversation is not added to the text, it is all of it: the answer is the model's to that conversation.
pub async fn a_conversation_is_the_whole_text(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(6)?;
    let mut session = model.session().await?;
    let mut messages = vec![Message::user("Hello.")];
    for more in ["And then?", "Why?"] {
        let prompt = Prompt::Chat(messages.clone());
        let whole = alone(&*model, &prompt, &options).await?;
        let answer = session.complete(prompt, options.clone()).await?;
        same(&answer, &whole, &format!("a conversation of {} messages", messages.len()))?;
        messages.extend([Message::assistant(answer.text), Message::user(more)]);
    }
    Ok(())
}

/// A fork begins with the text, and what is done to one of the two leaves the other alone.
pub async fn forks_go_their_own_ways(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(6)?;
    let mut session = model.session().await?;
    session.complete(some_ids(&*model, 30, 45), options.clone()).await?;
    let text = session.tokens().await;
    let mut fork = session.fork().await?;
    let held = fork.tokens().await;
    ensure!(held == text, "the fork holds {held:?}, expected {text:?}");
    for (session, salt) in [(&mut fork, 46), (&mut session, 47)] {
        let more = some_ids(&*model, 4, salt);
        let prompt = Prompt::Tokens([&text[..], &more].concat());
        let whole = alone(&*model, &prompt, &options).await?;
        let answer = session.complete(more, options.clone()).await?;
        same(&answer, &whole, "a fork")?;
        let cached = answer.finish.metrics.cached_tokens;
        ensure!(cached > 0, "the fork computed all of its text again");
    }
    Ok(())
}

/// A turn that is dropped or cancelled ends by itself, and the next one goes on from what it had made.
pub async fn a_cancelled_turn_leaves_a_session_that_goes_on(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut session = model.session().await?;
    let given = some_ids(&*model, 20, 48);
    drop(session.generate(given.clone(), subject.greedy(200)?).await?);
    let text = session.tokens().await;
    ensure!(text.starts_with(&given), "the session holds {text:?}, expected it to begin with {given:?}");
    let more = some_ids(&*model, 3, 49);
    let options = subject.greedy(6)?;
    let whole = alone(&*model, &Prompt::Tokens([&text[..], &more].concat()), &options).await?;
    same(&session.complete(more, options).await?, &whole, "after a dropped turn")
}

/// A turn whose stream is held and never read is ended by the next call, which goes on from what that turn had made.
pub async fn an_unread_turn_does_not_hold_the_next(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let mut session = model.session().await?;
    let given = some_ids(&*model, 20, 54);
    let mut unread = session.generate(given.clone(), subject.greedy(ENDLESS)?).await?;
    let text = session.tokens().await;
    ensure!(text.starts_with(&given), "the session holds {text:?}, expected it to begin with {given:?}");
    let mut second = session.generate(some_ids(&*model, 2, 55), subject.greedy(ENDLESS)?).await?;
    session.complete(some_ids(&*model, 3, 56), subject.greedy(2)?).await?;
    for stream in [&mut unread, &mut second] {
        let reason = drain(stream).await?.1.reason;
        // A short context may have ended it first.
        let ended = matches!(reason, FinishReason::Cancelled | FinishReason::Length);
        ensure!(ended, "the unread turn ended as {reason:?}");
    }
    Ok(())
}

/// A session that was saved and loaded goes on as the one that was saved, and brings its note.
pub async fn a_saved_session_goes_on(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(6)?;
    let (folder, mut session) = saved(subject).await?;
    let mut loaded = model.load_session(&folder.path().join(NAME)).await?;
    let (before, after) = (session.tokens().await, loaded.tokens().await);
    ensure!(before == after, "{after:?} was loaded, {before:?} was saved");
    ensure!(
        loaded.metadata() == session.metadata(),
        "the note is {:?}, expected {:?}",
        loaded.metadata(),
        session.metadata()
    );
    let more = some_ids(&*model, 3, 50);
    let expected = session.complete(more.clone(), options.clone()).await?;
    let answer = loaded.complete(more, options).await?;
    same(&answer, &expected, "a loaded session")?;
    ensure!(answer.finish.metrics.cached_tokens > 0, "the loaded session computed all of its text again");
    Ok(())
}

/// A session file that is cut short or has one bit flipped, and a file that is no session, is an error that names it.
pub async fn a_damaged_session_is_refused(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let (folder, _session) = saved(subject).await?;
    let path = folder.path().join(NAME);
    let io = |source| Error::io("read", &path, source);
    let whole = std::fs::read(&path).map_err(io)?;
    for length in [0, 9, whole.len() / 2, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).map_err(io)?;
        refused(model.load_session(&path).await, NAME, &format!("{length} of {} bytes", whole.len()))?;
    }
    for place in
        [0, 1, 2, 3, 4, 5].map(|sixth| whole.len() / 6 * sixth + 3).into_iter().chain([whole.len() - 1])
    {
        let mut flipped = whole.clone();
        let Some(byte) = flipped.get_mut(place) else { continue };
        *byte ^= 4;
        std::fs::write(&path, &flipped).map_err(io)?;
        refused(model.load_session(&path).await, NAME, &format!("a flipped bit in byte {place}"))?;
    }
    let (_, weights) = weights(subject)?;
    std::fs::write(&path, weights).map_err(io)?;
    refused(model.load_session(&path).await, NAME, "a file of weights")
}

/// A session of a model with the same sizes and other weights is refused.
pub async fn another_models_session_is_refused(subject: &Subject) -> ClauseResult {
    let (folder, _session) = saved(subject).await?;
    let (name, mut bytes) = weights(subject)?;
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    let copy = Copy::of(subject, &[&name])?;
    copy.write(&name, &bytes)?;
    let other = subject.load_folder(copy.path(), subject.base_load_options()).await?;
    refused(other.load_session(&folder.path().join(NAME)).await, NAME, "another model's session")
}

/// After the model's `close`, its sessions refuse, and no new one begins.
pub async fn a_closed_models_sessions_refuse(subject: &Subject) -> ClauseResult {
    let model = subject.fresh_model().await?;
    let mut session = model.session().await?;
    session.append(some_ids(&*model, 8, 51)).await?;
    model.close().await?;
    let closed = |call: &str, result: Result<(), Error>| match result {
        Err(Error::Closed) => Ok(()),
        result => Err(Failure::broken(format!("{call} ended as {}", ended(&result)))),
    };
    closed("a turn", session.generate(some_ids(&*model, 3, 52), subject.greedy(1)?).await.map(drop))?;
    closed("a fork", session.fork().await.map(drop))?;
    closed("a new session", model.session().await.map(drop))
}

const NAME: &str = "kit.session";

/// A session of one turn, and the folder that it was saved in.
async fn saved(subject: &Subject) -> Result<(TempDir, Session), Failure> {
    let model = subject.model().await?;
    let folder = tempfile::tempdir().map_err(|source| Error::io("write", std::env::temp_dir(), source))?;
    let mut session = model.session().await?;
    session.complete(some_ids(&*model, 24, 53), subject.greedy(5)?).await?;
    session.set_metadata("of the kit");
    session.save(folder.path().join(NAME)).await?;
    Ok((folder, session))
}

fn same(answer: &Completion, expected: &Completion, which: &str) -> ClauseResult {
    let (found, wanted) = (ids(answer), ids(expected));
    ensure!(found == wanted, "{which}: the session gave {found:?}, the model {wanted:?}");
    let (found, wanted) = (answer.finish.metrics.prompt_tokens, expected.finish.metrics.prompt_tokens);
    ensure!(
        found == wanted,
        "{which}: the session answered a prompt of {found} tokens, the model of {wanted}"
    );
    let (found, wanted) = (&answer.finish.reason, &expected.finish.reason);
    ensure!(found == wanted, "{which}: the session ended as {found:?}, the model as {wanted:?}");
    Ok(())
}

fn refused(result: Result<Session, Error>, names: &str, what: &str) -> ClauseResult {
    match result {
        Err(error @ Error::InvalidSession { .. }) => {
            ensure!(error.to_string().contains(names), "the error does not name {names}: {error}");
            Ok(())
        }
        result => Err(Failure::broken(format!("{what} ended as {}", ended(&result)))),
    }
}
