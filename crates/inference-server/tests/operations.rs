//! What those who run a server rely on: keys, limits, queues, deadlines, models on demand, the end.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures::{StreamExt as _, future::join_all};
use inference_core::{Error, Result, TextModel};
use inference_server::{ModelEntry, ModelLimits, ModelLoader, Models, ServeOptions, Settings};
use serde_json::{Value, json};
use support::*;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
};

const CHAT: &str = "/v1/chat/completions";

fn ask(model: &str, tokens: usize) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "a b c"}], "max_tokens": tokens})
}

fn endless(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "a b c"}], "stream": true, "max_tokens": 1_000_000})
}

#[tokio::test]
async fn keys_are_asked_for() {
    let server = mock_server(Settings::new().api_key("secret")).await;
    let (status, error) = server.refused(CHAT, ask("mock", 1)).await;
    assert_eq!((status, error["error"]["type"].as_str()), (401, Some("authentication_error")));
    let (status, error) = server.refused("/v1/messages", json!({})).await;
    assert_eq!((status, error["type"].as_str()), (401, Some("error")));
    for (header, value) in [("authorization", "Bearer secret"), ("x-api-key", "secret")] {
        let request = server.client.post(format!("{}{CHAT}", server.url)).header(header, value);
        assert_eq!(request.json(&ask("mock", 1)).send().await.unwrap().status(), 200);
    }
    assert_eq!(server.get("/health").await.status(), 200);
    assert_eq!(server.get("/v1/models").await.status(), 401);
}

#[tokio::test]
async fn what_is_no_request_is_told_so_in_json() {
    let server = mock_server(Settings::new().body_limit(1000)).await;
    let (status, error) =
        server.refused(CHAT, json!({"messages": [{"role": "user", "content": "x".repeat(2000)}]})).await;
    assert_eq!((status, error["error"]["code"].as_str()), (413, Some("too_large")));
    let wrong = server.client.post(format!("{}{CHAT}", server.url)).body("{}").send().await.unwrap();
    assert_eq!((wrong.status().as_u16(), wrong.headers().contains_key("x-request-id")), (415, true));
    assert_eq!(wrong.json::<Value>().await.unwrap()["error"]["code"], "unsupported_media_type");
    let cut = server.client.post(format!("{}{CHAT}", server.url)).header("content-type", "application/json");
    assert_eq!(cut.body("{\"messages\":").send().await.unwrap().status(), 400);
    for (path, status) in [("/nothing", 404), (CHAT, 405)] {
        let response = server.get(path).await;
        assert_eq!(response.status(), status);
        assert!(response.json::<Value>().await.unwrap()["error"]["message"].is_string());
    }
}

#[tokio::test]
async fn other_sites_are_let_in_by_name() {
    let origin = |server: &Running| {
        let request = server.client.get(format!("{}/v1/models", server.url));
        request.header("origin", "https://a.example").send()
    };
    let closed = mock_server(Settings::new()).await;
    assert!(!origin(&closed).await.unwrap().headers().contains_key("access-control-allow-origin"));
    let open = mock_server(Settings::new().cors_origin("https://a.example")).await;
    assert_eq!(origin(&open).await.unwrap().headers()["access-control-allow-origin"], "https://a.example");
}

/// A page of another site whose name leads here must not be answered.
#[tokio::test]
async fn requests_to_names_of_others_are_refused() {
    let server = mock_server(Settings::new().allowed_hosts(["models.example"])).await;
    let sent_to = async |host: &str, path: &str| {
        let request = server.client.get(format!("{}{path}", server.url)).header("host", host);
        request.send().await.unwrap()
    };
    for host in ["localhost:8080", "127.0.0.1", "models.example"] {
        assert_eq!(sent_to(host, "/v1/models").await.status(), 200, "{host}");
    }
    for path in ["/", "/health", "/v1/models", "/nothing"] {
        let refused = sent_to("evil.example", path).await;
        assert_eq!(refused.status(), 403, "{path}");
        assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "host_not_allowed");
    }
    let open = mock_server(Settings::new()).await;
    let anywhere = open.client.get(format!("{}/health", open.url)).header("host", "any.example");
    assert_eq!(anywhere.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_client_that_leaves_cancels_its_work() {
    let model = mock_model().await;
    let server = Running::start(Models::single("mock", model.clone()), Settings::new());
    let mut stream = server.post(CHAT, endless("mock")).await.bytes_stream();
    stream.next().await.unwrap().unwrap();
    assert_eq!(model.stats().active, 1);
    drop(stream);
    server.until(|| model.stats().active == 0).await;
    assert_eq!(model.stats().cancelled, 1);
    // The same where the answer is to come whole.
    let mut whole = endless("mock");
    whole["stream"] = json!(false);
    let request =
        server.client.post(format!("{}{CHAT}", server.url)).json(&whole).timeout(Duration::from_millis(300));
    assert!(request.send().await.unwrap_err().is_timeout());
    server.until(|| model.stats().active == 0).await;
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("inference_cancelled_total{model=\"mock\"} 2"), "{metrics}");
}

