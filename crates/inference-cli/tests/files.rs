//! What the program does to files: copies, locks, leftovers of runs that were killed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![cfg(unix)]

mod support;

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    os::unix::{fs::symlink, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use support::*;

const DEMO: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");

/// A copy of the demo model.
fn demo() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(DEMO).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// Adds tensors of bytes to a model, as many and of as many bytes each, without writing them: the file is sparse.
fn add_sparse(model: &Path, count: u64, bytes: u64) {
    let path = model.join("model.safetensors");
    let content = fs::read(&path).unwrap();
    let length = u64::from_le_bytes(*content.first_chunk().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&content[8..8 + length]).unwrap();
    let data = &content[8 + length..];
    for number in 0..count {
        let start = data.len() as u64 + number * bytes;
        header[format!("zzz.{number}.weight")] =
            json!({"dtype": "U8", "shape": [bytes >> 10, 1024], "data_offsets": [start, start + bytes]});
    }
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let mut file = File::create(&path).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    file.write_all(data).unwrap();
    file.set_len(8 + header.len() as u64 + data.len() as u64 + count * bytes).unwrap();
}

fn convert(source: &Path, target: &Path) -> Command {
    let mut command = inference(&["convert", "--dense"]);
    command.arg(source).arg(target);
    command
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| name(entry.unwrap())).collect();
    names.sort();
    names
}

fn send(signal: &str, child: &Child) {
    Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
}

#[test]
fn a_tensor_beyond_memory_is_refused() {
    let (model, place) = (demo(), tempfile::tempdir().unwrap());
    add_sparse(model.path(), 1, 1 << 40);
    let output = convert(model.path(), &place.path().join("out")).arg("--json").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    let error = &json_lines(&output)[0]["error"];
    assert_eq!(error["kind"], "out_of_memory", "{error}");
    assert!(error["message"].as_str().unwrap().contains("zzz.0.weight"), "{error}");
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn tensors_beyond_the_disk_are_refused() {
    let (model, place) = (demo(), tempfile::tempdir().unwrap());
    add_sparse(model.path(), 15 << 10, 1 << 30);
    let output = convert(model.path(), &place.path().join("out")).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
    assert!(errors(&output).contains("the disk has"), "{}", errors(&output));
    assert_eq!(names(place.path()), [""; 0]);
}

#[test]
fn what_links_lead_out_to_is_not_copied() {
    let (model, place) = (demo(), tempfile::tempdir().unwrap());
    fs::write(place.path().join("secret"), "secret").unwrap();
    symlink(place.path().join("secret"), model.path().join("notes.md")).unwrap();
    symlink("/etc/passwd", model.path().join("USE_POLICY.md")).unwrap();
    File::create(model.path().join("filler.txt")).unwrap().set_len(1 << 40).unwrap();
    let target = place.path().join("out");
    let output = convert(model.path(), &target).output().unwrap();
    succeeded(&output);
    assert!(
        errors(&output).contains("notes.md") && errors(&output).contains("not copied"),
        "{}",
        errors(&output)
    );
    let copied = names(&target);
    assert!(copied.contains(&"tokenizer.json".to_owned()), "{copied:?}");
    for name in ["notes.md", "USE_POLICY.md", "filler.txt"] {
        assert!(!copied.contains(&name.to_owned()), "{copied:?}");
    }
}

#[test]
fn a_snapshot_of_a_hugging_face_cache_is_loaded_and_converted() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--a--demo");
    let (snapshot, blobs) = (repository.join("snapshots/0123"), repository.join("blobs"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir(&blobs).unwrap();
    for (number, name) in names(Path::new(DEMO)).iter().enumerate() {
        fs::copy(Path::new(DEMO).join(name), blobs.join(number.to_string())).unwrap();
        symlink(format!("../../blobs/{number}"), snapshot.join(name)).unwrap();
    }
    let target = cache.path().join("out");
    succeeded(&convert(&snapshot, &target).output().unwrap());
    for model in [&snapshot, &target] {
        let output = inference(&["chat", "--quiet", "What is 2+2?", "--model"]).arg(model).output().unwrap();
        succeeded(&output);
        assert!(text(&output).contains('4'), "{}", text(&output));
    }
}

/// A conversion that is at work, and long enough not to end by itself.
fn long_conversion(model: &Path, target: &Path) -> (Child, PathBuf) {
    let child = spawn(&mut convert(model, target));
    let parent = target.parent().unwrap();
    loop {
        let partial = names(parent).into_iter().find(|name| name.ends_with(".partial"));
        let tensors = partial.map(|name| parent.join(name).join("model.safetensors"));
        match tensors {
            Some(tensors) if tensors.exists() => return (child, tensors.parent().unwrap().to_owned()),
            _ => std::thread::yield_now(),
        }
    }
}

/// Whether this process was started with SIGHUP ignored, as by `nohup`, which its children inherit and respect.
fn ignores_hangup() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}

#[test]
fn a_conversion_that_is_ended_leaves_nothing_and_one_that_is_killed_is_cleaned_up_after() {
    let (model, place) = (demo(), tempfile::tempdir().unwrap());
    add_sparse(model.path(), 64, 64 << 20);
    let target = place.path().join("out");
    for signal in ["-TERM", "-HUP", "-INT"] {
        if signal == "-HUP" && ignores_hangup() {
            continue;
        }
        let (child, _) = long_conversion(model.path(), &target);
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(130), "{signal}: {}", errors(&output));
        assert_eq!(names(place.path()), [""; 0], "{signal}");
    }
    let (mut killed, left) = long_conversion(model.path(), &target);
    send("-KILL", &killed);
    assert_eq!(killed.wait().unwrap().signal(), Some(9));
    fs::write(left.join("model.safetensors.index.json"), "{}").unwrap();
    succeeded(&convert(Path::new(DEMO), &target).output().unwrap());
    assert_eq!(names(place.path()), ["out"]);
    assert!(!names(&target).contains(&"model.safetensors.index.json".to_owned()));
}

