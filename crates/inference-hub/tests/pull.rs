//! Downloads from a server that speaks the Hub's API, and fails as networks do.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::HashMap,
    path::Path as FilePath,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, State},
    http::{HeaderMap, Response, StatusCode},
    response::IntoResponse as _,
    routing::get,
};
use inference_hub::{Hub, HubError, ModelName, PullOptions};
use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// What goes wrong.
#[derive(Debug, Clone, Default)]
struct Faults {
    /// So many downloads of weights end after half of what was asked for.
    cuts: usize,
    /// The connection of each download of weights ends before its first byte.
    silent: bool,
    /// So many requests are told to come back later.
    busy: usize,
    /// Weights are longer than the list says.
    longer: bool,
    /// A byte of the weights is wrong.
    wrong: bool,
    /// Ranges are not understood.
    no_ranges: bool,
    /// Another host has the weights.
    elsewhere: Option<String>,
    /// The list can be read with this token alone.
    token: Option<&'static str>,
}

struct FakeHub {
    files: HashMap<String, Vec<u8>>,
    faults: Mutex<Faults>,
    /// Requests for weights, and where they began.
    requests: AtomicUsize,
    starts: Mutex<Vec<usize>>,
    /// Keys that were given where the weights are.
    leaked: AtomicUsize,
}

type Shared = State<Arc<FakeHub>>;

async fn start(faults: Faults) -> (String, Arc<FakeHub>) {
    let weights: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let files = [
        ("config.json", b"{\"model_type\":\"llama\"}".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors", weights),
        ("pytorch_model.bin", vec![0; 10]),
    ];
    let hub = FakeHub {
        files: files.map(|(name, bytes)| (name.to_owned(), bytes)).into(),
        faults: Mutex::new(faults),
        requests: AtomicUsize::new(0),
        starts: Mutex::default(),
        leaked: AtomicUsize::new(0),
    };
    let hub = Arc::new(hub);
    let app = Router::new()
        .route("/api/models/{org}/{name}/revision/{revision}", get(list))
        .route("/{org}/{name}/resolve/{commit}/{file}", get(resolve))
        .route("/elsewhere/{file}", get(elsewhere))
        .with_state(hub.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    (url, hub)
}

async fn list(
    State(hub): Shared,
    Path((org, _, revision)): Path<(String, String, String)>,
    headers: HeaderMap,
) -> axum::response::Response {
    let token = headers.get("authorization").map(|value| value.to_str().unwrap().to_owned());
    let mut faults = hub.faults.lock().unwrap();
    if faults.token.is_some_and(|wanted| token != Some(format!("Bearer {wanted}"))) {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if faults.busy > 0 {
        faults.busy -= 1;
        return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "0")]).into_response();
    }
    if org != "org" || !["main", "refs/pr/1"].contains(&revision.as_str()) {
        return StatusCode::NOT_FOUND.into_response();
    }
    let sibling = |(name, bytes): (&String, &Vec<u8>)| -> Value {
        let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        if name.ends_with(".safetensors") {
            json!({"rfilename": name, "size": bytes.len(), "blobId": "e".repeat(40),
                   "lfs": {"sha256": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 134}})
        } else {
            let id =
                Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize();
            json!({"rfilename": name, "size": bytes.len(), "blobId": hex(&id)})
        }
    };
    let siblings: Vec<Value> = hub.files.iter().map(sibling).collect();
    Json(json!({"sha": COMMIT, "siblings": siblings, "private": false})).into_response()
}

async fn resolve(
    State(hub): Shared,
    Path((_, _, commit, file)): Path<(String, String, String, String)>,
    headers: HeaderMap,
) -> axum::response::Response {
    assert_eq!(commit, COMMIT);
    let elsewhere = hub.faults.lock().unwrap().elsewhere.clone();
    match elsewhere.filter(|_| file.ends_with(".safetensors")) {
        Some(host) => (StatusCode::FOUND, [("location", format!("{host}/elsewhere/{file}"))]).into_response(),
        None => send(&hub, &file, &headers),
    }
}

