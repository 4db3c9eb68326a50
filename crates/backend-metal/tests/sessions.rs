//! Sessions on real models: their text is that of a run without any cache, for windows and rotating caches too. On the CPU, or the
//! backend that `BACKEND` names.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use std::{path::PathBuf, sync::Arc};

use backend_metal as _;
use inference_core::{
    Completion, Error, GenerateOptions, KvBits, LoadOptions, Message, Prompt, Session, TextModel,
    TextModelExt as _, load_model,
};
use tests::checkpoint::{self, Rule};

fn demo() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo"))
}

/// The demo model with a window of 24 positions on its later layers.
fn windowed() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(demo()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    config["use_sliding_window"] = true.into();
    config["sliding_window"] = 24.into();
    config["max_window_layers"] = 1.into();
    config.as_object_mut().unwrap().remove("layer_types");
    std::fs::write(&path, config.to_string()).unwrap();
    folder
}

/// A small random model with recurrent layers, and the demo model's tokenizer.
fn recurrent() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        std::fs::copy(demo().join(name), folder.path().join(name)).unwrap();
    }
    let read = |path: PathBuf| std::fs::read(path).unwrap();
    let fixture = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/qwen3_5"));
    let demo: serde_json::Value = serde_json::from_slice(&read(demo().join("config.json"))).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&read(fixture.join("config.json"))).unwrap();
    config["text_config"]["vocab_size"] = demo["vocab_size"].clone();
    let mut rules: Vec<Rule> = serde_json::from_slice(&read(fixture.join("tensors.json"))).unwrap();
    for rule in &mut rules {
        if rule.0.contains("embed_tokens") || rule.0.contains("lm_head") {
            rule.2[0] = demo["vocab_size"].as_u64().unwrap() as usize;
        }
    }
    checkpoint::write(folder.path(), &config, &rules).unwrap();
    folder
}

/// The model, and the same with nothing kept between requests.
async fn models(folder: &std::path::Path) -> [Arc<dyn TextModel>; 2] {
    models_with(folder, LoadOptions::new()).await
}

async fn models_with(folder: &std::path::Path, options: LoadOptions) -> [Arc<dyn TextModel>; 2] {
    let backend = std::env::var("BACKEND").unwrap_or_else(|_| "cpu".to_owned());
    let load = |options| load_model(folder).backend(backend.as_str()).options(options);
    let tight = options.prefix_cache(0).prefill_chunk(16);
    [load(tight.clone()).await.unwrap(), load(tight).await.unwrap()]
}

fn options() -> GenerateOptions {
    GenerateOptions::new().max_tokens(20).ignore_eos(true).log_probabilities(1)
}

/// How far log-probabilities of one text may be apart that was computed in other pieces: sums come in another order.
const SUMS: f32 = 1e-4;
/// The same where keys and values have 8 bits: what lies between two steps is rounded to the one or the other.
const STEPS: f32 = 2e-3;

/// Token for token, and as likely.
fn same(answer: &Completion, expected: &Completion, bound: f32) {
    assert_eq!(answer.text, expected.text);
    assert_eq!(answer.finish.reason, expected.finish.reason);
    for (a, b) in answer.tokens.iter().zip(&expected.tokens) {
        assert_eq!(a.id, b.id);
        assert!((a.log_probability.unwrap() - b.log_probability.unwrap()).abs() < bound, "{a:?}, {b:?}");
    }
}

/// A turn against a run of the whole text; how many of its tokens were not computed again.
async fn turn(session: &mut Session, plain: &dyn TextModel, more: &str, bound: f32) -> usize {
    let held = session.tokens().await;
    let answer = session.complete(more, options()).await.unwrap();
    let whole = session.tokens().await;
    let prompt = whole[..whole.len() - answer.finish.metrics.generated_tokens].to_vec();
    assert!(prompt.starts_with(&held) && prompt.len() > held.len());
    let expected = plain.complete(prompt, options()).await.unwrap();
    same(&answer, &expected, bound);
    assert_eq!(expected.finish.metrics.cached_tokens, 0);
    answer.finish.metrics.cached_tokens
}

#[tokio::test]
async fn turns_are_those_of_a_run_without_a_cache() {
    let (windowed, recurrent) = (windowed(), recurrent());
    for folder in [demo(), windowed.path().to_owned(), recurrent.path().to_owned()] {
        let [model, plain] = models(&folder).await;
        let mut session = model.session().await.unwrap();
        assert_eq!(turn(&mut session, &*plain, "The capital of France is", SUMS).await, 0);
        for more in
            [" and two and two is", " What", " a long sentence that says many things about weather and food"]
        {
            let held = session.tokens().await.len();
            let mut fork = session.fork().await.unwrap();
            // The last token of an answer is never computed.
            assert_eq!(turn(&mut session, &*plain, more, SUMS).await, held - 1);
            assert_eq!(turn(&mut fork, &*plain, " another", SUMS).await, held - 1);
        }
    }
}

