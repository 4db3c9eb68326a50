//! Checks of descriptions.

use super::*;

const FOUR: Layout = Layout::Affine { bits: 4, group: 64 };
const NULL: DevicePtr = DevicePtr::NULL;

fn weight(layout: Layout, rows: usize, columns: usize) -> Weight {
    let scales = if layout == Layout::Dense { NULL } else { DevicePtr(512) };
    Weight { layout, rows, columns, data: DevicePtr(256), scales, biases: scales, bias: NULL }
}

/// A mixture of 16 experts of 192, four of which a token has.
fn mixture() -> ExpertsSpec {
    let both = weight(FOUR, 16 * 2 * 192, 256);
    let routing =
        RoutingSpec { scoring: Scoring::Softmax, bias: NULL, top_k: 4, normalize: Some(0.0), scale: 1.0 };
    ExpertsSpec {
        router: weight(Layout::Dense, 16, 256),
        routing,
        gate_up: [both.slice(0, 192), both.slice(192, 192)].map(|first| Stack {
            first,
            stride: 384,
            step: 1,
        }),
        down: Stack { first: weight(FOUR, 256, 192), stride: 256, step: 1 },
        gating: Gating::Glu(Activation::Silu),
        shared: None,
    }
}

fn shared(gate: Option<Weight>) -> SharedExpertSpec {
    let gate_up = [weight(FOUR, 320, 256); 2];
    let mlp = MlpSpec { gate_up, down: weight(FOUR, 256, 320), activation: Activation::Silu };
    SharedExpertSpec { mlp, gate }
}

fn decoder(experts: ExpertsSpec) -> DecoderSpec {
    let norm = NormWeight { data: DevicePtr(256), single: false, offset: 0.0 };
    let dense = |rows, columns| weight(Layout::Dense, rows, columns);
    let attention = AttentionSpec {
        qkv: [dense(256, 256), dense(128, 256), dense(128, 256)],
        output: dense(256, 256),
        qk_norm: None,
        rope: None,
        window: None,
        scale: 1.0,
        cap: None,
        sinks: NULL,
    };
    let mlp = FeedForwardSpec::Experts(Box::new(experts));
    DecoderSpec {
        half: Half::Bf16,
        hidden: 256,
        heads: 4,
        kv_heads: 2,
        head_dim: 64,
        eps: 1e-6,
        embedding: dense(1000, 256),
        embedding_scale: 1.0,
        layers: vec![LayerSpec { input_norm: norm, attention, mlp_norm: norm, mlp, post_norms: None }],
        ropes: Vec::new(),
        norm,
        head: dense(1000, 256),
        logit_scale: 1.0,
        logit_cap: None,
    }
}

#[test]
fn a_token_reads_its_own_experts_and_the_shared_one() {
    let plain = decoder(mixture());
    plain.check().unwrap();
    assert_eq!((plain.gated(), plain.experts()), ([4 * 192, 0], [16, 4]));
    let with_shared = ExpertsSpec { shared: Some(shared(Some(weight(FOUR, 1, 256)))), ..mixture() };
    let with_shared = decoder(with_shared);
    with_shared.check().unwrap();
    assert_eq!(with_shared.gated(), [4 * 192, 320]);
    let attention = 2 * (256 + 128 + 128 + 256) * 256;
    let others = attention + 2 * (16 + 1000) * 256;
    assert_eq!(plain.weight_bytes(), others + 4 * 3 * 192 * 256 / 2);
    assert_eq!(with_shared.weight_bytes(), plain.weight_bytes() + (3 * 320 + 1) * 256 / 2);
}

#[test]
fn gates_and_ups_may_take_turns() {
    let both = weight(FOUR, 16 * 2 * 192, 256);
    let stack = |first| Stack { first: both.slice(first, 192), stride: 384, step: 2 };
    decoder(ExpertsSpec { gate_up: [stack(0), stack(1)], ..mixture() }).check().unwrap();
}

#[test]
fn mixtures_that_the_kernels_do_not_know_are_refused_by_name() {
    let Stack { first, .. } = mixture().down;
    let [gate, up] = mixture().gate_up;
    let mut many = mixture();
    many.routing.top_k = 17;
    let mut biased = shared(Some(weight(FOUR, 1, 256)));
    biased.mlp.down.bias = DevicePtr(1024);
    let refused = [
        (many, "the number of experts of layer 0 is 17 of 16"),
        (ExpertsSpec { router: weight(Layout::Dense, 600, 256), ..mixture() }, "4 of 600"),
        (ExpertsSpec { router: weight(Layout::Dense, 16, 128), ..mixture() }, "the router of layer 0"),
        (
            ExpertsSpec { gate_up: [gate, Stack { stride: 192, ..up }], ..mixture() },
            "where gates and ups lie of layer 0",
        ),
        (
            ExpertsSpec { gate_up: [gate, Stack { stride: 191, ..up }], ..mixture() },
            "ups of experts of layer 0",
        ),
        (
            ExpertsSpec { down: Stack { first, stride: 256, step: 0 }, ..mixture() },
            "downs of experts of layer 0",
        ),
        (ExpertsSpec { shared: Some(biased), ..mixture() }, "the shared expert's down of layer 0"),
        (
            ExpertsSpec { shared: Some(shared(Some(weight(FOUR, 2, 256)))), ..mixture() },
            "the shared expert's own gate of layer 0",
        ),
    ];
    for (spec, reason) in refused {
        let found = decoder(spec).check().unwrap_err().to_string();
        assert!(found.contains(reason), "{found:?}, expected {reason:?}");
    }
}
