//! Embeddings and reranking over real HTTP.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use inference_server::Settings;
use serde_json::{Value, json};
use support::*;

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[tokio::test]
async fn texts_get_vectors_in_their_order() {
    let server = mock_server(Settings::new()).await;
    let answer = server.ok("/v1/embeddings", json!({"input": ["a b", "c", "a b"], "model": "mock"})).await;
    assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("mock")));
    assert_eq!(answer["usage"], json!({"prompt_tokens": 5, "total_tokens": 5}));
    let data = answer["data"].as_array().unwrap();
    assert_eq!(data.len(), 3);
    for (index, entry) in data.iter().enumerate() {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
        let length = floats(&entry["embedding"]).iter().map(|x| x * x).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-5);
    }
    assert_eq!(data[0]["embedding"], data[2]["embedding"]);
    assert_ne!(data[0]["embedding"], data[1]["embedding"]);
    let single = server.ok("/v1/embeddings", json!({"input": "a b"})).await;
    assert_eq!(single["data"][0]["embedding"], data[0]["embedding"]);
    let ids = server.ok("/v1/embeddings", json!({"input": [[1, 2], [3]]})).await;
    assert_eq!(ids["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn a_vector_is_floats_or_their_bytes() {
    let server = mock_server(Settings::new()).await;
    let body = |format: &str| json!({"input": "a b c", "dimensions": 16, "encoding_format": format});
    let floats = floats(&server.ok("/v1/embeddings", body("float")).await["data"][0]["embedding"]);
    let encoded = server.ok("/v1/embeddings", body("base64")).await;
    let bytes = STANDARD.decode(encoded["data"][0]["embedding"].as_str().unwrap()).unwrap();
    let decoded: Vec<f32> = bytes.chunks(4).map(|x| f32::from_le_bytes(x.try_into().unwrap())).collect();
    assert_eq!((floats.len(), &floats), (16, &decoded));
    let (status, error) = server.refused("/v1/embeddings", json!({"input": "a", "dimensions": 1000})).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("dimensions")));
    let (status, error) = server.refused("/v1/embeddings", json!({"input": []})).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("input")));
    let (status, error) =
        server.refused("/v1/embeddings", json!({"input": "a", "encoding_format": "hex"})).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("encoding_format")));
    let (status, _) = server.refused("/v1/embeddings", json!({"input": "a", "inputs": "b"})).await;
    assert_eq!(status, 400);
    let (status, error) =
        server.refused("/v1/embeddings", json!({"input": "a", "prompt_name": "query"})).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("prefix_name")));
}

#[tokio::test]
async fn documents_are_ranked() {
    let server = mock_server(Settings::new()).await;
    let body = json!({
        "query": "where cats sleep", "documents": ["tin", {"text": "cats sleep here"}, "cats"], "top_n": 2,
        "return_documents": true,
    });
    let answer = server.ok("/v1/rerank", body).await;
    let results = answer["results"].as_array().unwrap();
    let order: Vec<_> = results.iter().map(|result| result["index"].as_u64().unwrap()).collect();
    assert_eq!(order, [1, 2]);
    assert_eq!(results[0]["document"]["text"], "cats sleep here");
    assert!(results[0]["relevance_score"].as_f64() > results[1]["relevance_score"].as_f64());
    assert_eq!(answer["usage"]["total_tokens"], 14);
    let (status, error) =
        server.refused("/v1/rerank", json!({"query": "a", "documents": ["b"], "top_n": 0})).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("top_n")));
    let body = json!({"query": "a", "documents": ["b"], "instruction": "find it"});
    let (status, error) = server.refused("/v1/rerank", body).await;
    assert_eq!((status, &error["error"]["param"]), (400, &json!("instruction")));
}

#[tokio::test]
async fn the_shapes_of_tei_are_served() {
    let server = mock_server(Settings::new()).await;
    let vectors =
        server.ok("/embed", json!({"inputs": ["a b", "c"], "normalize": false, "truncate": true})).await;
    let sums: Vec<f32> =
        vectors.as_array().unwrap().iter().map(|vector| floats(vector).iter().sum()).collect();
    assert_eq!(sums, [2.0, 1.0]);
    let body = json!({"query": "a b", "texts": ["x", "a b"], "raw_scores": true, "return_text": true});
    let scores = server.ok("/rerank", body).await;
    assert_eq!(
        scores,
        json!([{"index": 1, "score": 2.0, "text": "a b"}, {"index": 0, "score": -2.0, "text": "x"}])
    );
    let (status, _) = server.refused("/embed", json!({"inputs": "a", "truncation_direction": "left"})).await;
    assert_eq!(status, 400);
    let listed: Value = server.get("/openapi.json").await.json().await.unwrap();
    for path in ["/v1/embeddings", "/v1/rerank", "/embed", "/rerank"] {
        assert!(listed["paths"][path]["post"].is_object(), "{path}");
    }
}