#[test]
fn two_batches_on_one_output_lose_no_answers() {
    let folder = inference::mock::folder();
    let file = folder.path().join("p.jsonl");
    fs::write(&file, "{\"prompt\": \"a b <eos>\"}\n{\"prompt\": \"c d\", \"max_tokens\": 1000000000}\n")
        .unwrap();
    let batch = || {
        let mut command = inference(&["batch", "--backend=mock", "--quiet", "--model"]);
        command.arg(folder.path()).arg(&file);
        command
    };
    let answers = file.with_extension("answers.jsonl");
    let first = spawn(&mut batch());
    while fs::read_to_string(&answers).unwrap_or_default().is_empty() {
        std::thread::yield_now();
    }
    let second = batch().output().unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(errors(&second).contains("another run writes to"), "{}", errors(&second));
    interrupt(&first);
    assert_eq!(first.wait_with_output().unwrap().status.code(), Some(130));
    fs::write(&file, "{\"prompt\": \"a b <eos>\"}\n{\"prompt\": \"c d <eos>\"}\n").unwrap();
    succeeded(&batch().output().unwrap());
    assert_eq!(fs::read_to_string(&answers).unwrap().lines().count(), 2);
}

fn training_data() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("train.jsonl"), "{\"text\": \"one two three\"}\n".repeat(4)).unwrap();
    folder
}

fn train(data: &Path, output: &Path, more: &[&str]) -> Command {
    let mut command = inference(&["train", "--json", "--batch-size=1", "--rank=1", "--data"]);
    command.arg(data).arg("--output").arg(output).args(more);
    command
}

#[test]
fn two_trainings_on_one_output_do_not_mix() {
    let (data, place) = (training_data(), tempfile::tempdir().unwrap());
    let output = place.path().join("adapter");
    let mut first = spawn(&mut train(data.path(), &output, &["--steps=100000", "--save-every=100000"]));
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    assert!(lines.by_ref().map(Result::unwrap).any(|line| line.contains("\"step\"")));
    let second = train(data.path(), &output, &["--steps=1"]).output().unwrap();
    assert_eq!(second.status.code(), Some(2), "{}", errors(&second));
    assert!(errors(&second).contains("another training run writes to"), "{}", errors(&second));
    interrupt(&first);
    let drained = lines.map(Result::unwrap).last().unwrap();
    assert!(drained.contains("\"cancelled\""), "{drained}");
    assert_eq!(first.wait().unwrap().code(), Some(130));
    let metrics = fs::read_to_string(output.join("metrics.jsonl")).unwrap();
    assert_eq!(metrics.matches("\"started\"").count(), 1);
}

