//! Which models the CUDA kernels know, and what their descriptions compute on the host. The kernels' numbers need a GPU: see the README of
//! cuda-kernels.

use cuda_kernels::{Activation, ExpertsSpec, FeedForwardSpec, Gating, Layout, Scoring};
use serde_json::{Value, json};

use super::{
    fixtures::{Rule, Variant, device},
    golden::whole,
};
use crate::nn::logits_of_description;

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
        ("qwen3_moe+bf16", None),
        ("glm4_moe+bf16", Some("experts of the best groups")),
        ("olmoe+bf16", Some("gates, scales or bounds of queries")),
        ("phimoe+bf16", Some("norms of mean and variance")),
        ("gpt_oss+bf16", Some("weights in another order")),
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

/// Heads that the kernels know: half as many, twice as wide. Weights in the more exact half precision.
fn fit(config: &mut Value, rules: &mut Vec<Rule>) {
    (config["num_attention_heads"], config["num_key_value_heads"]) = (json!(2), json!(1));
    (config["head_dim"], config["torch_dtype"]) = (json!(32), json!("float16"));
    for (name, dtype, shape, ..) in rules {
        if name.ends_with("sinks") {
            *shape = vec![2];
        }
        if matches!(dtype.as_str(), "F32" | "BF16") && !name.ends_with("e_score_correction_bias") {
            "F16".clone_into(dtype);
        }
    }
}

/// The same, and all experts in one group. Heads are wide enough there.
fn one_group(config: &mut Value, rules: &mut Vec<Rule>) {
    fit(config, rules);
    (config["num_attention_heads"], config["num_key_value_heads"]) = (json!(4), json!(2));
    config["n_group"] = json!(1);
}

/// The mixtures of experts of a model that is changed.
fn mixtures(name: &str, change: impl FnOnce(&mut Value, &mut Vec<Rule>)) -> Vec<ExpertsSpec> {
    let described = Variant::changed(name, change).load().describe();
    let description = described.unwrap_or_else(|why| panic!("{name}: {why}"));
    let mixtures = description.spec.layers.into_iter().filter_map(|layer| match layer.mlp {
        FeedForwardSpec::Experts(experts) => Some(*experts),
        FeedForwardSpec::Dense(_) => None,
    });
    mixtures.collect()
}

#[test]
fn experts_are_where_their_stacks_have_them() {
    device();
    // Experts, those of a token, hidden size, width; layers that have them; whether gates and ups are joined.
    for (name, [experts, top_k, hidden, width], layers, joined) in [
        ("mixtral+bf16", [4, 2, 64, 128], 4, true),
        ("mixtral+q4", [4, 2, 64, 128], 4, false),
        ("qwen2_moe+bf16", [8, 3, 64, 64], 1, true),
        ("ernie4_5_moe+bf16", [8, 3, 64, 64], 2, true),
    ] {
        let mixtures = mixtures(name, fit);
        assert_eq!(mixtures.len(), layers, "{name}");
        for ExpertsSpec { router, routing, gate_up: [gate, up], down, gating, .. } in mixtures {
            assert_eq!(
                (router.rows, router.columns, routing.top_k, gating),
                (experts, hidden, top_k, Gating::Glu(Activation::Silu)),
                "{name}"
            );
            let shape = |stack: cuda_kernels::Stack| {
                let first = stack.first;
                [first.rows, first.columns, stack.stride, stack.step]
            };
            let stride = if joined { 2 * width } else { width };
            assert_eq!([shape(gate), shape(up)], [[width, hidden, stride, 1]; 2], "{name}");
            let behind = gate.first.slice(width, width).data;
            assert_eq!(up.first.data == behind, joined, "{name}");
            assert_eq!(shape(down), [hidden, width, hidden, 1], "{name}");
        }
    }
}

