//! A llama-server that fails in every way there is, and what the caller sees of it.

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use backend_llamacpp::{LlamaCppBackend, LlamaCppOptions};
use common::{fake, load, script, smollm2};
use futures::StreamExt as _;
use inference_core::{
    CancellationToken, Error, FinishReason, GenerateOptions, LoadOptions, ModelManifest, Result, TextModel,
    TextModelExt as _, TokenStream,
    backend::{Backend as _, CheckedModel},
};
use tempfile::TempDir;

async fn faulty(fault: &str) -> Result<Arc<dyn TextModel>> {
    faulty_with(fault, |own| own.restart(false)).await
}

async fn faulty_with(
    fault: &str,
    change: impl FnOnce(LlamaCppOptions) -> LlamaCppOptions,
) -> Result<Arc<dyn TextModel>> {
    let (_folder, server) = fake(fault);
    let backend = LlamaCppBackend::with_server(server)?;
    let options = LoadOptions::new().context_length(256).extension(change(LlamaCppOptions::new()));
    let model = backend.load(ModelManifest::read(smollm2())?, options).await?;
    // The folder goes, the program runs on; a second child could not be started.
    Ok(Arc::new(CheckedModel::new(model, &backend)))
}

async fn stream(model: &dyn TextModel) -> TokenStream {
    model.generate("The capital of France is".into(), GenerateOptions::new()).await.unwrap()
}

async fn text_and_error(mut stream: TokenStream) -> (String, Error) {
    let mut text = String::new();
    loop {
        match stream.next().await.expect("an error before the end") {
            Ok(token) => text.push_str(&token.text),
            Err(error) => {
                assert!(stream.next().await.is_none());
                return (text, error);
            }
        }
    }
}

fn reason(error: &Error) -> &str {
    match error {
        Error::Stopped { backend, reason, .. } => {
            assert_eq!(backend, "llama_cpp");
            reason
        }
        other => panic!("expected Stopped, got {other:?}"),
    }
}

#[tokio::test]
async fn the_fake_speaks_the_protocol() {
    let model = faulty("").await.unwrap();
    let answer =
        model.complete("The capital of France is", GenerateOptions::new().max_tokens(2)).await.unwrap();
    assert_eq!((answer.text.as_str(), answer.finish.reason), (" Paris.", FinishReason::Length));
    assert_eq!(answer.finish.metrics.cached_tokens, 1);
}

