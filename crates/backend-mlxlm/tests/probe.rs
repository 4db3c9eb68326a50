//! Which interpreter is found, and what a program learns of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use backend_mlxlm::{DESCRIPTOR, use_python};
use common::{ids, python, script, tiny_model};
use inference_core::{
    Error, GenerateOptions, ModelManifest, Outcome, Registry, TextModelExt as _, backend::Availability,
};

// One test: the interpreter is chosen for the whole process.
#[tokio::test]
async fn the_interpreter_decides() {
    let folder = tiny_model();
    let registry = Registry::empty().with(DESCRIPTOR);
    assert!(Registry::linked().get("mlx_lm").is_ok_and(|descriptor| descriptor.priority == 10));

    let bare = script(folder.path(), "bare", &format!("#!/bin/sh\nexec {} -S \"$@\"\n", python().display()));
    use_python(&bare);
    let Availability::Unavailable(reason) = (DESCRIPTOR.probe)() else { panic!("it has no mlx_lm") };
    assert!(reason.contains("has no mlx_lm") && reason.contains("python3 -m venv .venv"), "{reason}");
    assert!(reason.contains("pip install mlx-lm"), "{reason}");
    let error = registry.load_model(folder.path()).backend("mlx_lm").await.unwrap_err();
    assert!(matches!(&error, Error::Unavailable { reason, .. } if reason.contains("pip install")), "{error}");

    use_python(python());
    let Availability::Available(device) = (DESCRIPTOR.probe)() else { panic!("it has mlx_lm") };
    assert!(device.starts_with("Python 3."), "{device}");
    assert!(registry.open("mlx_lm").unwrap().info().version.starts_with("mlx_lm 0.32.2 (MLX 0.32.2"));
    let manifest = ModelManifest::read(folder.path()).unwrap();
    assert_eq!(registry.explain(&manifest)[0].outcome, Outcome::Usable);

    let model = registry.load_model(folder.path()).await.unwrap();
    let answer = model.complete(ids(9, 1), GenerateOptions::new().max_tokens(4)).await.unwrap();
    assert_eq!(answer.finish.metrics.prompt_tokens, 9);
    model.close().await.unwrap();

    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    for (model_type, known) in [("mistral", true), ("abacus", false)] {
        let config = config.replace("\"llama\"", &format!("{model_type:?}"));
        std::fs::write(folder.path().join("config.json"), config).unwrap();
        let manifest = ModelManifest::read(folder.path()).unwrap();
        match &registry.explain(&manifest)[0].outcome {
            Outcome::Usable => assert!(known, "{model_type}"),
            Outcome::Unsupported(reason) => assert!(!known && reason.contains("abacus"), "{reason}"),
            other => panic!("{other:?}"),
        }
    }
}
