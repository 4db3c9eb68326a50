use proptest::prelude::*;
use serde_json::json;

use super::*;

const ALL: &str = "<think></think><tool_call><function=[TOOL_CALLS]```tool_code<｜tool▁calls▁begin｜>";

fn parser(template: &str, prompt: &str) -> AnswerParser {
    let format = AnswerFormat::from_template(template).unwrap();
    let starts_in_reasoning = format.opens_reasoning(prompt);
    AnswerParser::new(Arc::new(format), starts_in_reasoning)
}

fn events(mut parser: AnswerParser, pieces: &[&str]) -> Vec<ChatEvent> {
    let mut events = Vec::new();
    pieces.iter().for_each(|piece| parser.push(piece, &mut events));
    parser.finish(&mut events);
    events
}

/// The parts of an answer without delimiters; adjacent texts are joined, and calls are reduced to name and arguments.
fn parts(template: &str, prompt: &str, pieces: &[&str]) -> Vec<ChatEvent> {
    let mut joined: Vec<ChatEvent> = Vec::new();
    let parser = parser(template, prompt).with_tools(&[json!({"name": "some tool"})]);
    for event in events(parser, pieces) {
        match (joined.last_mut(), event) {
            (_, ChatEvent::Mark(_)) => {}
            (Some(ChatEvent::Text(a)), ChatEvent::Text(b))
            | (Some(ChatEvent::Thinking(a)), ChatEvent::Thinking(b)) => a.push_str(&b),
            (_, ChatEvent::ToolCall { call, .. }) => {
                joined.push(self::call(&call.name, Value::Object(call.arguments)));
            }
            (_, event) => joined.push(event),
        }
    }
    joined
}

fn text(text: &str) -> ChatEvent {
    ChatEvent::Text(text.to_owned())
}

fn thinking(text: &str) -> ChatEvent {
    ChatEvent::Thinking(text.to_owned())
}

fn call(name: &str, arguments: Value) -> ChatEvent {
    let Value::Object(arguments) = arguments else { panic!("{arguments} are no arguments") };
    ChatEvent::ToolCall { call: ToolCall::new("", name, arguments), raw: String::new() }
}

#[test]
fn hermes_and_qwen() {
    let answer = "<think>\nhm\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": [1]}}\n</tool_call>\n<tool_call>{\"name\": \"b\"}</tool_call>";
    let expected = [thinking("hm"), text("I look."), call("get", json!({"a": [1]})), call("b", json!({}))];
    assert_eq!(parts(ALL, "", &[answer]), expected);
    assert_eq!(parts(ALL, "…<think>\n", &["a</think>b"]), [thinking("a"), text("b")]);
}

#[test]
fn qwen_coder_and_glm() {
    let coder = "<tool_call>\n<function=write>\n<parameter=path>\n12\n</parameter>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>";
    let tools = [
        json!({"type": "function", "function": {"name": "write", "parameters": {"properties": {"path": {"type": "string"}, "n": {"type": "integer"}}}}}),
    ];
    let events = events(parser(ALL, "").with_tools(&tools), &[coder]);
    let ChatEvent::ToolCall { call: found, raw } = &events[0] else { panic!("{events:?}") };
    assert_eq!((json!(found.arguments), raw.as_str()), (json!({"path": "12", "n": 5}), coder));
    let functionary = "<function=f>{\"x\": [1]}</function>";
    assert_eq!(parts(ALL, "", &[functionary]), [call("f", json!({"x": [1]}))]);
    let bare = "<function=f>\n<parameter=x>\ntrue\n</parameter>\n</function>";
    assert_eq!(parts(ALL, "", &[bare]), [call("f", json!({"x": true}))]);
    let glm = "<tool_call>get\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n</tool_call>";
    assert_eq!(parts(ALL, "", &[glm]), [call("get", json!({"city": "Zürich"}))]);
}

