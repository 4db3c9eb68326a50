//! Training data: what mlx_lm reads is read, and a bad line is named.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::path::Path;

use inference_core::{
    Error, Message, Role,
    train::{Example, ExampleKind, ExampleSource, TrainingData},
};
use proptest::prelude::*;
use serde_json::json;

fn read(lines: &str) -> Result<Vec<Example>, Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.jsonl");
    std::fs::write(&path, lines).unwrap();
    TrainingData::read(path, None, 0).map(|data| data.train)
}

#[test]
fn all_forms_are_read_with_their_lines() {
    let examples = read(concat!(
        "{\"text\": \"one\", \"id\": 7}\n\n",
        "{\"prompt\": \"2+2?\", \"completion\": \"4\", \"text\": \"not this\"}\r\n",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}, {\"role\": \"assistant\", \"content\": null, ",
        "\"tool_calls\": [{\"name\": \"f\"}]}], \"tools\": [{\"name\": \"f\"}]}\n",
        "{\"tokens\": [5, 6, 7, 8], \"learnt\": [[0, 2], [3, 4]]}\n{\"tokens\": [5, 6]}",
    ));
    let examples = examples.unwrap();
    assert_eq!(examples[0].kind, ExampleKind::Text("one".to_owned()));
    assert_eq!(examples[1].kind, Example::completion("2+2?", "4").kind);
    let ExampleKind::Chat { messages, tools } = &examples[2].kind else { panic!("{:?}", examples[2]) };
    let call = Message::assistant("").with("tool_calls", json!([{"name": "f"}]));
    assert_eq!(messages, &[Message::user("Hi"), call]);
    assert_eq!(tools.as_deref(), Some(&[json!({"name": "f"})][..]));
    let lines: Vec<_> = examples.iter().map(|example| example.source.as_ref().unwrap().line).collect();
    assert_eq!(lines, [1, 3, 4, 5, 6]);
    let learnt = |example: &Example| match &example.kind {
        ExampleKind::Tokens(tokens) => tokens.learnt.clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!(learnt(&examples[3]), [false, true, false, true], "nothing stands before the first");
    assert_eq!(learnt(&examples[4]), [false, true]);
    assert_eq!(ExampleSource::new(Path::new("data/train.jsonl"), 12).to_string(), "data/train.jsonl:12");
}

#[test]
fn a_bad_line_is_named_with_what_was_found_and_expected() {
    let cases = [
        ("{\"text\": \"a\"", "is not JSON at column 12: EOF while parsing an object"),
        ("[1]", "is a list, expected an object with `text`"),
        ("{}", "is an object with nothing, expected"),
        ("{\"question\": \"a\", \"answer\": \"b\"}", "is an object with `question`, `answer`, expected"),
        ("{\"prompt\": \"a\"}", "has `prompt`, but no `completion`"),
        ("{\"text\": 4}", "`text` is a number, expected a string"),
        ("{\"text\": \"\"}", "`text` is empty"),
        ("{\"prompt\": \"a\", \"completion\": \"\"}", "`completion` is empty"),
        ("{\"prompt\": [], \"completion\": \"b\"}", "`prompt` is a list, expected a string"),
        ("{\"messages\": []}", "`messages` is empty"),
        ("{\"messages\": {}}", "`messages` is an object, expected a list"),
        ("{\"messages\": [\"a\"]}", "`messages[0]` is a string, expected an object"),
        ("{\"messages\": [{\"content\": \"a\"}]}", "`messages[0]` has no `role`"),
        ("{\"messages\": [{\"role\": \"user\"}]}", "`messages[0]` has no `content`"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": [{}]}]}", "a content part has no type"),
        ("{\"messages\": [{\"role\": \"user\", \"content\": 5}]}", "has a `content` of a number"),
        ("{\"messages\": [{\"role\": \"narrator\", \"content\": \"a\"}]}", "unknown variant `narrator`"),
        ("{\"text\": \"a\", \"text\": \"b\"}", "the key \"text\" occurs twice"),
        (
            "{\"prompt\": \"a\", \"completion\": \"b\", \"tools\": {}}",
            "`tools` is an object, expected a list",
        ),
        ("{\"prompt\": \"a\", \"completion\": \"b\", \"tools\": [1]}", "`tools` holds a number"),
    ];
    for (line, expected) in cases {
        let error = read(&format!("{{\"text\": \"good\"}}\n{line}\n")).unwrap_err();
        let Error::InvalidData { at, reason, .. } = error else { panic!("{line}: {error:?}") };
        assert!(at.ends_with("lines.jsonl:2"), "{at}");
        assert!(reason.contains(expected), "{line}: {reason}");
    }
    assert!(read("\n\n").unwrap_err().to_string().contains("holds no examples"));
    let windows = read("\u{feff}{\"text\": \"a\"}\r\n\r\n{\"text\": \"b\"}\r\n").unwrap();
    let texts: Vec<_> = windows.into_iter().map(|example| example.kind).collect();
    assert_eq!(texts, [ExampleKind::Text("a".to_owned()), ExampleKind::Text("b".to_owned())]);
    assert!(
        read("version https://git-lfs.github.com/spec/v1").unwrap_err().to_string().contains("git lfs pull")
    );
}

#[test]
fn a_folder_has_the_files_of_mlx_lm() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let error = |split| TrainingData::read(path, split, 0).unwrap_err();
    assert!(matches!(error(None), Error::Io { path, .. } if path.ends_with("train.jsonl")));
    std::fs::write(path.join("train.jsonl"), "{\"text\": \"a\"}\n{\"text\": \"b\"}\n").unwrap();
    let data = TrainingData::read(path, Some(0.5), 0).unwrap();
    assert_eq!((data.train.len(), data.validation.len()), (1, 1));
    std::fs::write(path.join("valid.jsonl"), "{\"text\": \"c\"}\n").unwrap();
    let data = TrainingData::read(path, None, 0).unwrap();
    assert_eq!((data.train.len(), data.validation[0].kind.clone()), (2, ExampleKind::Text("c".to_owned())));
    assert!(error(Some(0.1)).to_string().contains("valid.jsonl"));
    assert!(error(Some(1.0)).to_string().starts_with("option split: 1, expected"));
    assert!(error(Some(f32::NAN)).to_string().starts_with("option split"));
    std::fs::write(path.join("valid.jsonl"), "nothing\n").unwrap();
    assert!(error(None).to_string().contains("valid.jsonl:1: is not JSON"));
    assert!(TrainingData::read(path.join("train.jsonl"), Some(0.9), 0).is_err());
}

