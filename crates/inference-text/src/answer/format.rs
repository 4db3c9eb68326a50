//! The delimiters by which model families separate reasoning and tool calls from text.

use inference_core::backend::StopStrings;

use super::{notation::CallNotation, scanner::Quoting};

/// What a delimiter begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reasoning.
    Reasoning,
    /// `<tool_call>`: JSON (Hermes, Qwen), `<function=…>` (Qwen3-Coder) or `<arg_key>` (GLM).
    Tagged,
    /// `<TOOLCALL>` (Nemotron), `<|tool_call|>` (Phi 4, Granite 3), `functools` (Firefunction), `<|tools_prefix|>` (Apertus),
    /// `Action:` (Command R), `<|START_ACTION|>` (Command A) or a role of its own (GigaChat): JSON.
    List,
    /// `[TOOL_CALLS]` (Mistral).
    Mistral,
    /// `<|python_tag|>` (Llama 3), a fenced block of code (Gemma), `<|tool_call_start|>` (LFM 2): JSON or Python.
    Code,
    /// DeepSeek's begin and end.
    DeepSeek,
    /// Kimi's begin and end.
    Kimi,
    /// `<|tool_call>` (Gemma 4).
    Gemma,
    /// `<|channel>`: the name of what follows, which is reasoning (Gemma 4).
    ReasoningHeader,
    /// `<|channel|>`: the header of a message (gpt-oss).
    Channel,
    /// The body of a message that is a call (gpt-oss).
    ChannelCall,
    /// `<|start|>`: who speaks (gpt-oss).
    Role,
    /// A bare JSON object (Llama 3) or list of calls in Python (Llama 4) that is the whole answer.
    Bare,
    /// Nothing: the delimiter stands alone.
    Nothing,
}

impl Kind {
    /// How strings are quoted in it.
    pub(super) fn quoting(self) -> Quoting {
        match self {
            Self::Tagged | Self::List | Self::Mistral | Self::DeepSeek | Self::Kimi | Self::ChannelCall => {
                Quoting::Json
            }
            Self::Code | Self::Bare => Quoting::Python,
            Self::Gemma => Quoting::Gemma,
            Self::Reasoning | Self::ReasoningHeader | Self::Channel | Self::Role | Self::Nothing => {
                Quoting::None
            }
        }
    }
}

/// A delimiter that begins a part, and the delimiters that end it. A part without an end lasts to the answer's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Delimiter {
    pub(super) text: &'static str,
    pub(super) kind: Kind,
    pub(super) ends: &'static [&'static str],
}

