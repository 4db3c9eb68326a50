//! Finding and loading the model that a command works with.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use inference::{CancellationToken, TextModel};
use inference_core::backend::BackendInfo;

use crate::{failure::Usage, options::LoadArgs, render};

/// Loads that take longer show how far they have come.
const PATIENCE: Duration = Duration::from_millis(300);

/// Names the demo model's folder, above all other places.
const DEMO_VARIABLE: &str = "INFERENCE_DEMO_MODEL";

/// Loads a model; with a progress bar on a terminal, unless `quiet`.
pub(crate) async fn load(
    path: &Path,
    args: &LoadArgs,
    cancel: CancellationToken,
    quiet: bool,
) -> anyhow::Result<Arc<dyn TextModel>> {
    let bar = render::progress(0, "loading {wide_bar:.cyan} {bytes}/{total_bytes}");
    if quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let began = std::time::Instant::now();
    let shown = bar.clone();
    let options = args.options(cancel).on_progress(move |progress| {
        if began.elapsed() >= PATIENCE {
            shown.set_length(progress.total_bytes);
            shown.set_position(progress.loaded_bytes);
        }
    });
    let mut load = inference::load_model(path).options(options);
    if let Some(backend) = &args.backend {
        load = load.backend(backend);
    }
    let loaded = load.await;
    bar.finish_and_clear();
    Ok(loaded?)
}

/// Works with a model and closes it, also when the work fails: an engine that still runs when the program ends would be torn
/// down under its own threads.
pub(crate) async fn using<T>(
    model: Arc<dyn TextModel>,
    work: impl AsyncFnOnce(&dyn TextModel) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let result = work(&*model).await;
    let closed = model.close().await;
    let value = result?;
    closed?;
    Ok(value)
}

/// What runs a model, as rows of a table.
pub(crate) fn engine_rows(backend: &BackendInfo, decode_steps: Option<&str>) -> Vec<(&'static str, String)> {
    let mut rows = vec![("backend", format!("{}, {} on {}", backend.id, backend.version, backend.device))];
    rows.extend(decode_steps.map(|how| ("decode steps", how.to_owned())));
    rows
}

/// The folder that was named, or the demo model's.
pub(crate) fn or_demo(named: Option<&PathBuf>) -> anyhow::Result<PathBuf> {
    named.map_or_else(demo, |path| find(path))
}

/// The folder that was named, or that of the model of this name in the Hugging Face cache.
pub(crate) fn find(named: &Path) -> anyhow::Result<PathBuf> {
    Ok(inference::find_model(named, None)?)
}

/// The folder of the demo model that ships with the program.
fn demo() -> anyhow::Result<PathBuf> {
    let executable = std::env::current_exe().ok();
    let places = demo_places(std::env::var_os(DEMO_VARIABLE), executable.as_deref());
    if let Some(found) = places.iter().find(|place| place.join("config.json").is_file()) {
        return Ok(found.clone());
    }
    let places: Vec<_> = places.iter().map(|place| format!("\n  {}", render::path(place))).collect();
    let message = format!(
        "the demo model is in none of its places; name a model with --model, or the demo's folder with \
         {DEMO_VARIABLE}. Looked in:{}",
        places.concat()
    );
    Err(Usage(message).into())
}

/// Where the demo model may be, in order of preference: the folder that the user names; the folder of the distributed program;
/// the source tree that the program was built from.
fn demo_places(named: Option<OsString>, executable: Option<&Path>) -> Vec<PathBuf> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        return vec![named.into()];
    }
    let mut places = Vec::new();
    if let Some(folder) = executable.and_then(Path::parent) {
        places.push(folder.join("models/demo"));
        if let Some(prefix) = folder.parent() {
            places.push(prefix.join("models/demo"));
            places.push(prefix.join("share/inference/models/demo"));
        }
    }
    places.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo"));
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_demo_is_the_only_place() {
        assert_eq!(
            demo_places(Some("/d".into()), Some(Path::new("/opt/i/bin/inference"))),
            [Path::new("/d")]
        );
    }

    #[test]
    fn the_demo_is_sought_beside_the_program_before_the_source_tree() {
        let places = demo_places(Some("".into()), Some(Path::new("/opt/i/bin/inference")));
        assert_eq!(places[1], Path::new("/opt/i/models/demo"));
        assert_eq!(places[2], Path::new("/opt/i/share/inference/models/demo"));
        assert!(places[3].ends_with("../../models/demo"));
    }
}