#[test]
fn a_loss_that_is_no_number_is_an_error_and_nothing_is_saved() {
    let (data, place) = (training_data(), tempfile::tempdir().unwrap());
    let (model, output) = (place.path().join("dense"), place.path().join("adapter"));
    let dense = inference(&["convert", "--dense", "--dtype=f32", DEMO]).arg(&model).output().unwrap();
    succeeded(&dense);
    let path = model.join("model.safetensors");
    let mut file = File::options().read(true).write(true).open(&path).unwrap();
    let mut length = [0; 8];
    file.read_exact(&mut length).unwrap();
    let mut header = vec![0; u64::from_le_bytes(length) as usize];
    file.read_exact(&mut header).unwrap();
    let header_end = 8 + header.len() as u64;
    let header: Value = serde_json::from_slice(&header).unwrap();
    let start = header["model.layers.0.self_attn.q_proj.weight"]["data_offsets"][0].as_u64().unwrap();
    file.seek(SeekFrom::Start(header_end + start)).unwrap();
    file.write_all(&f32::NAN.to_le_bytes()).unwrap();
    drop(file);
    let mut command = train(data.path(), &output, &["--steps=2", "--model"]);
    let trained = command.arg(&model).output().unwrap();
    assert_eq!(trained.status.code(), Some(1), "{}", text(&trained));
    let error = &json_lines(&trained).pop().unwrap()["error"];
    assert!(error["message"].as_str().unwrap().contains("loss of step 1 is NaN"), "{error}");
    assert!(!output.join("adapters.safetensors").exists() && !output.join("checkpoints").exists());
}

#[test]
fn weights_that_training_made_infinite_are_not_saved() {
    let (data, place) = (training_data(), tempfile::tempdir().unwrap());
    let output = place.path().join("adapter");
    let huge = ["--steps=1", "--learning-rate=3e38", "--optimizer=sgd", "--scale=1e6"];
    let trained = train(data.path(), &output, &huge).output().unwrap();
    assert_eq!(trained.status.code(), Some(1), "{}", text(&trained));
    let error = &json_lines(&trained).pop().unwrap()["error"];
    assert!(error["message"].as_str().unwrap().contains("not finite"), "{error}");
    assert!(!output.join("adapters.safetensors").exists() && !output.join("checkpoints").exists());
}

#[test]
fn a_path_cannot_drive_the_terminal() {
    let place = tempfile::tempdir().unwrap();
    let target = place.path().join("a\u{1b}[2Jb");
    let output = convert(Path::new(DEMO), &target).output().unwrap();
    succeeded(&output);
    let printed = text(&output);
    assert!(!printed.contains('\u{1b}') && printed.contains("a\\u{1b}[2Jb"), "{printed:?}");
    let again = convert(Path::new(DEMO), &target).output().unwrap();
    assert!(
        !errors(&again).contains('\u{1b}') && errors(&again).contains("[2Jb exists"),
        "{:?}",
        errors(&again)
    );
    for arguments in [&["info"][..], &["explain"], &["discover"], &["estimate"]] {
        let output = inference(arguments).arg(&target).output().unwrap();
        let printed = text(&output) + &errors(&output);
        assert!(!printed.contains('\u{1b}'), "{arguments:?}: {printed:?}");
    }
    fs::write(target.join("config.json"), "{\"model_type\": \"unheard\\u001b[2Jof\"}").unwrap();
    let output = inference(&["chat", "hello", "--model"]).arg(&target).output().unwrap();
    assert!(!errors(&output).contains('\u{1b}'), "{:?}", errors(&output));
}

#[test]
fn a_rule_of_many_stars_ends() {
    let place = tempfile::tempdir().unwrap();
    let rule = format!("--rule={}x=8", "*a*".repeat(200));
    let output =
        inference(&["convert", DEMO, "--bits=4", &rule]).arg(place.path().join("out")).output().unwrap();
    // The demo model is quantised already; what counts is that an answer comes.
    assert_eq!(output.status.code(), Some(1), "{}", errors(&output));
}

#[test]
fn a_reader_of_stderr_that_goes_is_no_panic() {
    let folder = inference::mock::folder();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let model = folder.path().to_str().unwrap();
    let run: [(&[&str], i32); 5] = [
        (&["generate", "a b <eos>", "--backend=mock", "--model", model], 0),
        (&["chat", "a b <eos>", "--backend=mock", "--model", model], 0),
        (&["generate", "a", "--model", missing], 1),
        (&["discover", missing], 1),
        (&["generate", "a", "--temperature=-1", "--model", model], 2),
    ];
    for (arguments, status) in run {
        let mut child = inference(arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stderr.take());
        assert_eq!(child.wait().unwrap().code(), Some(status), "{arguments:?}");
    }
}
