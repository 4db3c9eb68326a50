//! How families of models mark what is not text.

use crate::StopStrings;

/// What a mark begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Reasoning.
    Think,
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
    Thought,
    /// `<|channel|>`: the header of a message (gpt-oss).
    Channel,
    /// The body of a message that is a call (gpt-oss).
    ChannelCall,
    /// `<|start|>`: who speaks (gpt-oss).
    Role,
    /// A bare JSON object (Llama 3) or list of calls in Python (Llama 4) that is the whole answer.
    Bare,
    /// Nothing: the mark stands alone.
    Nothing,
}

/// A mark that begins something, and the marks that end it. What has no end lasts to the answer's end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark {
    pub(super) text: &'static str,
    pub(super) kind: Kind,
    pub(super) ends: &'static [&'static str],
}

const fn mark(text: &'static str, kind: Kind, ends: &'static [&'static str]) -> Mark {
    Mark { text, kind, ends }
}

const MARKS: &[Mark] = &[
    mark("<think>", Kind::Think, &["</think>"]),
    mark("[THINK]", Kind::Think, &["[/THINK]"]),
    mark("<|inner_prefix|>", Kind::Think, &["<|inner_suffix|>"]),
    mark("<|START_THINKING|>", Kind::Think, &["<|END_THINKING|>"]),
    mark("<|channel>", Kind::Thought, &["\n"]),
    mark("<tool_call>", Kind::Tagged, &["</tool_call>"]),
    mark("<function=", Kind::Tagged, &["</function>"]),
    mark("<TOOLCALL>", Kind::List, &["</TOOLCALL>"]),
    mark("<|tool_call|>", Kind::List, &["<|/tool_call|>"]),
    mark("functools", Kind::List, &[]),
    mark("<|tools_prefix|>", Kind::List, &["<|tools_suffix|>"]),
    mark("<|START_ACTION|>", Kind::List, &["<|END_ACTION|>"]),
    mark("Action:\n```json", Kind::List, &["```"]),
    mark("Action: ```json", Kind::List, &["```"]),
    mark("function call<|role_sep|>", Kind::List, &["<|message_sep|>"]),
    mark("<|tool_call>", Kind::Gemma, &["<tool_call|>"]),
    mark("[TOOL_CALLS]", Kind::Mistral, &[]),
    mark("<|python_tag|>", Kind::Code, &["<|eom_id|>", "<|eot_id|>"]),
    mark("```tool_code", Kind::Code, &["```"]),
    mark("<|tool_call_start|>", Kind::Code, &["<|tool_call_end|>"]),
    mark("<｜tool▁calls▁begin｜>", Kind::DeepSeek, &["<｜tool▁calls▁end｜>"]),
    mark("<|tool_calls_section_begin|>", Kind::Kimi, &["<|tool_calls_section_end|>"]),
    mark("<|channel|>", Kind::Channel, &["<|message|>"]),
    mark("<|start|>", Kind::Role, &["<|channel|>", "<|message|>"]),
    mark("<|START_RESPONSE|>", Kind::Nothing, &[]),
    mark("<|END_RESPONSE|>", Kind::Nothing, &[]),
];

/// What ends a message (gpt-oss).
pub(super) const MESSAGE_ENDS: &[&str] = &["<|end|>", "<|return|>", "<|call|>"];

/// What a family's answers are marked with, by the marks that its chat template uses.
#[derive(Debug, Clone)]
pub struct AnswerFormat {
    pub(super) marks: Vec<Mark>,
    /// The texts of the marks, in their order.
    pub(super) begin: StopStrings,
    /// What an answer begins with that may be nothing but calls.
    pub(super) bare: &'static [char],
}

impl AnswerFormat {
    /// The format of a model with this chat template (its source); without marks for a template without.
    ///
    /// # Errors
    /// None in practice: the marks are fixed.
    pub fn of(template: &str) -> inference_core::Result<Self> {
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
        let mut marks: Vec<Mark> = MARKS.iter().filter(|mark| known(mark.text)).copied().collect();
        if known("<|channel|>") {
            marks.extend(MESSAGE_ENDS.iter().map(|text| mark(text, Kind::Nothing, &[])));
        }
        let begin = StopStrings::new(marks.iter().map(|mark| mark.text))?;
        // Llama 3 is told by its own tag, or by what its template says of calls; so is Llama 4.
        let bare: &[char] = if template.contains("[func_name1(") {
            &['[', '{']
        } else if known("<|python_tag|>") || template.contains("\"parameters\": dictionary") {
            &['{']
        } else {
            &[]
        };
        Ok(Self { marks, begin, bare })
    }

    /// What has to follow reasoning to end it; `None` where the family marks none.
    #[must_use]
    pub fn thinking_end(&self) -> Option<&'static str> {
        self.marks.iter().find_map(|mark| match mark.kind {
            Kind::Think => mark.ends.first().copied(),
            Kind::Thought => Some("<channel|>"),
            Kind::Channel => Some("<|end|><|start|>assistant<|channel|>final<|message|>"),
            _ => None,
        })
    }
}