async fn elsewhere(
    State(hub): Shared,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> axum::response::Response {
    hub.leaked.fetch_add(usize::from(headers.contains_key("authorization")), Ordering::SeqCst);
    send(&hub, &file, &headers)
}

fn send(hub: &FakeHub, file: &str, headers: &HeaderMap) -> axum::response::Response {
    let Some(bytes) = hub.files.get(file) else { return StatusCode::NOT_FOUND.into_response() };
    let mut faults = hub.faults.lock().unwrap();
    let weights = file.ends_with(".safetensors");
    let mut bytes = bytes.clone();
    if weights && faults.longer {
        bytes.push(0);
    }
    if weights && faults.wrong {
        bytes[7] ^= 1;
    }
    let range = headers.get("range").filter(|_| !faults.no_ranges).map(|range| range.to_str().unwrap());
    let from = range.map(|range| range.strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap());
    let from = from.map(|from| from.parse::<usize>().unwrap());
    let rest = bytes[from.unwrap_or(0)..].to_vec();
    let response = Response::builder().header("content-length", rest.len());
    let response = match from {
        Some(from) => response
            .status(StatusCode::PARTIAL_CONTENT)
            .header("content-range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
        None => response,
    };
    let given = if weights && faults.silent {
        0
    } else if weights && faults.cuts > 0 {
        faults.cuts -= 1;
        rest.len() / 2
    } else {
        rest.len()
    };
    if weights {
        hub.starts.lock().unwrap().push(from.unwrap_or(0));
        hub.requests.fetch_add(1, Ordering::SeqCst);
    }
    if given == rest.len() {
        return response.body(Body::from(rest)).unwrap();
    }
    let part = Ok(Bytes::from(rest[..given].to_vec()));
    let cut = Err(std::io::Error::other("cut"));
    response.body(Body::from_stream(futures::stream::iter([part, cut]))).unwrap()
}

async fn pull(hub: &Hub, name: &str, options: PullOptions) -> inference_hub::Result<std::path::PathBuf> {
    let (hub, name): (Hub, ModelName) = (hub.clone(), name.parse().unwrap());
    tokio::task::spawn_blocking(move || hub.pull(&name, &options)).await.unwrap()
}

fn weights(folder: &FilePath) -> Vec<u8> {
    std::fs::read(folder.join("model.safetensors")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_is_pulled_found_listed_and_removed() {
    let (url, fake) = start(Faults::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&url, cache.path());
    let name: ModelName = "org/tiny".parse().unwrap();
    assert_eq!(hub.find(&name), None);
    let last = Arc::new(AtomicU64::new(0));
    let seen = last.clone();
    let options = PullOptions::new().on_progress(move |progress| {
        assert_eq!(progress.total_bytes, 1_200_024);
        seen.fetch_max(progress.bytes, Ordering::SeqCst);
    });
    let folder = pull(&hub, "org/tiny", options).await.unwrap();
    assert_eq!(last.load(Ordering::SeqCst), 1_200_024);
    assert_eq!(weights(&folder), fake.files["model.safetensors"]);
    assert!(folder.ends_with(format!("models--org--tiny/snapshots/{COMMIT}")));
    assert!(!folder.join("pytorch_model.bin").exists());
    assert_eq!(std::fs::read_to_string(cache.path().join("models--org--tiny/refs/main")).unwrap(), COMMIT);
    assert_eq!(hub.find(&name), Some(folder.clone()));
    assert_eq!(hub.find(&format!("org/tiny@{COMMIT}").parse().unwrap()), Some(folder.clone()));
    pull(&hub, "org/tiny", PullOptions::new()).await.unwrap();
    assert_eq!(fake.requests.load(Ordering::SeqCst), 1, "what is there is not fetched again");
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    assert_eq!(hub.find(&name), None, "a snapshot without its weights is not whole");
    pull(&hub, "org/tiny", PullOptions::new()).await.unwrap();
    assert_eq!((hub.find(&name), fake.requests.load(Ordering::SeqCst)), (Some(folder), 1));
    pull(&hub, "org/tiny@refs/pr/1", PullOptions::new()).await.unwrap();
    let listed = hub.list().unwrap();
    assert_eq!((listed.len(), listed[0].name.as_str(), listed[0].bytes), (1, "org/tiny", 1_200_024));
    assert_eq!(hub.remove(&name).unwrap(), 1_200_024);
    assert!(hub.find(&name).is_none() && hub.list().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_download_that_was_cut_goes_on_where_it_stopped() {
    let (url, fake) = start(Faults { cuts: 3, ..Faults::default() }).await;
    let cache = tempfile::tempdir().unwrap();
    let folder = pull(&Hub::new(&url, cache.path()), "org/tiny", PullOptions::new()).await.unwrap();
    assert_eq!(weights(&folder), fake.files["model.safetensors"]);
    let starts = fake.starts.lock().unwrap().clone();
    assert!(starts.len() == 4 && starts[0] == 0 && starts.is_sorted() && starts[3] > 0, "{starts:?}");
    // From the beginning, where the server knows no ranges.
    let (url, fake) = start(Faults { cuts: 1, no_ranges: true, ..Faults::default() }).await;
    let cache = tempfile::tempdir().unwrap();
    let folder = pull(&Hub::new(&url, cache.path()), "org/tiny", PullOptions::new()).await.unwrap();
    assert_eq!(weights(&folder), fake.files["model.safetensors"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_network_that_is_gone_fails_and_leaves_what_there_was() {
    let (url, fake) = start(Faults { silent: true, ..Faults::default() }).await;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&url, cache.path());
    let error = pull(&hub, "org/tiny", PullOptions::new()).await.unwrap_err();
    assert!(matches!(error, HubError::Network { .. }), "{error}");
    assert!(hub.find(&"org/tiny".parse().unwrap()).is_none(), "a folder appears only when it is whole");
    fake.faults.lock().unwrap().silent = false;
    pull(&hub, "org/tiny", PullOptions::new()).await.unwrap();
    let nobody = Hub::new("http://127.0.0.1:1", cache.path());
    assert!(matches!(pull(&nobody, "org/tiny", PullOptions::new()).await, Err(HubError::Network { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_not_what_the_list_says_are_refused() {
    for (faults, check) in [
        (Faults { longer: true, ..Faults::default() }, "length"),
        (Faults { wrong: true, ..Faults::default() }, "checksum"),
    ] {
        let (url, fake) = start(faults).await;
        let cache = tempfile::tempdir().unwrap();
        let hub = Hub::new(&url, cache.path());
        let error = pull(&hub, "org/tiny", PullOptions::new()).await.unwrap_err();
        assert!(matches!(&error, HubError::Damaged { check: found, .. } if *found == check), "{error}");
        *fake.faults.lock().unwrap() = Faults::default();
        let folder = pull(&hub, "org/tiny", PullOptions::new()).await.unwrap();
        assert_eq!(weights(&folder), fake.files["model.safetensors"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_for_the_hub_alone() {
    let (other, beside) = start(Faults::default()).await;
    // The same machine by another name is another host.
    let other = other.replace("127.0.0.1", "localhost");
    let (url, _) = start(Faults { token: Some("hf_x"), elsewhere: Some(other), ..Faults::default() }).await;
    let cache = tempfile::tempdir().unwrap();
    let stranger = pull(&Hub::new(&url, cache.path()), "org/tiny", PullOptions::new()).await.unwrap_err();
    assert!(matches!(stranger, HubError::Unauthorized { status: 401, .. }), "{stranger}");
    assert!(stranger.to_string().contains("HF_TOKEN"));
    let hub = Hub::new(&url, cache.path()).token(Some("hf_x".to_owned()));
    pull(&hub, "org/tiny", PullOptions::new()).await.unwrap();
    assert_eq!((beside.requests.load(Ordering::SeqCst), beside.leaked.load(Ordering::SeqCst)), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_hub_says_is_told_apart() {
    let (url, fake) = start(Faults { busy: 2, ..Faults::default() }).await;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&url, cache.path());
    let missing = pull(&hub, "nobody/tiny", PullOptions::new()).await.unwrap_err();
    assert!(matches!(missing, HubError::NotFound { .. }), "{missing}");
    assert!(pull(&hub, "org/tiny", PullOptions::new()).await.is_ok());
    fake.faults.lock().unwrap().busy = 1000;
    let busy = pull(&hub, "org/tiny", PullOptions::new()).await.unwrap_err();
    assert!(matches!(busy, HubError::RateLimited { .. }), "{busy}");
    let offline = hub.clone().offline(true);
    pull(&offline, "org/tiny", PullOptions::new()).await.unwrap();
    let error = pull(&offline, "org/other", PullOptions::new()).await.unwrap_err();
    assert!(matches!(error, HubError::Offline { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn several_pulls_at_once_do_not_harm_each_other_and_one_can_be_cancelled() {
    let (url, fake) = start(Faults::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let hub = Hub::new(&url, cache.path());
    let pulls = (0..4).map(|_| pull(&hub, "org/tiny", PullOptions::new()));
    let folders = futures::future::join_all(pulls).await;
    assert!(
        folders.iter().all(|folder| weights(folder.as_ref().unwrap()) == fake.files["model.safetensors"])
    );
    assert_eq!(fake.requests.load(Ordering::SeqCst), 1);
    hub.remove(&"org/tiny".parse().unwrap()).unwrap();
    let cancel = CancellationToken::new();
    cancel.cancel();
    let error = pull(&hub, "org/tiny", PullOptions::new().cancel(cancel)).await.unwrap_err();
    assert!(matches!(error, HubError::Cancelled), "{error}");
}
