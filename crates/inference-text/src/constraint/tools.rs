//! Calls that follow their tools' schemas, in the notation of the model's family.

use std::fmt::Write as _;

use inference_core::{GenerateOptions, Result, ToolChoice};
use serde_json::{Map, Value, json};

use super::{
    grammar::{Grammar, Source},
    invalid::invalid,
    schema,
};
use crate::{
    TextPipeline, Tokenizer,
    answer::{CallForm, CallNotation},
};

/// Tools that a grammar is made for at most.
const MAX_TOOLS: usize = 128;

/// What may be called, and what may be said besides.
pub(super) struct CallGrammar<'a> {
    notation: CallNotation,
    tokenizer: &'a Tokenizer,
    tools: Vec<Tool>,
    choice: ToolChoice,
}

struct Tool {
    name: String,
    parameters: Value,
}

impl TextPipeline {
    /// The grammar of the calls that the options ask for; `None` where the model's calls are free.
    ///
    /// # Errors
    /// There are no tools, none of the name, too many, or the family's notation is not known.
    pub(super) fn call_grammar<'a>(&'a self, options: &GenerateOptions) -> Result<Option<CallGrammar<'a>>> {
        let choice = options.tool_choice.clone().unwrap_or_default();
        let definitions = options.template.tools.as_deref().unwrap_or_default();
        let any_strict = definitions.iter().any(is_strict);
        if choice == ToolChoice::Auto && !any_strict {
            return Ok(None);
        }
        if definitions.len() > MAX_TOOLS {
            return Err(invalid(format!("{} tools, expected at most {MAX_TOOLS}", definitions.len())));
        }
        let Some(notation) = self.format().call_notation() else {
            return Err(invalid("the model's chat template has no notation of calls that can be held to"));
        };
        let wanted = |tool: &Tool| !matches!(&choice, ToolChoice::Named(name) if *name != tool.name);
        let held = |tool: &Value| choice != ToolChoice::Auto || is_strict(tool);
        let tools = definitions.iter().map(|tool| Tool::read(tool, held(tool), notation.form));
        let tools: Vec<Tool> = tools.collect::<Result<Vec<_>>>()?.into_iter().filter(wanted).collect();
        if tools.is_empty() {
            let what = match &choice {
                ToolChoice::Named(name) => format!("there is no tool {name:?} among the tools"),
                _ => "a call is required, but there are no tools".to_owned(),
            };
            return Err(invalid(what));
        }
        Ok(Some(CallGrammar { notation, tokenizer: self.tokenizer(), tools, choice }))
    }
}

fn is_strict(tool: &Value) -> bool {
    let function = tool.get("function").unwrap_or(tool);
    function.get("strict").or_else(|| tool.get("strict")).and_then(Value::as_bool).unwrap_or(false)
}

impl Tool {
    /// Reads a definition. `held` says whether the arguments follow the schema; elsewhere they are any, as far as the notation can
    /// write them.
    fn read(tool: &Value, held: bool, form: CallForm) -> Result<Self> {
        let function = tool.get("function").unwrap_or(tool);
        let name = function.get("name").and_then(Value::as_str).unwrap_or_default();
        if name.is_empty() || !name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c)) {
            return Err(invalid(format!(
                "a tool has the name {name:?}, expected letters, digits, _, - and ."
            )));
        }
        let parameters = function.get("parameters").filter(|schema| !schema.is_null());
        let any = || json!({"type": "object"});
        let parameters = match (parameters, form) {
            (None, _) => json!({"type": "object", "properties": {}, "additionalProperties": false}),
            (Some(_), CallForm::Json(..)) if !held => any(),
            (Some(schema), _) => schema.clone(),
        };
        Ok(Self { name: name.to_owned(), parameters })
    }
}

