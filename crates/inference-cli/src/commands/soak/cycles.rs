//! Loads and sessions, one after the other, beside the requests.

use std::{cell::RefCell, path::Path};

use anyhow::{Context as _, ensure};
use inference::{Completion, Error, GenerateOptions, Prompt, Session, TextModel, TextModelExt as _};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tempfile::TempDir;

use super::{
    cases::Case,
    state::{Clock, Totals},
};
use crate::{model, options::LoadArgs};

/// Tokens of a session's second prompt, and of the answer to it.
const SECOND_TURN: usize = 8;

pub(super) struct Cycles<'a> {
    model: &'a dyn TextModel,
    path: &'a Path,
    load: &'a LoadArgs,
    cases: &'a [Case],
    clock: &'a Clock,
    totals: &'a RefCell<Totals>,
    /// For saved sessions.
    folder: TempDir,
}

impl<'a> Cycles<'a> {
    /// Cycles of loads from `path` and of sessions with `model`.
    pub(super) fn new(
        model: &'a dyn TextModel,
        path: &'a Path,
        load: &'a LoadArgs,
        cases: &'a [Case],
        clock: &'a Clock,
        totals: &'a RefCell<Totals>,
    ) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir().context("cannot create a folder for sessions")?;
        Ok(Self { model, path, load, cases, clock, totals, folder })
    }

    /// Loads the model and keeps a session in turns, until the time is over.
    pub(super) async fn work(&self, seed: u64) {
        let mut random = StdRng::seed_from_u64(seed);
        while !self.clock.is_over() {
            let case = &self.cases[random.random_range(0..self.cases.len())];
            match self.load(case).await {
                Ok(()) => self.totals.borrow_mut().loads += 1,
                Err(error) => self.fail("a load", &error),
            }
            if self.clock.is_over() {
                break;
            }
            match self.session(case).await {
                Ok(true) => self.totals.borrow_mut().sessions += 1,
                Ok(false) => {}
                Err(error) => self.fail("a session", &error),
            }
        }
    }

    fn fail(&self, what: &str, error: &anyhow::Error) {
        let cancelled = matches!(error.downcast_ref(), Some(Error::Cancelled));
        if !(cancelled && self.clock.stop.is_cancelled()) {
            self.totals.borrow_mut().fail(format!("{what}: {error:#}"));
        }
    }

    /// Loads the model once more, compares one answer, and closes it.
    async fn load(&self, case: &Case) -> anyhow::Result<()> {
        let model = model::load(self.path, self.load, self.clock.stop.clone(), true).await?;
        model::using(model, async |model| {
            let completion = model.complete(case.tokens(), case.options(self.clock.stop.clone())).await?;
            self.compare(case, &completion)
        })
        .await
    }

    /// Continues a session, forks it, saves it and loads it again: the fork and the loaded session must give the same. Returns whether
    /// the backend has sessions.
    async fn session(&self, case: &Case) -> anyhow::Result<bool> {
        let mut session = match self.model.session().await {
            Err(Error::Unsupported { .. }) => return Ok(false),
            session => session?,
        };
        let options = case.options(self.clock.stop.clone());
        self.compare(case, &session.complete(case.tokens(), options.clone()).await?)?;
        let mut fork = session.fork().await?;
        let file = self.folder.path().join("session");
        session.save(&file).await?;
        drop(session);
        let mut loaded = self.model.load_session(&file).await?;
        let options = options.max_tokens(SECOND_TURN);
        let forked = second_turn(&mut fork, case, options.clone()).await?;
        let loaded = second_turn(&mut loaded, case, options).await?;
        if !self.clock.stop.is_cancelled() {
            ensure!(
                case.agree(&forked, &loaded),
                "a fork goes on with {forked:?}, the saved session with {loaded:?}"
            );
        }
        Ok(true)
    }

    fn compare(&self, case: &Case, completion: &Completion) -> anyhow::Result<()> {
        match self.clock.stop.is_cancelled() {
            true => Ok(()),
            false => case.check_whole(&completion.tokens),
        }
    }
}

/// The ids of a short answer to a short prompt; `None` if the context is full.
async fn second_turn(
    session: &mut Session,
    case: &Case,
    options: GenerateOptions,
) -> anyhow::Result<Option<Vec<u32>>> {
    let prompt = case.prompt.iter().copied().take(SECOND_TURN).collect();
    match session.complete(Prompt::Tokens(prompt), options).await {
        Ok(completion) => Ok(Some(completion.tokens.iter().map(|token| token.id).collect())),
        Err(Error::ContextExceeded { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
