//! Tool calls survive the way there and back: what a family's template writes, the parser reads.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

mod support;

use inference_core::{AssistantMessage, ChatEvent, GenerateOptions, Message, ModelInfo, Prompt, ToolCall};
use inference_text::{AnswerFormat, AnswerParser, PromptLimits, TextPipeline};
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::{Arc, LazyLock};
use support::*;

/// A family's notation: a template whose last message is the assistant's, between `<|begin|>` and `<|end|>`.
struct Notation {
    name: &'static str,
    calls: &'static str,
    /// Whether arguments are bare text, of which only the schema tells the type.
    bare: bool,
    /// What ends a value where no escape exists: it cannot stand in one with all of what follows a value.
    pipeline: LazyLock<TextPipeline>,
}

macro_rules! notation {
    ($name:literal, $bare:literal, $calls:literal) => {
        Notation { name: $name, bare: $bare, calls: $calls, pipeline: LazyLock::new(|| pipeline($calls)) }
    };
}

static NOTATIONS: [Notation; 14] = [
    notation!(
        "Hermes",
        false,
        "{% for c in calls %}<tool_call>\n{\"name\": \"{{ c.name }}\", \"arguments\": {{ c.arguments | tojson }}}\n</tool_call>{% if not loop.last %}\n{% endif %}{% endfor %}"
    ),
    notation!(
        "Qwen3-Coder",
        true,
        "{% for c in calls %}<tool_call>\n<function={{ c.name }}>\n{% for k, v in c.arguments | items %}<parameter={{ k }}>\n{{ v | tojson if v is mapping or (v is sequence and v is not string) else v | string }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% if not loop.last %}\n{% endif %}{% endfor %}"
    ),
    notation!(
        "Qwen3-Coder in Python",
        true,
        "{% for c in calls %}<tool_call>\n<function={{ c.name }}>\n{% for k, v in c.arguments | items %}<parameter={{ k }}>\n{{ v | string }}\n</parameter>\n{% endfor %}</function>\n</tool_call>{% if not loop.last %}\n{% endif %}{% endfor %}"
    ),
    notation!(
        "GLM",
        true,
        "{% for c in calls %}<tool_call>{{ c.name }}\n{% for k, v in c.arguments | items %}<arg_key>{{ k }}</arg_key>\n<arg_value>{{ v if v is string else v | tojson }}</arg_value>\n{% endfor %}</tool_call>{% endfor %}"
    ),
    notation!(
        "Functionary",
        false,
        "{% for c in calls %}<function={{ c.name }}>{{ c.arguments | tojson }}</function>{% endfor %}"
    ),
    notation!(
        "Mistral",
        false,
        "{% for c in calls %}[TOOL_CALLS]{{ c.name }}[ARGS]{{ c.arguments | tojson }}{% endfor %}"
    ),
    notation!(
        "Mistral in a list",
        false,
        "[TOOL_CALLS][{% for c in calls %}{\"name\": \"{{ c.name }}\", \"arguments\": {{ c.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]"
    ),
    notation!(
        "DeepSeek V3",
        false,
        "<｜tool▁calls▁begin｜>{% for c in calls %}<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.name }}\n```json\n{{ c.arguments | tojson }}\n```<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>"
    ),
    notation!(
        "DeepSeek V3.1",
        false,
        "<｜tool▁calls▁begin｜>{% for c in calls %}<｜tool▁call▁begin｜>{{ c.name }}<｜tool▁sep｜>{{ c.arguments | tojson }}<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜>"
    ),
    notation!(
        "Kimi",
        false,
        "<|tool_calls_section_begin|>{% for c in calls %}<|tool_call_begin|>functions.{{ c.name }}:{{ loop.index0 }}<|tool_call_argument_begin|>{{ c.arguments | tojson }}<|tool_call_end|>{% endfor %}<|tool_calls_section_end|>"
    ),
    notation!(
        "Nemotron",
        false,
        "<TOOLCALL>[{% for c in calls %}{\"name\": \"{{ c.name }}\", \"arguments\": {{ c.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]</TOOLCALL>"
    ),
    notation!(
        "Phi 4",
        false,
        "<|tool_call|>[{% for c in calls %}{\"name\": \"{{ c.name }}\", \"arguments\": {{ c.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]<|/tool_call|>"
    ),
    notation!(
        "Cohere",
        false,
        "<|START_ACTION|>[{% for c in calls %}{\"tool_call_id\": \"{{ loop.index0 }}\", \"tool_name\": \"{{ c.name }}\", \"parameters\": {{ c.arguments | tojson }}}{% if not loop.last %}, {% endif %}{% endfor %}]<|END_ACTION|>"
    ),
    notation!(
        "gpt-oss",
        false,
        "{% for c in calls %}<|start|>assistant<|channel|>commentary to=functions.{{ c.name }} <|constrain|>json<|message|>{{ c.arguments | tojson }}<|call|>{% endfor %}"
    ),
];

