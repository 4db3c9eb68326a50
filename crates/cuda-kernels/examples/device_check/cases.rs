//! Shapes of decoders that are checked.

use cuda_kernels::{Activation, Half, Layout, Scoring};

use crate::{
    decoder::Shape,
    feed_forward::{Experts, Shared, Stored},
};

const fn affine(bits: u32, group: u32) -> Layout {
    Layout::Affine { bits, group }
}

/// Names and shapes.
pub(crate) fn all() -> Vec<(String, Shape)> {
    let llama = Shape::default();
    let qwen3 = Shape {
        layouts: [affine(4, 64); 4],
        heads: 4,
        head_dim: 128,
        rotated: 128,
        qk_norm: true,
        ..llama.clone()
    };
    let gemma3 = Shape {
        hidden: 1152,
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        rotated: 256,
        intermediate: 1728,
        layers: 3,
        layouts: [affine(4, 64); 4],
        activation: Activation::GeluTanh,
        qk_norm: true,
        sandwich: true,
        plus_one: true,
        window: Some(100),
        logit_cap: Some(5.0),
        ..llama.clone()
    };
    let mut cases = vec![
        ("llama bf16".to_owned(), llama.clone()),
        ("llama f16".to_owned(), Shape { half: Half::F16, ..llama.clone() }),
        ("embedding and head".to_owned(), Shape { layers: 0, ..llama.clone() }),
        ("qwen3 4-bit".to_owned(), qwen3.clone()),
        ("qwen3 4-bit f16".to_owned(), Shape { half: Half::F16, ..qwen3.clone() }),
        (
            "qwen3 mixed".to_owned(),
            Shape {
                layouts: [affine(4, 64), affine(6, 64), affine(8, 64), Layout::Dense],
                v_layout: Some(affine(6, 64)),
                ..qwen3.clone()
            },
        ),
        ("gemma3 4-bit".to_owned(), gemma3.clone()),
        (
            "gemma3 bf16".to_owned(),
            Shape { layouts: [Layout::Dense; 4], single_norms: true, ..gemma3.clone() },
        ),
        ("gemma3 f16".to_owned(), Shape { half: Half::F16, ..gemma3 }),
        (
            "long rows".to_owned(),
            Shape {
                hidden: 2048,
                intermediate: 14_336,
                layers: 1,
                vocabulary: 256,
                layouts: [Layout::Dense, affine(4, 64), affine(4, 64), Layout::Dense],
                ..llama.clone()
            },
        ),
        (
            "long dense rows".to_owned(),
            Shape { intermediate: 9216, layers: 1, vocabulary: 256, ..llama.clone() },
        ),
        (
            "biases, gelu, interleaved".to_owned(),
            Shape {
                bias: true,
                activation: Activation::Gelu,
                interleaved: true,
                rotated: 32,
                ..llama.clone()
            },
        ),
        (
            "sinks, caps, window".to_owned(),
            Shape { sinks: true, cap: Some(3.0), window: Some(5), heads: 6, ..llama.clone() },
        ),
        ("sinks, long".to_owned(), Shape { sinks: true, heads: 16, kv_heads: 2, ..qwen3.clone() }),
        (
            "head 96, odd groups".to_owned(),
            Shape {
                heads: 7,
                kv_heads: 1,
                head_dim: 96,
                rotated: 96,
                layouts: [affine(8, 32), affine(4, 32), affine(4, 128), affine(4, 32)],
                ..llama.clone()
            },
        ),
        (
            "head 32".to_owned(),
            Shape { head_dim: 32, rotated: 32, qk_norm: true, window: Some(40), ..llama.clone() },
        ),
        ("many tokens".to_owned(), Shape { vocabulary: 20_000, layers: 1, ..llama.clone() }),
        ("many tokens 4-bit".to_owned(), Shape { vocabulary: 20_000, layers: 1, ..qwen3.clone() }),
        ("long text".to_owned(), Shape { capacity: 5000, layers: 1, heads: 8, ..llama.clone() }),
        (
            "odd vocabulary and width".to_owned(),
            Shape {
                hidden: 264,
                intermediate: 344,
                vocabulary: 997,
                sandwich: true,
                heads: 3,
                kv_heads: 3,
                ..llama.clone()
            },
        ),
    ];
    for bits in [2, 3, 4, 5, 6, 8] {
        for group in [32, 64, 128] {
            let layouts = [affine(bits, group); 4];
            let name = format!("{bits}-bit, groups of {group}");
            cases.push((name, Shape { layouts, layers: 1, hidden: 384, intermediate: 640, ..llama.clone() }));
        }
    }
    for layout in [Layout::Mxfp4, Layout::Mxfp8, Layout::Nvfp4] {
        for half in [Half::Bf16, Half::F16] {
            let shape = Shape { half, layouts: [layout; 4], ..llama.clone() };
            cases.push((format!("{layout:?} {half:?}"), shape.clone()));
            // Numbers of groups that are odd, or odd multiples of two.
            let odd = Shape { hidden: 384, intermediate: 1056, layers: 1, ..shape.clone() };
            cases.push((format!("{layout:?} {half:?}, odd groups"), odd));
            let long = Shape { hidden: 2048, intermediate: 14_336, vocabulary: 256, layers: 1, ..shape };
            cases.push((format!("{layout:?} {half:?}, long rows"), long));
        }
    }
    cases.extend(experts(&qwen3));
    cases
}

