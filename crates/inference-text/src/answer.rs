//! Separates an answer into text, reasoning and tool calls while it streams in.

mod begun;
mod call;
mod calls;
mod format;
mod literal;
mod notation;
mod scanner;
mod schema;
#[cfg(test)]
mod tests;
mod xml;

use std::sync::Arc;

use inference_core::{
    ChatEvent, ToolCall,
    backend::{StopPosition, StopStrings},
};
use serde_json::Value;

pub use self::format::AnswerFormat;
pub(crate) use self::notation::{CallForm, CallNotation};
use self::{
    begun::{Begun, Unread},
    call::{Calls, ParsedCall},
    format::{Delimiter, Kind, MESSAGE_ENDS},
    scanner::{Quoting, StringScanner},
    xml::Notation,
};

/// Splits an answer into its parts as it comes.
///
/// It has to see all delimiters of the format, also those that are special tokens. Line breaks next to a delimiter belong to it.
///
/// ```
/// use std::sync::Arc;
///
/// use inference_core::ChatEvent;
/// use inference_text::{AnswerFormat, AnswerParser};
///
/// let format = Arc::new(AnswerFormat::from_template("…</think>…<tool_call>…").unwrap());
/// let mut parser = AnswerParser::new(format, false);
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
    position: StopPosition,
    /// Whether it stands within a string, where no delimiter counts.
    strings: StringScanner,
    /// What was read of it and not given out.
    held: String,
    /// Whether line breaks belong to the delimiter before them.
    after_mark: bool,
    /// Whether the answer may turn out to be nothing but calls: blanks are all that came, and they are held.
    may_be_bare: bool,
    tools: Vec<Value>,
    /// Whether calls are told while they are written.
    follows_calls: bool,
    /// How far the call that is being written was told.
    begun: Begun,
    /// The id under which it was told.
    begun_id: Option<String>,
    /// The number that the ids of calls are made from.
    id_seed: u64,
}

impl AnswerParser {
    /// A parser for one answer, which may begin within reasoning: where its prompt opens it.
    #[must_use]
    pub fn new(format: Arc<AnswerFormat>, starts_in_reasoning: bool) -> Self {
        let ends = if starts_in_reasoning { format.reasoning_ends() } else { Vec::new() };
        let mut parser = Self {
            within: None,
            end: format.begin.clone(),
            format,
            position: StopPosition::START,
            strings: StringScanner::new(Quoting::None),
            held: String::new(),
            after_mark: false,
            may_be_bare: false,
            tools: Vec::new(),
            follows_calls: false,
            begun: Begun::Over,
            begun_id: None,
            id_seed: 0,
        };
        if !ends.is_empty() {
            parser.enter(Kind::Reasoning, String::new(), &ends);
        }
        parser
    }

    /// The definitions of the tools that the model was given: where arguments come without types, those of the definition are
    /// used. Only with tools can an answer without delimiters be a call.
    #[must_use]
    pub fn with_tools(mut self, tools: &[Value]) -> Self {
        self.tools = tools.to_vec();
        self.may_be_bare = !self.format.bare.is_empty() && !tools.is_empty() && self.within.is_none();
        self
    }

    /// Makes the ids of calls from this number, which should differ from answer to answer.
    #[must_use]
    pub fn with_id_seed(mut self, id_seed: u64) -> Self {
        self.id_seed = id_seed;
        self
    }

    /// Tells calls while they are written, where their notation allows it: [`ChatEvent::ToolCallBegun`] and pieces of the arguments
    /// come before the whole call.
    #[must_use]
    pub fn following_calls(mut self) -> Self {
        self.follows_calls = true;
        self
    }

    /// Whether what comes next continues reasoning.
    #[must_use]
    pub fn is_thinking(&self) -> bool {
        matches!(self.within, Some((Kind::Reasoning, _)))
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
        if let Some((kind, opened)) = self.within.take() {
            self.follow(kind, &opened, events);
            self.within = Some((kind, opened));
        }
    }

    /// Tells what is new of the call that is being written.
    fn follow(&mut self, kind: Kind, opened: &str, events: &mut Vec<ChatEvent>) {
        if self.begun == Begun::Head {
            match begun::head(kind, opened, &self.held) {
                Ok(head) => {
                    let id = head.id.unwrap_or_else(|| self.next_id());
                    self.begun_id = Some(id.clone());
                    self.begun = Begun::arguments(head.arguments);
                    events.push(ChatEvent::ToolCallBegun { id, name: head.name });
                }
                Err(Unread::Incomplete) => return,
                Err(Unread::Other) => self.begun = Begun::Over,
            }
        }
        self.follow_arguments(events);
    }

    fn follow_arguments(&mut self, events: &mut Vec<ChatEvent>) {
        let piece = self.begun.advance(&self.held);
        if !piece.is_empty() {
            events.push(ChatEvent::ToolCallArguments(piece.to_owned()));
        }
    }

