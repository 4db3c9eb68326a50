//! Random requests, side by side, each compared with its lone run.

use std::{cell::RefCell, time::Duration};

use anyhow::bail;
use futures::StreamExt as _;
use inference::{CancellationToken, FinishReason, Prompt, TextModel, Token};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::{
    cases::{Case, Fate},
    state::{Clock, Totals},
};

/// A request that is silent for this long hangs.
pub(super) const HANG_TIMEOUT: Duration = Duration::from_secs(120);

/// The requests of all workers.
pub(super) struct Requests<'a> {
    pub(super) model: &'a dyn TextModel,
    pub(super) cases: &'a [Case],
    pub(super) clock: &'a Clock,
    pub(super) totals: &'a RefCell<Totals>,
}

impl Requests<'_> {
    /// Sends one request after the other until the time is over.
    pub(super) async fn work(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.clock.is_over() {
            let number = random.random_range(0..self.cases.len());
            let fate = Fate::random(&mut random);
            let outcome = match tokio::time::timeout(HANG_TIMEOUT, self.request(number, fate)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(anyhow::anyhow!("hangs: nothing within {} s", HANG_TIMEOUT.as_secs())),
            };
            let mut totals = self.totals.borrow_mut();
            totals.requests += 1;
            match outcome {
                Ok(tokens) => totals.tokens += tokens as u64,
                Err(error) => totals.fail(format!("case {number}, {fate:?}: {error:#}")),
            }
        }
    }

    /// Sends one request. Returns the number of its tokens.
    async fn request(&self, number: usize, fate: Fate) -> anyhow::Result<usize> {
        let case = &self.cases[number];
        let cancel = CancellationToken::new();
        let prompt = Prompt::Tokens(case.prompt.clone());
        let mut stream = self.model.generate(prompt, case.options(cancel.clone())).await?;
        let limit = match fate {
            Fate::Read => usize::MAX,
            Fate::Cancel(after) | Fate::Drop(after) => after,
            Fate::LeaveUnread(milliseconds) => {
                tokio::time::sleep(Duration::from_millis(milliseconds)).await;
                usize::MAX
            }
        };
        let mut tokens: Vec<Token> = Vec::new();
        while tokens.len() < limit
            && let Some(token) = stream.next().await
        {
            tokens.push(token?);
        }
        match fate {
            Fate::Drop(_) => {
                drop(stream);
                self.totals.borrow_mut().dropped += 1;
                case.check_beginning(&tokens)?;
            }
            Fate::Cancel(_) => {
                cancel.cancel();
                while let Some(token) = stream.next().await {
                    tokens.push(token?);
                }
                self.totals.borrow_mut().cancelled += 1;
                case.check_beginning(&tokens)?;
                stream.finish().await?;
            }
            Fate::Read | Fate::LeaveUnread(_) => {
                if stream.finish().await?.reason == FinishReason::Cancelled {
                    bail!("ended as cancelled, which nobody did");
                }
                case.check_whole(&tokens)?;
            }
        }
        Ok(tokens.len())
    }
}
