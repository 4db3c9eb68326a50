//! Which methods values have.

use crate::value::Value;

const OF_STRINGS: &[&str] = &[
    "capitalize",
    "casefold",
    "center",
    "count",
    "endswith",
    "expandtabs",
    "find",
    "format",
    "format_map",
    "index",
    "isalnum",
    "isalpha",
    "isascii",
    "isdecimal",
    "isdigit",
    "isidentifier",
    "islower",
    "isnumeric",
    "isprintable",
    "isspace",
    "istitle",
    "isupper",
    "join",
    "ljust",
    "lower",
    "lstrip",
    "partition",
    "removeprefix",
    "removesuffix",
    "replace",
    "rfind",
    "rindex",
    "rjust",
    "rpartition",
    "rsplit",
    "rstrip",
    "split",
    "splitlines",
    "startswith",
    "strip",
    "swapcase",
    "title",
    "upper",
    "zfill",
];
const OF_DICTS: &[&str] = &["copy", "get", "items", "keys", "values"];
const OF_LISTS: &[&str] = &["copy", "count", "index"];
/// Methods that would change their object, which transformers' sandbox refuses.
const UNSAFE_OF_DICTS: &[&str] = &["clear", "pop", "popitem", "setdefault", "update"];
const UNSAFE_OF_LISTS: &[&str] = &["append", "clear", "extend", "insert", "pop", "remove", "reverse", "sort"];

/// Whether the value has a method of that name.
pub(crate) fn has_method(value: &Value, name: &str) -> bool {
    match value {
        Value::Str(_) => OF_STRINGS.contains(&name),
        Value::Dict(_) => OF_DICTS.contains(&name) || UNSAFE_OF_DICTS.contains(&name),
        Value::List(_) => OF_LISTS.contains(&name) || UNSAFE_OF_LISTS.contains(&name),
        Value::Tuple(_) => matches!(name, "count" | "index"),
        Value::Loop(_) => matches!(name, "cycle" | "changed"),
        Value::Cycler(_) => matches!(name, "next" | "reset"),
        _ => false,
    }
}

/// Whether the method would change its object.
pub(crate) fn is_unsafe(value: &Value, name: &str) -> bool {
    match value {
        Value::Dict(_) => UNSAFE_OF_DICTS.contains(&name),
        Value::List(_) => UNSAFE_OF_LISTS.contains(&name),
        _ => false,
    }
}
