//! What the reports of all benchmarks have in common.

use inference::ModelInfo;
use inference_core::backend::BackendInfo;
use serde::Serialize;

use crate::{model::engine_rows, render};

/// The program that measured.
#[derive(Debug, Serialize)]
pub(super) struct Program {
    version: &'static str,
    profile: &'static str,
    os: &'static str,
    arch: &'static str,
}

impl Program {
    pub(super) fn this() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" },
            os: std::env::consts::OS,
            arch: std::env::consts::ARCH,
        }
    }
}

/// The spread of one figure over the trials.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(super) struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

/// What is measured, and how often.
pub(super) fn subject(model: &ModelInfo, backend: &BackendInfo, trials: String) -> comfy_table::Table {
    let parameters = render::count(model.parameters);
    let what = format!("{}, {}, {parameters} parameters", render::path(&model.path), model.architecture);
    let mut facts = vec![("model", what)];
    facts.extend(engine_rows(backend, model.decode_steps.as_deref()));
    facts.push(("trials", trials));
    render::facts(facts)
}

impl Spread {
    /// An empty table of spreads.
    pub(super) fn table() -> comfy_table::Table {
        render::table(&["", "min", "median", "max"])
    }

    /// Adds a row to the table.
    pub(super) fn add_to(self, table: &mut comfy_table::Table, name: &str, show: &dyn Fn(f64) -> String) {
        let cells = [self.min, self.median, self.max].map(|value| render::right(show(value)));
        table.add_row([comfy_table::Cell::new(name)].into_iter().chain(cells));
    }

    /// The spread of at least one value.
    pub(super) fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            0 => (values[middle - 1] + values[middle]) / 2.0,
            _ => values[middle],
        };
        Self { min: values[0], median, max: values[values.len() - 1] }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_between_the_middles() {
        assert_eq!(Spread::of(vec![3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(Spread::of(vec![4.0, 1.0]).median, 2.5);
    }
}