fn pipeline(calls: &str) -> TextPipeline {
    let template = format!(
        "{{# tools #}}{{% set calls = messages[-1].tool_calls | map(attribute='function') | list %}}<|begin|>{calls}<|end|>"
    );
    let folder = folder(&[("tokenizer.json", &byte_level(WORDS))]);
    std::fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    TextPipeline::load(folder.path()).unwrap()
}

impl Notation {
    /// What the template writes for these calls.
    fn render(&self, calls: &[ToolCall]) -> String {
        let mut info = ModelInfo::default();
        (info.vocab_size, info.context_length) = (100_000, 100_000);
        let messages = vec![Message::user("go"), Message::assistant("").tool_calls(calls)];
        let options = GenerateOptions::new();
        let limits = PromptLimits::new(&info, 0);
        let prepared =
            self.pipeline.prepare_blocking(Prompt::Chat(messages), &options.template, &limits).unwrap();
        let text = self.pipeline.tokenizer().decode(&prepared.ids, false);
        text.strip_prefix("<|begin|>").and_then(|text| text.strip_suffix("<|end|>")).unwrap().to_owned()
    }

    /// What the parser reads of an answer that arrives in pieces of so many characters.
    fn parse(&self, answer: &str, size: usize) -> AssistantMessage {
        let format = Arc::new(AnswerFormat::from_template(self.calls).unwrap());
        let mut parser = AnswerParser::new(format, false).with_tools(&[tool()]).following_calls();
        let mut events = Vec::new();
        let chars: Vec<char> = answer.chars().collect();
        for piece in chars.chunks(size) {
            parser.push(&piece.iter().collect::<String>(), &mut events);
        }
        parser.finish(&mut events);
        assert_eq!(events.iter().map(ChatEvent::raw).collect::<String>(), answer, "{}", self.name);
        let told = check_told(&events);
        let follows = ["Hermes", "Mistral", "gpt-oss"].contains(&self.name);
        assert!(size > 1 || told > 0 || !follows, "{}: {answer}", self.name);
        let mut message = AssistantMessage::default();
        message.extend(events);
        message
    }
}

/// Checks that what was told of calls while they were written is what they turned out to be. Returns how many were told.
fn check_told(events: &[ChatEvent]) -> usize {
    let mut told = 0;
    let mut open: Option<(&String, &String, String)> = None;
    for event in events {
        match (event, &mut open) {
            (ChatEvent::ToolCallBegun { id, name }, None) => open = Some((id, name, String::new())),
            (ChatEvent::ToolCallArguments(piece), Some((.., pieces))) => pieces.push_str(piece),
            (ChatEvent::ToolCallBegun { .. } | ChatEvent::ToolCallArguments(_), _) => panic!("{events:?}"),
            (ChatEvent::ToolCall { call, .. }, Some((id, name, pieces))) => {
                assert_eq!((&call.id, &call.name), (*id, *name));
                let arguments: Map<String, Value> = serde_json::from_str(pieces).unwrap();
                assert_eq!(arguments, call.arguments);
                told += 1;
                open = None;
            }
            (ChatEvent::UnparsedToolCall { .. }, _) => open = None,
            _ => {}
        }
    }
    told
}

