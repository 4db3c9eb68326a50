//! One answer that is held to a shape, its reasoning aside.

use std::sync::Arc;

use inference_core::{ConstraintState, TokenMask, backend::ConstraintRun};

use super::{gate::Gate, trie::Tokens};

/// The state of one request: reasoning first, then the constraint.
pub(super) struct ConstrainedAnswer {
    gate: Gate,
    constraint: ConstraintRun,
    tokens: Arc<Tokens>,
    /// For each token before the gate opened, the gate as it was, and whether the constraint has taken the token.
    before: Vec<(Gate, bool)>,
    /// Tokens since.
    since: usize,
}

impl ConstrainedAnswer {
    pub(super) fn new(gate: Gate, constraint: ConstraintRun, tokens: Arc<Tokens>) -> Self {
        Self { gate, constraint, tokens, before: Vec::new(), since: 0 }
    }
}

impl ConstraintState for ConstrainedAnswer {
    fn mask(&mut self, mask: &mut TokenMask) -> Result<(), String> {
        if self.gate.asks_constraint() {
            mask.allow_words(self.constraint.mask().map_err(reason)?.words());
        }
        self.gate.mask(mask, &self.tokens);
        Ok(())
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        if self.gate.is_open() {
            self.since += 1;
            return self.constraint.accept(id).map_err(reason);
        }
        let gate = self.gate.clone();
        let constraint = &mut self.constraint;
        let taken =
            self.gate.accept(id, &self.tokens, |id| constraint.mask().is_ok_and(|mask| mask.allows(id)));
        self.before.push((gate, taken));
        if taken { self.constraint.accept(id).map_err(reason) } else { Ok(()) }
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), String> {
        let since = tokens.min(self.since);
        self.since -= since;
        let mut taken = since;
        for _ in since..tokens {
            let Some((gate, was_taken)) = self.before.pop() else {
                return Err(format!("{tokens} tokens are taken back, more than there were"));
            };
            self.gate = gate;
            taken += usize::from(was_taken);
        }
        self.constraint.rollback(taken).map_err(reason)
    }
}

/// The reason alone: the message is completed once, by the outer state.
fn reason(error: inference_core::Error) -> String {
    match error {
        inference_core::Error::InvalidOption { reason, .. } => reason,
        other => other.to_string(),
    }
}
