//! How families write calls of tools, for models that are held to it.

/// How a family writes calls: `begin open call (separator call)* close`, once or several times.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CallNotation {
    /// What tells calls from text; empty where an answer that is nothing but calls begins with `open`.
    pub(crate) begin: &'static str,
    pub(crate) open: &'static str,
    /// Between the calls of one list; `None` where each call has a `begin` of its own.
    pub(crate) separator: Option<&'static str>,
    pub(crate) close: &'static str,
    pub(crate) form: CallForm,
}

/// How one call is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CallForm {
    /// The name and the arguments as JSON, between these texts.
    Json(&'static str, &'static str, &'static str),
    /// `<function=name>` and `<parameter=key>`.
    Function,
    /// `name` and `<arg_key>`.
    ArgTags,
    /// `name(key=value)`.
    Python,
}

const NAME_AND_ARGUMENTS: CallForm = CallForm::Json("{\"name\": \"", "\", \"arguments\": ", "}");
const NAME_AND_PARAMETERS: CallForm = CallForm::Json("{\"name\": \"", "\", \"parameters\": ", "}");

const fn notation(
    begin: &'static str,
    open: &'static str,
    separator: Option<&'static str>,
    close: &'static str,
    form: CallForm,
) -> CallNotation {
    CallNotation { begin, open, separator, close, form }
}

impl CallNotation {
    /// The notation that a chat template has the model use; `None` where it is none of those that can be held to.
    pub(crate) fn of_template(template: &str) -> Option<Self> {
        let has = |text: &str| template.contains(text);
        Some(if has("<tool_call>") && has("<function=") {
            notation("<tool_call>", "\n", None, "\n</tool_call>", CallForm::Function)
        } else if has("<tool_call>") && has("<arg_key>") {
            notation("<tool_call>", "", None, "\n</tool_call>", CallForm::ArgTags)
        } else if has("<tool_call>") {
            notation("<tool_call>", "\n", None, "\n</tool_call>", NAME_AND_ARGUMENTS)
        } else if has("<TOOLCALL>") {
            notation("<TOOLCALL>", "[", Some(", "), "]</TOOLCALL>", NAME_AND_ARGUMENTS)
        } else if has("<|tool_call|>") {
            let close = if has("<|/tool_call|>") { "]<|/tool_call|>" } else { "]" };
            notation("<|tool_call|>", "[", Some(", "), close, NAME_AND_ARGUMENTS)
        } else if has("[TOOL_CALLS]") && has("[ARGS]") {
            notation("[TOOL_CALLS]", "", None, "", CallForm::Json("", "[ARGS]", ""))
        } else if has("[TOOL_CALLS]") {
            notation("[TOOL_CALLS]", "[", Some(", "), "]", NAME_AND_ARGUMENTS)
        } else if has("<|tool_call_start|>") {
            notation("<|tool_call_start|>", "[", Some(", "), "]<|tool_call_end|>", CallForm::Python)
        } else if has("<|tool_calls_section_begin|>") {
            let form = CallForm::Json(
                "<|tool_call_begin|>functions.",
                ":0<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
            );
            notation("<|tool_calls_section_begin|>", "", Some(""), "<|tool_calls_section_end|>", form)
        } else if has("<｜tool▁calls▁begin｜>") && !has("function<｜tool▁sep｜>") && !has("'<｜tool▁sep｜>'")
        {
            let form = CallForm::Json("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>");
            notation("<｜tool▁calls▁begin｜>", "", Some(""), "<｜tool▁calls▁end｜>", form)
        } else if has("[func_name1(") {
            notation("", "[", Some(", "), "]", CallForm::Python)
        } else if has("<|python_tag|>") || has("\"parameters\": dictionary") {
            notation("", "", Some("; "), "", NAME_AND_PARAMETERS)
        } else {
            return None;
        })
    }
}