#[test]
fn mistral_old_and_new() {
    let old = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"x\": 1}}, {\"name\": \"g\", \"arguments\": \"{}\"}]";
    assert_eq!(parts(ALL, "", &[old]), [call("f", json!({"x": 1})), call("g", json!({}))]);
    let new = "Hi[TOOL_CALLS]f[ARGS]{\"x\": 1}[TOOL_CALLS]g[CALL_ID]abc[ARGS]{}";
    assert_eq!(parts(ALL, "", &[new]), [text("Hi"), call("f", json!({"x": 1})), call("g", json!({}))]);
}

#[test]
fn llama_in_json_and_in_python() {
    let template = "<|python_tag|>";
    let json_call = "{\"name\": \"f\", \"parameters\": {\"x\": \"y\"}}";
    assert_eq!(parts(template, "", &[json_call]), [call("f", json!({"x": "y"}))]);
    let two = "{\"name\": \"f\", \"parameters\": {\"x\": \"};\"}}; {\"name\": \"g\"}";
    assert_eq!(parts(template, "", &[two]), [call("f", json!({"x": "};"})), call("g", json!({}))]);
    assert_eq!(parts(template, "", &["{\"not\": \"a call\"}"]), [text("{\"not\": \"a call\"}")]);
    let python = "<|python_tag|>brave_search.call(query=\"what's up?\", n=-2.5, deep=[True, None])";
    let arguments = json!({"query": "what's up?", "n": -2.5, "deep": [true, null]});
    assert_eq!(parts(template, "", &[python]), [call("brave_search", arguments)]);
}

#[test]
fn gemma_deepseek_and_gpt_oss() {
    let gemma = "Sure.\n```tool_code\nprint(get_weather(city='Zürich', days=2))\n```";
    assert_eq!(
        parts(ALL, "", &[gemma]),
        [text("Sure."), call("get_weather", json!({"city": "Zürich", "days": 2}))]
    );
    let v3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    let v31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
    for answer in [v3, v31] {
        assert_eq!(parts(ALL, "", &[answer]), [call("f", json!({"x": 1}))]);
    }
    let oss = "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"x\": 1}<|call|>";
    let template = "<|start|><|channel|><|message|>";
    assert_eq!(parts(template, "", &[oss]), [thinking("Think."), call("f", json!({"x": 1}))]);
    let last = "<|channel|>final<|message|>Four.<|return|>";
    assert_eq!(parts(template, "", &[last]), [text("Four.")]);
}

#[test]
fn what_is_no_call_is_given_out_raw() {
    for answer in
        ["<tool_call>{\"name\": </tool_call>", "<tool_call>", "[TOOL_CALLS][{]", "```tool_code\nx = 1\n```"]
    {
        let events = parts(ALL, "", &[answer]);
        assert!(
            matches!(&events[..], [ChatEvent::UnparsedToolCall { raw, .. }] if raw == answer),
            "{events:?}"
        );
    }
}

#[test]
fn nemotron_kimi_lfm_and_mistrals_reasoning() {
    let template = "<TOOLCALL><|tool_calls_section_begin|><|tool_call_start|>[THINK]";
    let nemotron = "<TOOLCALL>[{\"name\": \"f\", \"arguments\": {}}]</TOOLCALL>";
    let kimi = "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>";
    let lfm = "<|tool_call_start|>[f()]<|tool_call_end|>";
    for answer in [nemotron, kimi, lfm] {
        assert_eq!(parts(template, "", &[answer]), [call("f", json!({}))], "{answer}");
    }
    assert_eq!(parts(template, "", &["[THINK]hm[/THINK]Yes."]), [thinking("hm"), text("Yes.")]);
}

