//! Recorded conversations, played back by a shell script: this side of the protocol, on a machine without Python.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
};

use backend_mlxlm::{MlxLmBackend, MlxLmOptions};
use common::tiny_model;
use inference_core::{
    Alternative, ClassifyOptions, Completion, Error, FinishReason, GenerateOptions, LoadOptions,
    ModelManifest, Result, StopCause, TextModelExt as _, Xtc, backend::Backend as _,
};
use serde_json::{Value, json};

/// A conversation that is played back.
struct Replay {
    folder: tempfile::TempDir,
    transcript: PathBuf,
}

impl Replay {
    fn new(name: &str) -> Self {
        let transcript = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name);
        Self { folder: tiny_model(), transcript }
    }

    async fn load(&self, options: LoadOptions) -> Result<std::sync::Arc<dyn inference_core::TextModel>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay.sh");
        let own = MlxLmOptions::new().python(script).restart(false);
        let own = own.env("TRANSCRIPT", &self.transcript).env("HEARD", self.heard());
        let manifest = ModelManifest::read(self.folder.path())?;
        MlxLmBackend::with_python("python").load(manifest, options.extension(own)).await
    }

    fn heard(&self) -> PathBuf {
        self.folder.path().join("heard")
    }

    /// Holds what the parent said to what it said when the transcript was made.
    fn check(&self) {
        let lines = |path: &Path| -> Vec<Value> {
            let text = fs::read_to_string(path).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let model = self.folder.path().to_str().unwrap();
        let expected: Vec<_> = lines(&self.transcript)
            .into_iter()
            .filter_map(|mut entry| entry.get_mut("parent").map(Value::take))
            .map(|mut line| {
                if let Some(path) = line.get_mut("path") {
                    *path = json!(model);
                }
                line
            })
            .collect();
        assert_eq!(lines(&self.heard()), expected);
    }
}

fn ids(completion: &Completion) -> Vec<u32> {
    completion.tokens.iter().map(|token| token.id).collect()
}

#[tokio::test]
async fn a_generation() {
    let replay = Replay::new("generate.jsonl");
    let model = replay.load(LoadOptions::new()).await.unwrap();
    assert_eq!(model.info().parameters, 22880);
    let answer = model.complete("hi", GenerateOptions::new().max_tokens(3).seed(1)).await.unwrap();
    assert_eq!((ids(&answer), answer.text.as_str()), (vec![72, 195, 188], "Hü"));
    assert_eq!(answer.finish.reason, FinishReason::Length);
    assert_eq!(answer.finish.metrics.peak_memory_bytes, 1_840_512);
    assert_eq!(answer.finish.metrics.prefill.as_micros(), 12_500);
    model.close().await.unwrap();
    replay.check();
}

#[tokio::test]
async fn every_option_and_log_probabilities() {
    let replay = Replay::new("seeded.jsonl");
    let options = LoadOptions::new().max_batch(4).prefill_chunk(256).memory_limit(4 << 30).cache_limit(0);
    let model = replay.load(options).await.unwrap();
    let options = GenerateOptions::new()
        .max_tokens(5)
        .min_tokens(2)
        .temperature(0.5)
        .top_p(0.75)
        .min_p(0.25)
        .top_k(40)
        .xtc(Xtc::new(0.5, 0.125))
        .seed(u64::MAX)
        .logit_bias([(7, f32::NEG_INFINITY), (8, 1.5)])
        .repetition_penalty(1.25)
        .presence_penalty(0.5)
        .frequency_penalty(0.25)
        .stop_tokens([10])
        .log_probabilities(1);
    let answer = model.complete("hi", options).await.unwrap();
    assert_eq!(answer.text, "ab");
    assert_eq!(answer.finish.reason, FinishReason::Stop(StopCause::StopToken(10)));
    let probabilities: Vec<_> = answer.tokens.iter().map(|token| token.log_probability).collect();
    assert_eq!(probabilities, [Some(-0.5), Some(f32::NEG_INFINITY)]);
    assert_eq!(answer.tokens[1].top, [Alternative::new(99, -0.25)]);
    assert!(answer.finish.metrics.queued.as_millis() >= 250);
    model.close().await.unwrap();
    replay.check();
}

#[tokio::test]
async fn a_stop_string_cancels_and_what_follows_is_dropped() {
    let replay = Replay::new("stop_string.jsonl");
    let model = replay.load(LoadOptions::new()).await.unwrap();
    let answer = model.complete("hi", GenerateOptions::new().stop(["cd"]).seed(1)).await.unwrap();
    assert_eq!(answer.text, "ab");
    assert_eq!(answer.finish.reason, FinishReason::Stop(StopCause::StopString("cd".to_owned())));
    assert_eq!(answer.finish.metrics.generated_tokens, 4);
    model.close().await.unwrap();
    replay.check();
}

#[tokio::test]
async fn a_classification() {
    let replay = Replay::new("classify.jsonl");
    let model = replay.load(LoadOptions::new()).await.unwrap();
    let options = ClassifyOptions::new().labels(["x", "yz"]).logits(true);
    let verdicts = model.classify(vec!["a".into(), "bc".into()], options).await.unwrap();
    assert_eq!((verdicts[0].token, verdicts[0].text.as_str(), verdicts[0].prompt_tokens), (120, "x", 1));
    assert_eq!(verdicts[0].logits.as_deref(), Some(&[1.0, -2.5, 3e-9][..]));
    assert_eq!(verdicts[0].best().unwrap().label, "x");
    assert_eq!(
        (verdicts[1].labels[0].log_probability, verdicts[1].labels[1].probability),
        (f32::NEG_INFINITY, 1.0)
    );
    model.close().await.unwrap();
    replay.check();
}

#[tokio::test]
async fn a_load_that_fails() {
    let replay = Replay::new("failure.jsonl");
    let error = replay.load(LoadOptions::new()).await.unwrap_err();
    assert!(
        matches!(&error, Error::InvalidModel { reason, .. } if reason.contains("model.norm.weight")),
        "{error}"
    );
    replay.check();
}
