//! Small embedding models as sentence-transformers has them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;
use tempfile::TempDir;
use tests::checkpoint::{self, Rule};

/// Where the fixtures are.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/embeddings")
}

pub(crate) fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> T {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The folder of a variant with its weights, its config changed.
pub(crate) fn folder(name: &str, change: impl FnOnce(&mut Value, &mut Vec<Rule>)) -> TempDir {
    let (from, to) = (root().join(name), tempfile::tempdir().unwrap());
    copy(&from, to.path());
    let (mut config, mut rules) = (read(&from.join("config.json")), read(&from.join("tensors.json")));
    change(&mut config, &mut rules);
    checkpoint::write(to.path(), &config, &rules).unwrap();
    to
}

/// Copies files and folders; folders with rules get their weights.
fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&path, &target);
            if path.join("tensors.json").exists() {
                let rules: Vec<Rule> = read(&path.join("tensors.json"));
                checkpoint::write(&target, &read(&path.join("config.json")), &rules).unwrap();
            }
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
