//! Templates that mean harm end within bounds of time, memory and stack. A binary of its own, as its allocator counts.
#![allow(clippy::unwrap_used, reason = "a test that cannot begin has failed")]

mod generator;
mod hostile;
mod meter;

use std::time::Duration;

use chat_template::{Environment, ErrorKind, Template};
use serde_json::{Map, Value, json};

use crate::{generator::Generator, meter::measured};

/// 64 MB, and what an allocator and a test may add.
const MEMORY: usize = 72 << 20;

/// Without optimisation, on a busy machine. The limit of the crate itself is one second.
const TIME: Duration = Duration::from_millis(2_000);

/// What remains of a thread's 2 MiB for the program around.
const STACK: usize = 1 << 20;

fn variables() -> Map<String, Value> {
    let deep = (0..90).fold(json!(1), |value, _| json!([value]));
    let wide: Vec<Value> = (0..2_000).map(|at| json!({"id": at, "name": format!("n{at}")})).collect();
    let variables = json!({
        "messages": [
            {"role": "user", "content": "x".repeat(1 << 20)},
            {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, null]}}}]},
        ],
        "tools": [{"type": "function", "function": {"name": "f"}}], "deep": deep, "wide": wide,
        "s": "a b  c", "l": [3, 1, 2], "d": {"k": "v", "n": {}}, "t": "wort ".repeat(50_000),
    });
    variables.as_object().unwrap().clone()
}

/// Renders on a thread with a small stack; fails the test if a bound is exceeded.
fn bounded(name: &str, source: &str, variables: &Map<String, Value>) -> Result<String, ErrorKind> {
    if std::env::var_os("VERBOSE").is_some() {
        eprintln!("{name}");
    }
    let run = || {
        let template = Template::parse(source).map_err(|error| error.kind())?;
        template
            .render_in(&Environment::new().at("2025-03-14T15:09:26").unwrap(), variables)
            .map_err(|error| error.kind())
    };
    let (result, cost) = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(STACK);
        thread.spawn_scoped(scope, || measured(run)).unwrap().join().unwrap()
    });
    let within = cost.time < TIME && cost.peak < MEMORY;
    assert!(within, "{name} took {:?} and {} bytes: {source:.300}", cost.time, cost.peak);
    result
}

/// Each of these would run for ever, fill the memory or overflow the stack of an interpreter without limits.
#[test]
fn hostile_templates_end() {
    let (lock, variables) = (meter::lock(), variables());
    for (name, source) in hostile::endless() {
        let result = bounded(name, &source, &variables);
        assert!(result.is_err(), "{name}: {:?}", result.map(|text| text.len()));
    }
    for (name, source) in hostile::costly() {
        // An error or a text; that it ends is what counts.
        let _ = bounded(name, &source, &variables);
    }
    drop(lock);
}

/// Every filter, method, test and function with arguments of all kinds and sizes.
#[test]
fn everything_is_bounded_with_large_arguments() {
    let (lock, variables) = (meter::lock(), variables());
    for source in hostile::everything_with_large_arguments() {
        let _ = bounded("a large argument", &source, &variables);
    }
    drop(lock);
}

/// `TEMPLATES=10000 cargo test -p inferlm-chat-template --test limits` tries more.
#[test]
fn random_templates_end() {
    let (lock, variables) = (meter::lock(), variables());
    let count = std::env::var("TEMPLATES").ok().and_then(|count| count.parse().ok()).unwrap_or(60);
    for seed in 0..count {
        let source = Generator::new(seed).template();
        let _ = bounded(&format!("seed {seed}"), &source, &variables);
    }
    drop(lock);
}

/// Input is bounded too, before it is copied.
#[test]
fn large_variables_are_an_error() {
    let lock = meter::lock();
    let variables = json!({"a": "x".repeat(100 << 20)}).as_object().unwrap().clone();
    assert_eq!(bounded("a large text", "{{ a }}", &variables), Err(ErrorKind::LimitExceeded));
    // What a template does not name costs nothing.
    assert_eq!(bounded("a text that is not used", "{{ b }}", &variables), Ok(String::new()));
    let deep = (0..10_000).fold(json!(1), |value, _| Value::Array(vec![value]));
    let variables: Map<String, Value> = [("a".to_owned(), deep)].into_iter().collect();
    assert_eq!(bounded("a deep list", "{{ a }}", &variables), Err(ErrorKind::LimitExceeded));
    // Dropping it takes stack as well.
    let grown = std::thread::Builder::new().stack_size(64 << 20);
    grown.spawn(move || drop(variables)).unwrap().join().unwrap();
    drop(lock);
}
