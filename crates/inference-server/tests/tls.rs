//! HTTPS with a certificate that signs itself, and a client that knows it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use inference_server::{Models, ServeOptions, Settings};
use serde_json::json;
use support::*;
use ureq::{
    Agent,
    tls::{Certificate, RootCerts, TlsConfig},
};

/// A server with a new certificate for `localhost`, and a client that trusts it alone.
async fn start() -> (Running, Agent) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let options = ServeOptions::new().tls(made.cert.pem(), made.signing_key.serialize_pem());
    let mut server =
        Running::start_with(Models::single("mock", mock_model().await), Settings::new(), options);
    server.url = server.url.replace("http://127.0.0.1", "https://localhost");
    let roots = RootCerts::Specific(Arc::new(vec![Certificate::from_der(made.cert.der()).to_owned()]));
    (server, agent(roots))
}

fn agent(roots: RootCerts) -> Agent {
    let tls = TlsConfig::builder().root_certs(roots).build();
    Agent::config_builder().tls_config(tls).http_status_as_error(false).build().into()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_come_over_https() {
    let (server, agent) = start().await;
    let url = server.url.clone();
    let (status, events) = blocking(move || {
        let body =
            json!({"messages": [{"role": "user", "content": "a b c"}], "max_tokens": 4, "stream": true});
        let request = agent.post(format!("{url}/v1/chat/completions")).content_type("application/json");
        let mut answer = request.send(body.to_string()).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_to_string().unwrap())
    })
    .await;
    assert_eq!(status, 200);
    let events = events_of(&events);
    assert_eq!(events, " b c a b");
    server.end().await;
}

fn events_of(text: &str) -> String {
    let chunks = chunks(&events(text));
    let deltas = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    deltas.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_know_the_certificate_or_speaks_no_tls_gets_nothing_and_harms_nobody() {
    let (server, agent) = start().await;
    let (secure, plain) = (server.url.clone(), server.url.replace("https", "http"));
    blocking(move || {
        let stranger = self::agent(RootCerts::Specific(Arc::new(Vec::new())));
        assert!(stranger.get(format!("{secure}/health")).call().is_err());
        assert!(agent.get(format!("{plain}/health")).call().is_err());
        assert_eq!(agent.get(format!("{secure}/health")).call().unwrap().status(), 200);
    })
    .await;
    server.end().await;
}

#[tokio::test]
async fn a_key_that_is_none_is_said_to_be_so() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = inference_server::Server::new(Models::single("mock", mock_model().await), Settings::new());
    let options = ServeOptions::new().tls("no certificate", "no key");
    let failed = inference_server::serve(server, listener, options, std::future::pending()).await;
    assert!(failed.is_err());
}