impl CallGrammar<'_> {
    /// The grammar of an answer: calls, and as far as the choice leaves it, text, which may be held to a grammar of its own.
    ///
    /// # Errors
    /// A schema has what cannot be held to, in this notation.
    pub(super) fn into_grammar(self, text: Option<Grammar>) -> Result<Grammar> {
        let mut rules =
            Rules { parts: Vec::new(), lark: String::new(), tokenizer: self.tokenizer, values: 0 };
        let free = self.choice == ToolChoice::Auto;
        let single = matches!(self.choice, ToolChoice::Named(_));
        let held_text = text.and_then(Grammar::into_source);
        let calls = self.calls(&mut rules, free && held_text.is_none(), single)?;
        let start = match (free, held_text) {
            (false, _) => calls,
            (true, Some(text)) => {
                rules.parts.push(("text".to_owned(), text));
                format!("{calls} | @text")
            }
            (true, None) if self.notation.begin.is_empty() => {
                let first = if self.notation.open == "[" { "\\[" } else { "{" };
                let _ = writeln!(rules.lark, "FREE: /([^ \\n\\t{first}](.|\\n)*)?/");
                format!("{calls} | FREE")
            }
            (true, None) => format!("({calls})* tail"),
        };
        let lark = format!("start: {start}\n{}", rules.lark);
        let mut parts = vec![("main".to_owned(), Source::Lark(lark))];
        parts.extend(rules.parts);
        Grammar::of_parts("tools", parts)
    }

    /// The rules of calls; what stands for all of them. `free` says that text may stand before each.
    fn calls(&self, rules: &mut Rules<'_>, free: bool, single: bool) -> Result<String> {
        let CallNotation { begin, open, separator, close, form } = self.notation;
        let mut alternatives = Vec::new();
        for (place, tool) in self.tools.iter().enumerate() {
            let call = rules.call(tool, form)?;
            let _ = writeln!(rules.lark, "call_{place}: {call}");
            alternatives.push(format!("call_{place}"));
        }
        let _ = writeln!(rules.lark, "call: {}", alternatives.join(" | "));
        let (open, close) = (rules.literal(open), rules.literal(close));
        let list = match separator {
            Some(separator) if !single => format!("call ({} call)*", rules.literal(separator)),
            _ => "call".to_owned(),
        };
        let _ = writeln!(rules.lark, "body: {open} {list} {close}");
        if begin.is_empty() {
            return Ok("body".to_owned());
        }
        let mark = rules.literal(begin);
        if !free {
            let _ = writeln!(rules.lark, "block: {mark} body");
            return Ok(match separator {
                None if !single => "block (/\\n?/ block)*".to_owned(),
                _ => "block".to_owned(),
            });
        }
        rules.lark.push_str("TEXT: /(.|\\n)*/\n");
        if mark.starts_with('<') {
            let _ = writeln!(rules.lark, "block: TEXT {mark} body\ntail: TEXT");
        } else {
            let _ = writeln!(rules.lark, "lead[lazy]: TEXT {mark}\nblock: lead body\ntail: TEXT");
        }
        Ok("block".to_owned())
    }
}

/// A grammar in the making.
struct Rules<'a> {
    /// Schemas, by the names that the rules have for them.
    parts: Vec<(String, Source)>,
    lark: String,
    tokenizer: &'a Tokenizer,
    values: usize,
}