/// Opens a connection that takes in next to nothing, and sends this.
async fn raw(server: &Running, text: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut stream = socket.connect(address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

fn raw_post(body: &Value) -> String {
    let body = body.to_string();
    let head = "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
    format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_no_other_and_is_sent_away() {
    let model = mock_model().await;
    let options = ServeOptions::new().write_timeout(Duration::from_millis(500));
    let settings = Settings::new().stream_interval(Duration::ZERO);
    // Connections have the listener's buffers: little fits between a server that writes and a client that does not read.
    let listener = TcpSocket::new_v4().unwrap();
    listener.set_send_buffer_size(4096).unwrap();
    listener.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = listener.listen(64).unwrap().into_std().unwrap();
    let server = Running::start_on(listener, Models::single("mock", model.clone()), settings, options);
    let mut unread = raw(&server, &raw_post(&endless("mock"))).await;
    server.until(|| model.stats().active == 1).await;
    for _ in 0..20 {
        server.ok(CHAT, ask("mock", 50)).await;
    }
    server.until(|| model.stats().active == 0).await;
    assert_eq!(model.stats().cancelled, 1);
    let mut rest = Vec::new();
    // What was on its way is still there, then the connection is at its end.
    let _ = unread.read_to_end(&mut rest).await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "the stream ended as if it were complete");
}

#[tokio::test]
async fn half_a_request_is_not_waited_for_without_end() {
    let server = mock_server(Settings::new().body_timeout(Duration::from_millis(100))).await;
    let whole = raw_post(&ask("mock", 1));
    let mut half = raw(&server, &whole[..whole.len() - 5]).await;
    let mut answer = String::new();
    half.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"), "{answer}");
    // One that goes away in the middle leaves nothing behind.
    drop(raw(&server, &whole[..40]).await);
    let metrics = server.get("/metrics").await.text().await.unwrap();
    assert!(metrics.contains("inference_running{model=\"mock\"} 0"), "{metrics}");
}

#[tokio::test]
async fn a_full_queue_sends_requests_away() {
    let mut limits = ModelLimits::default();
    (limits.max_running, limits.max_waiting) = (1, 1);
    let model = mock_model().await;
    let models = Models::new([ModelEntry::loaded("mock", model.clone())], limits).unwrap();
    let server = Running::start(models, Settings::new());
    let mut running = server.post(CHAT, endless("mock")).await.bytes_stream();
    running.next().await.unwrap().unwrap();
    let waiting =
        tokio::spawn(server.client.post(format!("{}{CHAT}", server.url)).json(&ask("mock", 2)).send());
    loop {
        let metrics = server.get("/metrics").await.text().await.unwrap();
        if metrics.contains("inference_waiting{model=\"mock\"} 1") {
            break;
        }
    }
    let refused = server.post(CHAT, ask("mock", 1)).await;
    assert_eq!(refused.status(), 429);
    assert!(refused.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["type"], "rate_limit_error");
    drop(running);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_deadline_ends_a_request() {
    let settings = Settings::new().request_timeout(Some(Duration::from_millis(200)));
    let server = mock_server(settings).await;
    let mut whole = endless("mock");
    whole["stream"] = json!(false);
    let (status, error) = server.refused(CHAT, whole).await;
    assert_eq!((status, error["error"]["code"].as_str()), (504, Some("timeout")));
    let events = server.stream(CHAT, endless("mock")).await;
    let last: Value = serde_json::from_str(&events.last().unwrap().1).unwrap();
    assert_eq!(last["error"]["code"], "timeout");
}

#[tokio::test]
async fn the_end_lets_work_finish_and_then_cancels_it() {
    let model = mock_model().await;
    let options = ServeOptions::new().grace(Duration::from_millis(300));
    let server = Running::start_with(Models::single("mock", model.clone()), Settings::new(), options);
    let stream = server.post(CHAT, endless("mock")).await;
    let health = server.client.get(format!("{}/health", server.url));
    assert_eq!(health.send().await.unwrap().status(), 200);
    let (text, ()) = tokio::join!(stream.text(), server.end());
    let events = events(&text.unwrap());
    let last: Value = serde_json::from_str(&events.last().unwrap().1).unwrap();
    assert_eq!(last["error"]["code"], "shutting_down");
    assert!(matches!(model.generate("a".into(), Default::default()).await, Err(Error::Closed)));
}

/// Loads the mock, or fails.
#[derive(Debug)]
struct Loader {
    bytes: u64,
    loads: Arc<AtomicUsize>,
    fails: bool,
}

#[async_trait]
impl ModelLoader for Loader {
    async fn bytes(&self) -> Result<u64> {
        Ok(self.bytes)
    }

    async fn load(&self) -> Result<Arc<dyn TextModel>> {
        self.loads.fetch_add(1, Ordering::SeqCst);
        if self.fails {
            return Err(Error::invalid_key("m/config.json", "layers", "is -1"));
        }
        Ok(mock_model().await)
    }
}

fn on_demand(name: &str, bytes: u64) -> (ModelEntry, Arc<AtomicUsize>) {
    let loads = Arc::new(AtomicUsize::new(0));
    let loader = Loader { bytes, loads: loads.clone(), fails: name == "broken" };
    (ModelEntry::with_loader(name, loader), loads)
}

#[tokio::test]
async fn models_are_loaded_by_name_and_unloaded_for_one_another() {
    let (a, a_loads) = on_demand("org/a", 60);
    let (b, b_loads) = on_demand("b", 60);
    let (c, _) = on_demand("c", 30);
    let (huge, _) = on_demand("huge", 1000);
    let mut limits = ModelLimits::default();
    limits.memory_budget = Some(100);
    let models = Models::new([a.alias("first"), b, c.pinned(true), huge], limits).unwrap();
    let server = Running::start(models, Settings::new());
    let loaded = async |name: &str| {
        let model = server.get(&format!("/v1/models/{name}")).await.json::<Value>().await.unwrap();
        model["loaded"].as_bool().unwrap()
    };
    assert!(!loaded("org/a").await);
    let answers = join_all((0..4).map(|_| server.ok(CHAT, ask("first", 2)))).await;
    assert!(answers.iter().all(|answer| answer["model"] == "org/a"));
    assert_eq!(a_loads.load(Ordering::SeqCst), 1);
    server.ok(CHAT, ask("c", 1)).await;
    server.ok(CHAT, ask("b", 1)).await;
    assert_eq!((loaded("org/a").await, loaded("b").await, loaded("c").await), (false, true, true));
    let (status, error) = server.refused(CHAT, ask("huge", 1)).await;
    assert_eq!((status, error["error"]["code"].as_str()), (503, Some("out_of_memory")));
    // One in use is waited for.
    let mut stream = server.post(CHAT, endless("b")).await.bytes_stream();
    stream.next().await.unwrap().unwrap();
    let waiting =
        tokio::spawn(server.client.post(format!("{}{CHAT}", server.url)).json(&ask("org/a", 1)).send());
    assert!(loaded("b").await);
    drop(stream);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
    assert_eq!((loaded("b").await, b_loads.load(Ordering::SeqCst)), (false, 1));
}

#[tokio::test]
async fn adapters_are_named_with_their_model_or_apart() {
    let (base, _) = on_demand("base", 1);
    let (poet, poets) = on_demand("base:poet", 1);
    let models = Models::new([base.alias("gpt"), poet], ModelLimits::default()).unwrap();
    let server = Running::start(models, Settings::new());
    let with = |model: &str, adapter: &str| json!({"model": model, "adapter": adapter, "messages": [{"role": "user", "content": "a"}], "max_tokens": 1});
    for (model, adapter) in [("base", "poet"), ("gpt", "poet"), ("gpt:poet", ""), ("base:poet", "")] {
        assert_eq!(server.ok(CHAT, with(model, adapter)).await["model"], "base:poet");
    }
    assert_eq!(server.ok(CHAT, with("gpt", "")).await["model"], "base");
    assert_eq!(poets.load(Ordering::SeqCst), 1);
    let (status, error) = server.refused(CHAT, with("gpt", "painter")).await;
    assert_eq!((status, error["error"]["param"].as_str()), (404, Some("adapter")));
    let continued = json!({"model": "base", "adapter": "poet", "prompt": "a", "max_tokens": 1});
    assert_eq!(server.ok("/v1/completions", continued).await["model"], "base:poet");
    let response = json!({"model": "base", "adapter": "poet", "input": "a", "max_output_tokens": 1});
    assert_eq!(server.ok("/v1/responses", response).await["model"], "base:poet");
}

#[tokio::test]
async fn a_model_that_cannot_be_loaded_harms_no_other() {
    let (broken, loads) = on_demand("broken", 1);
    let (fine, _) = on_demand("fine", 1);
    let models = Models::new([broken.preload(true), fine.preload(true)], ModelLimits::default()).unwrap();
    let server = Running::start(models.clone(), Settings::new());
    let starting = server.get("/health").await;
    assert_eq!(
        (starting.status().as_u16(), starting.json::<Value>().await.unwrap()),
        (503, json!({"status": "loading"}))
    );
    let results = models.preload().await;
    assert!(results[0].1.is_err() && results[1].1.is_ok());
    assert_eq!(server.get("/health").await.status(), 200);
    let (status, error) = server.refused(CHAT, ask("broken", 1)).await;
    assert_eq!((status, error["error"]["code"].as_str()), (500, Some("invalid_model")));
    assert!(error["error"]["message"].as_str().unwrap().contains("layers: is -1"));
    assert_eq!(loads.load(Ordering::SeqCst), 2);
    server.ok(CHAT, ask("fine", 1)).await;
    let listed = server.get("/v1/models").await.json::<Value>().await.unwrap();
    assert!(listed["data"][0]["error"].as_str().unwrap().contains("layers"));
}

#[tokio::test]
async fn texts_and_tokens() {
    let server = scripted_server();
    let messages = json!([{"role": "user", "content": "Hi"}]);
    let prompt = server.ok("/apply-template", json!({ "messages": messages })).await["prompt"].clone();
    assert_eq!(prompt, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    let tokens = server.ok("/tokenize", json!({ "messages": messages })).await;
    assert_eq!(tokens["count"].as_u64().unwrap() as usize, tokens["tokens"].as_array().unwrap().len());
    assert_eq!(server.ok("/detokenize", json!({"tokens": tokens["tokens"]})).await["content"], prompt);
    let (_, error) = server.refused("/tokenize", json!({})).await;
    assert_eq!(error["error"]["param"], "content");
}

#[tokio::test]
async fn the_api_describes_itself_and_the_page_is_closed_to_others() {
    let server = mock_server(Settings::new()).await;
    let api = server.get("/openapi.json").await.json::<Value>().await.unwrap();
    for path in [CHAT, "/v1/messages", "/v1/responses/{id}", "/tokenize", "/metrics"] {
        assert!(api["paths"][path].is_object(), "{path}");
    }
    let page = server.get("/").await;
    let policy = page.headers()["content-security-policy"].to_str().unwrap().to_owned();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    let html = page.text().await.unwrap();
    for file in html.split("=\"page/").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert_eq!(server.get(&format!("/page/{file}")).await.status(), 200, "{file}");
    }
    assert_eq!(html.matches("=\"page/").count(), 2);
    let without = mock_server(Settings::new().page(false)).await;
    assert_eq!(without.get("/").await.status(), 404);
}
