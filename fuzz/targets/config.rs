//! Configs of a model with one quantised and one dense layer.
#![no_main]

use inference_core::ModelManifest;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = folder();
}

const HEADER: &str = r#"{
    "layers.0.self_attn.k_proj.weight":{"dtype":"BF16","shape":[2,4],"data_offsets":[0,16]},
    "q.scales":{"dtype":"BF16","shape":[1,1],"data_offsets":[16,18]},
    "q.weight":{"dtype":"U32","shape":[1,2],"data_offsets":[18,26]}}"#;

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let file = [&(HEADER.len() as u64).to_le_bytes(), HEADER.as_bytes(), &[0; 26]].concat();
    std::fs::write(folder.path().join("model.safetensors"), file).expect("a writable folder");
    folder
}

fuzz_target!(|config: &[u8]| {
    let folder = FOLDER.with(|folder| folder.path().to_owned());
    std::fs::write(folder.join("config.json"), config).expect("a writable folder");
    match ModelManifest::read(&folder) {
        Ok(manifest) => {
            assert!(manifest.config().is_object());
            assert!(manifest.parameters() <= 8 + 32);
            let _ = (manifest.float_dtype(), manifest.context_length());
            let _ = (manifest.quantization_of("q"), manifest.quantization_of("layers.0.self_attn.k_proj"));
            for (context, batch) in [(1, 1), (4096, 8), (usize::MAX, usize::MAX)] {
                if let Ok(estimate) = manifest.estimate(context, batch, None) {
                    assert_eq!(estimate.weight_bytes, 26);
                }
            }
        }
        // What an error says is made of the file's own text.
        Err(error) => assert!(!error.to_string().contains(['\u{1b}', '\n'])),
    }
});
