//! Chat templates of model folders: which files hold them, and what they are given.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

mod support;

use inference_core::{CancellationToken, Error, GenerateOptions, Message, Result, TemplateOptions};
use inference_text::{ChatTemplate, SpecialTokens, Tokenizer};
use serde_json::{Map, Value, json};
use support::*;

fn template(source: &str) -> Result<ChatTemplate> {
    ChatTemplate::new(source, &SpecialTokens::default())
}

fn render(source: &str) -> Result<String> {
    template(source)?.render_variables(&Map::new())
}

#[test]
fn a_conversation_with_tools_and_variables() {
    let template = template(
        "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{{ m.name or '' }}{% endfor %}\
         {% if tools %}{{ tools | tojson }}{% endif %}{{ documents is none }}{{ enable_thinking }}\
         {% if add_generation_prompt %}<assistant>{% endif %}",
    )
    .unwrap();
    let messages = [Message::system("Be brief."), Message::user("Hi").with("name", "Ann")];
    let plain = template.render(&messages, &TemplateOptions::default(), true).unwrap();
    assert_eq!(plain, "<system>Be brief.<user>HiAnnTrue<assistant>");

    let options =
        GenerateOptions::new().tools([json!({"name": "f"})]).template_variable("enable_thinking", false);
    let full = template.render(&messages[1..], &options.template, false).unwrap();
    assert_eq!(full, "<user>HiAnn[{\"name\": \"f\"}]TrueFalse");
}

#[test]
fn the_last_message_may_be_continued() {
    let template = template(
        "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}<end>{% endfor %}\
         {% if add_generation_prompt %}<assistant>{% endif %}",
    )
    .unwrap();
    let options = TemplateOptions::new().continue_final_message(true);
    let render =
        |last: &str| template.render(&[Message::user("2+2?"), Message::assistant(last)], &options, true);
    assert_eq!(render("It is").unwrap(), "<user>2+2?<end><assistant>It is");
    assert_eq!(render("It is ").unwrap(), "<user>2+2?<end><assistant>It is");
    assert!(matches!(render(" "), Err(Error::Template { reason, .. }) if reason.contains("no content")));
}

#[test]
fn reasoning_goes_by_all_the_names_that_templates_know() {
    let template =
        template("{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }};{% endfor %}").unwrap();
    let messages = [Message::assistant("4").with("reasoning", "2+2"), Message::assistant("5")];
    assert_eq!(template.render(&messages, &TemplateOptions::default(), false).unwrap(), "2+2/2+2;/;");
}

#[test]
fn a_folder_keeps_its_template_in_one_of_three_files() {
    let special = SpecialTokens::default();
    let text = |folder: &tempfile::TempDir, tools: Value| {
        let template = ChatTemplate::load(folder.path(), &special).unwrap().unwrap();
        template.render_variables(json!({"tools": tools}).as_object().unwrap()).unwrap()
    };
    assert!(ChatTemplate::load(folder(&[]).path(), &special).unwrap().is_none());

    let one = folder(&[("chat_template.json", &json!({"chat_template": "processor"}))]);
    assert_eq!(text(&one, Value::Null), "processor");

    let named = json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]);
    let list = folder(&[("tokenizer_config.json", &json!({"chat_template": named}))]);
    assert_eq!(
        (text(&list, Value::Null), text(&list, json!([{}]))),
        ("plain".to_owned(), "tools".to_owned())
    );

    std::fs::write(list.path().join("chat_template.jinja"), "file").unwrap();
    assert_eq!(text(&list, json!([{}])), "file");

    let bad = folder(&[("tokenizer_config.json", &json!({"chat_template": 5}))]);
    let error = ChatTemplate::load(bad.path(), &special).unwrap_err();
    assert!(
        matches!(&error, Error::InvalidModel { key: Some(key), .. } if key == "chat_template"),
        "{error}"
    );
    let large = folder(&[("tokenizer_config.json", &json!({"chat_template": "x".repeat(1 << 20)}))]);
    assert!(ChatTemplate::load(large.path(), &special).is_err());
}

#[test]
fn special_tokens_reach_the_template() {
    let folder = folder(&[
        ("tokenizer.json", &byte_fallback(true)),
        (
            "tokenizer_config.json",
            &json!({"bos_token": "<s>", "eos_token": {"content": "</s>"},
            "chat_template": "{{ bos_token }}{{ messages[0]['content'] }}{{ eos_token }}"}),
        ),
    ]);
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    let template = ChatTemplate::load(folder.path(), tokenizer.special_tokens()).unwrap().unwrap();
    let text = template.render(&[Message::user("hello")], &TemplateOptions::default(), true).unwrap();
    assert_eq!(text, "<s>hello</s>");
    assert_eq!(tokenizer.encode(&text, false).unwrap().iter().filter(|id| **id == 1).count(), 1);
}

#[test]
fn an_error_says_where_and_why() {
    let error = render("a\n\n{{ raise_exception('roles must alternate') }}").unwrap_err();
    assert_eq!(error.to_string(), "chat template: line 3: roles must alternate");
    let error = render("{% if x %}").unwrap_err().to_string();
    assert!(error.contains("syntax error") || error.contains("unexpected"), "{error}");
}

#[test]
fn a_template_that_does_not_end_is_an_error() {
    let error =
        render("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}").unwrap_err();
    assert!(matches!(&error, Error::Template { reason, .. } if reason.contains("limit")), "{error}");
}

#[test]
fn a_cancelled_rendering_ends() {
    let endless = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    let cancel = CancellationToken::new();
    let template = template(endless).unwrap().with_cancel(cancel.clone());
    cancel.cancel();
    let error = template.render(&[Message::user("Hi")], &TemplateOptions::default(), true).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
}

#[test]
fn a_configuration_whose_values_would_fill_the_memory_is_refused() {
    let folder = folder(&[]);
    let path = folder.path().join("tokenizer_config.json");
    for values in ["0,", "[],", "{},", "\"\","] {
        std::fs::write(&path, format!("{{\"x\": [{}0]}}", values.repeat(2_000_000))).unwrap();
        let error = ChatTemplate::load(folder.path(), &SpecialTokens::default()).unwrap_err().to_string();
        assert!(error.contains("too many values"), "{error}");
    }
}
