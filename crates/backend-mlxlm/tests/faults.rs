//! A child that fails in every way there is, and what the caller sees of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use backend_mlxlm::MlxLmOptions;
use common::{ids, load, python, script, tiny_model};
use futures::StreamExt as _;
use inference_core::{
    CancellationToken, ClassifyOptions, Error, FinishReason, GenerateOptions, LoadOptions, Result, TextModel,
    TextModelExt as _, TokenStream,
};
use tempfile::TempDir;

/// What every scripted child can say.
const PRELUDE: &str = r#"
import json, os, signal, sys, time
def write(text):
    os.write(1, text.encode())
def say(event, **fields):
    write(json.dumps({"event": event, **fields}) + "\n")
def hear():
    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    return json.loads(line)
def hello(protocol=1):
    say("hello", protocol=protocol, mlx_lm="0.32.2", mlx="0.32.2", python="3.11.0")
def loaded():
    hello()
    say("loaded", id=hear()["id"], parameters=1, device="test", active_memory=1, peak_memory=1, cache_memory=1)
def tokens(id, text):
    for byte in text.encode():
        say("token", id=id, token=byte)
def finished(id, reason="length"):
    say("finished", id=id, reason=reason, queued=0.0, prefill=0.0, peak_memory=1, active_memory=1)
"#;

/// A model in a child that does what this script says.
struct Scripted {
    _folder: TempDir,
    loaded: Result<Arc<dyn TextModel>>,
}

impl Scripted {
    async fn new(body: &str) -> Self {
        Self::with(body, |options| options).await
    }

    async fn with(body: &str, change: impl FnOnce(MlxLmOptions) -> MlxLmOptions) -> Self {
        let folder = tiny_model();
        let text = format!("#!{} -S\n{PRELUDE}\n{body}\n", python().display());
        let program = script(folder.path(), "child", &text);
        let options = MlxLmOptions::new().python(program).restart(false);
        let loaded = load(folder.path(), LoadOptions::new().extension(change(options))).await;
        Self { _folder: folder, loaded }
    }

    fn model(&self) -> &Arc<dyn TextModel> {
        self.loaded.as_ref().unwrap()
    }

    async fn stream(&self) -> TokenStream {
        self.model().generate("hello".into(), GenerateOptions::new()).await.unwrap()
    }

