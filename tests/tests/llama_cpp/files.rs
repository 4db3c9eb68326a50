//! The files that models come in: split ones, and adapters.

use std::path::{Path, PathBuf};

use futures::executor::block_on;
use inference::{
    Completion, Error, Feature, GenerateOptions, LoadOptions, TextModelExt as _, llamacpp::LlamaCppOptions,
    load_model,
};
use tests::gguf_file::{GgufFile, Tensor, write_fixtures};

use crate::{
    load_file,
    parity::{compare, unquantized},
    smollm2,
};

fn story(backend: &str, file: &Path, own: LlamaCppOptions) -> Completion {
    let model = load_file(backend, file, own).unwrap();
    let options = GenerateOptions::new().max_tokens(16).temperature(0.0).log_probabilities(2);
    block_on(model.complete("Once upon a time", options)).unwrap()
}

/// Writes the model as two files, as llama-gguf-split does; the paths.
fn split(folder: &Path) -> [PathBuf; 2] {
    let whole = GgufFile::read(&smollm2()).unwrap();
    let count = whole.tensors.len();
    let mut first = whole.clone();
    let mut second = GgufFile { keys: Vec::new(), tensors: first.tensors.split_off(count / 2) };
    let paths = [1, 2].map(|number| folder.join(format!("smollm2-{number:05}-of-00002.gguf")));
    for (number, (part, path)) in (0_u16..).zip([&mut first, &mut second].into_iter().zip(&paths)) {
        part.set("split.no", 2, &number.to_le_bytes());
        part.set("split.count", 2, &2_u16.to_le_bytes());
        part.set("split.tensors.count", 5, &(count as i32).to_le_bytes());
        part.write(path).unwrap();
    }
    paths
}

#[test]
fn a_split_model_is_the_whole_one() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = split(folder.path());
    for backend in ["cpu", "llama_cpp"] {
        let whole = story(backend, &smollm2(), LlamaCppOptions::new());
        // By either file, and by the folder that holds both.
        for path in [&first, &second, folder.path()] {
            let parts = story(backend, path, LlamaCppOptions::new());
            assert_eq!(parts.text, whole.text, "{backend} {}", path.display());
        }
    }
    std::fs::remove_file(second).unwrap();
    for backend in ["cpu", "llama_cpp"] {
        let error = load_file(backend, &first, LlamaCppOptions::new()).unwrap_err();
        assert!(error.to_string().contains("smollm2-00002-of-00002.gguf"), "{error}");
    }
}

/// Architectures of which llama.cpp's loader takes the fixtures as they are, or without what it does not know.
const ARCHITECTURES: [&str; 30] = [
    "llama",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma2-window",
    "gemma3_text",
    "granite",
    "glm4",
    "glm4_moe",
    "ernie4_5_moe-plain",
    "olmoe-plain",
    "qwen2_moe-plain",
    "lfm2-plain",
    "lfm2_moe-plain",
    "qwen3_5-plain",
    "qwen3_5_moe-plain",
    "qwen3_next-plain",
    "ernie4_5-plain",
    "exaone4-plain",
    "apertus-unbiased",
    "deepseek_v3-unbiased",
    "deepseek_v3-unbiased-joined",
    "falcon_h1-untied",
    "gemma4_text",
    "gemma4_text-kv",
    "gemma4_text-moe",
    "granitemoehybrid-nope",
    "mamba2-unlimited",
    "nemotron_h-dense",
    "nemotron_h-experts",
];

