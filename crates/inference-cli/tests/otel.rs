//! Traces of a served request, as a collector gets them.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    process::Stdio,
    sync::mpsc,
};

use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value::Value as Any},
    trace::v1::{Span, span::SpanKind},
};
use prost::Message as _;
use serde_json::json;
use support::*;

/// A stand-in for a collector: takes what is posted, and hands its spans on.
fn collector() -> (String, mpsc::Receiver<Span>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (sender, spans) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let sender = sender.clone();
            std::thread::spawn(move || take(&stream.unwrap(), &sender));
        }
    });
    (url, spans)
}

fn take(mut stream: &TcpStream, spans: &mpsc::Sender<Span>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut head = Vec::new();
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            head.push(std::mem::take(&mut line).to_ascii_lowercase());
        }
        let Some(request) = head.first() else { return };
        assert!(request.starts_with("post /v1/traces "), "{request}");
        assert!(
            head.iter().any(|line| line.trim_end() == "content-type: application/x-protobuf"),
            "{head:?}"
        );
        let length = head.iter().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.trim_end().parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        let export = ExportTraceServiceRequest::decode(body.as_slice()).unwrap();
        let scopes = export.resource_spans.into_iter().flat_map(|resource| {
            let name = attribute(&resource.resource.unwrap().attributes, "service.name");
            assert_eq!(name, Some(Any::StringValue("inference".to_owned())));
            resource.scope_spans
        });
        for span in scopes.flat_map(|scope| scope.spans) {
            let _ = spans.send(span);
        }
        write!(
            stream,
            "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n"
        )
        .unwrap();
    }
}

fn attribute(attributes: &[KeyValue], name: &str) -> Option<Any> {
    let found = attributes.iter().find(|attribute| attribute.key == name)?;
    found.value.clone()?.value
}

#[test]
fn a_served_request_is_traced_as_part_of_its_clients_trace() {
    let (url, spans) = collector();
    let folder = inference::mock::folder();
    let mut command = inference(&["serve", "--port=0", "--grace=0", "--backend=mock", "--model"]);
    command.arg(folder.path()).env("OTEL_EXPORTER_OTLP_ENDPOINT", &url).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let line = lines.find(|line| line.contains("listening on ")).unwrap();
    let mut stream = TcpStream::connect(line.rsplit("//").next().unwrap()).unwrap();
    let body = json!({"messages": [{"role": "user", "content": "a b"}], "max_tokens": 3, "stream": true})
        .to_string();
    let (trace, parent) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");
    write!(
        stream,
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
         traceparent: 00-{trace}-{parent}-01\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("[DONE]"), "{answer}");
    interrupt(&child);
    assert!(child.wait().unwrap().success());
    // The program has ended: what it had to tell is told.
    let spans: Vec<Span> = spans.try_iter().collect();
    let named = |name: &str| {
        spans.iter().find(|span| span.name == name).unwrap_or_else(|| panic!("{name}: {spans:?}"))
    };
    let (request, generation) = (named("POST /v1/chat/completions"), named("generate"));
    let bytes = |hex: &str| u128::from_str_radix(hex, 16).unwrap().to_be_bytes();
    assert_eq!((request.trace_id.as_slice(), request.kind), (&bytes(trace)[..], SpanKind::Server as i32));
    assert_eq!(request.parent_span_id, bytes(parent)[8..]);
    assert_eq!(attribute(&request.attributes, "http.response.status_code"), Some(Any::IntValue(200)));
    assert_eq!((&generation.trace_id, &generation.parent_span_id), (&request.trace_id, &request.span_id));
    assert_eq!(attribute(&generation.attributes, "generated_tokens"), Some(Any::IntValue(3)));
    // The stream is part of the request: it ends with the answer, not with its head.
    assert!(request.end_time_unix_nano >= generation.end_time_unix_nano);
}

#[test]
fn nothing_is_sent_where_no_collector_is_named() {
    let folder = inference::mock::folder();
    let mut command = inference(&["generate", "--backend=mock", "--max-tokens=2", "a b", "--model"]);
    let output = command.arg(folder.path()).env("OTEL_SERVICE_NAME", "x").output().unwrap();
    succeeded(&output);
    assert!(!errors(&output).to_lowercase().contains("otel"), "{}", errors(&output));
}

/// A collector that is not there costs a request nothing.
#[test]
fn a_collector_that_cannot_be_reached_harms_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let folder = inference::mock::folder();
    let mut command = inference(&["generate", "--backend=mock", "--max-tokens=2", "a b", "--model"]);
    let output = command.arg(folder.path()).env("OTEL_EXPORTER_OTLP_ENDPOINT", &url).output().unwrap();
    succeeded(&output);
}
