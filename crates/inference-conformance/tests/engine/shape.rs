//! How the engine holds answers to a shape, rightly or in one of many wrong ways.

use inference_conformance::sampler;
use inference_core::{
    Constraint, ConstraintState, ConstraintVocabulary, Error, GenerateOptions, Result, TokenMask,
    backend::ConstraintRun,
};

use super::{
    Fault,
    language::{EOS, VOCAB, syllable},
    model::Run,
};

/// The state of a request's constraint.
pub(crate) fn start(fault: &Fault, options: &GenerateOptions) -> Result<Option<ConstraintRun>> {
    let vocabulary = ConstraintVocabulary::new(VOCAB as usize, vec![EOS]);
    match &options.constraint {
        Some(Constraint::Custom(custom)) => custom.start(&vocabulary).map(Some),
        Some(Constraint::Choice(_)) if fault.is("one_of_the_texts_is_said") => Ok(None),
        Some(Constraint::Choice(texts)) => {
            let choice = Choice { texts: texts.to_vec(), said: Vec::new() };
            Ok(Some(ConstraintRun::new(Box::new(choice), VOCAB as usize)))
        }
        Some(_) if !fault.is("what_cannot_be_held_to_is_refused") => {
            let reason = "`not` and all other keywords cannot be held to";
            Err(Error::invalid_option("constraint", reason))
        }
        _ => Ok(None),
    }
}

/// One of several texts, of syllables.
struct Choice {
    texts: Vec<String>,
    said: Vec<u32>,
}

impl ConstraintState for Choice {
    fn mask(&mut self, mask: &mut TokenMask) -> std::result::Result<(), String> {
        let said: String = self.said.iter().copied().map(syllable).collect();
        for text in &self.texts {
            let Some(rest) = text.strip_prefix(&said) else { continue };
            if rest.is_empty() {
                mask.allow(EOS);
            }
            (1..VOCAB).filter(|id| rest.starts_with(&syllable(*id))).for_each(|id| mask.allow(id));
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> std::result::Result<(), String> {
        self.said.push(id);
        Ok(())
    }

    fn rollback(&mut self, tokens: usize) -> std::result::Result<(), String> {
        self.said.truncate(self.said.len() - tokens);
        Ok(())
    }
}

impl Run {
    /// What may be said next; `None` where all may.
    pub(crate) fn mask(&mut self) -> Result<Option<TokenMask>> {
        let crowded = self.shared.stats.snapshot().active > 1;
        let Some(shape) = &mut self.shape else { return Ok(None) };
        let mut mask = match shape.mask() {
            Ok(mask) => mask.clone(),
            Err(_) if self.fault.is("a_constraint_that_fails_ends_its_request_alone") => return Ok(None),
            Err(error) => return Err(error),
        };
        let lax = self.fault.is("only_what_is_allowed_is_said")
            || self.fault.is("each_request_has_its_own_constraint") && crowded;
        if self.fault.is("a_text_ends_only_where_it_may") {
            mask.allow(EOS);
        }
        Ok((!lax).then_some(mask))
    }

    /// The log-probabilities of what may be said.
    pub(crate) fn shaped(&self, free: &[f64], mask: Option<&TokenMask>) -> Vec<f64> {
        let Some(mask) = mask else { return free.to_vec() };
        let even = self.fault.is("draws_follow_the_probabilities_of_the_allowed");
        let allowed = |(id, logit): (usize, &f64)| match mask.allows(id as u32) {
            true if even => 0.0,
            true => *logit,
            false => f64::NEG_INFINITY,
        };
        sampler::log_softmax(&free.iter().enumerate().map(allowed).collect::<Vec<_>>())
    }

    pub(crate) fn likeliest(&self, log_probabilities: &[f64]) -> usize {
        if self.fault.is("the_likeliest_of_the_allowed_is_taken") && self.shape.is_some() {
            let allowed = (0..log_probabilities.len()).rev().find(|id| log_probabilities[*id].is_finite());
            return allowed.unwrap_or(0);
        }
        sampler::argmax(log_probabilities).unwrap_or(0)
    }

    /// Tells the constraint what was said.
    pub(crate) fn tell(&mut self, id: u32) -> Result<()> {
        let id = if self.fault.is("a_state_is_told_every_token") { id ^ 1 } else { id };
        self.shape.as_mut().map_or(Ok(()), |shape| shape.accept(id))
    }
}