    /// The text of a generation and the error that ended it.
    async fn failing_text(&self) -> (String, Error) {
        text_and_error(self.stream().await).await
    }
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
            assert_eq!(backend, "mlx_lm");
            reason
        }
        other => panic!("expected Stopped, got {other:?}"),
    }
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

    /// The real interpreter, which writes its process id into the fifo and holds it open while it lives.
    fn python(&self) -> PathBuf {
        let (python, fifo) = (python(), &self.fifo);
        let text =
            format!("#!/bin/sh\nexec 9>{}\necho $$ >&9\nexec {} \"$@\"\n", fifo.display(), python.display());
        script(self.folder.path(), "python", &text)
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
async fn a_crash_while_loading_has_the_signal_and_the_last_words() {
    let body = "hello(); hear(); sys.stderr.write('first\\nAssertion failed: tensors\\n'); sys.stderr.flush()\n\
        os.kill(os.getpid(), signal.SIGABRT)";
    let error = Scripted::new(body).await.loaded.unwrap_err();
    let reason = reason(&error);
    assert!(reason.contains("SIGABRT") && reason.ends_with("first\nAssertion failed: tensors"), "{reason}");
}

#[tokio::test]
async fn a_crash_before_the_first_token_has_the_exit_code() {
    let child = Scripted::new("loaded(); hear(); os._exit(7)").await;
    let (text, error) = child.failing_text().await;
    assert_eq!(text, "");
    assert!(reason(&error).contains("exited with code 7"), "{error}");
    assert_eq!(child.model().stats().failed, 1);
    let again = child.model().generate("hello".into(), GenerateOptions::new()).await.unwrap_err();
    assert!(reason(&again).contains("exited with code 7"), "without a restart it stays down: {again}");
}

#[tokio::test]
async fn a_crash_in_the_middle_delivers_what_there_was() {
    let child =
        Scripted::new("loaded(); r = hear(); tokens(r['id'], 'abc'); os.kill(os.getpid(), signal.SIGSEGV)")
            .await;
    let (text, error) = child.failing_text().await;
    assert_eq!(text, "abc");
    assert!(reason(&error).contains("SIGSEGV"), "{error}");
}

#[tokio::test]
async fn the_real_child_killed_in_the_middle_is_started_again() {
    let (folder, alive) = (tiny_model(), Alive::new());
    let (lines, first) = alive.watch();
    let options = LoadOptions::new().extension(MlxLmOptions::new().python(alive.python()));
    let model = load(folder.path(), options).await.unwrap();
    let long = GenerateOptions::new().max_tokens(4000).ignore_eos(true);
    let expected = model.complete(ids(9, 1), long.clone().max_tokens(8)).await.unwrap();
    let mut stream = model.generate(ids(9, 1).into(), long.clone()).await.unwrap();
    let mut text = String::new();
    for _ in 0..8 {
        text.push_str(&stream.next().await.unwrap().unwrap().text);
    }
    let pid = lines.recv().unwrap();
    assert!(std::process::Command::new("kill").args(["-SEGV", &pid]).status().unwrap().success());
    let (rest, error) = text_and_error(stream).await;
    assert!(reason(&error).contains("SIGSEGV"), "{error}");
    assert!((text + &rest).starts_with(expected.text.trim_end_matches('\u{fffd}')));
    first.join().unwrap();

    let (_, second) = alive.watch();
    let again = model.complete(ids(9, 1), long.max_tokens(8)).await.unwrap();
    assert_eq!(again.text, expected.text);
    model.close().await.unwrap();
    second.join().unwrap();
}

#[tokio::test]
async fn a_child_that_hangs_is_killed() {
    let hangs = ["time.sleep(1e6)", "hello(); time.sleep(1e6)", "hello(); hear(); signal.pause()"];
    let hang_timeout = Duration::from_millis(400);
    for body in hangs {
        let error =
            Scripted::with(body, |options| options.hang_timeout(hang_timeout)).await.loaded.unwrap_err();
        assert!(reason(&error).contains("sent nothing for 0.4 s"), "{body}: {error}");
    }
    let body = "loaded(); r = hear(); tokens(r['id'], 'ab'); signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(1e6)";
    let child = Scripted::with(body, |options| options.hang_timeout(hang_timeout)).await;
    let (text, error) = child.failing_text().await;
    assert_eq!(text, "ab");
    assert!(reason(&error).contains("sent nothing"), "{error}");
}

#[tokio::test]
async fn a_child_that_waits_for_a_slow_reader_does_not_hang() {
    // It sends what it has credit for, then says how much more it got; at last it ends.
    let body = "loaded(); r = hear(); id = r['id']; tokens(id, 'x' * r['credit'])\n\
        more = hear(); assert more['op'] == 'credit', more\n\
        tokens(id, 'y' * more['tokens']); finished(id); hear()";
    let child = Scripted::with(body, |options| options.hang_timeout(Duration::from_millis(300))).await;
    let mut stream = child.stream().await;
    let first = stream.next().await.unwrap().unwrap();
    assert_eq!(first.text, "x");
    // Nobody reads for longer than the hang timeout, which does not run while the child may not send.
    std::thread::park_timeout(Duration::from_millis(700));
    let mut text = String::new();
    while let Some(token) = stream.next().await {
        text.push_str(&token.unwrap().text);
    }
    assert!(text.starts_with("xxx") && text.ends_with("yyy"), "{text}");
    assert_eq!(stream.finish().await.unwrap().reason, FinishReason::Length);
}

#[tokio::test]
async fn protocol_violations_are_named() {
    let loading = [
        ("write('Hello from a library\\n'); hear()", "a line that is not a message"),
        ("hello(protocol=2); hear()", "version 2 of the protocol, expected 1"),
        (
            "say('loaded', id=1, parameters=1, device='', active_memory=1, peak_memory=1, cache_memory=1); hear()",
            "before its greeting",
        ),
        ("hello(); hello(); hear()", "greeted twice"),
        ("hello(); hear(); say('classified', id=1, index=0, token=1); hear()", "answered a load with"),
    ];
    for (body, expected) in loading {
        let error = Scripted::new(body).await.loaded.unwrap_err();
        assert!(reason(&error).contains(expected), "{body}: {error}");
    }
    let generating = [
        ("write('\\x00\\xff{]\\n'); hear()", "a line that is not a message"),
        ("write('{\"event\": \"tok'); os._exit(0)", "exited in the middle of a line"),
        ("write('x' * 3000000); hear()", "a line of more than 1000000 bytes"),
        ("say('token', id=r['id'] + 1, token=1); hear()", "a request that was never sent"),
        ("say('token', id=-1, token=1); hear()", "a line that is not a message"),
        ("say('token', id=r['id'], token=1.5); hear()", "a line that is not a message"),
        ("say('dance', id=r['id']); hear()", "a line that is not a message"),
        (
            "say('error', id=None, kind='protocol', message='bad line'); hear()",
            "rejected a request: bad line",
        ),
    ];
    for (body, expected) in generating {
        let body = format!("loaded(); r = hear(); tokens(r['id'], 'ok'); {body}");
        let child = Scripted::with(&body, |options| options.max_line_bytes(1_000_000)).await;
        let (text, error) = child.failing_text().await;
        assert_eq!(text, "ok", "{body}");
        assert!(reason(&error).contains(expected), "{body}: {error}");
    }
}

#[tokio::test]
async fn errors_of_the_child_are_typed() {
    let load = async |event: &str| {
        Scripted::new(&format!("hello(); r = hear(); {event}; hear()")).await.loaded.unwrap_err()
    };
    let error =
        load("say('error', id=r['id'], kind='invalid_model', message='ValueError: Missing 3 parameters')")
            .await;
    assert!(matches!(&error, Error::InvalidModel { reason, .. } if reason.contains("Missing 3")), "{error}");
    let error = load("say('error', id=r['id'], kind='out_of_memory', message='no', needed=4096)").await;
    assert!(matches!(error, Error::OutOfMemory { needed: 4096, .. }), "{error}");
    let error = load("say('error', id=r['id'], kind='import', message='ImportError: libmlx.so')").await;
    assert!(matches!(&error, Error::Unavailable { reason, .. } if reason.contains("pip install")), "{error}");

    // An error of one request leaves the child and the others alone.
    let child = Scripted::new(
        "loaded(); r = hear(); tokens(r['id'], 'a'); say('error', id=r['id'], kind='failed', message='RuntimeError: shapes')\n\
        r = hear(); tokens(r['id'], 'b'); finished(r['id']); hear()",
    )
    .await;
    let (text, error) = child.failing_text().await;
    assert_eq!((text.as_str(), error.kind()), ("a", "backend"));
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "RuntimeError: shapes");
    assert_eq!(child.model().complete("x", GenerateOptions::new()).await.unwrap().text, "b");
}

