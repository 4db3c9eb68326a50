//! Random requests, and how they are read.

use std::cell::Cell;

use anyhow::bail;
use inference::{CancellationToken, Feature, GenerateOptions, Prompt, Token};
use inference_core::backend::Capabilities;
use rand::{RngExt as _, rngs::StdRng};
use serde_json::{Value, json};

/// A request that is sent again and again.
#[derive(Debug)]
pub(super) struct Case {
    pub(super) prompt: Vec<u32>,
    options: GenerateOptions,
    /// Its tokens when it ran alone.
    pub(super) alone: Vec<Token>,
    /// Whether another token is right where it is nearly as likely.
    near_ties: bool,
    /// How often that was so.
    pub(super) ties: Cell<u64>,
}

/// Tokens that the lone run tells the probabilities of, where near ties are allowed.
const LIKELIEST: usize = 20;

/// How far the log-probabilities of a near tie are apart.
const NEAR: f32 = 0.1;

/// How one request is read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fate {
    /// Read to its end.
    Read,
    /// Cancelled after this many tokens.
    Cancel(usize),
    /// Dropped after this many tokens.
    Drop(usize),
    /// Left unread for this many milliseconds, then read to its end.
    LeaveUnread(u64),
}

impl Case {
    /// A request with options that the backend supports. `limits`: the tokens of the longest prompt and answer.
    pub(super) fn random(
        random: &mut StdRng,
        vocabulary: usize,
        limits: (usize, usize),
        capabilities: Capabilities,
    ) -> Self {
        let vocabulary = u32::try_from(vocabulary).unwrap_or(u32::MAX).max(1);
        // Short ones are as frequent as long ones on a logarithmic scale: most requests of most programs are short.
        let length = (limits.0 as f64).powf(random.random_range(0.0..=1.0)).round() as usize;
        let prompt = (0..length.max(1)).map(|_| random.random_range(0..vocabulary)).collect();
        let mut options = GenerateOptions::new().max_tokens(random.random_range(1..=limits.1));
        let drawn = capabilities.has(Feature::Sampling) && capabilities.has(Feature::Seed);
        if drawn && random.random_bool(0.6) {
            options = options.temperature(random.random_range(0.2..1.5)).seed(random.random());
        }
        let mut with = |feature, share: f64| capabilities.has(feature) && random.random_bool(share);
        let (top_p, top_k, min_p) =
            (with(Feature::TopP, 0.3), with(Feature::TopK, 0.3), with(Feature::MinP, 0.2));
        let (penalty, stop) = (with(Feature::RepetitionPenalty, 0.2), with(Feature::Stop, 0.5));
        if top_p {
            options = options.top_p(random.random_range(0.5..1.0));
        }
        if top_k {
            options = options.top_k(random.random_range(1..50));
        }
        if min_p {
            options = options.min_p(random.random_range(0.0..0.2));
        }
        if penalty {
            options = options.repetition_penalty(random.random_range(1.0..1.5));
        }
        if stop {
            options = options.ignore_eos(true);
        }
        Self { prompt, options, alone: Vec::new(), near_ties: false, ties: Cell::default() }
    }

    /// The same, where another token is right if it is nearly as likely. Such answers go on past tokens that end a text, so that they
    /// are of one length.
    pub(super) fn with_near_ties(mut self) -> Self {
        self.options = self.options.ignore_eos(true);
        self.near_ties = true;
        self
    }

    /// The options of the lone run.
    pub(super) fn options_alone(&self, cancel: CancellationToken) -> GenerateOptions {
        let options = self.options(cancel);
        if self.near_ties { options.log_probabilities(LIKELIEST) } else { options }
    }

    pub(super) fn tokens(&self) -> Prompt {
        Prompt::Tokens(self.prompt.clone())
    }

    pub(super) fn options(&self, cancel: CancellationToken) -> GenerateOptions {
        self.options.clone().cancel(cancel)
    }

    /// The same request as fields of a completion over HTTP.
    pub(super) fn fields(&self) -> Value {
        let (options, sampling) = (&self.options, &self.options.sampling);
        json!({
            "prompt": self.prompt, "max_tokens": options.max_tokens, "ignore_eos": options.ignore_eos,
            "temperature": sampling.temperature, "seed": sampling.seed.map(u64::cast_signed), "top_p": sampling.top_p,
            "top_k": sampling.top_k, "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty,
        })
    }

    /// Fails unless these are the tokens of the lone run.
    pub(super) fn check_whole(&self, tokens: &[Token]) -> anyhow::Result<()> {
        self.check_beginning(tokens)?;
        if tokens.len() != self.alone.len() {
            bail!("{} tokens, alone {}", tokens.len(), self.alone.len());
        }
        Ok(())
    }