/// The tool that is called: each argument's name says its type.
fn tool() -> Value {
    json!({"type": "function", "function": {"name": "run", "parameters": {"type": "object", "properties": {
        "text": {"type": "string"}, "whole": {"type": "integer"}, "real": {"type": "number"}, "flag": {"type": "boolean"},
        "maybe": {"type": ["integer", "null"]}, "some": {"anyOf": [{"type": "object"}, {"type": "null"}]},
        "object": {"type": "object"}, "list": {"type": "array"},
    }}}})
}

/// Text with what ends arguments and calls, and quotes of every kind.
fn value_text() -> impl Strategy<Value = String> {
    let pieces = prop::sample::select(vec![
        "a",
        "word ",
        " ",
        "\n",
        "\"",
        "'",
        "\\",
        "{",
        "}",
        "[",
        "]",
        "<",
        ">",
        "é",
        "🙂",
        "True",
        "None",
        "null",
        "5",
        "```",
        "</tool_call>",
        "<tool_call>",
        "</function>",
        "</parameter>",
        "</arg_value>",
        "<arg_key>",
        "[TOOL_CALLS]",
        "[ARGS]",
        "<｜tool▁call▁end｜>",
        "<｜tool▁calls▁end｜>",
        "<|tool_call_end|>",
        "<|tool_calls_section_end|>",
        "</TOOLCALL>",
        "<|/tool_call|>",
        "<|END_ACTION|>",
        "<|call|>",
        "<|end|>",
        "<|\"|>",
        "</think>",
        "</s>",
    ]);
    // Where nothing is escaped, an end delimiter with all that follows one is the end: some text stands behind each.
    prop::collection::vec(pieces, 0..8)
        .prop_map(|pieces| pieces.iter().map(|piece| format!("{piece}.")).collect::<String>())
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1000i32..1000).prop_map(|n| json!(f64::from(n) / 8.0)),
        value_text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((value_text(), inner), 0..4)
                .prop_map(|entries| Value::Object(entries.into_iter().collect())),
        ]
    })
}

fn arguments() -> impl Strategy<Value = Map<String, Value>> {
    let object = || prop::collection::vec((value_text(), json_value()), 0..3);
    let object = move || object().prop_map(|entries| Value::Object(entries.into_iter().collect()));
    let argument = prop_oneof![
        value_text().prop_map(|text| ("text", Value::from(text))),
        any::<i64>().prop_map(|whole| ("whole", Value::from(whole))),
        (-1000i32..1000).prop_map(|n| ("real", json!(f64::from(n) / 8.0 + 0.0625))),
        any::<bool>().prop_map(|flag| ("flag", Value::from(flag))),
        any::<Option<i32>>().prop_map(|maybe| ("maybe", json!(maybe))),
        object().prop_map(|object| ("object", object)),
        prop_oneof![Just(Value::Null), object()].prop_map(|some| ("some", some)),
        prop::collection::vec(json_value(), 0..3).prop_map(|list| ("list", Value::from(list))),
    ];
    prop::collection::vec(argument, 0..5)
        .prop_map(|arguments| arguments.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn what_a_template_writes_the_parser_reads(
        calls in prop::collection::vec(arguments(), 1..3),
        size in prop::sample::select(vec![1usize, 3, 1000]),
    ) {
        let calls: Vec<ToolCall> = calls.into_iter().map(|arguments| ToolCall::new("abcdefghi", "run", arguments)).collect();
        for notation in &NOTATIONS {
            // Python's own spelling of a value is not JSON's: its strings are not escaped alike.
            if notation.name.ends_with("Python") && calls.iter().any(|call| call.arguments.values().any(has_text_within)) {
                continue;
            }
            let answer = notation.render(&calls);
            let message = notation.parse(&answer, size);
            let name = notation.name;
            prop_assert_eq!(&message.unparsed_tool_calls, &Vec::<String>::new(), "{}: {}", name, answer);
            prop_assert_eq!(message.text.trim(), "", "{}: {}", name, answer);
            let read: Vec<_> = message.tool_calls.iter().map(|call| (&call.name, &call.arguments)).collect();
            let written: Vec<_> = calls.iter().map(|call| (&call.name, &call.arguments)).collect();
            prop_assert_eq!(read, written, "{}: {}", name, answer);
            let _ = notation.bare;
        }
    }
}

/// Whether a list or an object holds a string.
fn has_text_within(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(|item| item.is_string() || has_text_within(item)),
        Value::Object(entries) => !entries.is_empty(),
        _ => false,
    }
}

