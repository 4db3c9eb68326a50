//! Answers that are held to a shape.
//!
//! llama-server's own grammars are not the contract's, and it takes no mask for each step of an answer. So the matcher on this side
//! decides, and a step comes about in one of three ways:
//!
//! - What has to come is not asked for.
//! - Where the shape leaves most tokens, the server chooses freely, token by token of a stream, until it chooses one that the shape
//!   does not have. That one is drawn anew, from the mask.
//! - Where it leaves few, or that draw is due, a request is for one token, with the mask as its logit bias.
//!
//! A draw that is taken where it is allowed, and made anew from the allowed ones where not, has their probabilities, renormalised:
//! p + (1 − a)·p/a = p/a, where `a` is the sum of p over the allowed. Filters, which the contract has after the mask, would break
//! that; with those every token is drawn from its mask.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use inference_core::{Error, Result, TokenMask, backend::ConstraintRun};

/// Allowed tokens up to which a request names those, and not the banned ones.
const FEW: usize = 512;

/// What is added to the logits of the allowed, where those are few: logits are not so far apart, and so large a number still leaves
/// 2⁻¹⁵ of a logit.
const LIFT: f32 = 256.0;

/// What holds an answer to a shape.
#[derive(Debug)]
pub(crate) struct Shape {
    /// Never locked: a lock lets threads share what only one of them uses.
    run: Mutex<ConstraintRun>,
    /// The ids that end the text.
    eos: Vec<u32>,
    /// What may come next, once that is known.
    mask: Option<TokenMask>,
    /// Every token is drawn from its mask.
    always: bool,
    /// Whether few tokens can be asked for by lifting their logits.
    liftable: bool,
}

/// How the next token is got.
#[derive(Debug)]
pub(crate) enum Step {
    /// The only one that may come.
    Forced(u32),
    /// By a request for one token.
    Masked(TokenMask),
    /// By the server alone, and so those after it.
    Free,
}

impl Shape {
    /// The shape of an answer. `filtered` says that filters act on its draws, `liftable` that logits can be lifted.
    pub(crate) fn new(run: ConstraintRun, eos: Vec<u32>, filtered: bool, liftable: bool) -> Self {
        Self { run: Mutex::new(run), eos, mask: None, always: filtered, liftable }
    }

    /// How the next token is got. `barred` says that the server's own choice was none; `ends_banned`, that no end may come yet.
    ///
    /// # Errors
    /// The constraint has failed.
    pub(crate) fn step(&mut self, barred: bool, ends_banned: bool) -> Result<Step> {
        let (always, eos) = (self.always, self.eos.clone());
        let mut mask = self.mask()?.clone();
        let ends = eos.iter().filter(|id| mask.allows(**id)).count();
        if ends_banned && ends < mask.count() {
            eos.iter().for_each(|id| mask.ban(*id));
        }
        let count = mask.count();
        let first = mask.ids().next();
        Ok(match first {
            Some(only) if count == 1 => Step::Forced(only),
            _ if always || barred || count <= FEW => Step::Masked(mask),
            _ => Step::Free,
        })
    }

    /// Takes a token; whether it may come next.
    ///
    /// # Errors
    /// The constraint has failed.
    pub(crate) fn take(&mut self, id: u32) -> Result<bool> {
        if !self.mask()?.allows(id) {
            return Ok(false);
        }
        self.mask = None;
        self.run.get_mut().unwrap_or_else(PoisonError::into_inner).accept(id)?;
        Ok(true)
    }

    /// The logit biases to ask with for a token of this mask, the cheaper ones first: those of few allowed tokens may leave the choice
    /// to another one.
    pub(crate) fn biases(&self, mask: &TokenMask) -> Vec<BTreeMap<u32, f32>> {
        let lifted = || mask.ids().map(|id| (id, LIFT)).collect();
        let ids = 0..u32::try_from(mask.len()).unwrap_or(u32::MAX);
        let banned = ids.filter(|id| !mask.allows(*id)).map(|id| (id, f32::NEG_INFINITY)).collect();
        let few = (self.liftable && mask.count() <= FEW).then(lifted);
        few.into_iter().chain([banned]).collect()
    }