    /// Fails unless the lone run begins with these tokens. The last one's text may be shorter: what an incomplete
    /// character or stop string holds back is not known when the end comes early.
    pub(super) fn check_beginning(&self, tokens: &[Token]) -> anyhow::Result<()> {
        for (index, token) in tokens.iter().enumerate() {
            match self.alone.get(index) {
                Some(alone) if alone.id == token.id => {}
                Some(alone) if self.near_ties && self.is_near(alone, token.id) => {
                    // What follows goes on from another text.
                    self.ties.set(self.ties.get() + 1);
                    return Ok(());
                }
                Some(alone) => bail!(
                    "token {index} is {} ({:?}), alone {} ({:?}); {} prompt tokens, {:?}",
                    token.id,
                    token.text,
                    alone.id,
                    alone.text,
                    self.prompt.len(),
                    self.options.sampling
                ),
                None => bail!("token {index} is {}, alone it had ended", token.id),
            }
        }
        Ok(())
    }

    /// Whether two answers to one text are the same, or as long where near ties are allowed.
    pub(super) fn agree(&self, one: &Option<Vec<u32>>, other: &Option<Vec<u32>>) -> bool {
        let length = |ids: &Option<Vec<u32>>| ids.as_ref().map(Vec::len);
        one == other || (self.near_ties && length(one) == length(other))
    }

    /// Whether a token is one that rounding may choose in place of the lone run's: nearly as likely as that, or, where tokens are drawn, one
    /// of the likeliest.
    fn is_near(&self, alone: &Token, id: u32) -> bool {
        let draws = self.options.sampling.temperature.is_some_and(|temperature| temperature > 0.0);
        let other = alone.top.iter().find(|other| other.id == id);
        other.is_some_and(|other| {
            draws || alone.log_probability.is_some_and(|own| own - other.log_probability <= NEAR)
        })
    }
}

impl Fate {
    pub(super) fn random(random: &mut StdRng) -> Self {
        match random.random_range(0..10) {
            0 => Self::Cancel(random.random_range(0..20)),
            1 => Self::Drop(random.random_range(0..20)),
            2 => Self::LeaveUnread(random.random_range(0..200)),
            _ => Self::Read,
        }
    }
}

#[cfg(test)]
mod tests {
    use inference::Alternative;
    use rand::SeedableRng as _;

    use super::*;

    fn case(alone: &[u32]) -> Case {
        let alone = alone.iter().map(|id| Token::new(*id, "")).collect();
        let (options, ties) = (GenerateOptions::new(), Cell::default());
        Case { prompt: vec![1], options, alone, near_ties: false, ties }
    }

    #[test]
    fn a_near_tie_is_one_token_that_is_nearly_as_likely() {
        let mut case = case(&[5, 6]);
        let likely = [(6, -1.0), (7, -1.05), (8, -2.0)].map(|(id, likely)| Alternative::new(id, likely));
        (case.alone[1].log_probability, case.alone[1].top) = (Some(-1.0), likely.to_vec());
        let tokens = |last: u32| [5, last].map(|id| Token::new(id, ""));
        assert!(case.check_whole(&tokens(7)).is_err());
        case = case.with_near_ties();
        case.check_whole(&tokens(7)).unwrap();
        assert_eq!(case.ties.get(), 1);
        assert!(case.check_whole(&tokens(8)).is_err() && case.check_whole(&tokens(9)).is_err());
        case.options = case.options.temperature(1.0);
        case.check_whole(&tokens(8)).unwrap();
        assert!(case.check_whole(&tokens(9)).is_err());
    }

    #[test]
    fn another_token_a_longer_and_a_shorter_answer_are_found() {
        let tokens: Vec<Token> = [5, 6, 7].iter().map(|id| Token::new(*id, "")).collect();
        case(&[5, 6, 7]).check_whole(&tokens).unwrap();
        case(&[5, 6, 7, 8]).check_beginning(&tokens).unwrap();
        assert!(case(&[5, 6, 7, 8]).check_whole(&tokens).unwrap_err().to_string().contains("alone 4"));
        assert!(case(&[5, 9, 7]).check_beginning(&tokens).unwrap_err().to_string().contains("token 1"));
        assert!(case(&[5]).check_beginning(&tokens).unwrap_err().to_string().contains("had ended"));
    }

    #[test]
    fn requests_ask_only_for_what_the_backend_has() {
        let mut random = StdRng::seed_from_u64(1);
        let greedy = Capabilities::from_features(&[Feature::Generate]);
        for _ in 0..50 {
            let case = Case::random(&mut random, 10, (20, 5), greedy);
            assert_eq!(case.options.required_features().count(), 0);
            assert!((1..=20).contains(&case.prompt.len()) && case.prompt.iter().all(|id| *id < 10));
            case.options.validate().unwrap();
        }
        let rich: Vec<Case> = (0..50)
            .map(|_| Case::random(&mut random, 10, (20, 5), Capabilities::from_features(Feature::ALL)))
            .collect();
        rich.iter().for_each(|case| case.options.validate().unwrap());
        assert!(rich.iter().any(|case| case.options.sampling.top_k.is_some()));
    }
}
