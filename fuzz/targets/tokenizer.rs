//! tokenizer.json, changed value by value as much as byte by byte.
#![no_main]

mod json;

use std::time::Duration;

use chat_template::WorkClock;
use inference_core::Error;
use inference_text::Tokenizer;
use libfuzzer_sys::{fuzz_mutator, fuzz_target};
use tempfile::TempDir;

thread_local! {
    static FOLDER: TempDir = tempfile::tempdir().expect("a folder for temporary files");
}

/// What one file and three texts may take on the processor: each of them may take a second, and a fuzzer's build is slower. The
/// fuzzer's own `-timeout` counts what others do on the machine, too.
const MAX_TIME: Duration = Duration::from_secs(5);

const TEXT: &str = "Hello world, don't  say </s>\n\t12345 <0x41> \u{e9}\u{301}你好🙂▁▁";

fuzz_mutator!(|data: &mut [u8], size: usize, max_size: usize, seed: u32| {
    json::mutate(data, size, max_size, seed)
});

fuzz_target!(
    // The tokenizers crate panics over some files, which is caught; libFuzzer's own hook would abort before.
    init: std::panic::set_hook(Box::new(|_| {})),
    |file: &[u8]| {
        let clock = WorkClock::start();
        let folder = FOLDER.with(|folder| folder.path().to_owned());
        std::fs::write(folder.join("tokenizer.json"), file).expect("a writable folder");
        let tokenizer = match Tokenizer::load(&folder) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                assert!(matches!(error, Error::InvalidModel { .. }), "{error:?}");
                return assert!(!clock.exceeds(MAX_TIME));
            }
        };
        // Long runs are what patterns and vocabularies are slow on.
        let long = ["z", "e", " ", "\u{301}"].map(|text| text.repeat(20_000)).concat();
        for (text, special) in [(TEXT, false), (TEXT, true), (long.as_str(), true)] {
            match tokenizer.encode(text, special) {
                Ok(ids) => {
                    let mut detokenizer = tokenizer.detokenizer(special);
                    let mut text: String = ids.iter().map(|id| detokenizer.push(*id).to_owned()).collect();
                    text.push_str(detokenizer.finish());
                    assert_eq!(text, tokenizer.decode(&ids, special));
                }
                Err(error) => assert!(matches!(error, Error::InvalidPrompt { .. }), "{error:?}"),
            }
        }
        let _ = tokenizer.decode(&[0, 1, 2, 255, 256, 300, u32::MAX], false);
        assert!(!clock.exceeds(MAX_TIME));
    }
);
