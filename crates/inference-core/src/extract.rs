//! Values of the caller's own types, filled in by a model.

use std::{
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures::{Stream, StreamExt as _};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    ChatEvent, ChatStream, Constraint, Error, Finish, FinishReason, GenerateOptions, Prompt, Result, Role,
    partial_json::partial,
};

/// The JSON schema of a type, as [`TextModelExt::extract`](crate::TextModelExt::extract) holds answers to it: objects have the fields of
/// their types and no others.
#[must_use]
pub fn schema_of<T: JsonSchema>() -> Value {
    let mut schema = schemars::schema_for!(T).to_value();
    narrow(&mut schema, true, 0);
    schema
}

/// Closes objects, and takes out what only says how Rust stores a number: `uint8` and the like are no formats of a text, and the
/// bounds stand beside them. An object that others add fields to, by `allOf` or beside its own, is not `closable`.
fn narrow(schema: &mut Value, closable: bool, depth: usize) {
    const OPEN: [&str; 6] =
        ["additionalProperties", "unevaluatedProperties", "allOf", "anyOf", "oneOf", "$ref"];
    // A type's schema is as deep as the type.
    if depth > 128 {
        return;
    }
    match schema {
        Value::Object(fields) => {
            let is_number = fields.get("type").is_some_and(|kind| {
                let names = |name: &Value| name == "integer" || name == "number";
                names(kind) || kind.as_array().is_some_and(|kinds| kinds.iter().any(names))
            });
            if is_number {
                fields.shift_remove("format");
            }
            let has_fields = fields.contains_key("properties");
            if closable && has_fields && !OPEN.iter().any(|keyword| fields.contains_key(*keyword)) {
                fields.insert("additionalProperties".to_owned(), Value::Bool(false));
            }
            for (keyword, value) in fields.iter_mut() {
                let closable = match keyword.as_str() {
                    "allOf" => false,
                    "anyOf" | "oneOf" => !has_fields,
                    _ => true,
                };
                narrow(value, closable, depth + 1);
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| narrow(value, closable, depth + 1)),
        _ => {}
    }
}

/// The prompt, with the schema told to the model where a conversation has a place for it: behind the last thing that the person says.
pub(crate) fn with_schema(mut prompt: Prompt, schema: &Value) -> Prompt {
    if let Prompt::Chat(messages) = &mut prompt
        && let Some(last) = messages.iter_mut().rev().find(|message| message.role == Role::User)
    {
        last.content.push_str(&format!("\n\nAnswer in JSON that follows this schema:\n{schema}"));
    }
    prompt
}

/// The options of an answer that is a value of the schema.
pub(crate) fn with_constraint(options: GenerateOptions, schema: Value) -> Result<GenerateOptions> {
    if options.constraint.is_some() {
        let reason = "the type's schema is the constraint; leave it unset".to_owned();
        return Err(Error::invalid_option("constraint", reason));
    }
    Ok(options.constraint(Constraint::json_schema(schema)))
}

/// The value of a whole answer.
pub(crate) fn read<T: DeserializeOwned>(text: &str, finish: &Finish) -> Result<T> {
    if !matches!(finish.reason, FinishReason::Stop(_)) {
        return Err(Error::incomplete(finish.reason.clone(), text));
    }
    serde_path_to_error::deserialize(&mut serde_json::Deserializer::from_str(text)).map_err(|error| {
        let key = error.path().to_string();
        Error::invalid_answer(key, error.into_inner().to_string(), text)
    })
}

/// A value that grows while the model writes it: [`TextModelExt::extract_stream`](crate::TextModelExt::extract_stream).
///
/// Each item is all of the value that is certain, and differs from the one before: strings, lists and objects as far as they came,
/// numbers once they are whole. After `None`, [`finish`](Self::finish) gives the whole value in its type.
#[derive(Debug)]
#[must_use = "a stream that is dropped cancels its generation"]
pub struct ExtractStream<T> {
    events: ChatStream,
    text: String,
    last: Option<Value>,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> ExtractStream<T> {
    pub(crate) fn new(events: ChatStream) -> Self {
        Self { events, text: String::new(), last: None, of: PhantomData }
    }

    /// The whole value. Reads and drops the partial ones that are left.
    ///
    /// # Errors
    /// As [`TextModelExt::extract`](crate::TextModelExt::extract).
    pub async fn finish(&mut self) -> Result<T> {
        while let Some(value) = self.next().await {
            value?;
        }
        let finish = self.events.finish().await?;
        read(&self.text, &finish)
    }
}

impl<T> Stream for ExtractStream<T> {
    type Item = Result<Value>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        loop {
            match ready!(Pin::new(&mut this.events).poll_next(cx)) {
                None => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                Some(Ok(ChatEvent::Text(piece))) => this.text.push_str(&piece),
                Some(Ok(_)) => continue,
            }
            let value = partial(&this.text);
            if value.is_some() && value != this.last {
                this.last.clone_from(&value);
                return Poll::Ready(value.map(Ok));
            }
        }
    }
}
