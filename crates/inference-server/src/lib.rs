//! OpenAI's and Anthropic's HTTP APIs over any language model, as an axum router.
//!
//! A [`Server`] has [`Models`], loaded or loaded on demand, and [`Settings`]. [`router()`] is its APIs for a program of your own;
//! [`serve()`] listens.
//!
//! ```
//! use inference_core::{Registry, mock};
//! use inference_server::{Models, Server, Settings, router};
//!
//! # let folder = mock::folder();
//! # let path = folder.path();
//! # futures::executor::block_on(async {
//! // In a program: `inference::load_model(path).await?`.
//! let model = Registry::empty().with(mock::DESCRIPTOR).load_model(path).backend("mock").await?;
//! let server = Server::new(Models::single("my-model", model), Settings::new().api_key("secret"));
//! let app: axum::Router = axum::Router::new().nest("/llm", router(server));
//! # Ok::<(), inference_core::Error>(()) }).unwrap();
//! ```
#![forbid(unsafe_code)]

mod access;
mod anthropic;
mod connection;
mod embeddings;
mod error;
mod generation;
mod json;
mod logprobs;
mod metrics;
mod models;
mod openai;
mod openapi;
mod operations;
mod page;
mod prefill;
mod queue;
mod responses;
mod router;
mod sampling;
mod serve;
mod server;
mod settings;
mod sse;
mod tokens;
mod tools;
mod trace;

pub use self::{
    models::{DuplicateName, ModelEntry, ModelLimits, ModelLoader, Models},
    router::router,
    serve::{ServeOptions, serve},
    server::Server,
    settings::Settings,
};
