//! What an answer is made of: text, reasoning, and calls of tools, told apart as the answer streams in.

mod calls;
mod format;
mod literal;

use std::sync::Arc;

use inference_core::{ChatEvent, ToolCall};
use serde_json::Value;

pub use self::format::AnswerFormat;
use self::{
    calls::Call,
    format::{Kind, MESSAGE_ENDS, Mark},
};
use crate::{StopStrings, stop::Position};

/// Splits an answer into its parts as it comes.
///
/// It needs to see all of the format's marks, those that are special tokens too. Line breaks beside a mark belong to it.
///
/// ```
/// use std::sync::Arc;
///
/// use inference_core::ChatEvent;
/// use inference_text::{AnswerFormat, AnswerParser};
///
/// let format = Arc::new(AnswerFormat::of("…</think>…<tool_call>…").unwrap());
/// let mut parser = AnswerParser::new(format, "");
/// let mut events = Vec::new();
/// for piece in ["<thi", "nk>2+2</think>Four.<tool_", "call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"] {
///     parser.push(piece, &mut events);
/// }
/// parser.finish(&mut events);
/// events.retain(|event| !matches!(event, ChatEvent::Mark(_)));
/// assert_eq!(events[0], ChatEvent::Thinking("2+2".to_owned()));
/// assert_eq!(events[1], ChatEvent::Text("Four.".to_owned()));
/// assert!(matches!(&events[2], ChatEvent::ToolCall { call, .. } if call.name == "f"));
/// ```
#[derive(Debug)]
pub struct AnswerParser {
    format: Arc<AnswerFormat>,
    /// What is being read, with the text that began it; text where nothing is.
    within: Option<(Kind, String)>,
    /// What ends it.
    end: StopStrings,
    position: Position,
    /// What was read of it and not given out.
    held: String,
    /// Whether line breaks belong to the mark before them.
    after_mark: bool,
    /// Whether the answer may turn out to be nothing but calls: blanks are all that came, and they are held.
    may_be_bare: bool,
    tools: Vec<Value>,
    /// Makes the ids of calls.
    salt: u64,
}

impl AnswerParser {
    /// A parser for an answer to a rendered prompt, of which the end is enough: where that is within reasoning, the answer
    /// begins there.
    #[must_use]
    pub fn new(format: Arc<AnswerFormat>, prompt: &str) -> Self {
        let prompt = prompt.trim_end();
        let begun = format.marks.iter().find(|mark| mark.kind == Kind::Think && prompt.ends_with(mark.text));
        let begun = begun.copied();
        let mut parser = Self {
            within: None,
            end: format.begin.clone(),
            format,
            position: Position::START,
            held: String::new(),
            after_mark: false,
            may_be_bare: false,
            tools: Vec::new(),
            salt: 0,
        };
        if let Some(mark) = begun {
            parser.enter(Kind::Think, String::new(), mark.ends);
        }
        parser
    }

    /// The definitions of the tools that the model was given: where arguments come without types, those of the definition are
    /// used. Only with tools is an answer without marks a call.
    #[must_use]
    pub fn with_tools(mut self, tools: &[Value]) -> Self {
        self.tools = tools.to_vec();
        self.may_be_bare = !self.format.bare.is_empty() && !tools.is_empty() && self.within.is_none();
        self
    }

    /// Makes the ids of calls from this number, which should differ from answer to answer.
    #[must_use]
    pub fn with_salt(mut self, salt: u64) -> Self {
        self.salt = salt;
        self
    }

    /// Whether what comes next continues reasoning.
    #[must_use]
    pub fn is_thinking(&self) -> bool {
        matches!(self.within, Some((Kind::Think, _)))
    }

    /// Takes the next piece of the answer and appends the parts that are certain by it.
    pub fn push(&mut self, piece: &str, events: &mut Vec<ChatEvent>) {
        let mut rest = piece;
        if self.may_be_bare {
            let text = piece.trim_start();
            if text.is_empty() {
                return self.held.push_str(piece);
            }
            self.may_be_bare = false;
            if text.starts_with(self.format.bare) {
                self.enter(Kind::Bare, String::new(), &[]);
            }
        }
        while !rest.is_empty() {
            rest = self.take(rest, events);
        }
        self.release(events);
    }

    /// Takes a special token, which is no text for the reader: a mark of the format, or one of no interest.
    pub fn push_special(&mut self, token: &str, events: &mut Vec<ChatEvent>) {
        let (marks, event): (_, fn(String) -> ChatEvent) = match &self.within {
            None => (&self.format.begin, ChatEvent::Text),
            Some((Kind::Think, _)) => (&self.end, ChatEvent::Thinking),
            Some(_) => return self.push(token, events),
        };
        // What of the text before may begin a mark that goes on with the token.
        let begun = &self.held[self.held.len() - marks.undecided(self.position)..];
        if marks
            .strings()
            .iter()
            .any(|mark| mark.strip_prefix(begun).is_some_and(|mark| mark.starts_with(token)))
        {
            return self.push(token, events);
        }
        let held = std::mem::take(&mut self.held);
        self.position = Position::START;
        self.say(event, &held, events);
        mark(events, &[token]);
    }

