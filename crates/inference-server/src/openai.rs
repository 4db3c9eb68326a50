//! OpenAI's API.

mod answer;
pub(crate) mod chat;
mod chat_stream;
pub(crate) mod completions;
mod messages;
pub(crate) mod models;
mod usage;

pub(crate) use self::{messages::conversation, usage::Usage};
