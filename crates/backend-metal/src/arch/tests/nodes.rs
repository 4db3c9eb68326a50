//! How many operations MLX is given for a decode step, beside mlx_lm (`benches/peers/nodes.py`). With `WRITE_DOCS` set, the table in
//! docs/src/performance.md is written.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use mlx_rs::{Array, transforms};

use super::fixtures::{Variant, device, root, tokens};
use crate::{
    mlx::stand_in::{Pretence, count_operations},
    nn::{ExecMode, Rows, argmax_with_score},
};

const MARKS: [&str; 2] =
    ["<!-- operations: written by a test of backend-metal -->\n", "<!-- operations end -->"];

/// Those of one step that takes a token and chooses the next.
fn operations(variant: &Variant) -> usize {
    let model = variant.load();
    let mut cache = model.new_cache();
    let mut step = |ids: &[u32]| {
        let hidden = model.hidden(&tokens(ids), Rows::cached(&mut [&mut cache])).unwrap();
        let last = crate::mlx::slice(&hidden, 1, hidden.dim(1) - 1, hidden.dim(1)).unwrap();
        let last = if ids.len() == 1 { hidden } else { last };
        let logits = model.logits(&last).unwrap().reshape(&[1, -1]).unwrap();
        let (token, score) = argmax_with_score(&logits).unwrap();
        let mut arrays = vec![token, score];
        arrays.extend(cache.arrays());
        arrays
    };
    for ids in [&[1, 2, 3, 4, 5][..], &[3]] {
        transforms::eval(&step(ids)).unwrap();
    }
    count_operations(&step(&[3]).iter().collect::<Vec<&Array>>())
}

#[test]
fn a_decode_step_has_fewer_operations_than_mlx_lms() {
    device();
    let recorded = fs::read_to_string(root().join("mlx_lm_operations.json")).unwrap();
    let recorded: BTreeMap<String, usize> = serde_json::from_str(&recorded).unwrap();
    let mut table = String::from(
        "| model | mlx_lm | ours: MLX's operations | ours: CUDA | ratio | ours: CPU |\n| --- | --: | --: | --: | --: | --: |\n",
    );
    let mut failures = Vec::new();
    for (name, theirs) in &recorded {
        let variant = Variant::named(name);
        let [gpu, cuda] = [Pretence::Gpu, Pretence::Cuda]
            .map(|pretence| ExecMode::Mlx.scope(|| pretence.scope(|| operations(&variant))));
        let cpu = ExecMode::CpuKernels.scope(|| operations(&variant));
        let ratio = cuda as f64 / *theirs as f64;
        writeln!(table, "| `{name}` | {theirs} | {gpu} | {cuda} | {ratio:.2} | {cpu} |").unwrap();
        // Recurrent layers are built of single operations, experts of gathers.
        let (most, most_of_mlx) = match &**name {
            "llama" | "qwen3" | "gemma3_text" => (0.5, 0.7),
            "gpt_oss" | "qwen3_moe" => (0.5, 0.75),
            _ => (0.9, 1.0),
        };
        // All layers are one operation of the CPU's kernels, or the model says why not.
        let records = ExecMode::CpuKernels.scope(|| variant.load().records());
        if records.is_ok() != (cpu <= 20) {
            failures.push(format!("{name}: {cpu} on the CPU, recorded: {records:?}"));
        }
        if ratio > most || gpu as f64 > most_of_mlx * *theirs as f64 {
            failures.push(format!("{name}: {gpu}, {cuda} on CUDA, mlx_lm {theirs}"));
        }
    }
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/performance.md");
    let text = fs::read_to_string(&docs).unwrap();
    let (before, rest) = text.split_once(MARKS[0]).expect("the mark before the table");
    let (found, after) = rest.split_once(MARKS[1]).expect("the mark behind the table");
    if std::env::var_os("WRITE_DOCS").is_some() {
        fs::write(&docs, [before, MARKS[0], &table, MARKS[1], after].concat()).unwrap();
    } else {
        assert_eq!(found, table, "run this test with WRITE_DOCS=1");
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Variants whose decode steps are not one operation on the CPU, by the beginnings of their names: they have latent attention, activations, norms
/// or sums that recordings lack, or layers that are connected otherwise.
const OF_OPERATIONS: [&str; 10] = [
    "apertus",
    "deepseek_v3",
    "gemma3n_text",
    "gemma4_text",
    "glm4_moe_lite",
    "llama4_text",
    "mamba2",
    "mistral4",
    "phimoe",
    "stablelm-parallel",
];

#[test]
fn models_say_whether_decode_steps_are_one_operation() {
    device();
    let mut failures = Vec::new();
    for variant in Variant::all() {
        let records = ExecMode::CpuKernels.scope(|| variant.load().records());
        if records.is_ok() == OF_OPERATIONS.iter().any(|of| variant.name.starts_with(of)) {
            failures.push(format!("{}: {records:?}", variant.name));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}