    /// Takes a special token, which is not text for the reader: a delimiter of the format, or an unrelated one.
    pub fn push_special(&mut self, token: &str, events: &mut Vec<ChatEvent>) {
        let (marks, event): (_, fn(String) -> ChatEvent) = match &self.within {
            None => (&self.format.begin, ChatEvent::Text),
            Some((Kind::Reasoning, _)) => (&self.end, ChatEvent::Thinking),
            Some(_) => return self.push(token, events),
        };
        // The end of the text before may be the beginning of a delimiter that continues with this token.
        let begun = &self.held[self.held.len() - marks.undecided(self.position)..];
        if marks
            .strings()
            .iter()
            .any(|mark| mark.strip_prefix(begun).is_some_and(|mark| mark.starts_with(token)))
        {
            return self.push(token, events);
        }
        let held = std::mem::take(&mut self.held);
        self.position = StopPosition::START;
        self.say(event, &held, events);
        mark(events, &[token]);
    }

    /// Appends what is still held. A call that was not ended is read as far as it came.
    pub fn finish(&mut self, events: &mut Vec<ChatEvent>) {
        self.position = StopPosition::START;
        self.follow_arguments(events);
        let body = std::mem::take(&mut self.held);
        match self.within.take() {
            None => self.say(ChatEvent::Text, &body, events),
            Some((Kind::Reasoning, _)) => self.say(ChatEvent::Thinking, &body, events),
            Some((Kind::Role | Kind::Channel | Kind::ReasoningHeader, opened)) => {
                mark(events, &[&opened, &body]);
            }
            Some((Kind::Bare, _)) => match calls::json_or_python(&body) {
                Ok(calls) => self.call(calls, body, events),
                Err(_) => self.say(ChatEvent::Text, &body, events),
            },
            Some((kind, opened)) => self.finish_call(kind, &opened, &body, events),
        }
    }

    /// Reads a call that the answer's end cut off, or whose end was taken for part of a string because a quote is missing:
    /// where what stands before one of its ends can be read, it is a call.
    fn finish_call(&mut self, kind: Kind, opened: &str, body: &str, events: &mut Vec<ChatEvent>) {
        let whole = self.parse(kind, opened, body);
        let parts = if whole.is_ok() { vec![body] } else { split_behind(body, self.end.strings()) };
        let calls: Vec<Calls> = parts.iter().map(|part| self.parse_part(kind, opened, part)).collect();
        if parts.len() < 2 || calls.iter().all(Result::is_err) {
            return self.give_out(whole, format!("{opened}{body}"), events);
        }
        let mut raw = opened.to_owned();
        for (part, calls) in parts.into_iter().zip(calls) {
            raw.push_str(part);
            self.give_out(calls, std::mem::take(&mut raw), events);
        }
    }

    /// A part of a body with its own delimiters.
    fn parse_part(&self, kind: Kind, opened: &str, part: &str) -> Calls {
        let body = part.trim();
        let body = body.strip_prefix(opened).unwrap_or(body);
        let ends = self.end.strings();
        let body = ends.iter().find_map(|end| body.strip_suffix(end.as_str())).unwrap_or(body);
        self.parse(kind, opened, body)
    }

