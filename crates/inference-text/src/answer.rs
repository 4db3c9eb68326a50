//! What an answer is made of: text, reasoning, and calls of tools, told apart as the answer streams in.

mod calls;
mod literal;

use serde_json::Value;

use crate::{StopStrings, stop::Position};

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum AnswerEvent {
    /// Text for the reader.
    Text(String),
    /// The model's reasoning.
    Reasoning(String),
    /// A call of a tool.
    ToolCall {
        /// The tool's name.
        name: String,
        /// Its arguments: a JSON object.
        arguments: Value,
    },
    /// What is marked as a call and cannot be read as one; nothing that a model says is lost.
    RawToolCall {
        /// The text, marks included.
        text: String,
        /// Why it is no call.
        reason: String,
    },
}

/// How a family of models marks what is not text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Reasoning.
    Think,
    /// `<tool_call>`: JSON (Hermes, Qwen), `<function=…>` (Qwen3-Coder) or `<arg_key>` (GLM).
    Tagged,
    /// `[TOOL_CALLS]` (Mistral).
    Mistral,
    /// `<|python_tag|>` (Llama 3).
    PythonTag,
    /// A fenced block of code that calls (Gemma).
    ToolCode,
    /// DeepSeek's begin and end.
    DeepSeek,
    /// `<|channel|>`: the header of a message (gpt-oss).
    Channel,
    /// The body of a message that is a call (gpt-oss).
    ChannelCall,
    /// `<|start|>`: who speaks (gpt-oss).
    Role,
    /// A bare JSON object that is the whole answer (Llama 3).
    Json,
}

/// Marks that begin something, what they begin, and the marks that end it. What has no end lasts to the answer's end.
const MARKS: &[(&str, Kind, &[&str])] = &[
    ("<think>", Kind::Think, &["</think>"]),
    ("<tool_call>", Kind::Tagged, &["</tool_call>"]),
    ("<function=", Kind::Tagged, &["</function>"]),
    ("[TOOL_CALLS]", Kind::Mistral, &[]),
    ("<|python_tag|>", Kind::PythonTag, &["<|eom_id|>", "<|eot_id|>"]),
    ("```tool_code", Kind::ToolCode, &["```"]),
    ("<｜tool▁calls▁begin｜>", Kind::DeepSeek, &["<｜tool▁calls▁end｜>"]),
    ("<|channel|>", Kind::Channel, &["<|message|>"]),
    ("<|start|>", Kind::Role, &["<|channel|>", "<|message|>"]),
];

const MESSAGE_ENDS: &[&str] = &["<|end|>", "<|return|>", "<|call|>"];