#[test]
fn gemma_4() {
    let template = "<|channel>thought<|tool_call>call:";
    let answer = "<|channel>thought\nHm.\n<channel|>I look.<|tool_call>call:get_weather{city:<|\"|>Zürich, {now}<|\"|>,\
                  days:-2,deep:{a:[true,null,1.5],<|\"|>b c<|\"|>:<|\"|><|\"|>}}<tool_call|><|tool_call>call:f{}<tool_call|>";
    let arguments = json!({"city": "Zürich, {now}", "days": -2, "deep": {"a": [true, null, 1.5], "b c": ""}});
    let expected = [thinking("Hm."), text("I look."), call("get_weather", arguments), call("f", json!({}))];
    assert_eq!(parts(template, "", &[answer]), expected);
    for answer in ["<|tool_call>call:f{a:<|\"|>}<tool_call|>", "<|tool_call>f{}<tool_call|>"] {
        let parts = parts(template, "", &[answer]);
        assert!(
            matches!(&parts[..], [ChatEvent::UnparsedToolCall { raw, .. }] if raw == answer),
            "{parts:?}"
        );
    }
    assert_eq!(AnswerFormat::from_template(template).unwrap().thinking_end(), Some("<channel|>"));
}

#[test]
fn apertus_cohere_and_gigachat() {
    let apertus = "<|inner_prefix|>hm<|inner_suffix|><|tools_prefix|>[{\"f\": {\"x\": 1}}, {\"g\": {}}]<|tools_suffix|>";
    let expected = [thinking("hm"), call("f", json!({"x": 1})), call("g", json!({}))];
    assert_eq!(parts("<|inner_prefix|><|tools_prefix|>", "", &[apertus]), expected);
    let template = "'\\nAction:\\n```json\\n' {\"tool_name\": …}";
    for space in ["\n", " "] {
        let command_r = format!(
            "I look.\nAction:{space}```json\n[{{\"tool_name\": \"f\", \"parameters\": {{\"x\": 1}}}}\n]```"
        );
        assert_eq!(parts(template, "", &[&command_r]), [text("I look."), call("f", json!({"x": 1}))]);
    }
    let template = "<|START_THINKING|><|START_ACTION|><|START_RESPONSE|><|END_RESPONSE|>";
    let command_a = "<|START_THINKING|>hm<|END_THINKING|><|START_ACTION|>[\n{\"tool_call_id\": \"0\", \"tool_name\": \"f\", \
                     \"parameters\": {}}\n]<|END_ACTION|>";
    assert_eq!(parts(template, "", &[command_a]), [thinking("hm"), call("f", json!({}))]);
    let said = "<|START_RESPONSE|>Four.<|END_RESPONSE|>";
    assert_eq!(parts(template, "", &[said]), [text("Four.")]);
    let giga = "function call<|role_sep|>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}<|message_sep|>";
    assert_eq!(parts("'role': 'function call' <|role_sep|>", "", &[giga]), [call("f", json!({"x": 1}))]);
}

#[test]
fn llama_4_in_python() {
    let template = "<|python_tag|> [func_name1(params_name1=params_value1)]";
    let two = "[f(x='a, b', y=2), g()]";
    assert_eq!(parts(template, "", &[two]), [call("f", json!({"x": "a, b", "y": 2})), call("g", json!({}))]);
    assert_eq!(parts(template, "", &["[1] says so."]), [text("[1] says so.")]);
}

#[test]
fn a_mark_may_be_text_and_a_special_token() {
    let mut parser = parser("function call <|role_sep|>", "");
    let mut events = Vec::new();
    parser.push("Hm. function", &mut events);
    parser.push_special("<|role_sep|>", &mut events);
    parser.push("function call", &mut events);
    parser.push_special("<|role_sep|>", &mut events);
    parser.push("{\"name\": \"f\"}", &mut events);
    parser.push_special("<|message_sep|>", &mut events);
    parser.finish(&mut events);
    let raw: String = events.iter().map(ChatEvent::raw).collect();
    let call = "function call<|role_sep|>{\"name\": \"f\"}<|message_sep|>";
    assert_eq!(raw, format!("Hm. function<|role_sep|>{call}"));
    assert!(matches!(events.last(), Some(ChatEvent::ToolCall { raw, .. }) if raw == call), "{events:?}");
}

