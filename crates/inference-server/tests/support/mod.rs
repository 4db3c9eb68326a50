//! Servers under test, and a model that says what a script tells it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part")]

mod scripted;

use std::{net::TcpListener, sync::Arc};

use inference_core::{Registry, TextModel, mock};
use inference_server::{ModelEntry, ModelLimits, Models, ServeOptions, Server, Settings, serve};
use reqwest::{Client, Response};
use serde_json::Value;
use tokio::{sync::oneshot, task::JoinHandle};

pub use self::scripted::Scripted;

/// A server that listens; it ends when this is dropped.
pub struct Running {
    pub url: String,
    pub server: Server,
    pub client: Client,
    end: Option<oneshot::Sender<()>>,
    served: Option<JoinHandle<std::io::Result<()>>>,
}

impl Running {
    pub fn start(models: Models, settings: Settings) -> Self {
        Self::start_with(models, settings, ServeOptions::new())
    }

    pub fn start_with(models: Models, settings: Settings, options: ServeOptions) -> Self {
        Self::start_on(TcpListener::bind("127.0.0.1:0").unwrap(), models, settings, options)
    }

    pub fn start_on(
        listener: TcpListener,
        models: Models,
        settings: Settings,
        options: ServeOptions,
    ) -> Self {
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::new(models, settings);
        let (end, ended) = oneshot::channel();
        let shutdown = async move {
            let _ = ended.await;
        };
        let served = tokio::spawn(serve(server.clone(), listener, options, shutdown));
        Self { url, server, client: Client::new(), end: Some(end), served: Some(served) }
    }

    pub async fn post(&self, path: &str, body: Value) -> Response {
        self.client.post(format!("{}{path}", self.url)).json(&body).send().await.unwrap()
    }

    /// The body of an answer that has to be a success.
    pub async fn ok(&self, path: &str, body: Value) -> Value {
        let response = self.post(path, body).await;
        let (status, body) = (response.status(), response.text().await.unwrap());
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// The status and the body of an answer that has to be a failure.
    pub async fn refused(&self, path: &str, body: Value) -> (u16, Value) {
        let response = self.post(path, body).await;
        let status = response.status();
        assert!(!status.is_success());
        (status.as_u16(), response.json().await.unwrap())
    }

    pub async fn get(&self, path: &str) -> Response {
        self.client.get(format!("{}{path}", self.url)).send().await.unwrap()
    }

    /// The names and contents of a stream's events; a name is empty where there is none.
    pub async fn stream(&self, path: &str, body: Value) -> Vec<(String, String)> {
        let response = self.post(path, body).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        events(&response.text().await.unwrap())
    }

    /// Asks the server to end, and waits until it has.
    pub async fn end(mut self) {
        let _ = self.end.take().unwrap().send(());
        self.served.take().unwrap().await.unwrap().unwrap();
    }

    /// Waits until the model has this many requests, for as long as the test runs.
    pub async fn until(&self, what: impl Fn() -> bool) {
        while !what() {
            tokio::task::yield_now().await;
        }
    }
}

pub fn events(text: &str) -> Vec<(String, String)> {
    let event = |block: &str| {
        let field = |name: &str| {
            let lines = block.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            lines.collect::<Vec<_>>().join("\n")
        };
        (field("event"), field("data"))
    };
    text.split("\n\n").map(event).filter(|(_, data)| !data.is_empty()).collect()
}

/// The contents of events as JSON, without the last that says that it is done.
pub fn chunks(events: &[(String, String)]) -> Vec<Value> {
    let contents = events.iter().filter(|(_, data)| data != "[DONE]");
    contents.map(|(_, data)| serde_json::from_str(data).unwrap()).collect()
}

pub async fn mock_model() -> Arc<dyn TextModel> {
    let folder = mock::folder();
    Registry::empty().with(mock::DESCRIPTOR).load_model(folder.path()).backend("mock").await.unwrap()
}

pub async fn mock_server(settings: Settings) -> Running {
    Running::start(Models::single("mock", mock_model().await), settings)
}

pub fn scripted_server() -> Running {
    scripted_server_with(Settings::new())
}

pub fn scripted_server_with(settings: Settings) -> Running {
    let entry = ModelEntry::loaded("scripted", Arc::new(Scripted::new())).alias("gpt-scripted");
    Running::start(Models::new([entry], ModelLimits::default()).unwrap(), settings)
}