    /// Appends what is still held. A call that was not ended is read as far as it came.
    pub fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        self.position = Position::START;
        let body = std::mem::take(&mut self.held);
        match self.within.take() {
            None => self.say(ChatEvent::Text, &body, events),
            Some((Kind::Think, _)) => self.say(ChatEvent::Thinking, &body, events),
            Some((Kind::Role | Kind::Channel | Kind::Thought, opened)) => mark(events, &[&opened, &body]),
            Some((Kind::Bare, _)) => match calls::json_or_python(&body) {
                Ok(calls) => self.call(calls, body, events),
                Err(_) => self.say(ChatEvent::Text, &body, events),
            },
            Some((kind, opened)) => self.read(kind, &opened, &body, "", events),
        }
    }

    /// Reads up to the next mark; what is left behind it.
    fn take<'a>(&mut self, piece: &'a str, events: &mut Vec<ChatEvent>) -> &'a str {
        let marks = if self.within.is_some() { &self.end } else { &self.format.begin };
        for (at, byte) in piece.bytes().enumerate() {
            self.position = marks.step(self.position, byte);
            let Some(found) = marks.complete(self.position) else { continue };
            let closed = marks.strings()[found].clone();
            self.held.push_str(&piece[..=at]);
            self.held.truncate(self.held.len() - closed.len());
            self.position = Position::START;
            let body = std::mem::take(&mut self.held);
            match self.within.take() {
                None => {
                    self.say_before_mark(ChatEvent::Text, &body, events);
                    let Mark { text, kind, ends } = self.format.marks[found];
                    match kind {
                        Kind::Nothing => mark(events, &[text]),
                        Kind::Think => {
                            mark(events, &[text]);
                            self.enter(kind, String::new(), ends);
                        }
                        kind => self.enter(kind, text.to_owned(), ends),
                    }
                }
                Some((Kind::Think, _)) => {
                    self.say_before_mark(ChatEvent::Thinking, &body, events);
                    mark(events, &[&closed]);
                }
                Some((Kind::Thought, opened)) => {
                    mark(events, &[&opened, &body, &closed]);
                    self.enter(Kind::Think, String::new(), &["<channel|>"]);
                }
                Some((Kind::Role, opened)) if closed == "<|channel|>" => {
                    mark(events, &[&opened, &body]);
                    self.enter(Kind::Channel, closed, &["<|message|>"]);
                }
                Some((Kind::Role, opened)) => mark(events, &[&opened, &body, &closed]),
                Some((Kind::Channel, opened)) => self.enter_message(&body, opened + &body + &closed, events),
                Some((kind, opened)) => self.read(kind, &opened, &body, &closed, events),
            }
            self.after_mark = true;
            return &piece[at + 1..];
        }
        self.held.push_str(piece);
        ""
    }

    /// gpt-oss: the header says whether the message is reasoning, a call, or text.
    fn enter_message(&mut self, header: &str, raw: String, events: &mut Vec<ChatEvent>) {
        if header.contains("to=") {
            return self.enter(Kind::ChannelCall, raw, MESSAGE_ENDS);
        }
        mark(events, &[&raw]);
        if header.trim_start().starts_with("analysis") {
            self.enter(Kind::Think, String::new(), MESSAGE_ENDS);
        }
    }

    fn enter(&mut self, kind: Kind, opened: String, ends: &[&str]) {
        self.within = Some((kind, opened));
        self.after_mark = true;
        // The ends are constants, none of them empty or long.
        self.end = StopStrings::new(ends.iter().copied()).unwrap_or_else(|_| self.format.begin.clone());
        self.position = Position::START;
    }

    /// Reads what is marked as a call.
    fn read(&mut self, kind: Kind, opened: &str, body: &str, closed: &str, events: &mut Vec<ChatEvent>) {
        let raw = format!("{opened}{body}{closed}");
        let calls = match kind {
            Kind::Tagged if opened == "<function=" => calls::tagged(&raw, &self.tools),
            Kind::Tagged => calls::tagged(body, &self.tools),
            Kind::List => calls::json(body),
            Kind::Mistral => calls::mistral(body),
            Kind::Code => calls::json_or_python(body),
            Kind::Gemma => literal::gemma(body),
            Kind::DeepSeek => calls::deepseek(body),
            Kind::Kimi => calls::kimi(body),
            Kind::ChannelCall => calls::channel(opened, body),
            Kind::Think | Kind::Thought | Kind::Channel | Kind::Role | Kind::Bare | Kind::Nothing => {
                Err("it is no call".to_owned())
            }
        };
        match calls {
            Ok(calls) => self.call(calls, raw, events),
            Err(reason) => events.push(ChatEvent::UnparsedToolCall { raw, reason }),
        }
    }

    /// Gives out calls, the first of them with their text.
    fn call(&mut self, calls: Vec<Call>, mut raw: String, events: &mut Vec<ChatEvent>) {
        for Call { id, name, arguments } in calls {
            let id = id.unwrap_or_else(|| {
                self.salt = self.salt.wrapping_add(1);
                made_up_id(self.salt)
            });
            let call = ToolCall::new(id, name, arguments);
            events.push(ChatEvent::ToolCall { call, raw: std::mem::take(&mut raw) });
        }
    }

    /// Gives out text and reasoning that cannot be the beginning of a mark, nor the line breaks before one.
    fn release(&mut self, events: &mut Vec<ChatEvent>) {
        let (marks, event): (_, fn(String) -> ChatEvent) = match &self.within {
            None => (&self.format.begin, ChatEvent::Text),
            Some((Kind::Think, _)) => (&self.end, ChatEvent::Thinking),
            Some(_) => return,
        };
        let mut certain = self.held.len() - marks.undecided(self.position);
        let said = self.held[..certain].trim_end_matches('\n').len();
        let waits = !(marks.strings().is_empty() || self.after_mark && said == 0);
        if waits {
            certain = said;
        }
        let rest = self.held.split_off(certain);
        let certain = std::mem::replace(&mut self.held, rest);
        self.say(event, &certain, events);
    }

    /// Gives out the text between two marks, or its beginning.
    fn say(&mut self, event: fn(String) -> ChatEvent, text: &str, events: &mut Vec<ChatEvent>) {
        let said = if self.after_mark { text.trim_start_matches('\n') } else { text };
        mark(events, &[&text[..text.len() - said.len()]]);
        if !said.is_empty() {
            self.after_mark = false;
            events.push(event(said.to_owned()));
        }
    }

    /// [`say`](Self::say) the text's end: line breaks belong to the mark that follows.
    fn say_before_mark(&mut self, event: fn(String) -> ChatEvent, text: &str, events: &mut Vec<ChatEvent>) {
        let said = text.trim_end_matches('\n');
        let breaks = &text[said.len()..];
        self.say(event, said, events);
        mark(events, &[breaks]);
    }
}