#[test]
fn experts_are_picked_weighted_and_gated_as_their_family_does() {
    device();
    let [mixtral, ..] = &mixtures("mixtral+bf16", fit)[..] else { panic!("no mixture") };
    assert_eq!(mixtral.routing.scoring, Scoring::Softmax);
    assert_eq!((mixtral.routing.normalize, mixtral.routing.scale), (Some(0.0), 1.0));
    assert_eq!(mixtral.routing.bias.0, 0);
    assert!(mixtral.shared.is_none());

    let [ernie, ..] = &mixtures("ernie4_5_moe+bf16", fit)[..] else { panic!("no mixture") };
    assert_ne!(ernie.routing.bias.0, 0);
    let shared = ernie.shared.as_ref().map(|shared| (shared.mlp.down.columns, shared.gate.is_some()));
    assert_eq!(shared, Some((128, false)));

    let [qwen2, ..] = &mixtures("qwen2_moe+bf16", fit)[..] else { panic!("no mixture") };
    let shared = qwen2.shared.as_ref().map(|shared| (shared.mlp.down.columns, shared.gate.is_some()));
    assert_eq!(shared, Some((32, true)));

    let [glm4, ..] = &mixtures("glm4_moe+bf16", one_group)[..] else { panic!("no mixture") };
    assert_eq!((glm4.routing.scoring, glm4.routing.scale), (Scoring::Sigmoid, 1.7));
    assert_eq!(glm4.routing.normalize, Some(1e-20));
    assert_ne!(glm4.routing.bias.0, 0);

    let [gpt_oss, ..] = &mixtures("gpt_oss+mxfp4", fit)[..] else { panic!("no mixture") };
    assert!(matches!(gpt_oss.gating, Gating::Clamped { .. }), "{:?}", gpt_oss.gating);
    let [gate, up] = gpt_oss.gate_up;
    assert_eq!((gate.first.layout, gate.stride, gate.step), (Layout::Mxfp4, 256, 2));
    // The next row: 64 columns in 4 bits, two scales, one bias.
    let apart = |of: fn(&cuda_kernels::Weight) -> u64| of(&up.first) - of(&gate.first);
    assert_eq!([apart(|w| w.data.0), apart(|w| w.scales.0), apart(|w| w.bias.0)], [32, 2, 2]);
    assert_ne!(gpt_oss.down.first.bias.0, 0);
}

/// The root mean square of differences, relative to that of the second.
fn apart(found: &[Vec<f64>], expected: &[Vec<f32>]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let expected = || expected.iter().flatten().map(|logit| f64::from(*logit));
    let squares: f64 = found.iter().flatten().zip(expected()).map(|(a, b)| (a - b).powi(2)).sum();
    (squares / expected().map(|b| b * b).sum::<f64>()).sqrt()
}

#[test]
fn descriptions_compute_what_the_references_do() {
    device();
    for name in ["qwen3+bf16", "qwen3+f16", "qwen3_moe+bf16"] {
        let variant = Variant::named(name);
        let golden = &variant.golden;
        let found = logits_of_description(&variant.load().describe().unwrap(), &golden.prompt);
        let found: Vec<_> = golden.positions.iter().map(|position| found[*position].clone()).collect();
        let apart = apart(&found, &golden.logits);
        // The references compute in single precision.
        assert!(apart < 1e-5, "{name}: {apart}");
    }
}

/// The CPU's kernels sum in single precision and round what passes between them: some forty times in a model.
#[test]
fn descriptions_compute_what_the_models_do() {
    device();
    let of_fitting = |name| (Variant::changed(name, fit), 5e-3);
    // Three bits less.
    let of_bf16 = |name| (Variant::named(name), 8.0 * 5e-3);
    let fitting = [
        "mixtral+bf16",
        "mixtral+q4",
        "qwen2_moe+bf16",
        "qwen2_moe+q4",
        "ernie4_5_moe+bf16",
        "gpt_oss+mxfp4",
        "gpt_oss+q4",
    ];
    let mut variants: Vec<_> = fitting.map(of_fitting).into();
    variants.push((Variant::changed("glm4_moe+bf16", one_group), 5e-3));
    variants.extend(["gemma+bf16", "gemma2-window+bf16", "gemma3_text+bf16"].map(of_bf16));
    for (variant, limit) in variants {
        let (name, prompt, model) = (&variant.name, &variant.golden.prompt, variant.load());
        let found = logits_of_description(&model.describe().unwrap(), prompt);
        let apart = apart(&found, &whole(&*model, prompt));
        assert!(apart < limit, "{name}: {apart}");
    }
}