    /// Reads up to the next delimiter; returns what follows it.
    fn take<'a>(&mut self, piece: &'a str, events: &mut Vec<ChatEvent>) -> &'a str {
        let marks = if self.within.is_some() { &self.end } else { &self.format.begin };
        for (at, byte) in piece.bytes().enumerate() {
            self.strings.step(byte);
            self.position = marks.step(self.position, byte);
            let Some(found) = marks.complete(self.position) else { continue };
            let closed = marks.strings()[found].clone();
            // What was taken before this piece is not taken again where the delimiter turns out to be text.
            let before = self.held.len();
            self.held.push_str(&piece[..=at]);
            let body = self.held.len() - closed.len();
            if !self.may_end(&self.held[..body]) {
                self.held.truncate(before);
                continue;
            }
            self.held.truncate(body);
            self.position = StopPosition::START;
            // A call that came in one piece is told as a whole.
            self.follow_arguments(events);
            self.begun = Begun::Over;
            let body = std::mem::take(&mut self.held);
            match self.within.take() {
                None => {
                    self.say_before_mark(ChatEvent::Text, &body, events);
                    let Delimiter { text, kind, ends } = self.format.delimiters[found];
                    match kind {
                        Kind::Nothing => mark(events, &[text]),
                        Kind::Reasoning => {
                            mark(events, &[text]);
                            self.enter(kind, String::new(), ends);
                        }
                        kind => self.enter(kind, text.to_owned(), ends),
                    }
                }
                Some((Kind::Reasoning, _)) => {
                    self.say_before_mark(ChatEvent::Thinking, &body, events);
                    mark(events, &[&closed]);
                }
                Some((Kind::ReasoningHeader, opened)) => {
                    mark(events, &[&opened, &body, &closed]);
                    self.enter(Kind::Reasoning, String::new(), &["<channel|>"]);
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
            self.enter(Kind::Reasoning, String::new(), MESSAGE_ENDS);
        }
    }

    fn enter(&mut self, kind: Kind, opened: String, ends: &[&str]) {
        self.within = Some((kind, opened));
        self.begun = if self.follows_calls { Begun::Head } else { Begun::Over };
        self.begun_id = None;
        self.after_mark = true;
        // The ends are constants, none of them empty or long.
        self.end = StopStrings::new(ends.iter().copied()).unwrap_or_else(|_| self.format.begin.clone());
        self.position = StopPosition::START;
        self.strings = StringScanner::new(kind.quoting());
    }

    /// Reads what is marked as a call.
    fn read(&mut self, kind: Kind, opened: &str, body: &str, closed: &str, events: &mut Vec<ChatEvent>) {
        let calls = self.parse(kind, opened, body);
        self.give_out(calls, format!("{opened}{body}{closed}"), events);
    }

    fn give_out(&mut self, calls: Calls, raw: String, events: &mut Vec<ChatEvent>) {
        match calls {
            Ok(calls) => self.call(calls, raw, events),
            Err(reason) => {
                self.begun_id = None;
                events.push(ChatEvent::UnparsedToolCall { raw, reason });
            }
        }
    }

    /// Whether an end delimiter behind this body ends it, by the notation's grammar.
    fn may_end(&self, body: &str) -> bool {
        match &self.within {
            Some((Kind::Tagged, opened)) => match Notation::of(opened, body) {
                Notation::Json => !self.strings.in_string(),
                notation => xml::is_complete(notation, opened, body),
            },
            _ => !self.strings.in_string(),
        }
    }

    fn parse(&self, kind: Kind, opened: &str, body: &str) -> Calls {
        match kind {
            Kind::Tagged if opened == "<function=" => xml::tagged(&format!("{opened}{body}"), &self.tools),
            Kind::Tagged => xml::tagged(body, &self.tools),
            Kind::List => calls::json(body),
            Kind::Mistral => calls::mistral(body),
            Kind::Code => calls::json_or_python(body),
            Kind::Gemma => literal::gemma(body),
            Kind::DeepSeek => calls::deepseek(body),
            Kind::Kimi => calls::kimi(body),
            Kind::ChannelCall => calls::channel(opened, body),
            Kind::Reasoning
            | Kind::ReasoningHeader
            | Kind::Channel
            | Kind::Role
            | Kind::Bare
            | Kind::Nothing => Err("it is not a call".to_owned()),
        }
    }

    /// Gives out calls, the first of them with their text.
    fn call(&mut self, calls: Vec<ParsedCall>, mut raw: String, events: &mut Vec<ChatEvent>) {
        for ParsedCall { id, name, arguments } in calls {
            // The first call is the one that was told, if one was.
            let id = self.begun_id.take().or(id).unwrap_or_else(|| self.next_id());
            let call = ToolCall::new(id, name, arguments);
            events.push(ChatEvent::ToolCall { call, raw: std::mem::take(&mut raw) });
        }
    }

    fn next_id(&mut self) -> String {
        self.id_seed = self.id_seed.wrapping_add(1);
        made_up_id(self.id_seed)
    }

    /// Emits text and reasoning that cannot be the beginning of a delimiter, nor the line breaks before one.
    fn release(&mut self, events: &mut Vec<ChatEvent>) {
        let (marks, event): (_, fn(String) -> ChatEvent) = match &self.within {
            None => (&self.format.begin, ChatEvent::Text),
            Some((Kind::Reasoning, _)) => (&self.end, ChatEvent::Thinking),
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

    /// Emits the text between two delimiters, or its beginning.
    fn say(&mut self, event: fn(String) -> ChatEvent, text: &str, events: &mut Vec<ChatEvent>) {
        let said = if self.after_mark { text.trim_start_matches('\n') } else { text };
        mark(events, &[&text[..text.len() - said.len()]]);
        if !said.is_empty() {
            self.after_mark = false;
            events.push(event(said.to_owned()));
        }
    }

    /// [`say`](Self::say) the text's end: line breaks belong to the delimiter that follows.
    fn say_before_mark(&mut self, event: fn(String) -> ChatEvent, text: &str, events: &mut Vec<ChatEvent>) {
        let said = text.trim_end_matches('\n');
        let breaks = &text[said.len()..];
        self.say(event, said, events);
        mark(events, &[breaks]);
    }
}

/// Cuts a text behind each of these strings.
fn split_behind<'t>(mut text: &'t str, ends: &[String]) -> Vec<&'t str> {
    let mut parts = Vec::new();
    let next = |text: &str| {
        let found = ends.iter().filter_map(|end| text.find(end.as_str()).map(|at| at + end.len()));
        found.min()
    };
    while let Some(end) = next(text).filter(|end| *end < text.len()) {
        let (part, rest) = text.split_at(end);
        parts.push(part);
        text = rest;
    }
    parts.push(text);
    parts
}

/// Appends a delimiter unless its text is empty.
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