#[tokio::test]
async fn a_stopped_child_delays_neither_a_cancellation_nor_closing() {
    let body = "loaded(); r = hear(); tokens(r['id'], 'ab'); os.kill(os.getpid(), signal.SIGSTOP); hear()";
    let child = Scripted::new(body).await;
    let cancel = CancellationToken::new();
    let options = GenerateOptions::new().cancel(cancel.clone());
    let mut stream = child.model().generate("x".into(), options).await.unwrap();
    assert_eq!(stream.next().await.unwrap().unwrap().text, "a");
    cancel.cancel();
    let ends = tokio::time::timeout(Duration::from_secs(10), stream.finish()).await;
    assert_eq!(ends.expect("a stopped child delayed the caller").unwrap().reason, FinishReason::Cancelled);
    assert_eq!(child.model().stats().active, 0);
    let closes = tokio::time::timeout(Duration::from_secs(20), child.model().close()).await;
    closes.expect("a stopped child delayed closing").unwrap();
}

#[tokio::test]
async fn a_child_that_does_not_close_is_killed() {
    let alive = Alive::new();
    let (_, gone) = alive.watch();
    let body = format!(
        "alive = os.open({:?}, os.O_WRONLY); os.set_inheritable(alive, True)\n\
        loaded(); hear()\nos.posix_spawn('/bin/sleep', ['sleep', '1000'], os.environ)\ntime.sleep(1e6)",
        alive.fifo.display()
    );
    let child = Scripted::new(&body).await;
    let mut stream = child.stream().await;
    child.model().close().await.unwrap();
    assert_eq!(stream.finish().await.unwrap().reason, FinishReason::Cancelled);
    assert!(matches!(child.model().generate("x".into(), GenerateOptions::new()).await, Err(Error::Closed)));
    // Nor does what it started outlive it.
    gone.join().unwrap();
}

#[tokio::test]
async fn dropping_the_model_and_its_streams_ends_the_child() {
    let (folder, alive) = (tiny_model(), Alive::new());
    let (_, gone) = alive.watch();
    let options = LoadOptions::new().extension(MlxLmOptions::new().python(alive.python()));
    let model = load(folder.path(), options).await.unwrap();
    let long = GenerateOptions::new().max_tokens(4000).ignore_eos(true);
    let mut stream = model.generate(ids(9, 1).into(), long).await.unwrap();
    stream.next().await.unwrap().unwrap();
    drop(model);
    // A stream keeps its model loaded.
    stream.next().await.unwrap().unwrap();
    drop(stream);
    gone.join().unwrap();
}