/// Appends a mark, if there is any text to it.
fn mark(events: &mut Vec<ChatEvent>, texts: &[&str]) {
    let text = texts.concat();
    if !text.is_empty() {
        events.push(ChatEvent::Mark(text));
    }
}

/// Nine letters and digits, the form that Mistral's templates insist on, from a number (SplitMix64's mixer).
fn made_up_id(number: u64) -> String {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let mut z = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let digit = |place: u32| char::from(DIGITS[(z / 36_u64.pow(place) % 36) as usize]);
    (0..9).map(digit).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ALL: &str = "<think></think><tool_call><function=[TOOL_CALLS]```tool_code<｜tool▁calls▁begin｜>";

    fn parser(template: &str, prompt: &str) -> AnswerParser {
        AnswerParser::new(Arc::new(AnswerFormat::of(template).unwrap()), prompt)
    }

    fn events(mut parser: AnswerParser, pieces: &[&str]) -> Vec<ChatEvent> {
        let mut events = Vec::new();
        pieces.iter().for_each(|piece| parser.push(piece, &mut events));
        parser.finish(&mut events);
        events
    }

    /// The parts of an answer without marks, neighbouring texts in one, and of calls what they call.
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
        let expected =
            [thinking("hm"), text("I look."), call("get", json!({"a": [1]})), call("b", json!({}))];
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
        for answer in [
            "<tool_call>{\"name\": </tool_call>",
            "<tool_call>",
            "[TOOL_CALLS][{]",
            "```tool_code\nx = 1\n```",
        ] {
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
        let arguments =
            json!({"city": "Zürich, {now}", "days": -2, "deep": {"a": [true, null, 1.5], "b c": ""}});
        let expected =
            [thinking("Hm."), text("I look."), call("get_weather", arguments), call("f", json!({}))];
        assert_eq!(parts(template, "", &[answer]), expected);
        for answer in ["<|tool_call>call:f{a:<|\"|>}<tool_call|>", "<|tool_call>f{}<tool_call|>"] {
            let parts = parts(template, "", &[answer]);
            assert!(
                matches!(&parts[..], [ChatEvent::UnparsedToolCall { raw, .. }] if raw == answer),
                "{parts:?}"
            );
        }
        assert_eq!(AnswerFormat::of(template).unwrap().thinking_end(), Some("<channel|>"));
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
        assert_eq!(
            parts(template, "", &[two]),
            [call("f", json!({"x": "a, b", "y": 2})), call("g", json!({}))]
        );
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
        let ids = |answer: &str, salt: u64| -> Vec<String> {
            let events = events(parser(ALL, "").with_salt(salt), &[answer]);
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
}