/// Splits an answer into its parts as it comes.
///
/// The marks that it looks for are those that the model's chat template uses. The parser needs to see them: detokenise
/// with special tokens kept.
///
/// ```
/// use inference_text::{AnswerEvent, AnswerParser};
///
/// let mut parser = AnswerParser::new("…<think>…<tool_call>…", "").unwrap();
/// let mut events = Vec::new();
/// for piece in ["<thi", "nk>2+2</think>Four.<tool_", "call>{\"name\": \"f\", \"arguments\": {}}</tool_call>"] {
///     parser.push(piece, &mut events);
/// }
/// parser.finish(&mut events);
/// assert_eq!(events[0], AnswerEvent::Reasoning("2+2".to_owned()));
/// assert_eq!(events[1], AnswerEvent::Text("Four.".to_owned()));
/// assert!(matches!(&events[2], AnswerEvent::ToolCall { name, .. } if name == "f"));
/// ```
#[derive(Debug)]
pub struct AnswerParser {
    /// What begins something, in text; the strings are those of `marks`.
    begin: StopStrings,
    marks: Vec<(&'static str, Option<Kind>, &'static [&'static str])>,
    /// What is being read, with the mark that began it; text where nothing is.
    within: Option<(Kind, String)>,
    /// What ends it.
    end: StopStrings,
    position: Position,
    /// What was read of it and not given out.
    held: String,
    /// Whether the template is of a family that answers with bare JSON, and nothing was said yet.
    may_be_json: bool,
    tools: Vec<Value>,
}

impl AnswerParser {
    /// A parser for a model with this chat template (its source), that answers this rendered prompt: a prompt that ends within
    /// the reasoning has the answer begin there.
    ///
    /// # Errors
    /// None in practice: the marks are fixed.
    pub fn new(template: &str, prompt: &str) -> inference_core::Result<Self> {
        let known =
            |mark: &str| template.contains(mark) || mark == "<function=" && template.contains("<function");
        let mut marks: Vec<_> = MARKS
            .iter()
            .filter(|(mark, ..)| known(mark))
            .map(|(mark, kind, ends)| (*mark, Some(*kind), *ends))
            .collect();
        if template.contains("<|channel|>") {
            marks.extend(MESSAGE_ENDS.iter().map(|mark| (*mark, None, &[] as &[&str])));
        }
        let begin = StopStrings::new(marks.iter().map(|(mark, ..)| *mark))?;
        let mut parser = Self {
            begin,
            marks,
            within: None,
            end: StopStrings::new(Vec::<String>::new())?,
            position: Position::START,
            held: String::new(),
            // Llama 3 is told by its own tag.
            may_be_json: template.contains("<|python_tag|>")
                || template.contains("\"parameters\": dictionary"),
            tools: Vec::new(),
        };
        if template.contains("</think>") && prompt.trim_end().ends_with("<think>") {
            parser.enter(Kind::Think, "", &["</think>"]);
        }
        Ok(parser)
    }

    /// The definitions of the tools: where arguments come without types, those of the definition are used.
    #[must_use]
    pub fn with_tools(mut self, tools: &[Value]) -> Self {
        self.tools = tools.to_vec();
        self
    }

    /// Takes the next piece of the answer and appends the parts that are certain by it.
    pub fn push(&mut self, piece: &str, events: &mut Vec<AnswerEvent>) {
        let mut rest = piece;
        if self.may_be_json && self.within.is_none() && self.held.is_empty() {
            let text = rest.trim_start();
            if text.starts_with('{') {
                self.enter(Kind::Json, "", &[]);
            }
            self.may_be_json = text.is_empty();
        }
        while !rest.is_empty() {
            rest = self.take(rest, events);
        }
        self.release(events);
    }

    /// Appends what is still held. A call that was not ended is read as far as it came.
    pub fn finish(&mut self, events: &mut Vec<AnswerEvent>) {
        self.position = Position::START;
        if let Some((kind, mark)) = self.within.take() {
            let body = std::mem::take(&mut self.held);
            match kind {
                Kind::Think => give(events, AnswerEvent::Reasoning(body)),
                Kind::Role => {}
                Kind::Json => match calls::json(&body) {
                    Ok(calls) => events.extend(calls),
                    Err(_) => give(events, AnswerEvent::Text(body)),
                },
                _ => self.read(kind, &mark, &body, "", events),
            }
        } else {
            give(events, AnswerEvent::Text(std::mem::take(&mut self.held)));
        }
    }

    /// Reads up to the next mark; what is left behind it.
    fn take<'a>(&mut self, piece: &'a str, events: &mut Vec<AnswerEvent>) -> &'a str {
        let marks = if self.within.is_some() { &self.end } else { &self.begin };
        for (at, byte) in piece.bytes().enumerate() {
            self.position = marks.step(self.position, byte);
            let Some(found) = marks.complete(self.position) else { continue };
            let mark = marks.strings()[found].clone();
            self.held.push_str(&piece[..=at]);
            self.held.truncate(self.held.len() - mark.len());
            self.position = Position::START;
            let body = std::mem::take(&mut self.held);
            match self.within.take() {
                None => {
                    give(events, AnswerEvent::Text(body));
                    let (mark, kind, ends) = self.marks[found];
                    if let Some(kind) = kind {
                        self.enter(kind, mark, ends);
                    }
                }
                Some((Kind::Think, _)) => give(events, AnswerEvent::Reasoning(body)),
                Some((Kind::Role, _)) if mark == "<|channel|>" => {
                    self.enter(Kind::Channel, "<|channel|>", &["<|message|>"]);
                }
                Some((Kind::Role, _)) => {}
                Some((Kind::Channel, _)) => self.enter_message(&body),
                Some((kind, opened)) => self.read(kind, &opened, &body, &mark, events),
            }
            return &piece[at + 1..];
        }
        self.held.push_str(piece);
        ""
    }

    /// gpt-oss: the header says whether the message is reasoning, a call, or text.
    fn enter_message(&mut self, header: &str) {
        if header.contains("to=") {
            self.enter(Kind::ChannelCall, header, MESSAGE_ENDS);
        } else if header.trim_start().starts_with("analysis") {
            self.enter(Kind::Think, "", MESSAGE_ENDS);
        }
    }

    fn enter(&mut self, kind: Kind, mark: &str, ends: &[&str]) {
        self.within = Some((kind, mark.to_owned()));
        // The ends are constants of this file, none of them empty or long.
        self.end = StopStrings::new(ends.iter().copied()).unwrap_or_else(|_| self.begin.clone());
        self.position = Position::START;
    }

    /// Reads a call.
    fn read(&self, kind: Kind, opened: &str, body: &str, closed: &str, events: &mut Vec<AnswerEvent>) {
        let calls = match kind {
            Kind::Tagged if opened == "<function=" => {
                calls::tagged(&format!("{opened}{body}{closed}"), &self.tools)
            }
            Kind::Tagged => calls::tagged(body, &self.tools),
            Kind::Mistral => calls::mistral(body),
            Kind::PythonTag => calls::json(body).or_else(|_| literal::calls(body)),
            Kind::ToolCode => literal::calls(body),
            Kind::DeepSeek => calls::deepseek(body),
            Kind::ChannelCall => calls::channel(opened, body),
            _ => Err("it is no call".to_owned()),
        };
        match calls {
            Ok(calls) => events.extend(calls),
            Err(reason) => {
                let opened = if kind == Kind::ChannelCall {
                    format!("<|channel|>{opened}<|message|>")
                } else {
                    opened.to_owned()
                };
                events.push(AnswerEvent::RawToolCall { text: format!("{opened}{body}{closed}"), reason });
            }
        }
    }

