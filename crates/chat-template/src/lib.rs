//! Chat templates of language models.
//!
//! A model's folder brings a chat template: a Jinja2 program that turns a conversation into the text the model was trained on.
//! This crate parses and runs it, and gives the text that Python's `transformers` gives: Jinja2's syntax and filters, Python's
//! values and their printing, trimmed blocks, loop controls, `{% generation %}`, `raise_exception`, `strftime_now`, `tojson`.
//!
//! ```
//! use chat_template::Template;
//! use serde_json::json;
//!
//! # fn main() -> Result<(), chat_template::Error> {
//! let template = Template::parse(
//!     "{% for message in messages %}\
//!      <|{{ message.role }}|>{{ message.content | trim }}\n\
//!      {% endfor %}\
//!      {% if add_generation_prompt %}<|assistant|>{% endif %}",
//! )?;
//! let variables = json!({
//!     "messages": [{"role": "user", "content": " What is 2 + 2? "}],
//!     "add_generation_prompt": true,
//! });
//! let text = template.render(variables.as_object().unwrap())?;
//! assert_eq!(text, "<|user|>What is 2 + 2?\n<|assistant|>");
//! # Ok(())
//! # }
//! ```
//!
//! # Untrusted templates
//!
//! A template is a program from somebody else. It has no access to files, the network or other templates, and its costs are
//! bounded by [`Limits`], whatever the template, the messages or the tools hold: one second, 64 MB, 16 MB of text, and less than
//! 1 MiB of the caller's stack. Work is charged before it is done, and memory before it is allocated. A rendering that exceeds a
//! limit ends with [`ErrorKind::LimitExceeded`]; [`Environment::cancelled`] ends one from outside. Nothing panics.
//!
//! # Where it differs from Jinja2
//!
//! - `include`, `import` and `extends` fail when they are reached. `{% block %}` stands for its body.
//! - There are a filter `bool` and a statement `do`.
//! - `autoescape` is off and cannot be switched on; the filters `urlize` and `xmlattr` do not exist.
//! - `random` and `lipsum` depend on [`Environment::seed`] alone, and so give the same text each time.
//! - Lists and dicts cannot be changed, as in the sandbox of transformers, which refuses `append` and its kin.
//! - Complex numbers do not exist.
#![forbid(unsafe_code)]

mod args;
mod budget;
mod clock;
mod context;
mod environment;
mod error;
mod filters;
mod functions;
mod interpreter;
mod jinja_tests;
mod methods;
mod ops;
mod syntax;
mod template;
mod value;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
mod readme {}

pub use clock::WorkClock;
pub use environment::{Environment, Limits};
pub use error::{Error, ErrorKind, Result};
pub use template::{MAX_SOURCE_BYTES, Template};