const fn delimiter(text: &'static str, kind: Kind, ends: &'static [&'static str]) -> Delimiter {
    Delimiter { text, kind, ends }
}

const DELIMITERS: &[Delimiter] = &[
    delimiter("<think>", Kind::Reasoning, &["</think>"]),
    delimiter("[THINK]", Kind::Reasoning, &["[/THINK]"]),
    delimiter("<|inner_prefix|>", Kind::Reasoning, &["<|inner_suffix|>"]),
    delimiter("<|START_THINKING|>", Kind::Reasoning, &["<|END_THINKING|>"]),
    delimiter("<|channel>", Kind::ReasoningHeader, &["\n"]),
    delimiter("<tool_call>", Kind::Tagged, &["</tool_call>"]),
    delimiter("<function=", Kind::Tagged, &["</function>"]),
    delimiter("<TOOLCALL>", Kind::List, &["</TOOLCALL>"]),
    delimiter("<|tool_call|>", Kind::List, &["<|/tool_call|>"]),
    delimiter("functools", Kind::List, &[]),
    delimiter("<|tools_prefix|>", Kind::List, &["<|tools_suffix|>"]),
    delimiter("<|START_ACTION|>", Kind::List, &["<|END_ACTION|>"]),
    delimiter("Action:\n```json", Kind::List, &["```"]),
    delimiter("Action: ```json", Kind::List, &["```"]),
    delimiter("function call<|role_sep|>", Kind::List, &["<|message_sep|>"]),
    delimiter("<|tool_call>", Kind::Gemma, &["<tool_call|>"]),
    delimiter("[TOOL_CALLS]", Kind::Mistral, &[]),
    delimiter("<|python_tag|>", Kind::Code, &["<|eom_id|>", "<|eot_id|>"]),
    delimiter("```tool_code", Kind::Code, &["```"]),
    delimiter("<|tool_call_start|>", Kind::Code, &["<|tool_call_end|>"]),
    delimiter("<｜tool▁calls▁begin｜>", Kind::DeepSeek, &["<｜tool▁calls▁end｜>"]),
    delimiter("<|tool_calls_section_begin|>", Kind::Kimi, &["<|tool_calls_section_end|>"]),
    delimiter("<|channel|>", Kind::Channel, &["<|message|>"]),
    delimiter("<|start|>", Kind::Role, &["<|channel|>", "<|message|>"]),
    delimiter("<|START_RESPONSE|>", Kind::Nothing, &[]),
    delimiter("<|END_RESPONSE|>", Kind::Nothing, &[]),
];

/// What ends a message (gpt-oss).
pub(super) const MESSAGE_ENDS: &[&str] = &["<|end|>", "<|return|>", "<|call|>"];

/// The delimiters of a family's answers, found in its chat template.
#[derive(Debug, Clone)]
pub struct AnswerFormat {
    pub(super) delimiters: Vec<Delimiter>,
    /// The texts of the delimiters, in their order.
    pub(super) begin: StopStrings,
    /// What an answer begins with that may be nothing but calls.
    pub(super) bare: &'static [char],
    /// How calls are written that are held to their tools' schemas.
    calls: Option<CallNotation>,
}

impl AnswerFormat {
    /// The format of a model with this chat template (its source); without delimiters for a template without.
    ///
    /// # Errors
    /// None in practice: the delimiters are fixed.
    pub fn from_template(template: &str) -> inference_core::Result<Self> {
        let known = |mark: &str| match mark {
            // Templates that only take reasoning out of the history name its end alone.
            "<think>" => template.contains("</think>"),
            "<function=" => template.contains("<function"),
            "functools" => template.contains("functools["),
            // What a template says within quotes, it says in Jinja's own spelling.
            mark if mark.starts_with("Action:") => {
                template.contains("Action:") && template.contains("\"tool_name\"")
            }
            "function call<|role_sep|>" => {
                template.contains("function call") && template.contains("<|role_sep|>")
            }
            mark => template.contains(mark),
        };
        let mut delimiters: Vec<Delimiter> =
            DELIMITERS.iter().filter(|delimiter| known(delimiter.text)).copied().collect();
        if known("<|channel|>") {
            delimiters.extend(MESSAGE_ENDS.iter().map(|text| delimiter(text, Kind::Nothing, &[])));
        }
        let begin = StopStrings::new(delimiters.iter().map(|delimiter| delimiter.text))?;
        // Llama 3 is told by its own tag, or by what its template says of calls; so is Llama 4.
        let bare: &[char] = if template.contains("[func_name1(") {
            &['[', '{']
        } else if known("<|python_tag|>") || template.contains("\"parameters\": dictionary") {
            &['{']
        } else {
            &[]
        };
        Ok(Self { delimiters, begin, bare, calls: CallNotation::of_template(template) })
    }

    /// Whether a rendered prompt ends with a delimiter that opens reasoning: its answer begins within reasoning.
    #[must_use]
    pub fn opens_reasoning(&self, prompt: &str) -> bool {
        let prompt = prompt.trim_end();
        self.reasoning().any(|delimiter| prompt.ends_with(delimiter.text))
    }

    /// What ends reasoning that a prompt opened.
    pub(super) fn reasoning_ends(&self) -> Vec<&'static str> {
        self.reasoning().flat_map(|delimiter| delimiter.ends).copied().collect()
    }

    fn reasoning(&self) -> impl Iterator<Item = &Delimiter> {
        self.delimiters.iter().filter(|delimiter| delimiter.kind == Kind::Reasoning)
    }

    /// How calls are written; `None` where that is not known well enough to hold a model to it.
    pub(crate) fn call_notation(&self) -> Option<CallNotation> {
        self.calls
    }

    /// The delimiter that begins reasoning; `None` where the family has none, or writes a header.
    pub(crate) fn thinking_begin(&self) -> Option<&'static str> {
        self.reasoning().next().map(|delimiter| delimiter.text)
    }

    /// Whether the family has delimiters for reasoning.
    #[must_use]
    pub fn has_reasoning(&self) -> bool {
        self.thinking_end().is_some()
    }

    /// The delimiter that ends reasoning; `None` where the family has none.
    #[must_use]
    pub fn thinking_end(&self) -> Option<&'static str> {
        self.delimiters.iter().find_map(|delimiter| match delimiter.kind {
            Kind::Reasoning => delimiter.ends.first().copied(),
            Kind::ReasoningHeader => Some("<channel|>"),
            Kind::Channel => Some("<|end|><|start|>assistant<|channel|>final<|message|>"),
            _ => None,
        })
    }
}
