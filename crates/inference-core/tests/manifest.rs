//! Model folders: what is read from a good ONE, and what is said of each fault in config.json, index and shards.

mod common;

use common::{Folder, assert_says, tensors};
use inference_core::{Dtype, LayerKind, ModelManifest, QuantMode, Quantization};
use proptest::prelude::*;
use serde_json::{Value, json};

const INDEX: &str = "model.safetensors.index.json";
const ONE: &str = "model-00001-of-00002.safetensors";
const TWO: &str = "model-00002-of-00002.safetensors";

fn with_config(config: &Value) -> Folder {
    let folder = Folder::with_model();
    folder.write("config.json", config.to_string());
    folder
}

/// A folder with an index and two shards, `a` in the first, `b` in the second.
fn sharded(index: &str) -> Folder {
    let folder = Folder::new();
    folder.write("config.json", r#"{"model_type":"llama"}"#);
    folder.write("model-00001-of-00002.safetensors", tensors(&[("a", "F32", &[2])]));
    folder.write("model-00002-of-00002.safetensors", tensors(&[("b", "F32", &[3])]));
    folder.write(INDEX, index);
    folder
}

#[test]
fn a_folder_is_read_without_its_weights() {
    let folder = Folder::with_model();
    folder.write(
        "config.json",
        r#"{"model_type":"llama","torch_dtype":"float16","max_position_embeddings":512}"#,
    );
    let manifest = folder.manifest().unwrap();
    assert_eq!(manifest.model_type(), "llama");
    assert_eq!(manifest.files(), [folder.join("model.safetensors")]);
    assert_eq!((manifest.weight_bytes(), manifest.parameters()), (22, 7));
    assert_eq!(manifest.context_length().unwrap(), Some(512));
    assert_eq!(manifest.float_dtype(), Some(Dtype::F32), "16 bytes of f32, 6 of bf16");
    assert_eq!(manifest.layer_kinds().unwrap(), None);
    assert_eq!(manifest.quantization(), None);
}

/// Python writes numbers that JSON lacks: they are read as transformers 5 writes them, but not within strings.
#[test]
fn an_infinity_is_tagged() {
    let folder = Folder::with_model();
    folder.write(
        "config.json",
        r#"{"model_type":"llama","a":[0.0,Infinity],"d":"NaN \" Infinity é \\","Infinity":1}"#,
    );
    let manifest = folder.manifest().unwrap();
    let expected = json!({
        "model_type": "llama", "a": [0.0, {"__float__": "Infinity"}], "d": "NaN \" Infinity é \\", "Infinity": 1,
    });
    assert_eq!(*manifest.config(), expected);
    folder.write("config.json", r#"{"model_type":"llama","a":Infinit}"#);
    assert!(folder.manifest().is_err());
}

#[test]
fn each_fault_of_a_config_is_named() {
    let open = "[".repeat(200);
    let deep = format!(r#"{{"a":{open}"#);
    let cases: Vec<(&str, &[u8], &[&str])> = vec![
        ("empty", b"", &["is empty"]),
        ("git-lfs", b"version https://git-lfs.github.com/spec/v1\n", &["git lfs pull"]),
        ("byte order mark", b"\xef\xbb\xbf{}", &["byte order mark"]),
        ("utf-16", b"\xff\xfe{\0}\0", &["UTF-16"]),
        ("not utf-8", b"{\"model_type\":\"\xff\"}", &["not UTF-8 at byte 15"]),
        ("not json", b"{model_type}", &["key must be a string at line 1 column 2"]),
        ("cut short", b"{\"model_type\":\"lla", &["cut short"]),
        ("goes on", b"{\"model_type\":\"llama\"} {}", &["goes on after its JSON"]),
        ("deep", deep.as_bytes(), &["recursion limit"]),
        ("a list", b"[]", &["no JSON object"]),
        (
            "nan",
            b"{\"model_type\":\"llama\",\"rms_norm_eps\":NaN}",
            &["rms_norm_eps", "NaN and Infinity are not JSON"],
        ),
        ("infinity", b"{\"rope_theta\": -Infinity}", &["rope_theta", "NaN and Infinity are not JSON"]),
        ("out of range", b"{\"rope_theta\":1e999}", &["number out of range"]),
        (
            "key twice",
            b"{\"model_type\":\"llama\",\"model_type\":\"gemma\"}",
            &["key \"model_type\" occurs twice"],
        ),
        ("nested key twice", b"{\"rope\":{\"f\":1,\"f\":2}}", &["rope", "key \"f\" occurs twice"]),
        ("no model_type", b"{}", &["model_type", "is missing"]),
        ("null model_type", b"{\"model_type\":null}", &["model_type: is null"]),
        ("model_type of another type", b"{\"model_type\":3}", &["model_type: is 3"]),
        ("empty model_type", b"{\"model_type\":\"\"}", &["model_type: is \"\""]),
    ];
    for (case, config, parts) in cases {
        let folder = Folder::with_model();
        folder.write("config.json", config);
        assert_says(case, &folder.manifest().expect_err(case), "config.json", parts);
    }

    let folder = Folder::with_model();
    std::fs::File::create(folder.join("config.json")).unwrap().set_len(1 << 40).unwrap();
    assert_says(
        "huge",
        &folder.manifest().unwrap_err(),
        "config.json",
        &["1099511627776 bytes", "at most 4194304"],
    );
}

#[test]
fn a_config_that_asks_for_code_is_refused() {
    let auto = |config: &str, model: &str| json!({"model_type":"phi3", "auto_map": {"AutoConfig": config, "AutoModelForCausalLM": model}});
    let cases = [
        (json!({"model_type":"llama", "trust_remote_code": true}), "trust_remote_code"),
        (json!({"model_type":"llama", "trust_remote_code": "yes"}), "trust_remote_code"),
        (json!({"model_type":"llama", "model_file": "model.py"}), "model_file"),
        (json!({"model_type":"llama", "auto_map": "evil.py"}), "auto_map"),
        (auto("configuration_phi3.Phi3Config", "modeling_evil.Evil"), "auto_map.AutoModelForCausalLM"),
        (auto("evil.Config", "modeling_phi3.Phi3ForCausalLM"), "auto_map.AutoConfig"),
        (auto("configuration_phi3.Phi3Config", "other/repo--evil.Evil"), "auto_map.AutoModelForCausalLM"),
        (json!({"model_type":"llama", "auto_map": {"AutoModel": ["a.B"]}}), "auto_map.AutoModel"),
    ];
    for (config, key) in cases {
        let error = with_config(&config).manifest().expect_err(key);
        assert_says(key, &error, "config.json", &[key]);
    }
    // An architecture's published code, which a backend that knows the architecture replaces.
    for config in [
        auto("configuration_phi3.Phi3Config", "modeling_phi3.Phi3ForCausalLM"),
        auto(
            "microsoft/Phi-3--configuration_phi3.Phi3Config",
            "microsoft/Phi-3--modeling_phi3.Phi3ForCausalLM",
        ),
        json!({"model_type":"kimi_k2", "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"}}),
        json!({"model_type":"llama", "trust_remote_code": false, "auto_map": null}),
        json!({"model_type":"llama", "auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}}),
    ] {
        with_config(&config).manifest().unwrap();
    }
}

#[test]
fn each_fault_of_a_quantisation_is_named() {
    let cases = [
        (json!({"quantization": 4}), "quantization", "is 4, expected an object"),
        (json!({"quantization": {"bits": "4"}}), "quantization.bits", "is \"4\""),
        (json!({"quantization": {"bits": -4}}), "quantization.bits", "is -4"),
        (json!({"quantization": {"bits": 7}}), "quantization.bits", "is 7, expected 2, 3, 4, 5, 6 or 8"),
        (json!({"quantization": {"group_size": 0}}), "quantization.group_size", "is 0"),
        (json!({"quantization": {"group_size": 64.5}}), "quantization.group_size", "is 64.5"),
        (json!({"quantization": {"mode": "fp3"}}), "quantization.mode", "\"fp3\", expected affine, mxfp4"),
        (json!({"quantization": {"mode": 3}}), "quantization.mode", "is 3"),
        (
            json!({"quantization": {"mode": "mxfp4", "group_size": 64}}),
            "quantization.group_size",
            "is 64, expected 32 for mxfp4",
        ),
        (json!({"quantization": {"a.b": {"bits": 99}}}), "quantization.a.b.bits", "is 99"),
        (json!({"quantization_config": {"bits": 0}}), "quantization_config.bits", "is 0"),
        (json!({"quantization_config": {"quant_method": 4}}), "quantization_config.quant_method", "is 4"),
    ];
    for (mut config, key, says) in cases {
        config["model_type"] = "llama".into();
        let error = with_config(&config).manifest().expect_err(key);
        assert_says(key, &error, "config.json", &[key, says]);
    }
}

#[test]
fn layers_have_their_own_quantisation() {
    let config = json!({"model_type": "llama", "quantization": {
        "bits": 4, "group_size": 32, "mode": "affine",
        "model.q": {"bits": 8}, "model.k": {"mode": "mxfp4"}, "model.dense": false, "model.v": true,
        "model.liar": false, "model.unpacked": {"bits": 8, "group_size": 32},
    }});
    let folder = with_config(&config);
    let list = ["q", "k", "v", "o", "liar"]
        .map(|layer| (format!("model.{layer}.weight"), format!("model.{layer}.scales")));
    let mut all: Vec<(&str, &str, &[usize])> = vec![("model.dense.weight", "BF16", &[4, 32])];
    for (weight, scales) in &list {
        all.extend([(&**weight, "U32", &[4, 8][..]), (&**scales, "BF16", &[4, 1][..])]);
    }
    all.push(("model.o.biases", "BF16", &[4, 1]));
    all.push(("model.unpacked.weight", "BF16", &[4]));
    folder.write("model.safetensors", tensors(&all));

    let manifest = folder.manifest().unwrap();
    let affine = |bits, group| Some(Quantization::new(bits, group, QuantMode::Affine));
    assert_eq!(manifest.quantization().copied(), affine(4, 32));
    let of = |layer| manifest.quantization_of(layer).unwrap();
    assert_eq!(of("model.o"), affine(4, 32));
    assert_eq!(of("model.v"), affine(4, 32));
    // What a layer leaves out is the mode's own default.
    assert_eq!(of("model.q"), affine(8, 64));
    assert_eq!(of("model.k"), Some(Quantization::new(4, 32, QuantMode::Mxfp4)));
    assert_eq!(of("model.dense"), None);
    assert_eq!(of("model.none"), None);
    let error = manifest.quantization_of("model.liar").unwrap_err();
    assert_says(
        "liar",
        &error,
        "config.json",
        &["quantization.model.liar", "is false, but the files hold its scales"],
    );
    let error = manifest.quantization_of("model.unpacked").unwrap_err();
    assert_says("unpacked", &error, "config.json", &["quantization.model.unpacked", "without scales"]);
    // q at 8 bits, k, v, o at 4; the liar's words count as they stand.
    assert_eq!(manifest.parameters(), 32 * 4 + 3 * 32 * 8 + 4 * 32 + 32 + 4);

    folder.write("config.json", r#"{"model_type":"llama","quantization":null}"#);
    let error = folder.manifest().unwrap().quantization_of("model.o").unwrap_err();
    assert_says("unsaid", &error, "config.json", &["quantization", "is missing", "model.o"]);
}

#[test]
fn quantization_config_is_read_where_it_is_mlxs_or_mxfp4() {
    let read = |config: Value| with_config(&config).manifest().unwrap().quantization().copied();
    let both = json!({"model_type":"x", "quantization": {"bits": 8, "group_size": 64},
        "quantization_config": {"quant_method": "fp8"}});
    assert_eq!(read(both), Some(Quantization::new(8, 64, QuantMode::Affine)));
    let own = json!({"model_type":"x", "quantization_config": {"bits": 3, "group_size": 128}});
    assert_eq!(read(own), Some(Quantization::new(3, 128, QuantMode::Affine)));
    let mxfp4 = json!({"model_type":"x", "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": []}});
    assert_eq!(read(mxfp4), Some(Quantization::new(4, 32, QuantMode::Mxfp4)));
}

#[test]
fn which_methods_can_be_read_is_for_backends_to_say() {
    for (config, mode, bits, group_size) in [
        (json!({"quant_method": "gptq", "bits": 4, "group_size": 128}), QuantMode::Gptq, 4, 128),
        (json!({"quant_method": "awq", "w_bit": 4, "q_group_size": 64}), QuantMode::Awq, 4, 64),
        (json!({"quant_method": "fp8", "weight_block_size": [128, 128]}), QuantMode::Fp8, 8, 0),
        (json!({"quant_method": "bitsandbytes"}), QuantMode::BitsAndBytes, 0, 0),
        (json!({"quant_method": "hqq"}), QuantMode::Other, 0, 0),
    ] {
        let manifest = with_config(&json!({"model_type": "llama", "quantization_config": config.clone()}));
        let manifest = manifest.manifest().unwrap();
        assert_eq!(manifest.quantization(), Some(&Quantization::new(bits, group_size, mode)), "{config}");
        assert_eq!(manifest.quant_method(), config["quant_method"].as_str());
        assert!(!mode.is_mlx());
    }
    let nested = json!({"model_type": "x", "text_config": {"quantization_config": {"quant_method": "compressed-tensors"}}});
    let manifest = with_config(&nested).manifest().unwrap();
    assert_eq!(manifest.quantization().unwrap().mode, QuantMode::CompressedTensors);
    assert_eq!("nvfp4".parse(), Ok(QuantMode::Nvfp4));
    assert!("gptq".parse::<QuantMode>().unwrap_err().contains("expected affine"));
}

#[test]
fn layers_are_told_apart_by_what_they_remember() {
    let kinds = |config: Value| {
        let folder = with_config(&config);
        folder.write(
            "model.safetensors",
            tensors(&["a", "b", "c", "d"].map(|name| (name, "F32", &[1_usize][..]))),
        );
        folder.manifest().unwrap().layer_kinds().unwrap().unwrap()
    };
    use LayerKind::{FullAttention, Recurrent, SlidingAttention};
    let types = json!(["linear_attention", "sliding_attention", "full_attention"]);
    let mixed =
        json!({"model_type": "x", "num_hidden_layers": 3, "sliding_window": 64, "layer_types": types});
    assert_eq!(kinds(mixed), [Recurrent, SlidingAttention { window: 64 }, FullAttention]);
    let pattern =
        json!({"model_type": "x", "num_hidden_layers": 4, "sliding_window": 8, "sliding_window_pattern": 2});
    let slides = SlidingAttention { window: 8 };
    assert_eq!(kinds(pattern), [slides, FullAttention, slides, FullAttention]);
    let every = json!({"model_type": "x", "num_hidden_layers": 4, "full_attention_interval": 2});
    assert_eq!(kinds(every), [Recurrent, FullAttention, Recurrent, FullAttention]);
    let listed = json!({"model_type": "x", "num_hidden_layers": 3, "full_attn_idxs": [0, 2]});
    assert_eq!(kinds(listed), [FullAttention, Recurrent, FullAttention]);
    let letters = json!({"model_type": "x", "num_hidden_layers": 1, "sliding_window_pattern": "LLLG"});
    assert_eq!(kinds(letters), [FullAttention]);
}

#[test]
fn a_scaled_rope_stretches_the_context() {
    let context = |mut config: Value| {
        let own = json!({"model_type": "llama", "max_position_embeddings": 4096});
        for (key, value) in own.as_object().unwrap() {
            config.as_object_mut().unwrap().entry(key.clone()).or_insert_with(|| value.clone());
        }
        with_config(&config).manifest().unwrap().context_length().unwrap()
    };
    let scaled = |scaling: Value| context(json!({"rope_scaling": scaling}));
    assert_eq!(scaled(json!(null)), Some(4096));
    assert_eq!(scaled(json!({"type": "linear", "factor": 4.0})), Some(16384));
    assert_eq!(scaled(json!({"rope_type": "dynamic", "factor": 2})), Some(8192));
    assert_eq!(scaled(json!({"rope_type": "yarn", "factor": 4.0})), Some(16384));
    let yarn = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048});
    assert_eq!(scaled(yarn), Some(8192));
    let counted = json!({"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 1024});
    assert_eq!(scaled(counted), Some(4096), "config.json counts more than the scaling gives");
    let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 512});
    assert_eq!(scaled(llama3), Some(4096));
    assert_eq!(scaled(json!({"type": "longrope", "factor": 32.0})), Some(4096));
    assert_eq!(scaled(json!({"type": "linear", "factor": "x"})), Some(4096));
    assert_eq!(context(json!({"rope_parameters": {"rope_type": "linear", "factor": 3.0}})), Some(12288));
    let gemma = json!({"model_type": "gemma3_text", "rope_scaling": {"rope_type": "linear", "factor": 8.0}});
    assert_eq!(context(gemma), Some(4096));
    let absurd = json!({"type": "linear", "factor": 1e30});
    assert_eq!(scaled(absurd), Some(i32::MAX as usize));
}

#[test]
fn generation_config_is_read_and_checked() {
    let folder = Folder::with_model();
    assert_eq!(folder.manifest().unwrap().generation_config(), &Default::default());
    folder.write("config.json", r#"{"model_type":"llama","eos_token_id":7}"#);
    assert_eq!(folder.manifest().unwrap().eos_token_ids().unwrap(), [7]);
    let name = "generation_config.json";
    folder.write(name, r#"{"do_sample":true,"temperature":0.6,"top_p":1,"top_k":20,"eos_token_id":[1,2]}"#);
    let manifest = folder.manifest().unwrap();
    let config = manifest.generation_config();
    assert_eq!((config.do_sample, config.temperature, config.top_k), (Some(true), Some(0.6), Some(20)));
    assert_eq!(manifest.eos_token_ids().unwrap(), [1, 2]);
    for (text, key) in [
        (r#"{"temperature":-1}"#, "temperature"),
        (r#"{"temperature":"hot"}"#, "temperature"),
        (r#"{"top_p":0}"#, "top_p"),
        (r#"{"top_p":1.5}"#, "top_p"),
        (r#"{"top_k":-1}"#, "top_k"),
        (r#"{"top_k":2.5}"#, "top_k"),
        (r#"{"min_p":2}"#, "min_p"),
        (r#"{"repetition_penalty":0}"#, "repetition_penalty"),
        (r#"{"do_sample":"yes"}"#, "do_sample"),
        (r#"{"eos_token_id":"</s>"}"#, "eos_token_id"),
        (r#"{"eos_token_id":[-1]}"#, "eos_token_id"),
        ("[]", "expected an object"),
    ] {
        folder.write(name, text);
        assert_says(text, &folder.manifest().expect_err(text), name, &[key]);
    }
}

#[test]
fn weights_of_any_packing_count_before_quantisation() {
    for (bits, words) in [(2, 4), (3, 6), (4, 8), (5, 10), (6, 12), (8, 16)] {
        let folder =
            with_config(&json!({"model_type":"x", "quantization": {"bits": bits, "group_size": 64}}));
        let weight: (&str, &str, &[usize]) = ("l.weight", "U32", &[10, words]);
        folder.write(
            "model.safetensors",
            tensors(&[weight, ("l.scales", "F16", &[10, 1]), ("l.biases", "F16", &[10, 1])]),
        );
        assert_eq!(folder.manifest().unwrap().parameters(), 640, "{bits} bits");
    }
    let folder = Folder::with_model();
    folder.write(
        "model.safetensors",
        tensors(&[("e.w_blocks", "U8", &[2, 16]), ("e.w_scales", "U8", &[2, 1])]),
    );
    assert_eq!(folder.manifest().unwrap().parameters(), 64);
}

#[test]
fn each_fault_of_an_index_is_named() {
    let map = |entries: &str| format!(r#"{{"metadata":{{"total_size":1}},"weight_map":{{{entries}}}}}"#);
    let outside = |file: &str| map(&format!(r#""a":{file:?}"#));
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("empty file", String::new(), &["is empty"]),
        ("no weight_map", r#"{"metadata":{}}"#.to_owned(), &["missing field `weight_map`"]),
        (
            "weight_map is a list",
            r#"{"weight_map":["a"]}"#.to_owned(),
            &["weight_map", "tensor names to file names"],
        ),
        ("weight_map is null", r#"{"weight_map":null}"#.to_owned(), &["weight_map", "null"]),
        (
            "weight_map twice",
            r#"{"weight_map":{},"weight_map":{}}"#.to_owned(),
            &["duplicate field `weight_map`"],
        ),
        ("no tensor", map(""), &["weight_map", "names no tensor"]),
        ("file is a number", map(r#""a":1"#), &["weight_map.a", "integer `1`"]),
        ("tensor twice", map(&format!(r#""a":"{ONE}","a":"{TWO}""#)), &["tensor \"a\" occurs twice"]),
        ("above the folder", outside("../model.safetensors"), &["weight_map.a", "in the same folder"]),
        ("through the folder", outside("x/../../m.safetensors"), &["weight_map.a", "in the same folder"]),
        ("absolute", outside("/etc/passwd"), &["weight_map.a", "/etc/passwd", "in the same folder"]),
        ("empty name", outside(""), &["weight_map.a", "in the same folder"]),
        ("the folder itself", outside("."), &["weight_map.a", "in the same folder"]),
        (
            "missing shard",
            map(&format!(r#""a":"{ONE}","b":"gone.safetensors""#)),
            &["weight_map.b", "\"gone.safetensors\", which is missing"],
        ),
    ];
    for (case, index, parts) in cases {
        let folder = sharded(&index);
        assert_says(case, &folder.manifest().expect_err(case), INDEX, parts);
    }
}

#[test]
fn a_sharded_model_is_read_by_its_index() {
    let folder = sharded(&json!({"weight_map": {"b": TWO, "a": ONE}}).to_string());
    // What the index does not name is no part of the model.
    folder.write("consolidated.safetensors", "nothing that could be read");
    let manifest = folder.manifest().unwrap();
    assert_eq!(manifest.files(), [folder.join(ONE), folder.join(TWO)]);
    let files: Vec<_> = manifest.tensors().iter().map(|(name, info)| (&**name, info.file)).collect();
    assert_eq!(files, [("a", 0), ("b", 1)]);

    // As converters write it: of a head that is tied, and with the places of two tensors mixed up.
    folder.write(INDEX, json!({"weight_map": {"b": ONE, "a": TWO, "lm_head.weight": TWO}}).to_string());
    let files: Vec<_> = folder.manifest().unwrap().tensors().values().map(|info| info.file).collect();
    assert_eq!(files, [0, 1]);

    folder.write(TWO, tensors(&[("b", "F32", &[3]), ("a", "F32", &[2])]));
    assert_eq!(folder.manifest().unwrap().tensors()["a"].file, 0, "the same tensor in two files");
    let mut other = tensors(&[("b", "F32", &[3]), ("a", "F32", &[2])]);
    *other.last_mut().unwrap() = 1;
    folder.write(TWO, other);
    assert_says("tensor in two", &folder.manifest().unwrap_err(), TWO, &["a: is in", ONE, "other contents"]);
    folder.write(TWO, tensors(&[("b", "F32", &[3]), ("a", "F32", &[1, 2])]));
    assert_says("two shapes", &folder.manifest().unwrap_err(), TWO, &["a: is in", ONE]);
    folder.write(TWO, tensors(&[("b", "F32", &[3])]));

    folder.write("model.safetensors", tensors(&[("a", "F32", &[1])]));
    assert_says("index and single file", &folder.manifest().unwrap_err(), INDEX, &["out of date"]);
}

#[test]
fn without_an_index_the_numbered_files_must_all_be_there() {
    let folder = sharded("");
    std::fs::remove_file(folder.join(INDEX)).unwrap();
    assert_eq!(folder.manifest().unwrap().tensors().len(), 2);

    std::fs::remove_file(folder.join("model-00001-of-00002.safetensors")).unwrap();
    let error = folder.manifest().unwrap_err();
    assert_says(
        "first of two",
        &error,
        "model-00001-of-00002.safetensors",
        &["is missing", "one of 2 files"],
    );

    folder.write("model-00001-of-99999999999999999999.safetensors", "");
    assert!(folder.manifest().is_err());
}

#[test]
fn a_folder_that_is_no_model_is_told_what_to_do() {
    let config = ("config.json", r#"{"model_type":"llama"}"#);
    let cases: [(&str, Vec<_>, &str); 4] = [
        ("nothing", vec![], "has no config.json"),
        ("cache entry", vec![("snapshots/1/config.json", "{}")], "give one of the folders in its snapshots/"),
        ("no weights", vec![config], "has no model.safetensors"),
        (
            "another name",
            vec![config, ("weights.safetensors", "")],
            "\"weights.safetensors\" but no model.safetensors",
        ),
    ];
    for (case, files, says) in cases {
        let folder = Folder::new();
        for (name, text) in files {
            folder.write(name, text);
        }
        let error = folder.manifest().expect_err(case);
        assert_says(case, &error, &folder.path().to_string_lossy(), &[says]);
    }
    let folder = Folder::with_model();
    assert_says(
        "missing",
        &ModelManifest::read(folder.join("none")).unwrap_err(),
        "none",
        &["does not exist", "hf download"],
    );
}

#[test]
fn other_formats_are_read_as_far_as_they_go() {
    let config = ("config.json", r#"{"model_type":"llama"}"#);
    for (files, weights, says) in [
        (vec![("m.gguf", "GGUG")], "m.gguf", "none that is whole"),
        (vec![config, ("m.gguf", "GGUG")], "m.gguf", "none that is whole"),
        (vec![config, ("pytorch_model.bin", "x")], "pytorch_model.bin", "PyTorch weights only"),
        (vec![config, ("consolidated.00.pth", "x")], "consolidated.00.pth", "PyTorch weights only"),
        (vec![config, ("weights.npz", "x")], "weights.npz", "NumPy weights only"),
    ] {
        let folder = Folder::new();
        let has_config = files.len() == 2;
        files.into_iter().for_each(|(name, text)| drop(folder.write(name, text)));
        let manifest = folder.manifest().unwrap();
        assert!(manifest.no_safetensors().unwrap().contains(says), "{:?}", manifest.no_safetensors());
        assert_eq!(manifest.files(), [folder.join(weights)]);
        assert_eq!(manifest.model_type(), if has_config { "llama" } else { "" });
        assert_eq!((manifest.tensors().len(), manifest.parameters()), (0, 0));
    }
    let folder = Folder::new();
    let file = folder.write("m.gguf", "GGUG");
    let manifest = ModelManifest::read(&file).unwrap();
    assert_eq!((manifest.files(), manifest.path()), (&[file.clone()][..], &*file));
    assert!(manifest.no_safetensors().unwrap().contains("is a file"));
    let one = manifest.fingerprint().unwrap();
    folder.write("m.gguf", "GGUH");
    assert_ne!(ModelManifest::read(&file).unwrap().fingerprint().unwrap(), one);
    assert_eq!(Folder::with_model().manifest().unwrap().no_safetensors(), None);
}

#[cfg(unix)]
#[test]
fn what_stands_in_a_files_place_is_named_and_not_waited_for() {
    for name in ["config.json", "model.safetensors", INDEX] {
        let folder = Folder::with_model();
        let path = folder.join(name);
        let _ = std::fs::remove_file(&path);
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
        assert_says(
            "pipe",
            &folder.manifest().unwrap_err(),
            name,
            &["is a named pipe, expected a regular file"],
        );

        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("nowhere", &path).unwrap();
        assert_says("link", &folder.manifest().unwrap_err(), name, &["is a link to \"nowhere\""]);

        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_says("folder", &folder.manifest().unwrap_err(), name, &["is a folder"]);
    }
}

#[test]
fn a_config_is_parsed_with_the_key_in_its_errors() {
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code, reason = "the fields are there to fail")]
    struct Config {
        rope: Rope,
    }
    #[derive(Debug, serde::Deserialize)]
    #[allow(dead_code, reason = "the fields are there to fail")]
    struct Rope {
        factor: f32,
    }
    let manifest = with_config(&json!({"model_type":"x", "rope":{"factor":"8"}})).manifest().unwrap();
    let error = manifest.parse_config::<Config>().unwrap_err();
    assert_says("factor", &error, "config.json", &["rope.factor", "\"8\"", "expected f32"]);
}

#[test]
fn values_of_both_config_styles_are_found() {
    let context = |config: Value| with_config(&config).manifest().unwrap().context_length();
    assert_eq!(context(json!({"model_type":"x"})).unwrap(), None);
    assert_eq!(context(json!({"model_type":"x","n_positions":64})).unwrap(), Some(64));
    let nested = json!({"model_type":"x","text_config":{"max_position_embeddings":128}});
    assert_eq!(context(nested).unwrap(), Some(128));
    for wrong in [json!(0), json!(-1), json!(1.5), json!("4096"), json!(1_u64 << 31)] {
        let error = context(json!({"model_type":"x","max_position_embeddings":wrong})).unwrap_err();
        assert_says("context", &error, "config.json", &["max_position_embeddings", &wrong.to_string()]);
    }
}

proptest! {
    #[test]
    fn no_config_panics(config in any_json()) {
        let folder = Folder::with_model();
        folder.write("config.json", config.to_string());
        if let Ok(manifest) = folder.manifest() {
            let _ = (manifest.layer_kinds(), manifest.context_length(), manifest.estimate(16, 2, None), manifest.parameters());
        }
    }

    #[test]
    fn no_index_panics(index in any_json()) {
        let _ = sharded(&index.to_string()).manifest();
    }
}

/// JSON objects whose keys are those that the loader looks for.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0..16_u64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z./-]{0,8}".prop_map(Value::from),
        Just(json!("model-00001-of-00002.safetensors")),
        Just(json!("sliding_attention")),
        Just(json!("mxfp4")),
    ];
    let key = prop::sample::select(vec![
        "model_type",
        "quantization",
        "quantization_config",
        "bits",
        "group_size",
        "mode",
        "quant_method",
        "auto_map",
        "text_config",
        "rope_scaling",
        "factor",
        "type",
        "eos_token_id",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "hidden_size",
        "sliding_window",
        "layer_types",
        "sliding_window_pattern",
        "weight_map",
        "a",
        "b",
        "max_position_embeddings",
    ]);
    let inner = leaf.prop_recursive(3, 32, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((key.clone(), inner), 0..8)
                .prop_map(|fields| fields.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()),
        ]
    });
    inner.prop_map(|mut value| {
        if let Some(fields) = value.as_object_mut() {
            fields.entry("model_type").or_insert("llama".into());
        }
        value
    })
}