#[test]
fn bare_json_is_a_call_only_where_there_are_tools() {
    let answer = "{\"name\": \"f\"}";
    assert_eq!(events(parser("<|python_tag|>", ""), &[answer]), [text(answer)]);
    assert_eq!(parts("<|python_tag|>", "", &["\n", answer]), [call("f", json!({}))]);
}

#[test]
fn calls_have_ids_of_their_own_unless_the_model_gives_them() {
    let ids = |answer: &str, id_seed: u64| -> Vec<String> {
        let events = events(parser(ALL, "").with_id_seed(id_seed), &[answer]);
        let id = |event| match event {
            ChatEvent::ToolCall { call, .. } => Some(call.id),
            _ => None,
        };
        events.into_iter().filter_map(id).collect()
    };
    let two = "<tool_call>{\"name\": \"f\"}</tool_call><tool_call>{\"name\": \"f\"}</tool_call>";
    let made_up = ids(two, 1);
    assert!(made_up.iter().all(|id| id.len() == 9 && id.bytes().all(|b| b.is_ascii_alphanumeric())));
    assert_ne!(made_up[0], made_up[1]);
    assert_eq!(made_up, ids(two, 1));
    assert_ne!(made_up[0], ids(two, 7)[0]);
    assert_eq!(ids("[TOOL_CALLS]g[CALL_ID]abc[ARGS]{}", 0), ["abc"]);
}

#[test]
fn special_tokens_that_are_no_marks_are_no_text() {
    let mut parser = parser(ALL, "");
    let mut events = Vec::new();
    parser.push("a\n<thi", &mut events);
    parser.push_special("<|im_end|>", &mut events);
    parser.push_special("<think>", &mut events);
    parser.push("b", &mut events);
    parser.push_special("<|im_end|>", &mut events);
    parser.push_special("</think>", &mut events);
    parser.push("c", &mut events);
    parser.finish(&mut events);
    let raw: String = events.iter().map(ChatEvent::raw).collect();
    assert_eq!(raw, "a\n<thi<|im_end|><think>b<|im_end|></think>c");
    events.retain(|event| !matches!(event, ChatEvent::Mark(_)));
    assert_eq!(events, [text("a"), text("\n<thi"), thinking("b"), text("c")]);
}

proptest! {
    #[test]
    fn nothing_is_lost_and_where_an_answer_is_cut_does_not_matter(
        pieces in prop::collection::vec(prop_oneof![
            Just("<think>"), Just("</think>"), Just("<tool_call>"), Just("</tool_call>"), Just("<tool"), Just("{\"name\":\"f\"}"),
            Just("[TOOL_CALLS]"), Just("é"), Just("<"), Just("```tool_code"), Just("```"), Just("f(x=1)"), Just("\n"), Just(" "),
            Just("<|channel|>"), Just("<|message|>"), Just("<|start|>"), Just("<|end|>"), Just("analysis"), Just("to=f"),
            Just("<|python_tag|>"), Just("{"), Just("<|channel>"), Just("<channel|>"), Just("<|tool_call>"), Just("<tool_call|>"),
            Just("call:f{a:1}"), Just("[f()]"),
        ], 0..10),
        oss: bool,
        within: bool,
    ) {
        let template = if oss { "<|channel|><|start|><|message|>" } else { &format!("{ALL}<|python_tag|><|channel><|tool_call>[func_name1(") };
        let prompt = if within { "…<think>\n" } else { "" };
        let answer = pieces.concat();
        let chars: Vec<String> = answer.chars().map(String::from).collect();
        let single: Vec<&str> = chars.iter().map(String::as_str).collect();
        prop_assert_eq!(parts(template, prompt, &[&answer]), parts(template, prompt, &single));
        for pieces in [&[answer.as_str()][..], &single] {
            let events = events(parser(template, prompt).with_tools(&[json!({})]), pieces);
            prop_assert_eq!(&events.iter().map(ChatEvent::raw).collect::<String>(), &answer);
        }
    }
}
