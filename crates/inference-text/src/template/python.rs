//! What templates written for Jinja2 expect of Python.

use minijinja::{
    Environment, Error, ErrorKind,
    value::{Kwargs, Value},
};

/// Adds filters, functions and methods.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_filter("tojson", tojson);
}

/// `json.dumps` with `ensure_ascii=False`.
fn tojson(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    let indent: Option<usize> = kwargs.get("indent")?;
    let value =
        serde_json::to_value(value).map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let _ = indent;
    Ok(Value::from_safe_string(value.to_string()))
}
