//! Configs of checkpoints that other programs quantised: what is read of the tensors beside them computes what it promises.
#![no_main]

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf};

use inference_core::{Error, ModelManifest, Result, backend::ReadAt};
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

/// Matrices of 32 outputs and 64 inputs, as compressed-tensors has them in words and in bytes, and as GPTQ has them.
const TENSORS: [(&str, &str, &[usize], usize); 11] = [
    ("l.weight_packed", "I32", &[32, 8], 1024),
    ("l.weight_scale", "F16", &[32, 2], 128),
    ("l.weight_shape", "I64", &[2], 16),
    ("l.weight_zero_point", "I32", &[4, 2], 32),
    ("l.weight_g_idx", "I32", &[64], 256),
    ("m.weight", "F8_E4M3", &[32, 64], 2048),
    ("m.weight_scale", "BF16", &[32, 1], 64),
    ("g.qweight", "I32", &[8, 32], 1024),
    ("g.qzeros", "I32", &[2, 4], 32),
    ("g.scales", "F16", &[2, 32], 128),
    ("g.g_idx", "I32", &[64], 256),
];

thread_local! {
    static FOLDER: TempDir = folder();
}

fn folder() -> TempDir {
    let mut start = 0;
    let entries: Vec<_> = TENSORS
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let end = start + bytes;
            let entry = format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{start},{end}]}}"#);
            start = end;
            entry
        })
        .collect();
    let header = format!("{{{}}}", entries.join(","));
    let data: Vec<u8> = (0..start).map(|i| (i * 37 % 251) as u8).collect();
    let file = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &data].concat();
    let folder = tempfile::tempdir().expect("a folder for temporary files");
    std::fs::write(folder.path().join("model.safetensors"), file).expect("a writable folder");
    folder
}

struct Files(PathBuf);

impl ReadAt for Files {
    fn read_at(&self, file: usize, position: u64, memory: &mut [u8]) -> Result<()> {
        assert_eq!(file, 0);
        let read = File::open(&self.0).and_then(|file| file.read_exact_at(memory, position));
        read.map_err(|source| Error::io("read", &self.0, source))
    }
}

fuzz_target!(|config: &[u8]| {
    let folder = FOLDER.with(|folder| folder.path().to_owned());
    std::fs::write(folder.join("config.json"), config).expect("a writable folder");
    let Ok(manifest) = ModelManifest::read(&folder) else { return };
    let files = Files(folder.join("model.safetensors"));
    for tensor in manifest.tensors().values() {
        let elements = tensor.shape.iter().product::<usize>();
        assert_eq!(tensor.bytes(), (elements * tensor.dtype.size()) as u64);
        if let Some(source) = &tensor.source {
            let mut memory = vec![0; tensor.bytes() as usize];
            if let Err(error) = source.read(&files, 0, &mut memory) {
                assert!(matches!(error, Error::InvalidModel { .. }), "{error}");
            }
        }
    }
    let _ = (manifest.parameters(), manifest.quantization_of("l"), manifest.estimate(16, 1, None));
});
