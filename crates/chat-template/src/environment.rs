//! What a rendering has beside the template: variables, clock, seed, limits.

use std::{fmt, sync::Arc, time::Duration};

use jiff::civil::DateTime;
use serde_json::{Map, Value};

use crate::error::{Result, runtime};

/// Says whether the caller no longer wants the text.
pub(crate) type Cancelled = Arc<dyn Fn() -> bool + Send + Sync>;

/// The limits of one rendering. Whatever a template, its variables or the tools hold, the rendering ends within them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Limits {
    /// Units of work. A unit is a byte that is written, read or compared; an expression costs 32 units. Published templates
    /// take some hundred thousand for a conversation.
    pub work: u64,
    /// Bytes that all values and texts may take at one time.
    pub memory: usize,
    /// Bytes of one text: the result, and any text on the way to it.
    pub text: usize,
    /// Time that the thread works, for machines on which a unit of work takes longer than usual; after ten times as long it ends
    /// in any case.
    pub time: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { work: 256 << 20, memory: 60 << 20, text: 16 << 20, time: Duration::from_secs(1) }
    }
}

/// What every rendering of a template has in common.
///
/// ```
/// # fn main() -> Result<(), chat_template::Error> {
/// use chat_template::{Environment, Template};
/// use serde_json::{Map, json};
///
/// let environment = Environment::new().global("bos_token", json!("<s>")).at("2025-03-14T15:09:26")?;
/// let template = Template::parse("{{ bos_token }}{{ strftime_now('%d %B %Y') }}")?;
/// assert_eq!(template.render_in(&environment, &Map::new())?, "<s>14 March 2025");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct Environment {
    pub(crate) globals: Arc<Map<String, Value>>,
    pub(crate) now: Option<DateTime>,
    pub(crate) seed: u64,
    pub(crate) limits: Limits,
    pub(crate) cancelled: Option<Cancelled>,
}

impl Environment {
    /// No variables, the local time, seed 0, the default limits.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a variable that every rendering has. Variables of a rendering hide those of the environment.
    #[must_use]
    pub fn global(mut self, name: impl Into<String>, value: Value) -> Self {
        Arc::make_mut(&mut self.globals).insert(name.into(), value);
        self
    }

    /// Stops the clock of `strftime_now`, for texts that do not change from day to day.
    ///
    /// # Errors
    /// `now` is not of the form `2025-03-14T15:09:26`.
    pub fn at(mut self, now: &str) -> Result<Self> {
        self.now = Some(now.parse().map_err(|error| runtime!("{now:?} is not a time: {error}"))?);
        Ok(self)
    }

    /// Where the filter `random` and the function `lipsum` begin. One seed gives one text.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Replaces the limits.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Ends renderings with [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled) soon after `cancelled` says so. It is asked
    /// every few microseconds to milliseconds of work, and should only look at a flag.
    #[must_use]
    pub fn cancelled(mut self, cancelled: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        self.cancelled = Some(Arc::new(cancelled));
        self
    }
}

impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("globals", &self.globals)
            .field("now", &self.now)
            .field("seed", &self.seed)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
