//! What a generation gives.

use futures::future::join_all;
use inference_core::{Error, FinishReason, Message, Prompt, TextModelExt as _};

use super::{alone, ids, same_answer, some_ids, some_prompts};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("generate":
    greedy_repeats_itself [Generate],
    max_tokens_is_honoured [Generate],
    the_texts_add_up [Generate],
    concurrent_requests_equal_lone_runs [Generate],
    an_extended_prompt_answers_as_on_a_fresh_model [Generate],
    errors_stay_with_their_request [Generate],
    a_chat_reads_every_message [Generate Chat],
    a_chat_is_its_rendering [Generate Chat],
    template_options_are_taken [Generate Chat ChatTemplateOptions],
);

/// The same request twice gives the same ids and the same text.
pub async fn greedy_repeats_itself(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    for prompt in some_prompts(subject, &*model) {
        let one = alone(&*model, &prompt, &subject.greedy(12)?).await?;
        let two = alone(&*model, &prompt, &subject.greedy(12)?).await?;
        ensure!(ids(&one) == ids(&two), "first {:?}, then {:?}", ids(&one), ids(&two));
        ensure!(one.text == two.text, "first {:?}, then {:?}", one.text, two.text);
    }
    Ok(())
}

/// 0 computes the prompt and generates nothing; n gives n tokens and `Length`, or fewer that ended by themselves. A shorter
/// answer is the beginning of a longer one.
pub async fn max_tokens_is_honoured(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let longest = ids(&alone(&*model, &subject.prompt, &subject.greedy(9)?).await?);
    for limit in [0, 1, 2, 9] {
        let answer = alone(&*model, &subject.prompt, &subject.greedy(limit)?).await?;
        let (tokens, reason) = (answer.tokens.len(), &answer.finish.reason);
        ensure!(tokens <= limit, "{tokens} tokens, at most {limit} asked for");
        if *reason == FinishReason::Length {
            ensure!(tokens == limit, "it ended for length after {tokens} of {limit} tokens");
        } else {
            ensure!(matches!(reason, FinishReason::Stop(_)), "it ended as {reason:?}");
        }
        ensure!(longest.starts_with(&ids(&answer)), "{:?} does not begin {longest:?}", ids(&answer));
        let prompt = answer.finish.metrics.prompt_tokens;
        ensure!(prompt > 0, "with at most {limit} tokens, the prompt was not counted");
    }
    Ok(())
}

/// The tokens' texts in one are the text: an answer cut short says all that its tokens had made certain, and a longer one goes
/// on from there. A character that the cut left incomplete may stand as U+FFFD.
pub async fn the_texts_add_up(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let long = alone(&*model, &subject.prompt, &subject.greedy(24)?).await?;
    ensure!(long.tokens.is_empty() || !long.text.is_empty(), "{} tokens have no text", long.tokens.len());
    for cut in [1, 2, 3, 5, 8] {
        let short = alone(&*model, &subject.prompt, &subject.greedy(cut)?).await?;
        let certain: String = long.tokens.iter().take(cut).map(|token| token.text.as_str()).collect();
        let whole = short.text.trim_end_matches('\u{fffd}');
        ensure!(
            whole.starts_with(certain.trim_end_matches('\u{fffd}')) && long.text.starts_with(whole),
            "{cut} tokens say {:?}; of {:?}, as many say {certain:?}",
            short.text,
            long.text
        );
    }
    Ok(())
}

/// A request's tokens do not depend on what runs beside it.
pub async fn concurrent_requests_equal_lone_runs(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(16)?;
    let prompts = some_prompts(subject, &*model);
    let mut lone = Vec::new();
    for prompt in &prompts {
        lone.push(ids(&alone(&*model, prompt, &options).await?));
    }
    let twice: Vec<Prompt> = prompts.iter().chain(&prompts).cloned().collect();
    let together = model.batch_generate(twice, options).await;
    for (i, answer) in together.into_iter().enumerate() {
        let (answer, lone) = (ids(&answer?), &lone[i % lone.len()]);
        let prompt = &prompts[i % prompts.len()];
        same_answer(subject, &*model, prompt, [&answer, lone], "beside others it").await?;
    }
    Ok(())
}