impl Rules<'_> {
    /// A text in Lark's notation: special tokens by their ids.
    fn literal(&self, text: &str) -> String {
        let mut written = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        let flush = |plain: &mut String, written: &mut Vec<String>| {
            if !plain.is_empty() {
                written.push(quoted(&std::mem::take(plain)));
            }
        };
        while let Some(first) = rest.chars().next() {
            let mark = [('<', '>'), ('[', ']')].iter().find_map(|(open, close)| {
                let end = rest.strip_prefix(*open)?.find(*close)? + 1 + close.len_utf8();
                let id = self.tokenizer.token_to_id(&rest[..end])?;
                self.tokenizer.special(id).map(|_| (end, id))
            });
            if let Some((end, id)) = mark {
                flush(&mut plain, &mut written);
                written.push(format!("<[{id}]>"));
                rest = &rest[end..];
            } else {
                plain.push(first);
                rest = &rest[first.len_utf8()..];
            }
        }
        flush(&mut plain, &mut written);
        if written.is_empty() { "\"\"".to_owned() } else { written.join(" ") }
    }

    /// A part that is JSON by this schema; its name.
    fn json(&mut self, schema: &Value) -> Result<String> {
        let name = format!("json_{}", self.parts.len());
        self.parts.push((name.clone(), Source::JsonSchema(schema::prepare(schema)?)));
        Ok(format!("@{name}"))
    }

    fn call(&mut self, tool: &Tool, form: CallForm) -> Result<String> {
        let name = &tool.name;
        Ok(match form {
            CallForm::Json(head, middle, tail) => {
                let arguments = self.json(&tool.parameters)?;
                let head = self.literal(&format!("{head}{name}{middle}"));
                format!("{head} {arguments} {}", self.literal(tail))
            }
            CallForm::Function => {
                let bare = Bare {
                    before: "<parameter=",
                    between: ">\n",
                    line_break: "/\\n?/",
                    end: "</parameter>",
                    behind: "\n",
                };
                let arguments = self.bare_arguments(tool, bare)?;
                format!("{} {arguments} \"</function>\"", quoted(&format!("<function={name}>\n")))
            }
            CallForm::ArgTags => {
                let bare = Bare {
                    before: "\n<arg_key>",
                    between: "</arg_key>\n<arg_value>",
                    line_break: "\"\"",
                    end: "</arg_value>",
                    behind: "",
                };
                format!("{} {}", quoted(name), self.bare_arguments(tool, bare)?)
            }
            CallForm::Python => {
                let mut arguments = Vec::new();
                for argument in arguments_of(tool)? {
                    let value = self.json(&argument.schema)?;
                    arguments.push((
                        format!("{} {value}", quoted(&format!("{}=", argument.key))),
                        argument.required,
                    ));
                }
                let list = self.comma_list(&arguments);
                format!("{} {list} \")\"", quoted(&format!("{name}(")))
            }
        })
    }

    /// Arguments in the schema's order, those that are not required or not, with commas between those there are.
    fn comma_list(&mut self, arguments: &[(String, bool)]) -> String {
        // rest_n is what may follow the first n where none of them was said, more_n where one was.
        let place = self.values;
        self.values += 1;
        let n = arguments.len();
        let _ = writeln!(self.lark, "first_{place}_{n}: \"\"\nmore_{place}_{n}: \"\"");
        for (at, (argument, required)) in arguments.iter().enumerate().rev() {
            let next = at + 1;
            let skip =
                |what: &str| if *required { String::new() } else { format!(" | {what}_{place}_{next}") };
            let (first, more) = (skip("first"), skip("more"));
            let _ = writeln!(self.lark, "first_{place}_{at}: {argument} more_{place}_{next}{first}");
            let _ = writeln!(self.lark, "more_{place}_{at}: \", \" {argument} more_{place}_{next}{more}");
        }
        format!("first_{place}_0")
    }

    fn bare_arguments(&mut self, tool: &Tool, bare: Bare) -> Result<String> {
        let mut written = Vec::new();
        for argument in arguments_of(tool)? {
            let head = quoted(&format!("{}{}{}", bare.before, argument.key, bare.between));
            let value = self.bare_value(tool, &argument, &bare)?;
            let value = format!("{head} {value} {}", quoted(bare.behind));
            written.push(if argument.required { value } else { format!("({value})?") });
        }
        Ok(if written.is_empty() { "\"\"".to_owned() } else { written.join(" ") })
    }

    /// A value without quotes, and the tag that ends it.
    fn bare_value(&mut self, tool: &Tool, argument: &Argument, bare: &Bare) -> Result<String> {
        let schema = &argument.schema;
        let (line_break, end) = (bare.line_break, quoted(bare.end));
        let place = self.values;
        self.values += 1;
        if let Some(texts) = schema.get("enum").and_then(Value::as_array) {
            let texts: Option<Vec<String>> = texts.iter().map(|text| text.as_str().map(quoted)).collect();
            if let Some(texts) = texts.filter(|texts| !texts.is_empty()) {
                return Ok(format!("({}) {line_break} {end}", texts.join(" | ")));
            }
        }
        if schema.get("type").and_then(Value::as_str) == Some("string") {
            let limit =
                ["pattern", "format", "minLength", "maxLength", "const", "allOf", "anyOf", "oneOf", "$ref"]
                    .into_iter()
                    .find(|keyword| schema.get(keyword).is_some());
            if let Some(keyword) = limit {
                return Err(cannot(tool, argument, &format!("`{keyword}` of a text without quotes")));
            }
            let _ = writeln!(self.lark, "text_{place}[lazy]: /(.|\\n)*/ {end}");
            return Ok(format!("text_{place}"));
        }
        if may_be_text(schema) {
            return Err(cannot(tool, argument, "a value that may be a text or something else"));
        }
        Ok(format!("{} {line_break} {end}", self.json(schema)?))
    }
}