/// The calls of an answer in Qwen3-Coder's notation, with this schema.
fn coder(answer: &str, properties: &Value) -> AssistantMessage {
    let tool = json!({"name": "f", "parameters": {"type": "object", "properties": properties}});
    let format = Arc::new(AnswerFormat::from_template("<tool_call><function=").unwrap());
    let mut parser = AnswerParser::new(format, false).with_tools(&[tool]);
    let mut events = Vec::new();
    parser.push(answer, &mut events);
    parser.finish(&mut events);
    let mut message = AssistantMessage::default();
    message.extend(events);
    message
}

#[test]
fn python_literals_are_typed_by_the_schema() {
    let properties = json!({
        "on": {"type": "boolean"}, "off": {"type": "boolean"}, "opt": {"type": ["integer", "null"]}, "o": {"type": "object"},
        "s": {"type": "string"}, "e": {"enum": ["True", "None"]}, "r": {"$ref": "#/$defs/Size"}, "u": {},
    });
    let value = |name: &str, text: &str| {
        let answer = format!(
            "<tool_call>\n<function=f>\n<parameter={name}>\n{text}\n</parameter>\n</function>\n</tool_call>"
        );
        let message = coder(&answer, &properties);
        message.tool_calls[0].arguments[name].clone()
    };
    assert_eq!(value("on", "True"), json!(true));
    assert_eq!(value("off", "False"), json!(false));
    assert_eq!(value("off", "false"), json!(false));
    assert_eq!(value("opt", "None"), json!(null));
    assert_eq!(value("opt", "7"), json!(7));
    assert_eq!(value("o", "{'a': True, 'b': [None, 'it\\'s']}"), json!({"a": true, "b": [null, "it's"]}));
    assert_eq!(value("o", "{\"a\": true}"), json!({"a": true}));
    assert_eq!(value("s", "True"), json!("True"));
    assert_eq!(value("s", "{'a': 1}"), json!("{'a': 1}"));
    assert_eq!(value("e", "None"), json!("None"));
    assert_eq!(value("u", "True"), json!(true));
    assert_eq!(value("on", "maybe"), json!("maybe"));
}

#[test]
fn end_delimiters_in_arguments_are_text() {
    for content in [
        "ends with </parameter> here.",
        "a block ends with </tool_call> on its own.",
        "</function></tool_call> and on",
    ] {
        let answer = format!(
            "<tool_call>\n<function=write_file>\n<parameter=content>\n{content}\n</parameter>\n</function>\n</tool_call>"
        );
        let message = coder(&answer, &json!({}));
        assert_eq!((message.text.as_str(), message.tool_calls.len()), ("", 1), "{content}");
        assert_eq!(message.tool_calls[0].arguments["content"], content);
    }
    let message = coder(
        "<tool_call>\n{\"name\": \"w\", \"arguments\": {\"content\": \"x </tool_call> y\"}}\n</tool_call>",
        &json!({}),
    );
    assert_eq!(message.tool_calls[0].arguments["content"], "x </tool_call> y");
    // A quote that is missing costs its own call and no other.
    let message = coder(
        "<tool_call>{\"name\": \"w, \"arguments\": {}}</tool_call><tool_call>{\"name\": \"v\"}</tool_call>",
        &json!({}),
    );
    assert_eq!((message.text.as_str(), message.unparsed_tool_calls.len()), ("", 1));
    assert_eq!(message.tool_calls.len(), 1);
}