#[test]
fn architectures_say_what_llama_cpp_says() {
    let folder = tempfile::tempdir().unwrap();
    write_fixtures(folder.path());
    let prompt: Vec<u32> = (0..32).map(|i| 3 + i * 7 % 120).collect();
    let options = GenerateOptions::new().max_tokens(16).temperature(0.0).ignore_eos(true);
    let mut failures = Vec::new();
    for name in ARCHITECTURES {
        let path = folder.path().join(format!("{name}.gguf"));
        let say = |backend, options| {
            let own = LlamaCppOptions::new().cache_types("f32", "f32");
            let model = load_file(backend, &path, own).map_err(|error| format!("{name}: {error}"))?;
            block_on(model.complete(prompt.clone(), options)).map_err(|error| format!("{name}: {error}"))
        };
        match (say("cpu", options.clone().log_probabilities(2)), say("llama_cpp", options.clone())) {
            (Ok(ours), Ok(theirs)) => println!("{name}: {} tokens", compare(&ours, &theirs, 1e-3)),
            (Err(error), _) | (_, Err(error)) => failures.push(error),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// How much of an adapter's product is added, beside its scale: alpha ÷ rank.
const ALPHA: f32 = 8.0;
const RANK: usize = 4;

/// Numbers between −1 and 1.
fn numbers(count: usize, salt: u64) -> Vec<f32> {
    let hash = |i: u64| (i + salt * 1_000_003).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
    (0..count as u64).map(|i| hash(i) as f32 / 8_388_608.0 - 1.0).collect()
}

/// An adapter of two matrices, and the tensors that they become: W + scale · alpha ÷ rank · B · A.
fn adapter(model: &GgufFile, scale: f32) -> (GgufFile, GgufFile) {
    let (mut adapter, mut merged) = (GgufFile::default(), model.clone());
    adapter.set_text("general.type", "adapter");
    adapter.set_text("general.architecture", "llama");
    adapter.set_text("adapter.type", "lora");
    adapter.set_float("adapter.lora.alpha", ALPHA);
    for (salt, name) in (1..).zip(["blk.3.attn_q.weight", "blk.20.ffn_down.weight"]) {
        let tensor = merged.tensors.iter_mut().find(|tensor| tensor.name == name).unwrap();
        let (inner, outer) = (tensor.extents[0] as usize, tensor.extents[1] as usize);
        let a: Vec<f32> = numbers(RANK * inner, salt).iter().map(|x| x * 0.05).collect();
        let b = numbers(outer * RANK, salt + 10);
        let mut elements = tensor.elements();
        for (row, b) in elements.chunks_mut(inner).zip(b.chunks(RANK)) {
            for (a, b) in a.chunks(inner).zip(b) {
                row.iter_mut().zip(a).for_each(|(w, a)| *w += scale * ALPHA / RANK as f32 * b * a);
            }
        }
        *tensor = Tensor::floats(name, &tensor.extents.clone(), &elements);
        let (inner, outer, rank) = (inner as u64, outer as u64, RANK as u64);
        adapter.tensors.push(Tensor::floats(&format!("{name}.lora_a"), &[inner, rank], &a));
        adapter.tensors.push(Tensor::floats(&format!("{name}.lora_b"), &[rank, outer], &b));
    }
    (adapter, merged)
}

#[test]
fn an_adapter_acts_as_its_merged_weights_do() {
    let folder = tempfile::tempdir().unwrap();
    let [adapter_path, merged_path] = ["adapter.gguf", "merged.gguf"].map(|name| folder.path().join(name));
    // In single precision, of which the server rounds nothing.
    let (adapter, merged) = adapter(&GgufFile::read(&unquantized()).unwrap(), 5.0);
    adapter.write(&adapter_path).unwrap();
    merged.write(&merged_path).unwrap();
    let plain = story("llama_cpp", &unquantized(), LlamaCppOptions::new());
    let applied = story("llama_cpp", &unquantized(), LlamaCppOptions::new().lora(&adapter_path, 5.0));
    let merged = story("llama_cpp", &merged_path, LlamaCppOptions::new());
    let first = |answer: &Completion| (answer.tokens[0].id, answer.tokens[0].log_probability.unwrap());
    let (plain, applied, merged) = (first(&plain), first(&applied), first(&merged));
    assert!(applied.0 != plain.0 || (applied.1 - plain.1).abs() > 0.02, "{plain:?} {applied:?}");
    assert!(applied.0 == merged.0 && (applied.1 - merged.1).abs() < 5e-3, "{merged:?} {applied:?}");
}

#[test]
fn what_is_no_adapter_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("adapter.gguf");
    let refused = |path: &Path, scale: f32| {
        load_file("llama_cpp", &smollm2(), LlamaCppOptions::new().lora(path, scale)).unwrap_err()
    };
    let error = refused(&smollm2(), 1.0);
    assert!(matches!(&error, Error::InvalidModel { key: Some(key), .. } if key == "general.type"), "{error}");
    let (mut adapter, _) = adapter(&GgufFile::read(&smollm2()).unwrap(), 1.0);
    adapter.set_text("general.architecture", "qwen2");
    adapter.write(&path).unwrap();
    let error = refused(&path, 1.0);
    assert!(error.to_string().contains("is \"qwen2\", and the model's \"llama\""), "{error}");
    for (path, scale) in [(path.as_path(), f32::NAN), (Path::new("a,b.gguf"), 1.0)] {
        let error = refused(path, scale);
        assert!(matches!(&error, Error::InvalidOption { option: "extension", .. }), "{error}");
    }
    // mlx_lm's own format is another engine's.
    let options = LoadOptions::new().adapter(folder.path());
    let error =
        block_on(async { load_model(smollm2()).backend("llama_cpp").options(options).await }).unwrap_err();
    assert!(matches!(&error, Error::Unsupported { feature: Feature::Adapter, .. }), "{error}");
}