/// Turns that begin at once, of sessions that hold texts of other lengths.
#[tokio::test]
async fn turns_beside_each_other_are_those_of_a_run_without_a_cache() {
    let (windowed, recurrent) = (windowed(), recurrent());
    for folder in [demo(), windowed.path().to_owned(), recurrent.path().to_owned()] {
        let [model, plain] = models(&folder).await;
        let sessions = futures::future::try_join_all((0..3).map(|_| model.session())).await;
        let mut sessions = sessions.unwrap();
        for texts in [
            ["The capital of France is", "One", "a sentence about food and weather"],
            [" and two", " What is the capital", " or"],
            [" another", " a long sentence that says many things about weather and food", " and two is"],
        ] {
            let turns = sessions.iter_mut().zip(texts);
            let turns = turns.map(|(session, more)| turn(session, &*plain, more, SUMS));
            futures::future::join_all(turns).await;
        }
    }
}

#[tokio::test]
async fn a_saved_session_goes_on_on_another_load_of_the_model() {
    let (windowed, recurrent) = (windowed(), recurrent());
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.session");
    let quantised = || LoadOptions::new().kv_bits(KvBits::Eight);
    let folders = [demo(), recurrent.path().to_owned(), windowed.path().to_owned()];
    for (model_folder, options, bound) in folders
        .into_iter()
        .flat_map(|folder| [(folder.clone(), LoadOptions::new(), SUMS), (folder, quantised(), STEPS)])
    {
        let [model, plain] = models_with(&model_folder, options.clone()).await;
        let mut session = model.session().await.unwrap();
        turn(&mut session, &*plain, "Who are you, and what is the capital of Italy?", bound).await;
        session.set_metadata("a note");
        session.save(&file).await.unwrap();
        drop(session);
        let [other, _] = models_with(&model_folder, options).await;
        let mut loaded = other.load_session(&file).await.unwrap();
        assert_eq!(loaded.metadata(), "a note");
        let held = loaded.tokens().await.len();
        assert_eq!(turn(&mut loaded, &*plain, " And then?", bound).await, held - 1);
    }
    // The last one is of the model with windows, whose config is another, and quantised.
    for folder in [demo(), recurrent.path().to_owned(), windowed.path().to_owned()] {
        let [model, _] = models(&folder).await;
        assert!(matches!(model.load_session(&file).await, Err(Error::InvalidSession { .. })));
    }
}

#[tokio::test]
async fn a_session_file_with_other_tensors_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("talk.session");
    let [model, _] = models(&demo()).await;
    let mut session = model.session().await.unwrap();
    session.append("one two three four").await.unwrap();
    session.save(&file).await.unwrap();
    let whole = std::fs::read(&file).unwrap();
    let header = String::from_utf8_lossy(&whole).into_owned();
    // Of the same length each, so that the places of the tensors stay.
    for (found, put) in [
        ("\"layers.0000.0\"", "\"layers.9999.0\""),
        ("\"held\":{\"dtype\":\"U32\"", "\"held\":{\"dtype\":\"I32\""),
        ("\"held\"", "\"hold\""),
    ] {
        let at = header.find(found).unwrap();
        let mut bytes = whole.clone();
        bytes[at..at + put.len()].copy_from_slice(put.as_bytes());
        std::fs::write(&file, bytes).unwrap();
        let result = model.load_session(&file).await;
        assert!(matches!(result, Err(Error::InvalidSession { .. })), "{put}: {result:?}");
    }
    // An id past the vocabulary would be looked up unchecked.
    let tokens = session.tokens().await;
    let needle: Vec<u8> = tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
    for at in (0..whole.len() - needle.len()).filter(|at| whole[*at..].starts_with(&needle)) {
        let mut bytes = whole.clone();
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        std::fs::write(&file, bytes).unwrap();
        let result = model.load_session(&file).await;
        assert!(matches!(result, Err(Error::InvalidSession { .. })), "{result:?}");
    }
}

#[tokio::test]
async fn a_conversation_computes_only_its_new_turn() {
    let [model, plain] = models(&demo()).await;
    let mut session = model.session().await.unwrap();
    let mut chat = vec![Message::user("What is the capital of France?")];
    let mut known = 0;
    for next in ["What is 17+25?", "Who are you?"] {
        let options = GenerateOptions::new().log_probabilities(0);
        let answer = session.complete(chat.clone(), options.clone()).await.unwrap();
        same(&answer, &plain.complete(Prompt::Chat(chat.clone()), options).await.unwrap(), SUMS);
        let metrics = answer.finish.metrics;
        assert!(metrics.cached_tokens >= known, "{metrics:?}, {known} were known");
        known = metrics.prompt_tokens + metrics.generated_tokens;
        chat.extend([Message::assistant(answer.text), Message::user(next)]);
    }
    // Requests beside it and their caches leave it alone.
    model.complete("something else entirely", GenerateOptions::new()).await.unwrap();
    assert!(
        session.complete(chat, GenerateOptions::new()).await.unwrap().finish.metrics.cached_tokens >= known
    );
}