    /// Gives out text and reasoning that cannot be the beginning of a mark.
    fn release(&mut self, events: &mut Vec<AnswerEvent>) {
        let (marks, event): (_, fn(String) -> AnswerEvent) = match &self.within {
            None => (&self.begin, AnswerEvent::Text),
            Some((Kind::Think, _)) => (&self.end, AnswerEvent::Reasoning),
            Some(_) => return,
        };
        let certain = self.held.len() - marks.undecided(self.position);
        let rest = self.held.split_off(certain);
        give(events, event(std::mem::replace(&mut self.held, rest)));
    }
}

/// Appends a text, if there is any.
fn give(events: &mut Vec<AnswerEvent>, event: AnswerEvent) {
    if !matches!(&event, AnswerEvent::Text(text) | AnswerEvent::Reasoning(text) if text.is_empty()) {
        events.push(event);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const ALL: &str = "<think></think><tool_call><function=[TOOL_CALLS]```tool_code<｜tool▁calls▁begin｜>";

    /// The parts of an answer, with neighbouring texts in one.
    fn parts(template: &str, prompt: &str, pieces: &[&str]) -> Vec<AnswerEvent> {
        let mut parser = AnswerParser::new(template, prompt).unwrap();
        let mut events = Vec::new();
        pieces.iter().for_each(|piece| parser.push(piece, &mut events));
        parser.finish(&mut events);
        let mut joined: Vec<AnswerEvent> = Vec::new();
        for event in events {
            match (joined.last_mut(), event) {
                (Some(AnswerEvent::Text(a)), AnswerEvent::Text(b))
                | (Some(AnswerEvent::Reasoning(a)), AnswerEvent::Reasoning(b)) => a.push_str(&b),
                (_, event) => joined.push(event),
            }
        }
        joined
    }

    fn text(text: &str) -> AnswerEvent {
        AnswerEvent::Text(text.to_owned())
    }

    fn reasoning(text: &str) -> AnswerEvent {
        AnswerEvent::Reasoning(text.to_owned())
    }

    fn call(name: &str, arguments: Value) -> AnswerEvent {
        AnswerEvent::ToolCall { name: name.to_owned(), arguments }
    }

    #[test]
    fn hermes_and_qwen() {
        let answer = "<think>\nhm\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"get\", \"arguments\": {\"a\": [1]}}\n</tool_call>\n<tool_call>{\"name\": \"b\"}</tool_call>";
        let expected = [
            reasoning("\nhm\n"),
            text("\n\nI look.\n"),
            call("get", json!({"a": [1]})),
            text("\n"),
            call("b", json!({})),
        ];
        assert_eq!(parts(ALL, "", &[answer]), expected);
        assert_eq!(parts(ALL, "…<think>\n", &["a</think>b"]), [reasoning("a"), text("b")]);
    }

    #[test]
    fn qwen_coder_and_glm() {
        let coder = "<tool_call>\n<function=write>\n<parameter=path>\n12\n</parameter>\n<parameter=n>\n5\n</parameter>\n</function>\n</tool_call>";
        let tools = [
            json!({"type": "function", "function": {"name": "write", "parameters": {"properties": {"path": {"type": "string"}, "n": {"type": "integer"}}}}}),
        ];
        let mut parser = AnswerParser::new(ALL, "").unwrap().with_tools(&tools);
        let mut events = Vec::new();
        parser.push(coder, &mut events);
        assert_eq!(events, [call("write", json!({"path": "12", "n": 5}))]);
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
            [text("Sure.\n"), call("get_weather", json!({"city": "Zürich", "days": 2}))]
        );
        let v3 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n{\"x\": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
        let v31 = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{\"x\": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>";
        for answer in [v3, v31] {
            assert_eq!(parts(ALL, "", &[answer]), [call("f", json!({"x": 1}))]);
        }
        let oss = "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{\"x\": 1}<|call|>";
        let template = "<|start|><|channel|><|message|>";
        assert_eq!(parts(template, "", &[oss]), [reasoning("Think."), call("f", json!({"x": 1}))]);
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
                matches!(&events[..], [AnswerEvent::RawToolCall { text, .. }] if text == answer),
                "{events:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn where_an_answer_is_cut_does_not_matter(
            pieces in prop::collection::vec(prop_oneof![
                Just("<think>"), Just("</think>"), Just("<tool_call>"), Just("</tool_call>"), Just("<tool"), Just("{\"name\":\"f\"}"),
                Just("[TOOL_CALLS]"), Just("é"), Just("<"), Just("```tool_code"), Just("```"), Just("f(x=1)"),
            ], 0..8),
        ) {
            let answer = pieces.concat();
            let chars: Vec<String> = answer.chars().map(String::from).collect();
            let single: Vec<&str> = chars.iter().map(String::as_str).collect();
            prop_assert_eq!(parts(ALL, "", &[&answer]), parts(ALL, "", &single));
        }
    }
}
