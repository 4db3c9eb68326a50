//! Safetensors files: the first byte says whether the rest is a whole file or a header to be framed.
#![no_main]

use inference_core::backend::read_tensors;
use libfuzzer_sys::{Corpus, fuzz_target};
use tempfile::TempDir;

/// Bytes of data after a header that is framed.
const DATA: usize = 24;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a folder for temporary files");
}

fuzz_target!(|input: &[u8]| -> Corpus {
    let Some((&kind, rest)) = input.split_first() else { return Corpus::Reject };
    let file = if kind % 4 == 0 {
        rest.to_vec()
    } else {
        [&(rest.len() as u64).to_le_bytes(), rest, &[0; DATA]].concat()
    };
    let path = FOLDER.with(|folder| folder.path().join("model.safetensors"));
    std::fs::write(&path, &file).expect("a writable folder");
    if let Ok(tensors) = read_tensors(&path) {
        let mut ranges: Vec<_> = tensors.values().map(|tensor| tensor.range.clone()).collect();
        ranges.sort_by_key(|range| (range.start, range.end));
        let mut end = 8 + u64::from_le_bytes(*file.first_chunk().expect("8 bytes were read"));
        for range in ranges {
            assert_eq!(range.start, end);
            end = range.end;
        }
        assert_eq!(end, file.len() as u64);
        for tensor in tensors.values() {
            assert_eq!(tensor.elements(), tensor.shape.iter().map(|n| *n as u64).product::<u64>());
        }
    }
    Corpus::Keep
});
