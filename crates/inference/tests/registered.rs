//! What a feature enables is registered: a backend crate that the linker left out would go unnoticed otherwise.

use inference::{GenerateOptions, TextModelExt as _, registry::Registry};

/// The ids that the enabled features promise.
const PROMISED: &[(bool, &[&str])] = &[
    (cfg!(feature = "metal"), &["metal", "cuda", "cpu"]),
    (cfg!(feature = "llamacpp"), &["rocm", "llama_cpp"]),
    (cfg!(feature = "mlxlm"), &["mlx_lm"]),
    (true, &["mock"]), // a dev-dependency enables it
];

#[test]
fn every_enabled_feature_is_registered() {
    let registry = Registry::linked();
    for id in PROMISED.iter().filter(|(enabled, _)| *enabled).flat_map(|(_, ids)| *ids) {
        assert!(registry.get(id).is_ok(), "{id} is missing: {:?}", ids(&registry));
    }
}

#[test]
fn nothing_else_is_registered_and_the_order_is_the_documented_one() {
    let order = ["metal", "cuda", "rocm", "cpu", "llama_cpp", "mlx_lm", "mock"];
    let registry = Registry::linked();
    let promised: Vec<_> = order
        .into_iter()
        .filter(|id| PROMISED.iter().any(|(enabled, ids)| *enabled && ids.contains(id)))
        .collect();
    assert_eq!(ids(&registry), promised);
}

#[tokio::test]
async fn a_registered_backend_is_found_by_name() {
    let folder = inference_core::mock::folder();
    let model = inference::load_model(folder.path()).backend("mock").await.unwrap();
    let answer = model.complete("a b", GenerateOptions::new().max_tokens(1)).await.unwrap();
    assert_eq!(answer.text, " b");
}

fn ids(registry: &Registry) -> Vec<&'static str> {
    registry.iter().map(|descriptor| descriptor.id).collect()
}