#[tokio::test]
async fn cancelling_a_load_ends_the_child() {
    let (folder, alive) = (tiny_model(), Alive::new());
    let (lines, gone) = alive.watch();
    let cancel = CancellationToken::new();
    let options =
        LoadOptions::new().cancel(cancel.clone()).extension(MlxLmOptions::new().python(alive.python()));
    let load = tokio::spawn(async move { load(folder.path(), options).await.map(drop) });
    tokio::task::spawn_blocking(move || lines.recv().unwrap()).await.unwrap();
    cancel.cancel();
    assert!(matches!(load.await.unwrap(), Err(Error::Cancelled)));
    gone.join().unwrap();
}

/// The child's parent, in a process of its own that the next test kills.
#[tokio::test]
#[ignore = "a role in killing_the_parent_ends_the_child"]
async fn role_of_the_parent() {
    let Some(folder) = std::env::var_os("ROLE_FOLDER") else { return };
    let python = std::env::var_os("ROLE_PYTHON").unwrap();
    let options = LoadOptions::new().extension(MlxLmOptions::new().python(python));
    let model = load(Path::new(&folder), options).await.unwrap();
    let long = GenerateOptions::new().max_tokens(4000).ignore_eos(true);
    let mut stream = model.generate(ids(9, 1).into(), long).await.unwrap();
    stream.next().await.unwrap().unwrap();
    println!("the first token is there");
    std::future::pending::<()>().await;
}

#[test]
fn killing_the_parent_ends_the_child() {
    let (folder, alive) = (tiny_model(), Alive::new());
    let (_, gone) = alive.watch();
    let mut parent = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "role_of_the_parent", "--ignored", "--nocapture"])
        .env("ROLE_FOLDER", folder.path())
        .env("ROLE_PYTHON", alive.python())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = parent.stdout.take().unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("the first token is there") {
        let mut byte = [0];
        assert_eq!(output.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
        seen.push(byte[0]);
    }
    parent.kill().unwrap();
    parent.wait().unwrap();
    gone.join().unwrap();
}

#[tokio::test]
async fn a_missing_python_or_mlx_lm_says_what_to_do() {
    let folder = tiny_model();
    let options = |path: &Path| LoadOptions::new().extension(MlxLmOptions::new().python(path));
    let error = load(folder.path(), options(Path::new("/nonexistent/python"))).await.unwrap_err();
    assert!(reason(&error).contains("/nonexistent/python cannot be run"), "{error}");
    // Without `site` an environment's packages are not found.
    let bare = script(folder.path(), "bare", &format!("#!/bin/sh\nexec {} -S \"$@\"\n", python().display()));
    let error = load(folder.path(), options(&bare)).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::Unavailable { .. }), "{error}");
    assert!(
        text.contains("has no mlx_lm")
            && text.contains("python3 -m venv")
            && text.contains("pip install mlx-lm"),
        "{text}"
    );
}

#[tokio::test]
async fn a_library_that_prints_does_not_break_the_framing() {
    let (folder, site) = (tiny_model(), tempfile::tempdir().unwrap());
    let noise = r#"
import os, sys, threading, time
def noise():
    while "mlx.core" not in sys.modules:
        time.sleep(0.001)
    while True:
        os.write(1, b'{"event":"token","id":2,"token":7}\n')
        print("stray", flush=True)
        time.sleep(0.0005)
threading.Thread(target=noise, daemon=True).start()
"#;
    fs::write(site.path().join("sitecustomize.py"), noise).unwrap();
    let own = MlxLmOptions::new().python(python()).env("PYTHONPATH", site.path());
    let model = load(folder.path(), LoadOptions::new().extension(own)).await.unwrap();
    let quiet = load(folder.path(), LoadOptions::new()).await.unwrap();
    let options = GenerateOptions::new().max_tokens(50).ignore_eos(true);
    let answer = model.complete(ids(9, 1), options.clone()).await.unwrap();
    assert_eq!(answer.text, quiet.complete(ids(9, 1), options).await.unwrap().text);
}

