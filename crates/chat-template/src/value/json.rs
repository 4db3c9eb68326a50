//! Variables that come as JSON.

use serde_json::Value as Json;

use super::{
    dict::DictBuilder,
    heap::Heap,
    types::{MAX_DEPTH, Value},
};
use crate::error::{Error, Result};

/// The value of a JSON value.
pub(crate) fn from_json(json: &Json, heap: &Heap) -> Result<Value> {
    within(json, heap, 0)
}

fn within(json: &Json, heap: &Heap, depth: usize) -> Result<Value> {
    if depth > MAX_DEPTH {
        return Err(Error::limit(format_args!(
            "lists and dicts lie more than {MAX_DEPTH} deep in one another"
        )));
    }
    match json {
        Json::Null => Ok(Value::None),
        Json::Bool(flag) => Ok(Value::Bool(*flag)),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(int), _) => Ok(Value::Int(int)),
            (None, Some(int)) => heap.integer(int.into()),
            (None, None) => Ok(Value::Float(number.as_f64().unwrap_or(f64::NAN))),
        },
        Json::String(text) => heap.str(text),
        Json::Array(array) => {
            let mut items = heap.items();
            for item in array {
                items.push(within(item, heap, depth + 1)?)?;
            }
            items.list()
        }
        Json::Object(object) => {
            // A JSON object's keys are unique.
            let mut dict = DictBuilder::new(heap)?;
            for (key, value) in object {
                dict.insert_new(heap.str(key)?, within(value, heap, depth + 1)?)?;
            }
            dict.finish()
        }
    }
}
