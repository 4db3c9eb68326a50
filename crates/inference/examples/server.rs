//! Streams answers over HTTP as server-sent events: `cargo run --release -p inferlm --example server [MODEL]`, then
//! `curl -N 'http://127.0.0.1:8080/chat?question=What%20is%202%2B2%3F'`. A client that disconnects cancels its request.

use std::{collections::HashMap, convert::Infallible, sync::Arc};

use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    response::sse::{Event, Sse},
    routing::get,
};
use futures::{Stream, StreamExt as _};
use inference::{ChatEvent, GenerateOptions, Message, TextModel, TextModelExt as _};

type Events = Sse<Box<dyn Stream<Item = Result<Event, Infallible>> + Send + Unpin>>;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).unwrap_or_else(|| "models/demo".to_owned());
    let model = inference::load_model(path).await?;
    let app = Router::new().route("/chat", get(chat)).with_state(Arc::clone(&model));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, app).await?;
    model.close().await?;
    Ok(())
}

async fn chat(
    State(model): State<Arc<dyn TextModel>>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Events, (StatusCode, String)> {
    let Some(question) = query.get("question") else {
        return Err((StatusCode::BAD_REQUEST, "the parameter `question` is missing".to_owned()));
    };
    let options = GenerateOptions::new().max_tokens(256);
    let stream = model.chat(vec![Message::user(question)], options).await;
    let stream = stream.map_err(|error| (StatusCode::BAD_REQUEST, error.to_string()))?;
    let events = stream.filter_map(|event| {
        std::future::ready(match event {
            Ok(ChatEvent::Text(text)) => Some(Ok(Event::default().data(text))),
            Ok(_) => None,
            Err(error) => Some(Ok(Event::default().event("error").data(error.to_string()))),
        })
    });
    Ok(Sse::new(Box::new(events)))
}
