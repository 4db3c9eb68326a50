//! Answers that go on with the last message.

use inference_core::{Message, Role};

/// Whether the answer goes on with the last message.
pub(crate) fn is_prefill(messages: &[Message]) -> bool {
    messages.last().is_some_and(|message| {
        message.role == Role::Assistant
            && !message.content.trim().is_empty()
            && !message.extra.contains_key("tool_calls")
    })
}

#[cfg(test)]
mod tests {
    use inference_core::ToolCall;

    use super::*;

    #[test]
    fn only_an_assistants_words_are_gone_on_with() {
        let begun = Message::assistant("It is");
        assert!(is_prefill(&[Message::user("How?"), begun.clone()]));
        assert!(!is_prefill(&[begun.clone(), Message::user("How?")]));
        assert!(!is_prefill(&[Message::assistant(" ")]) && !is_prefill(&[]));
        assert!(!is_prefill(&[begun.tool_calls(&[ToolCall::default()])]));
    }
}