#[cfg(unix)]
#[test]
fn a_pipe_is_not_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train.jsonl");
    assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    let error = TrainingData::read(folder.path(), None, 0).unwrap_err();
    assert!(error.to_string().contains("is a named pipe"), "{error}");
}

proptest! {
    #[test]
    fn what_serde_writes_is_read_back(
        texts in prop::collection::vec("\\PC{1,40}", 1..20), split in prop::option::of(0.0..0.5_f32), seed: u64,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        let lines: String = texts.iter().map(|text| format!("{}\n", json!({"text": text}))).collect();
        std::fs::write(&path, lines).unwrap();
        let read = TrainingData::read(&path, split, seed);
        if let (1, Some(share)) = (texts.len(), split) && share > 0.0 {
            prop_assert!(read.is_err());
            return Ok(());
        }
        let data = read.unwrap();
        prop_assert_eq!(&data, &TrainingData::read(&path, split, seed).unwrap());
        let mut all: Vec<_> = data.train.into_iter().chain(data.validation).collect();
        all.sort_by_key(|example| example.source.as_ref().unwrap().line);
        let read: Vec<_> = all.into_iter().map(|example| example.kind).collect();
        prop_assert_eq!(read, texts.into_iter().map(ExampleKind::Text).collect::<Vec<_>>());
    }

    #[test]
    fn arbitrary_bytes_are_an_error_or_examples(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        std::fs::write(&path, bytes).unwrap();
        if let Err(error) = TrainingData::read(&path, None, 0) {
            prop_assert!(matches!(error, Error::InvalidData { .. }), "{error:?}");
        }
    }

    #[test]
    fn arbitrary_objects_are_an_error_or_examples(
        key in prop::sample::select(vec!["text", "prompt", "completion", "messages", "tools", "x"]),
        other in prop::sample::select(vec!["text", "prompt", "completion", "messages", "tools", "y"]),
        value in prop::sample::select(vec![
            json!(null), json!("a"), json!(1), json!([]), json!([{"role": "user", "content": "a"}]), json!({}),
        ]),
        second in prop::sample::select(vec![json!("b"), json!([null]), json!([{"role": "user"}])]),
    ) {
        let line = json!({key: value, other: second});
        match read(&line.to_string()) {
            Ok(examples) => prop_assert_eq!(examples.len(), 1),
            Err(error) => prop_assert!(error.to_string().contains(":1: "), "{}", error),
        }
    }
}

#[test]
fn roles_are_those_of_templates() {
    let examples =
        read("{\"messages\": [{\"role\": \"tool\", \"content\": \"4\", \"tool_call_id\": \"a\"}]}").unwrap();
    let ExampleKind::Chat { messages, .. } = &examples[0].kind else { panic!("{examples:?}") };
    assert_eq!((messages[0].role, &messages[0].extra["tool_call_id"]), (Role::Tool, &json!("a")));
}
