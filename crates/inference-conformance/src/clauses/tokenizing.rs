//! Prompts as token ids, and ids as text.

use inference_core::{Error, Prompt, TemplateOptions};

use super::{alone, ended, ids, some_ids};
use crate::{
    ClauseResult, Failure, Subject,
    clause::{clauses, ensure},
};

clauses!("tokenizing":
    a_prompts_tokens_are_what_is_computed [Generate Tokenize],
    a_conversations_tokens_are_what_is_computed [Generate Chat Tokenize],
    decoding_gives_the_text [Generate Tokenize],
    decoding_refuses_ids_outside_the_vocabulary [Tokenize],
);

/// `tokenize` gives the ids that a generation computes: as many, and with the same answer.
pub async fn a_prompts_tokens_are_what_is_computed(subject: &Subject) -> ClauseResult {
    computed(subject, subject.prompt.clone()).await?;
    let model = subject.model().await?;
    let given = some_ids(&*model, 7, 70);
    let tokens = model.tokenize(given.clone().into(), TemplateOptions::new()).await?;
    ensure!(tokens == given, "token ids are tokens already: given {given:?}, found {tokens:?}");
    Ok(())
}

/// The same for a conversation, which the chat template renders.
pub async fn a_conversations_tokens_are_what_is_computed(subject: &Subject) -> ClauseResult {
    let messages = vec![inference_core::Message::user("Hello.")];
    computed(subject, Prompt::Chat(messages)).await
}

async fn computed(subject: &Subject, prompt: Prompt) -> ClauseResult {
    let model = subject.model().await?;
    let options = subject.greedy(6)?;
    let tokens = model.tokenize(prompt.clone(), TemplateOptions::new()).await?;
    let expected = alone(&*model, &prompt, &options).await?;
    let (found, computed) = (tokens.len(), expected.finish.metrics.prompt_tokens);
    ensure!(found == computed, "{found} tokens, of which a generation computed {computed}");
    let answer = ids(&alone(&*model, &tokens.into(), &options).await?);
    let expected = ids(&expected);
    ensure!(answer == expected, "its tokens are answered by {answer:?}, the prompt by {expected:?}");
    Ok(())
}

/// `decode` gives the text that a stream delivers with the same ids, special tokens and white space apart.
pub async fn decoding_gives_the_text(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let answer = alone(&*model, &subject.prompt, &subject.greedy(16)?).await?;
    let decoded = model.decode(ids(&answer)).await?;
    let mut rest = decoded.as_str();
    for word in
        answer.text.split(|c: char| c.is_whitespace() || c == '\u{fffd}').filter(|word| !word.is_empty())
    {
        match rest.split_once(word) {
            Some((_, after)) => rest = after,
            None => {
                let text = &answer.text;
                return Err(Failure::broken(format!(
                    "{decoded:?} lacks {word:?}, and the stream gave {text:?}"
                )));
            }
        }
    }
    Ok(())
}

/// `decode` refuses an id that the model does not have.
pub async fn decoding_refuses_ids_outside_the_vocabulary(subject: &Subject) -> ClauseResult {
    let model = subject.model().await?;
    let outside = u32::try_from(model.info().vocab_size).unwrap_or(u32::MAX);
    match model.decode(vec![0, outside]).await {
        Err(Error::InvalidPrompt { .. }) => Ok(()),
        result => Err(Failure::broken(format!("id {outside} ended as {}", ended(&result)))),
    }
}