#[tokio::test]
async fn other_and_old_programs_are_refused() {
    for (fault, expected) in
        [("other program", "is no llama-server"), ("old", "is too old: it has no --no-kv-unified")]
    {
        match faulty(fault).await.unwrap_err() {
            Error::Unavailable { reason, .. } => assert!(reason.contains(expected), "{fault}: {reason}"),
            other => panic!("{fault}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_load_that_fails_says_why() {
    let broken = faulty("crash while loading").await.unwrap_err();
    assert!(
        matches!(&broken, Error::InvalidModel { reason, .. } if reason.contains("not within the file bounds")),
        "{broken}"
    );
    let large = faulty("out of memory while loading").await.unwrap_err();
    assert!(matches!(&large, Error::OutOfMemory { .. }), "{large}");
    let slow =
        faulty_with("never loaded", |own| own.load_timeout(Duration::from_millis(300))).await.unwrap_err();
    assert!(reason(&slow).contains("llama-server was killed: it did not load the model in time"), "{slow}");
}

#[tokio::test]
async fn a_crash_in_the_middle_delivers_what_there_was() {
    let model = faulty("crash").await.unwrap();
    let (text, error) = text_and_error(stream(&*model).await).await;
    assert_eq!(text, " Paris.");
    assert!(
        reason(&error).contains("SIGSEGV") && reason(&error).ends_with("GGML_ASSERT(buffer) failed"),
        "{error}"
    );
    assert_eq!(model.stats().failed, 1);
    let again = model.generate("a".into(), GenerateOptions::new()).await.unwrap_err();
    assert!(reason(&again).contains("SIGSEGV"), "without a restart it stays down: {again}");
}

#[tokio::test]
async fn a_server_that_hangs_is_killed() {
    let model =
        faulty_with("hang", |own| own.restart(false).hang_timeout(Duration::from_millis(400))).await.unwrap();
    let (text, error) = text_and_error(stream(&*model).await).await;
    assert_eq!(text, " Paris.");
    assert!(reason(&error).contains("killed: it sent nothing for 0.4 s while it had work to do"), "{error}");
}

#[tokio::test]
async fn a_hanging_server_delays_neither_a_cancellation_nor_closing() {
    let model = faulty("hang").await.unwrap();
    let cancel = CancellationToken::new();
    let options = GenerateOptions::new().cancel(cancel.clone());
    let mut stream = model.generate("a".into(), options).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().text, " Paris");
    cancel.cancel();
    let ends = tokio::time::timeout(Duration::from_secs(10), stream.finish()).await;
    assert_eq!(ends.expect("it delayed the caller").unwrap().reason, FinishReason::Cancelled);
    let closes = tokio::time::timeout(Duration::from_secs(20), model.close()).await;
    closes.expect("it delayed closing").unwrap();
    assert!(matches!(model.generate("a".into(), GenerateOptions::new()).await, Err(Error::Closed)));
}

#[tokio::test]
async fn violations_of_the_protocol_are_named() {
    for (fault, expected) in [
        ("garbage", "a line is no event"),
        ("html", "answered /completion with 500 Internal Server Error: \"<html>\""),
        ("cut", "the connection to llama-server broke"),
    ] {
        let model = faulty(fault).await.unwrap();
        let (text, error) = text_and_error(stream(&*model).await).await;
        assert_eq!(text, if fault == "html" { "" } else { " Paris." }, "{fault}");
        assert!(reason(&error).contains(expected), "{fault}: {error}");
    }
}

#[tokio::test]
async fn errors_of_the_server_are_typed_and_leave_it_alone() {
    let model = faulty("error").await.unwrap();
    for _ in 0..2 {
        let (text, error) = text_and_error(stream(&*model).await).await;
        assert_eq!((text.as_str(), error.kind()), (" Paris.", "backend"));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(source, "llama-server: Compute error. (server_error)");
    }
    let model = faulty("out of memory").await.unwrap();
    let (_, error) = text_and_error(stream(&*model).await).await;
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
}

/// A file that can be read to its end only when every process that was started with it is gone.
struct Alive {
    folder: TempDir,
    fifo: PathBuf,
}

impl Alive {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("alive");
        assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        Self { folder, fifo }
    }

    /// The real server, which writes its process id into the fifo and holds it open while it lives.
    fn server(&self) -> PathBuf {
        let (server, fifo) = (common::server(), &self.fifo);
        let text = format!(
            "#!/bin/sh\ncase \"$1\" in --model) exec 9>{}; echo $$ >&9;; esac\nexec {} \"$@\"\n",
            fifo.display(),
            server.display()
        );
        script(self.folder.path(), "llama-server", &text)
    }

    /// Opens the fifo; the thread's result is all that was written to it until its writers were gone.
    fn watch(&self) -> (std::sync::mpsc::Receiver<String>, std::thread::JoinHandle<()>) {
        let (sender, lines) = std::sync::mpsc::channel();
        let fifo = self.fifo.clone();
        let thread = std::thread::spawn(move || {
            use std::io::BufRead as _;
            let file = std::io::BufReader::new(fs::File::open(fifo).unwrap());
            file.lines().map_while(Result::ok).for_each(|line| drop(sender.send(line)));
        });
        (lines, thread)
    }
}

#[tokio::test]
async fn the_real_server_killed_in_the_middle_is_started_again() {
    let alive = Alive::new();
    let (lines, first) = alive.watch();
    let own = LlamaCppOptions::new().server(alive.server());
    let model = load(LoadOptions::new().context_length(512).max_batch(1).extension(own)).await.unwrap();
    let long = GenerateOptions::new().max_tokens(400).ignore_eos(true);
    let expected = model.complete("Once upon a time", long.clone().max_tokens(8)).await.unwrap();
    let mut stream = model.generate("Once upon a time".into(), long.clone()).await.unwrap();
    let mut text = String::new();
    for _ in 0..8 {
        text.push_str(&stream.next().await.unwrap().unwrap().text);
    }
    let pid = lines.recv().unwrap();
    assert!(std::process::Command::new("kill").args(["-SEGV", &pid]).status().unwrap().success());
    let (rest, error) = text_and_error(stream).await;
    assert!(reason(&error).contains("SIGSEGV"), "{error}");
    assert!((text + &rest).starts_with(&expected.text));
    first.join().unwrap();

    let (_, second) = alive.watch();
    let again = model.complete("Once upon a time", long.max_tokens(8)).await.unwrap();
    assert_eq!(again.text, expected.text);
    drop(model);
    // Dropping the model ends the child, which reads nothing.
    second.join().unwrap();
}

#[tokio::test]
async fn the_child_does_not_outlive_its_parent() {
    let (_folder, server) = fake("");
    let alive = Alive::new();
    let (lines, gone) = alive.watch();
    // Another program with the backend in it: this test's own, which runs `parent` and is killed.
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "parent", "--ignored", "--nocapture"])
        .env("LLAMA_SERVER", &server)
        .env("ALIVE", &alive.fifo)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    lines.recv().unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    gone.join().unwrap();
}

#[tokio::test]
#[ignore = "another test runs and kills it"]
async fn parent() {
    let backend = LlamaCppBackend::find().unwrap();
    let options = LoadOptions::new().context_length(256);
    let _model = backend.load(ModelManifest::read(smollm2()).unwrap(), options).await.unwrap();
    std::future::pending::<()>().await;
}
