//! minijinja, set up as transformers sets up Jinja2.

use std::panic::{AssertUnwindSafe, catch_unwind};

use inference_core::{Error, Result};
use jiff::{Zoned, civil::DateTime};
use minijinja::{
    Environment, ErrorKind, UndefinedBehavior,
    syntax::SyntaxConfig,
    value::{Serde, Value as Jinja},
};
use serde_json::{Map, Value};

use super::{files::MAX_SOURCE, python};

/// Steps that a rendering may take: some thousand messages' worth.
const FUEL: u64 = 4_000_000;

/// An environment with these templates.
pub(super) fn new(sources: Vec<(String, String)>) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| template_error(&error))?);
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(200);
    python::install(&mut environment);
    set_clock(&mut environment, None);
    for (name, source) in sources {
        if source.len() as u64 > MAX_SOURCE {
            return Err(Error::Template {
                reason: format!("it has {} bytes, expected at most {MAX_SOURCE}", source.len()),
            });
        }
        environment.add_template_owned(name, source).map_err(|error| template_error(&error))?;
    }
    Ok(environment)
}

/// Renders one of the templates.
pub(super) fn render(
    environment: &Environment<'static>,
    name: &str,
    context: Map<String, Value>,
) -> Result<String> {
    let work = || -> Result<String> {
        let template = environment.get_template(name).map_err(|error| template_error(&error))?;
        template.render(Jinja::from(Serde(&context))).map_err(|error| template_error(&error))
    };
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::Template { reason: "the template brought its interpreter down".to_owned() })
    })
}

/// Sets what `strftime_now` tells: the local time, or always the same.
pub(super) fn set_clock(environment: &mut Environment<'static>, now: Option<DateTime>) {
    environment.add_function("strftime_now", move |format: &str| {
        let now = now.unwrap_or_else(|| Zoned::now().datetime());
        jiff::fmt::strtime::format(format, now).map_err(|error| {
            minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {error}"))
        })
    });
}

/// The whole story of a template's failure in one line.
pub(super) fn template_error(error: &minijinja::Error) -> Error {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    Error::Template { reason }
}
