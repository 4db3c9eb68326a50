//! Anthropic's API.

mod handlers;
mod messages;
mod request;
mod stream;

pub(crate) use self::handlers::{__path_count_tokens, __path_create, count_tokens, create};
