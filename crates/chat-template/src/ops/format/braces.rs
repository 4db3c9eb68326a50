//! `text.format(…)`.

use super::{
    layout::lay_out,
    spec::{self, Spec},
};
use crate::{
    args::Args,
    budget::STEP,
    error::{Result, runtime},
    ops::{lookup, print::repr},
    value::{Heap, TextBuilder, Value},
};

/// Where fields find their values.
#[derive(Clone, Copy)]
pub(crate) enum Source<'a> {
    Args(&'a Args),
    /// `format_map`
    Map(&'a Value),
}

/// Adds a text with its fields replaced.
pub(crate) fn braces(text: &str, source: Source<'_>, out: &mut TextBuilder, heap: &Heap) -> Result<()> {
    Braces { source, next: 0, heap }.expand(text, 0, out)
}

struct Braces<'a> {
    source: Source<'a>,
    /// The place of the next value that is not named.
    next: usize,
    heap: &'a Heap,
}

impl Braces<'_> {
    fn expand(&mut self, text: &str, depth: usize, out: &mut TextBuilder) -> Result<()> {
        if depth > 1 {
            return Err(runtime!("Max string recursion exceeded"));
        }
        self.heap.charge(text.len())?;
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            out.push_str(&rest[..at])?;
            let brace = rest.as_bytes()[at];
            rest = &rest[at + 1..];
            if rest.as_bytes().first() == Some(&brace) {
                out.push(char::from(brace))?;
                rest = &rest[1..];
                continue;
            }
            if brace == b'}' {
                return Err(runtime!("Single '}}' encountered in format string"));
            }
            let end = closing(rest).ok_or_else(|| runtime!("expected '}}' before end of string"))?;
            self.field(&rest[..end], depth, out)?;
            rest = &rest[end + 1..];
        }
        out.push_str(rest)
    }

    fn field(&mut self, field: &str, depth: usize, out: &mut TextBuilder) -> Result<()> {
        self.heap.charge(STEP)?;
        let end = field.find(['!', ':']).unwrap_or(field.len());
        let (name, rest) = field.split_at(end);
        let (conversion, spec) = match rest.strip_prefix('!') {
            Some(rest) => rest.split_once(':').unwrap_or((rest, "")),
            None => ("", rest.strip_prefix(':').unwrap_or("")),
        };
        let mut value = self.value(name)?;
        match conversion {
            "" => {}
            "r" | "a" => value = Value::Str(repr(&value, self.heap)?),
            "s" => value = Value::Str(crate::ops::print::text(&value, self.heap)?),
            other => return Err(runtime!("Unknown conversion specifier '{other}'")),
        }
        let spec = if spec.contains('{') {
            let mut expanded = self.heap.builder();
            self.expand(spec, depth + 1, &mut expanded)?;
            self.spec(expanded.as_str())?
        } else {
            self.spec(spec)?
        };
        lay_out(&value, &spec, out, self.heap)
    }

    fn spec(&self, text: &str) -> Result<Spec> {
        self.heap.charge(text.len())?;
        spec::parse(text)
    }

    /// The value that a field names: by place, by name, or the next one; then attributes and items.
    fn value(&mut self, field: &str) -> Result<Value> {
        let (name, path) = field.find(['.', '[']).map_or((field, ""), |at| field.split_at(at));
        let index = if name.is_empty() {
            self.next += 1;
            Some(self.next - 1)
        } else {
            name.parse::<usize>().ok()
        };
        let found = match (self.source, index) {
            (Source::Args(args), Some(at)) => args.positional.get(at).cloned(),
            (Source::Args(args), None) => {
                self.heap.charge_product(args.named().len(), name.len().min(STEP))?;
                args.named().iter().find(|(known, _)| **known == *name).map(|(_, value)| value.clone())
            }
            (Source::Map(map), _) => Some(lookup::item(map, &self.heap.str(name)?, self.heap)?)
                .filter(|found| !found.is_undefined()),
        };
        let mut value =
            found.ok_or_else(|| runtime!("the format string asks for '{field}', which was not given"))?;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            self.heap.charge(STEP)?;
            let step = step.trim_end_matches(']');
            let key = match step.parse() {
                Ok(index) => Value::Int(index),
                Err(_) => self.heap.str(step)?,
            };
            value = lookup::item(&value, &key, self.heap)?;
        }
        Ok(value)
    }
}

/// Where the brace closes that is open before the text.
fn closing(text: &str) -> Option<usize> {
    let mut open = 1;
    text.bytes().position(|byte| {
        match byte {
            b'{' => open += 1,
            b'}' => open -= 1,
            _ => {}
        }
        open == 0
    })
}
