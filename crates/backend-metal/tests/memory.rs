//! Closing a model gives its memory back. Alone in its process, because MLX's allocator is the process's.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use backend_metal as _;
use inference_core::{GenerateOptions, Message, Prompt, Registry, TextModelExt as _, load_model};

#[tokio::test]
async fn memory_returns_to_where_it_was() {
    let demo = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/demo");
    let backend = Registry::linked().open("cpu").unwrap();
    let memory = backend.memory().unwrap();
    let before = memory.usage().unwrap();
    for round in 0..3 {
        let model = load_model(demo).backend("cpu").await.unwrap();
        let loaded = memory.usage().unwrap().active_bytes;
        assert!(
            loaded > before.active_bytes + model.info().weight_bytes / 2,
            "round {round}: nothing was loaded"
        );
        let prompt = Prompt::Chat(vec![Message::user("What is 2+2?")]);
        let answer = model.complete(prompt, GenerateOptions::new()).await.unwrap();
        assert!(answer.finish.metrics.peak_memory_bytes >= loaded, "round {round}: {answer:?}");
        if round == 2 {
            // Dropping the last handle closes too; the next load waits for it, as the thread takes one thing at a time.
            drop(model);
            load_model(demo).backend("cpu").await.unwrap().close().await.unwrap();
        } else {
            model.close().await.unwrap();
        }
        let after = memory.usage().unwrap();
        assert_eq!(
            (after.active_bytes, after.cache_bytes),
            (before.active_bytes, before.cache_bytes),
            "round {round}"
        );
    }
}

#[test]
fn limits_are_set_and_the_old_ones_returned() {
    let backend = Registry::linked().open("cpu").unwrap();
    let memory = backend.memory().unwrap();
    let limits = inference_core::backend::MemoryLimits::new().cache(1 << 20);
    let before = memory.set_limits(limits).unwrap();
    assert_eq!(memory.set_limits(before).unwrap().cache, Some(1 << 20));
    assert_eq!(before.memory, None);
    memory.reset_peak().unwrap();
    memory.clear_cache().unwrap();
}