/// How an argument without quotes is written.
#[derive(Clone, Copy)]
struct Bare {
    before: &'static str,
    between: &'static str,
    /// In Lark's notation: what may stand between a value that is no bare text and its end.
    line_break: &'static str,
    end: &'static str,
    behind: &'static str,
}

struct Argument {
    key: String,
    /// With the definitions that it may refer to.
    schema: Value,
    required: bool,
}

/// The arguments of a tool, in the schema's order.
fn arguments_of(tool: &Tool) -> Result<Vec<Argument>> {
    let unsupported = |keyword: &str| {
        let message = format!(
            "tool {}: `{keyword}` of the arguments cannot be held to in this model's notation",
            tool.name
        );
        Err(invalid(message))
    };
    let known = [
        "type",
        "properties",
        "required",
        "additionalProperties",
        "$defs",
        "definitions",
        "title",
        "description",
        "$schema",
    ];
    let empty = Map::new();
    let schema = tool.parameters.as_object().unwrap_or(&empty);
    if let Some(keyword) = schema.keys().find(|key| !known.contains(&key.as_str())) {
        return unsupported(keyword);
    }
    let list: Vec<&str> = schema
        .get("required")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    let properties = schema.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    if list.iter().any(|key| !properties.contains_key(*key)) {
        return unsupported("required");
    }
    let argument = |(key, value): (&String, &Value)| {
        let readable = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-');
        if !readable {
            return Err(invalid(format!("tool {}: an argument has the name {key:?}", tool.name)));
        }
        let mut value = value.clone();
        if let Value::Object(fields) = &mut value {
            for definitions in ["$defs", "definitions"] {
                if let Some(definition) = schema.get(definitions) {
                    fields.insert(definitions.to_owned(), definition.clone());
                }
            }
        }
        Ok(Argument { key: key.clone(), schema: value, required: list.contains(&key.as_str()) })
    };
    properties.iter().map(argument).collect()
}

/// Whether a value of the schema may be a string; where the schema does not say, it may.
fn may_be_text(schema: &Value) -> bool {
    match schema.get("type") {
        Some(Value::String(name)) => name == "string",
        Some(Value::Array(names)) => names.iter().any(|name| name == "string"),
        _ => true,
    }
}

fn cannot(tool: &Tool, argument: &Argument, what: &str) -> inference_core::Error {
    invalid(format!(
        "tool {}: {what} cannot be held to in this model's notation (argument {})",
        tool.name, argument.key
    ))
}

/// A text in quotes, as Lark reads it.
fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