#[tokio::test]
async fn exhausted_memory_is_an_error_and_not_the_end() {
    let (folder, site) = (tiny_model(), tempfile::tempdir().unwrap());
    // While the file `tight` is there, the child may have 100 MB more than it had; `is_tight` says that this holds.
    let limit = r#"
import os, resource, threading, time
here = os.path.dirname(__file__)
tight, is_tight = os.path.join(here, "tight"), os.path.join(here, "is_tight")
def watch():
    while not os.path.exists(tight):
        time.sleep(0.001)
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * os.sysconf("SC_PAGESIZE") + (100 << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    os.mkdir(is_tight)
threading.Thread(target=watch, daemon=True).start()
"#;
    fs::write(site.path().join("sitecustomize.py"), limit).unwrap();
    let own = MlxLmOptions::new().python(python()).env("PYTHONPATH", site.path());
    let model = load(folder.path(), LoadOptions::new().prefill_chunk(4096).extension(own)).await.unwrap();
    let options = GenerateOptions::new().max_tokens(4);
    let before = model.complete(ids(9, 1), options.clone()).await.unwrap();
    fs::write(site.path().join("tight"), "").unwrap();
    while !site.path().join("is_tight").exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fs::remove_file(site.path().join("tight")).unwrap();
    // Four heads' attention over 4,000 tokens at once takes 256 MB.
    let error = model.complete(ids(4000, 1), options.clone()).await.unwrap_err();
    // MLX's allocator for the CPU does not look whether it got anything, so there the process may end instead.
    match &error {
        Error::OutOfMemory { needed, .. } => assert!(*needed > 100 << 20, "{error}"),
        error => assert!(reason(error).contains("signal"), "{error}"),
    }
    let after = model.complete(ids(9, 1), options).await.unwrap();
    assert_eq!(after.text, before.text);
}

#[tokio::test]
async fn broken_folders_are_invalid_models() {
    let folder = tiny_model();
    let config = fs::read_to_string(folder.path().join("config.json")).unwrap();
    fs::write(folder.path().join("config.json"), config.replace("\"hidden_size\":32", "\"hidden_size\":48"))
        .unwrap();
    let error = load(folder.path(), LoadOptions::new()).await.unwrap_err();
    assert!(matches!(&error, Error::InvalidModel { path, .. } if path == folder.path()), "{error:?}");
    fs::write(folder.path().join("config.json"), config.replace("\"llama\"", "\"abacus\"")).unwrap();
    let error = load(folder.path(), LoadOptions::new()).await.unwrap_err();
    assert!(error.to_string().contains("abacus"), "{error}");
}

/// Descriptors, threads and children of this process. Tests run side by side, so what they hold is counted too.
fn held() -> (usize, usize) {
    let count = |folder: &str| fs::read_dir(folder).unwrap().count();
    (count("/proc/self/fd"), count("/proc/self/task"))
}

/// In a process of its own, where no other test opens anything.
#[test]
#[ignore = "a role in nothing_is_left_after_two_hundred_cycles"]
fn role_of_the_cycles() {
    let (folder, transcript) = (tiny_model(), transcript("generate.jsonl"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let cycle = |crash: bool| {
        let replay = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/replay.sh");
        let own = MlxLmOptions::new()
            .python(replay)
            .env("TRANSCRIPT", if crash { Path::new("/dev/null") } else { &transcript });
        runtime.block_on(async {
            let Ok(model) = load(folder.path(), LoadOptions::new().extension(own)).await else {
                assert!(crash);
                return;
            };
            let options = GenerateOptions::new().max_tokens(3).seed(1);
            model.complete("hi", options).await.unwrap();
            model.close().await.unwrap();
        });
    };
    (0..10).for_each(|i| cycle(i % 2 == 0));
    let settled = |most: (usize, usize)| {
        let began = std::time::Instant::now();
        while held().0 > most.0 || held().1 > most.1 {
            assert!(
                began.elapsed() < Duration::from_secs(20),
                "{:?} are held, {most:?} were at first",
                held()
            );
            std::thread::yield_now();
        }
    };
    // The last threads of a child end after it.
    settled((12, 3));
    let before = held();
    (0..200).for_each(|i| cycle(i % 4 == 0));
    settled(before);
    let children = fs::read_to_string(format!("/proc/self/task/{}/children", std::process::id())).unwrap();
    assert_eq!(children.trim(), "", "children are left");
}

#[cfg(target_os = "linux")]
#[test]
fn nothing_is_left_after_two_hundred_cycles() {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "role_of_the_cycles", "--ignored", "--nocapture"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn transcript(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name)
}

#[tokio::test]
async fn classification_fails_with_the_child() {
    let child =
        Scripted::new("loaded(); r = hear(); say('classified', id=r['id'], index=0, token=97); os._exit(5)")
            .await;
    let prompts = vec!["a".into(), "b".into()];
    let error = child.model().classify(prompts, ClassifyOptions::new()).await.unwrap_err();
    assert!(reason(&error).contains("code 5"), "{error}");
}
