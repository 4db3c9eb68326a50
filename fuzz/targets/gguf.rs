//! GGUF files: what is read of one is in the file, computes what it promises, and has a tokenizer or an error.
#![no_main]

use std::{fs::File, os::unix::fs::FileExt as _, path::PathBuf};

use inference_core::{Error, ModelManifest, Result, backend::ReadAt};
use inference_text::Tokenizer;
use libfuzzer_sys::{Corpus, fuzz_target};
use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a folder for temporary files");
}

struct Files(PathBuf);

impl ReadAt for Files {
    fn read_at(&self, file: usize, position: u64, memory: &mut [u8]) -> Result<()> {
        assert_eq!(file, 0);
        let read = File::open(&self.0).and_then(|file| file.read_exact_at(memory, position));
        read.map_err(|source| Error::io("read", &self.0, source))
    }
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let path = FOLDER.with(|folder| folder.path().join("model.gguf"));
    let file = [b"GGUF\x03\0\0\0", input].concat();
    std::fs::write(&path, &file).expect("a writable folder");
    let Ok(manifest) = ModelManifest::read(&path) else { return Corpus::Keep };
    let files = Files(path.clone());
    for tensor in manifest.tensors().values() {
        assert!(tensor.range.end <= file.len() as u64);
        let elements = tensor.shape.iter().map(|n| *n as u64).product::<u64>();
        assert_eq!(tensor.bytes(), elements * tensor.dtype.size() as u64);
        if let Some(source) = &tensor.source {
            assert!(tensor.bytes().is_multiple_of(source.unit() as u64));
            let mut memory = vec![0; tensor.bytes() as usize];
            if let Err(error) = source.read(&files, 0, &mut memory) {
                assert!(matches!(error, Error::InvalidModel { .. }), "{error}");
            }
        }
    }
    let _ = manifest.parameters();
    let _ = manifest.estimate(16, 1, None);
    let _ = Tokenizer::load(&path).map(|tokenizer| tokenizer.encode("What is 2+2?", true));
    Corpus::Keep
});
