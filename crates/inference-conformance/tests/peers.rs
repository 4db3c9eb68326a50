//! The reference sampler against what mlx_lm and transformers make of the same logits; `data/make_peers.py` asked them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use inference_conformance::sampler;
use inference_core::GenerateOptions;
use serde_json::Value;

fn numbers(value: &Value) -> Vec<f64> {
    let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
    list.iter().map(|number| number.as_f64().unwrap()).collect()
}

#[test]
fn the_reference_agrees_with_mlx_lm_and_transformers() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/peers.json")).unwrap();
    assert!(cases.len() > 500, "{}", cases.len());
    for case in &cases {
        let (logits, expected) = (numbers(&case["logits"]), numbers(&case["probabilities"]));
        let param = numbers(&case["param"]);
        let tokens: Vec<u32> =
            case["tokens"].as_array().into_iter().flatten().map(|id| id.as_u64().unwrap() as u32).collect();
        let options = GenerateOptions::new().temperature(1.0).penalty_window(100);
        let float = |at: usize| param[at] as f32;
        let found = match case["op"].as_str().unwrap() {
            "top_k" => sampler::probabilities(&logits, &[], &options.top_k(param[0] as usize).sampling),
            "top_p" => sampler::probabilities(&logits, &[], &options.top_p(float(0)).sampling),
            "min_p" => sampler::probabilities(&logits, &[], &options.min_p(float(0)).sampling),
            "repetition_penalty" => {
                sampler::probabilities(&logits, &tokens, &options.repetition_penalty(float(0)).sampling)
            }
            "top_p, temperature" => {
                let options = options.top_p(float(0)).temperature(float(1));
                sampler::probabilities(&logits, &[], &options.sampling)
            }
            // Not the contract's order: the steps by themselves.
            "temperature, top_p" => {
                let tempered: Vec<f64> =
                    sampler::log_softmax(&logits).into_iter().map(|l| l / param[0]).collect();
                let mut kept = sampler::log_softmax(&tempered);
                sampler::top_p(&mut kept, param[1]);
                sampler::temper(&kept, 1.0)
            }
            other => panic!("{other} is no step"),
        };
        for (id, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < 1e-5, "token {id}: {found}, expected {expected}\n{case}");
        }
    }
}
