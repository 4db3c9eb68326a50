//! OpenAI's Responses API.

mod handlers;
mod items;
mod output;
mod request;
mod store;

pub(crate) use self::{
    handlers::{__path_create, __path_delete, __path_get, create, delete, get},
    store::ResponseStore,
};