    fn mask(&mut self) -> Result<&TokenMask> {
        match &mut self.mask {
            Some(mask) => Ok(mask),
            none => {
                let run = self.run.get_mut().unwrap_or_else(PoisonError::into_inner);
                Ok(none.insert(run.mask()?.clone()))
            }
        }
    }
}

/// The error of a mask of which the server could choose nothing.
pub(crate) fn nothing_left() -> Error {
    let reason = "each token that it allows is banned by the logit bias".to_owned();
    Error::invalid_option("constraint", reason)
}

#[cfg(test)]
mod tests {
    use inference_core::{Constraint, ConstraintState, ConstraintVocabulary, TokenConstraint};

    use super::*;

    /// Says the ids of each list in turn.
    #[derive(Clone)]
    struct Lists(Vec<Vec<u32>>, usize);

    impl TokenConstraint for Lists {
        fn start(&self, _: &ConstraintVocabulary) -> std::result::Result<Box<dyn ConstraintState>, String> {
            Ok(Box::new(self.clone()))
        }
    }

    impl ConstraintState for Lists {
        fn mask(&mut self, mask: &mut TokenMask) -> std::result::Result<(), String> {
            self.0[self.1].iter().for_each(|id| mask.allow(*id));
            Ok(())
        }

        fn accept(&mut self, _: u32) -> std::result::Result<(), String> {
            self.1 += 1;
            Ok(())
        }

        fn rollback(&mut self, _: usize) -> std::result::Result<(), String> {
            Ok(())
        }
    }

    fn shape(lists: &[&[u32]], filtered: bool) -> Shape {
        let lists = Lists(lists.iter().map(|ids| ids.to_vec()).collect(), 0);
        let Constraint::Custom(custom) = Constraint::custom(lists) else { panic!("another constraint") };
        let vocabulary = ConstraintVocabulary::new(2000, [0]);
        Shape::new(custom.start(&vocabulary).unwrap(), vec![0], filtered, true)
    }

    #[test]
    fn a_step_is_free_where_most_may_come() {
        let most: Vec<u32> = (0..1000).collect();
        let mut shape_of = shape(&[&[7], &[7, 8], &most], false);
        assert!(matches!(shape_of.step(false, false).unwrap(), Step::Forced(7)));
        assert!(!shape_of.take(8).unwrap() && shape_of.take(7).unwrap());
        assert!(matches!(shape_of.step(false, false).unwrap(), Step::Masked(mask) if mask.count() == 2));
        assert!(shape_of.take(8).unwrap());
        assert!(matches!(shape_of.step(false, false).unwrap(), Step::Free));
        assert!(matches!(shape_of.step(true, true).unwrap(), Step::Masked(mask) if mask.count() == 999));
        let mut filtered = shape(&[&most], true);
        assert!(matches!(filtered.step(false, false).unwrap(), Step::Masked(_)));
        // A text that can only end does.
        let mut ends = shape(&[&[0]], false);
        assert!(matches!(ends.step(false, true).unwrap(), Step::Forced(0)));
    }

    #[test]
    fn few_tokens_are_named_and_many_are_left_out() {
        let shape = shape(&[&[1]], false);
        let mut mask = TokenMask::new(2000);
        mask.allow(3);
        mask.allow(5);
        let biases = shape.biases(&mask);
        assert_eq!(biases[0], BTreeMap::from([(3, LIFT), (5, LIFT)]));
        assert!(biases[1].len() == 1998 && !biases[1].contains_key(&3) && biases.len() == 2);
        mask.allow_all();
        assert_eq!(shape.biases(&mask), [BTreeMap::new()]);
    }
}
