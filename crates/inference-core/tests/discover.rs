//! Finding models: names, order, Hugging Face caches, links, and what is broken on the way.

mod common;

use std::path::Path;

use common::{Folder, message, tensors};
use inference_core::discover;

fn model(folder: &Folder, name: &str) {
    folder.write(&format!("{name}/config.json"), r#"{"model_type":"llama"}"#);
    folder.write(&format!("{name}/model.safetensors"), tensors(&[("a", "F32", &[1])]));
}

/// Names of what is found, `!` and the message of what is broken.
fn found(root: &Path) -> Vec<String> {
    let item = |item: inference_core::Result<inference_core::Discovered>| match item {
        Ok(found) => found.name,
        Err(error) => format!("! {}", message(&error)),
    };
    discover(root).map(item).collect()
}

#[test]
fn models_come_in_order_and_are_not_searched_further() {
    let folder = Folder::new();
    for name in ["b/two", "b/one", "a", "a/inner", "c/deep/er/m"] {
        model(&folder, name);
    }
    for name in ["target/m", "c/node_modules/m", ".git/m"] {
        model(&folder, name);
    }
    folder.write("d/config.json", "{}");
    folder.write("e/adapters.safetensors", "");
    assert_eq!(found(folder.path()), ["a", "b/one", "b/two", "c/deep/er/m"]);
    assert_eq!(found(&folder.join("b/two")), ["two"]);
    // A skipped name is searched where it is asked for.
    assert_eq!(found(&folder.join("target")), ["m"]);
}

#[test]
fn what_is_broken_is_an_item_and_the_search_goes_on() {
    let folder = Folder::new();
    model(&folder, "a");
    folder.write("b/config.json", r#"{"model_type":"llama"}"#);
    folder.write("b/model.safetensors", "not one");
    folder.write("c/config.json", "{");
    folder.write("c/model.safetensors.index.json", "{}");
    model(&folder, "d");
    let found = found(folder.path());
    assert_eq!((found.len(), &*found[0], &*found[3]), (4, "a", "d"), "{found:?}");
    assert!(found[1].contains("b/model.safetensors: has 7 bytes"), "{found:?}");
    assert!(found[2].contains("c/config.json") && found[2].contains("cut short"), "{found:?}");
}

#[test]
fn a_root_that_is_no_folder_is_one_error() {
    let folder = Folder::new();
    let missing = found(&folder.join("none"));
    assert_eq!(missing.len(), 1);
    assert!(missing[0].starts_with("! cannot read") && missing[0].contains("none"), "{missing:?}");
    let file = found(&folder.write("file", ""));
    assert!(file.len() == 1 && file[0].starts_with("! cannot read"), "{file:?}");
}

#[test]
fn a_hugging_face_cache_has_names_and_revisions() {
    let folder = Folder::new();
    let entry = "hub/models--Qwen--Qwen3-0.6B";
    model(&folder, &format!("{entry}/snapshots/1111"));
    model(&folder, &format!("{entry}/snapshots/2222"));
    folder.write(&format!("{entry}/refs/main"), "2222\n");
    folder.write(&format!("{entry}/blobs/abc"), "");
    model(&folder, "hub/models--gpt2/snapshots/3333");
    model(&folder, "plain");
    let names = ["Qwen/Qwen3-0.6B@1111", "Qwen/Qwen3-0.6B", "gpt2@3333", "plain"];
    assert_eq!(found(folder.path()), names);
    assert_eq!(found(&folder.join(entry)), names[..2]);
    assert_eq!(found(&folder.join(entry).join("snapshots/2222")), ["Qwen/Qwen3-0.6B"]);
}

#[test]
fn the_search_is_lazy() {
    let folder = Folder::new();
    model(&folder, "a");
    model(&folder, "b");
    let mut models = discover(folder.path());
    assert_eq!(models.next().unwrap().unwrap().name, "a");
    std::fs::remove_dir_all(folder.join("b")).unwrap();
    assert!(models.next().unwrap().is_err());
    assert!(models.next().is_none());
}

#[test]
fn folders_deeper_than_the_limit_are_left_alone() {
    let folder = Folder::new();
    let at = |depth: usize| vec!["x"; depth - 1].join("/") + "/m";
    model(&folder, &at(32));
    assert_eq!(found(folder.path()), [at(32)]);
    let folder = Folder::new();
    model(&folder, &at(33));
    assert!(found(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn links_are_followed_once_and_never_in_circles() {
    use std::os::unix::fs::symlink;

    let folder = Folder::new();
    let elsewhere = Folder::new();
    model(&elsewhere, "far");
    model(&folder, "models/m");
    symlink(folder.path(), folder.join("models/up")).unwrap();
    symlink(folder.join("models"), folder.join("again")).unwrap();
    symlink("self", folder.join("self")).unwrap();
    symlink("nowhere", folder.join("gone")).unwrap();
    symlink(elsewhere.path(), folder.join("other")).unwrap();
    folder.write("file", "");
    symlink(folder.join("file"), folder.join("to-file")).unwrap();
    assert_eq!(found(folder.path()), ["again/m", "other/far"]);
}

#[cfg(unix)]
#[test]
fn a_folder_that_may_not_be_read_is_an_item() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = Folder::new();
    model(&folder, "a/m");
    model(&folder, "b/m");
    let permit =
        |mode| std::fs::set_permissions(folder.join("a"), std::fs::Permissions::from_mode(mode)).unwrap();
    permit(0o000);
    // Root may read everything.
    let barred = std::fs::read_dir(folder.join("a")).is_err();
    let found = found(folder.path());
    permit(0o755);
    match barred {
        true => assert!(found[0].starts_with("! cannot read") && found[1] == "b/m", "{found:?}"),
        false => assert_eq!(found, ["a/m", "b/m"]),
    }
}
