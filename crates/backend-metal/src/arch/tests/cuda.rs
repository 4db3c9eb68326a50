//! Which models the CUDA kernels know. Their numbers need a GPU: see the README of cuda-kernels.

use super::fixtures::{Variant, device};

#[test]
fn models_are_described_or_refused_by_name() {
    device();
    let known = [
        ("gemma+bf16", None),
        ("gemma2-window+bf16", None),
        ("gemma3_text+bf16", None),
        ("qwen3+bf16", None),
        ("qwen3+f16", None),
        ("qwen3", Some("weights in f32")),
        ("qwen3_moe+bf16", Some("experts")),
        ("olmo2+bf16", Some("blocks of this family")),
        ("llama+bf16", Some("the width of a head is 16")),
    ];
    for (name, refused) in known {
        let described = Variant::named(name).load().describe();
        match (described, refused) {
            (Ok(description), None) => assert!(description.spec.weight_bytes() > 0, "{name}"),
            (Err(why), Some(reason)) => assert!(why.to_string().contains(reason), "{name}: {why}"),
            (Ok(_), Some(reason)) => panic!("{name} is described, in spite of {reason}"),
            (Err(why), None) => panic!("{name}: {why}"),
        }
    }
}
