//! A constraint's state behind the checks that every engine owes its other requests.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{custom::ConstraintState, mask::TokenMask};
use crate::{Error, Result};

/// A [`ConstraintState`] whose panics and errors end its own request alone.
pub struct ConstraintRun {
    state: Box<dyn ConstraintState>,
    mask: TokenMask,
}

impl ConstraintRun {
    /// Puts a state behind the checks, for a vocabulary of this size.
    #[must_use]
    pub fn new(state: Box<dyn ConstraintState>, vocab_size: usize) -> Self {
        Self { state, mask: TokenMask::new(vocab_size) }
    }

    /// The ids that may come next: at least one.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: it failed, panicked, or allows none.
    pub fn mask(&mut self) -> Result<&TokenMask> {
        let Self { state, mask } = self;
        mask.ban_all();
        guarded(|| state.mask(mask))?;
        if mask.count() == 0 {
            return Err(invalid("it allows no token at all".to_owned()));
        }
        Ok(mask)
    }

    /// Takes the token that was chosen.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: it failed, or panicked.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        guarded(|| self.state.accept(id))
    }

    /// Takes the last so many tokens back.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: it failed, or panicked.
    pub fn rollback(&mut self, tokens: usize) -> Result<()> {
        if tokens == 0 { Ok(()) } else { guarded(|| self.state.rollback(tokens)) }
    }
}

impl fmt::Debug for ConstraintRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConstraintRun")
    }
}

fn invalid(reason: String) -> Error {
    Error::invalid_option("constraint", reason)
}

/// Runs a caller's code.
pub(super) fn guarded<T>(work: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without a message");
            Err(format!("it panicked: {text}"))
        })
        .map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Faulty(fn(&mut TokenMask) -> std::result::Result<(), String>);

    impl ConstraintState for Faulty {
        fn mask(&mut self, mask: &mut TokenMask) -> std::result::Result<(), String> {
            (self.0)(mask)
        }

        fn accept(&mut self, _: u32) -> std::result::Result<(), String> {
            panic!("at {}", 7)
        }

        fn rollback(&mut self, _: usize) -> std::result::Result<(), String> {
            Err("never".to_owned())
        }
    }

    #[test]
    fn what_a_state_does_wrong_is_an_error_of_its_request() {
        let run = |mask| ConstraintRun::new(Box::new(Faulty(mask)), 4);
        let said = |result: Result<()>| result.unwrap_err().to_string();
        let mut good = run(|mask| {
            mask.allow(3);
            Ok(())
        });
        // Each mask begins with nothing allowed.
        assert_eq!(good.mask().unwrap().count(), 1);
        assert_eq!(good.mask().unwrap().count(), 1);
        assert!(said(good.accept(3)).contains("panicked: at 7"));
        assert!(said(good.rollback(1)).contains("never"));
        assert!(good.rollback(0).is_ok());
        assert!(said(run(|_| Ok(())).mask().map(drop)).contains("no token"));
        assert!(said(run(|_| panic!("on the edge")).mask().map(drop)).contains("on the edge"));
        assert!(said(run(|_| Err("too hard".into())).mask().map(drop)).contains("too hard"));
    }
}
