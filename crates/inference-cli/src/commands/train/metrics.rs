//! metrics.jsonl: every event of a run, a line each, also across resumes.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use inference::train::TrainEvent;
use serde_json::Value;

use crate::render;

/// metrics.jsonl, open for more.
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
}

/// The losses by step.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Curves {
    pub(super) training: Vec<(usize, f64)>,
    pub(super) validation: Vec<(usize, f64)>,
}

impl Metrics {
    /// Opens the file of a run that goes on after `resumed_at`: what a run that died told of later steps is dropped, since they
    /// come again. A new run begins a new file.
    pub(super) fn open(output: &Path, resumed_at: usize) -> anyhow::Result<Self> {
        let path = path(output);
        let kept = if resumed_at == 0 { String::new() } else { lines_up_to(&path, resumed_at)? };
        let context = || format!("cannot write {}", render::path(&path));
        fs::create_dir_all(output).with_context(context)?;
        fs::write(&path, kept).with_context(context)?;
        let file = OpenOptions::new().append(true).open(&path).with_context(context)?;
        Ok(Self { path, file })
    }

    pub(super) fn write(&mut self, event: &TrainEvent) -> anyhow::Result<()> {
        let line = serde_json::to_string(event)? + "\n";
        self.file
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot write {}", render::path(&self.path)))
    }
}

impl Curves {
    /// The losses in metrics.jsonl.
    pub(super) fn read(output: &Path) -> anyhow::Result<Self> {
        let path = path(output);
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", render::path(&path)))?;
        let mut curves = Self::default();
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let point = step_of(&line).zip(line["loss"].as_f64());
            match (line["event"].as_str(), point) {
                (Some("step"), Some(point)) => curves.training.push(point),
                (Some("validation"), Some(point)) => curves.validation.push(point),
                _ => {}
            }
        }
        Ok(curves)
    }

    /// The last step, and the lowest and the highest loss that a picture has to show; `None` where there is nothing to show.
    pub(super) fn extent(&self) -> Option<(usize, f64, f64)> {
        let points = || self.training.iter().chain(&self.validation).filter(|(_, loss)| loss.is_finite());
        let last = points().map(|(step, _)| *step).max()?;
        let (low, high) =
            points().fold((f64::MAX, f64::MIN), |(low, high), (_, loss)| (low.min(*loss), high.max(*loss)));
        Some((last.max(1), low, if high > low { high } else { low + 1.0 }))
    }
}

fn path(output: &Path) -> PathBuf {
    output.join("metrics.jsonl")
}

/// The lines about steps up to this one. A last line that was cut short is dropped.
fn lines_up_to(path: &Path, step: usize) -> anyhow::Result<String> {
    let text = match fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
        result => result.with_context(|| format!("cannot read {}", render::path(path)))?,
    };
    let kept = |line: &&str| {
        let line = serde_json::from_str::<Value>(line);
        line.is_ok_and(|line| line["event"] != "finished" && step_of(&line).is_none_or(|at| at <= step))
    };
    Ok(text.lines().filter(kept).map(|line| format!("{line}\n")).collect())
}

fn step_of(line: &Value) -> Option<usize> {
    usize::try_from(line["step"].as_u64()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_continues_the_curve_of_the_one_that_died() {
        let folder = tempfile::tempdir().unwrap();
        let step = |step: usize, loss: f32| TrainEvent::Step {
            step,
            loss,
            learning_rate: 0.1,
            tokens: 1,
            tokens_per_second: 1.0,
            gradient_norm: None,
            peak_memory: None,
        };
        let mut metrics = Metrics::open(folder.path(), 0).unwrap();
        for event in [step(1, 3.0), step(2, 2.0), step(3, 9.0)] {
            metrics.write(&event).unwrap();
        }
        metrics.file.write_all(b"{\"event\":\"step\",\"st").unwrap();
        let mut metrics = Metrics::open(folder.path(), 2).unwrap();
        metrics.write(&TrainEvent::Validation { step: 2, loss: 2.5, tokens: 3 }).unwrap();
        metrics.write(&step(3, 1.0)).unwrap();
        let curves = Curves::read(folder.path()).unwrap();
        assert_eq!(curves.training, [(1, 3.0), (2, 2.0), (3, 1.0)]);
        assert_eq!(curves.validation, [(2, 2.5)]);
        assert_eq!(curves.extent(), Some((3, 1.0, 3.0)));
        Metrics::open(folder.path(), 0).unwrap();
        assert_eq!(Curves::read(folder.path()).unwrap().extent(), None);
    }
}
