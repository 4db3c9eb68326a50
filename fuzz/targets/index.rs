//! Indexes of a model whose shards `1.safetensors` and `2.safetensors` hold `a` and `b`.
#![no_main]

use inference_core::ModelManifest;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = folder();
}

fn folder() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    let write = |name: &str, bytes: &[u8]| {
        std::fs::write(folder.path().join(name), bytes).expect("a writable folder");
    };
    write("config.json", br#"{"model_type":"llama"}"#);
    for (file, tensor) in [("1.safetensors", "a"), ("2.safetensors", "b")] {
        let header = format!(r#"{{"{tensor}":{{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}}}"#);
        write(file, &[&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[0; 4]].concat());
    }
    folder
}

fuzz_target!(|index: &[u8]| {
    let folder = FOLDER.with(|folder| folder.path().to_owned());
    std::fs::write(folder.join("model.safetensors.index.json"), index).expect("a writable folder");
    if let Ok(manifest) = ModelManifest::read(&folder) {
        for file in manifest.files() {
            let real = file.canonicalize().expect("its header was read");
            assert_eq!(real.parent(), folder.canonicalize().ok().as_deref());
        }
        for (name, tensor) in manifest.tensors() {
            let held = if name == "a" { "1.safetensors" } else { "2.safetensors" };
            assert_eq!(manifest.files()[tensor.file].file_name(), Some(held.as_ref()));
        }
    }
});