/// Mixtures of experts: every layout, every way to pick, gate, store and share.
fn experts(qwen3: &Shape) -> Vec<(String, Shape)> {
    let sixteen = Experts::default();
    let experts = Shape { experts: Some(sixteen), layers: 1, intermediate: 192, ..qwen3.clone() };
    let layouts = [
        affine(4, 64),
        affine(8, 32),
        affine(2, 64),
        affine(3, 64),
        affine(5, 32),
        affine(6, 64),
        Layout::Dense,
        Layout::Mxfp4,
        Layout::Mxfp8,
        Layout::Nvfp4,
    ];
    let mut cases = Vec::new();
    for layout in layouts {
        for half in [Half::Bf16, Half::F16] {
            let layouts = [Layout::Dense, layout, Layout::Dense, Layout::Dense];
            let shape = Shape { half, layouts, ..experts.clone() };
            cases.push((format!("experts {layout:?} {half:?}"), shape));
        }
    }
    let gate = |gate| Some(Shared { width: 320, gate });
    let ernie = Experts { biased: true, shared: gate(None), ..sixteen };
    let qwen2 = Experts { normalize: false, shared: gate(Some(affine(8, 64))), ..sixteen };
    let glm4 = Experts { scoring: Scoring::Sigmoid, ..ernie };
    let gpt_oss = Experts { stored: Stored::Interleaved, clamped: true, ..sixteen };
    let others = [
        ("ernie", ernie),
        ("qwen2", qwen2),
        ("glm4", glm4),
        ("gpt-oss", gpt_oss),
        ("8 of 8", Experts { count: 8, top_k: 8, normalize: false, stored: Stored::Separate, ..sixteen }),
        ("6 of 60", Experts { count: 60, top_k: 6, ..qwen2 }),
        ("8 of 130", Experts { count: 130, top_k: 8, ..sixteen }),
        ("8 of 300", Experts { count: 300, top_k: 8, ..glm4 }),
        ("1 of 4", Experts { count: 4, top_k: 1, stored: Stored::Separate, ..sixteen }),
    ];
    for (name, others) in others {
        let shape = Shape { experts: Some(others), bias: true, intermediate: 128, ..experts.clone() };
        cases.push((format!("experts, {name}"), shape));
    }
    let few = Experts { count: 8, top_k: 2, shared: gate(None), ..sixteen };
    let layers = Shape { experts: Some(few), layers: 3, activation: Activation::GeluTanh, ..experts.clone() };
    cases.push(("experts, layers".to_owned(), layers.clone()));
    cases.push(("experts, norms after".to_owned(), Shape { sandwich: true, plus_one: true, ..layers }));
    // As wide as Mixtral's: x of both experts takes more shared memory than a kernel has unasked.
    let wide = Experts { count: 4, top_k: 2, ..sixteen };
    let wide = Shape { experts: Some(wide), hidden: 64, intermediate: 14_336, vocabulary: 256, ..experts };
    cases.push(("experts, wide".to_owned(), wide));
    cases
}