/// A prompt that goes on from an earlier one answers as on a model that never saw the earlier: whatever is reused of it,
/// nothing changes.
pub async fn an_extended_prompt_answers_as_on_a_fresh_model(subject: &Subject) -> ClauseResult {
    let (used, fresh) = (subject.model().await?, subject.fresh_model().await?);
    let options = subject.greedy(8)?;
    let mut prompt = some_ids(&*used, 20, 5);
    let first = alone(&*used, &prompt.clone().into(), &options).await?;
    prompt.extend(ids(&first));
    prompt.extend(some_ids(&*used, 4, 6));
    let prompt = Prompt::Tokens(prompt);
    let expected = ids(&alone(&*fresh, &prompt, &options).await?);
    let found = ids(&alone(&*used, &prompt, &options).await?);
    same_answer(subject, &*fresh, &prompt, [&found, &expected], "after its beginning it").await
}

/// Two callers never see each other's error.
pub async fn errors_stay_with_their_request(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(12)?;
    let expected = ids(&alone(&*model, &subject.prompt, &options).await?);
    let bad = Prompt::Tokens(vec![u32::MAX; 3]);
    let prompts = [subject.prompt.clone(), bad.clone(), subject.prompt.clone(), bad];
    let answers = prompts.map(|prompt| model.complete(prompt, options.clone()));
    for (i, answer) in join_all(answers).await.into_iter().enumerate() {
        match answer {
            Ok(answer) if i % 2 == 0 => {
                let answer = ids(&answer);
                same_answer(subject, &*model, &subject.prompt, [&answer, &expected], "beside an error it")
                    .await?;
            }
            Err(Error::InvalidPrompt { .. }) if i % 2 == 1 => {}
            Ok(_) => return Err(Failure::broken("a prompt of ids that do not exist was answered")),
            Err(error) => return Err(error.into()),
        }
    }
    super::still_right(subject, &*model, &expected).await
}

/// Every message of a conversation counts: one more makes the prompt longer.
pub async fn a_chat_reads_every_message(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(1)?;
    let short = vec![Message::user("Name a colour that people like.")];
    let mut long = short.clone();
    long.extend([Message::assistant("Blue."), Message::user("Go on.")]);
    let mut tokens = Vec::new();
    for messages in [short, long] {
        let answer = model.complete(messages, options.clone()).await?;
        tokens.push(answer.finish.metrics.prompt_tokens);
    }
    ensure!(
        tokens[0] < tokens[1],
        "one message has {} tokens, it and two more have {}",
        tokens[0],
        tokens[1]
    );
    Ok(())
}

/// A conversation is its rendering, tokenised: both get the same answer.
pub async fn a_chat_is_its_rendering(subject: &Subject) -> ClauseResult {
    let Some((messages, rendering)) = &subject.rendering else {
        return Err(Failure::inconclusive("give a `rendering` of a conversation to compare with"));
    };
    let model = subject.model().await?;
    let chat = alone(&*model, &messages.clone().into(), &subject.greedy(8)?).await?;
    let bare = alone(&*model, &rendering.clone().into(), &subject.greedy(8)?).await?;
    ensure!(ids(&chat) == ids(&bare), "the chat gave {:?}, its rendering {:?}", ids(&chat), ids(&bare));
    let tokens = chat.finish.metrics.prompt_tokens;
    ensure!(tokens == rendering.len(), "the chat has {tokens} tokens, its rendering {}", rendering.len());
    Ok(())
}

/// A template variable that no template reads changes nothing.
pub async fn template_options_are_taken(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let prompt = Prompt::Chat(vec![Message::user("Name a colour.")]);
    let without = alone(&*model, &prompt, &subject.greedy(6)?).await?;
    let options = subject.greedy(6)?.template_variable("conformance_unread", true);
    let with = alone(&*model, &prompt, &options).await?;
    ensure!(ids(&with) == ids(&without), "with the variable {:?}, without {:?}", ids(&with), ids(&without));
    Ok(())
}
