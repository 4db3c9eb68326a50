//! GGUF files as models: where they are found, what is read of them, and what is wrong with them.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use common::{Folder, message};
use inference_core::{
    Dtype, ModelManifest, QuantMode, Quantization, Result,
    backend::{ModelFiles, ReadAt},
    discover,
};

const Q4_0: u32 = 2;
const F32: u32 = 0;
const IQ4_XS: u32 = 23;

/// A key, the type of its value, and the value.
type Key = (&'static str, u32, Vec<u8>);

/// A tensor's name, extents with the innermost first, type and bytes.
type Tensor<'a> = (&'a str, &'a [u64], u32, Vec<u8>);

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
}

fn texts(list: &[&str]) -> Vec<u8> {
    let head = [&8_u32.to_le_bytes()[..], &(list.len() as u64).to_le_bytes()].concat();
    list.iter().fold(head, |bytes, one| [bytes, text(one)].concat())
}

/// A file of these keys with their types and values, and of these tensors.
fn gguf(keys: &[(&str, u32, Vec<u8>)], tensors: &[Tensor<'_>]) -> Vec<u8> {
    let mut file = b"GGUF\x03\0\0\0".to_vec();
    file.extend((tensors.len() as u64).to_le_bytes());
    file.extend((keys.len() as u64).to_le_bytes());
    for (key, kind, value) in keys {
        file.extend([text(key), kind.to_le_bytes().to_vec(), value.clone()].concat());
    }
    let mut data = Vec::new();
    for (name, extents, kind, bytes) in tensors {
        file.extend([text(name), (extents.len() as u32).to_le_bytes().to_vec()].concat());
        extents.iter().for_each(|extent| file.extend(extent.to_le_bytes()));
        file.extend(kind.to_le_bytes());
        file.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    file.resize(file.len().next_multiple_of(32), 0);
    [file, data].concat()
}

fn number(number: u32) -> Vec<u8> {
    number.to_le_bytes().to_vec()
}

fn keys(architecture: &str) -> Vec<Key> {
    let mut keys = vec![
        ("general.architecture", 8, text(architecture)),
        ("llama.embedding_length", 4, number(32)),
        ("llama.block_count", 4, number(1)),
        ("llama.attention.head_count", 4, number(2)),
        ("llama.feed_forward_length", 4, number(64)),
        ("llama.context_length", 4, number(128)),
        ("llama.attention.layer_norm_rms_epsilon", 6, 1e-6_f32.to_le_bytes().to_vec()),
        ("tokenizer.ggml.model", 8, text("gpt2")),
        ("tokenizer.ggml.pre", 8, text("qwen2")),
        ("tokenizer.ggml.tokens", 9, texts(&["a", "b", "ab", "<|im_end|>"])),
        (
            "tokenizer.ggml.token_type",
            9,
            [
                &5_u32.to_le_bytes()[..],
                &4_u64.to_le_bytes(),
                &[1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0],
            ]
            .concat(),
        ),
        ("tokenizer.ggml.merges", 9, texts(&["a b"])),
        ("tokenizer.ggml.eos_token_id", 4, number(3)),
        ("tokenizer.chat_template", 8, text("{{ messages }}")),
    ];
    for key in &mut keys {
        key.0 = key.0.replace("llama.", &format!("{architecture}.")).leak();
    }
    keys
}

/// Rows of one block each: its scale is 1, and its elements are `row` − 8.
fn rows(count: u8) -> Vec<u8> {
    (0..count).flat_map(|row| [&[0x00, 0x3c][..], &[(row % 16) * 0x11; 16]].concat()).collect()
}

fn model() -> Vec<u8> {
    let embedding = ("token_embd.weight", &[32, 4][..], Q4_0, rows(4));
    let queries = ("blk.0.attn_q.weight", &[32, 8][..], Q4_0, rows(8));
    let norm = ("output_norm.weight", &[32][..], F32, 1.0_f32.to_le_bytes().repeat(32));
    gguf(&keys("llama"), &[embedding, queries, norm])
}

fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// A gated delta net of two heads of keys, of 2, and four of values, of 32.
fn delta_net(change: impl FnOnce(&mut Vec<Key>, &mut Vec<Tensor<'_>>)) -> Vec<u8> {
    delta_net_of("qwen35", change)
}

fn delta_net_of(architecture: &str, change: impl FnOnce(&mut Vec<Key>, &mut Vec<Tensor<'_>>)) -> Vec<u8> {
    let mut keys = keys(architecture);
    for (key, value) in [
        ("conv_kernel", 3),
        ("state_size", 2),
        ("group_count", 2),
        ("time_step_rank", 4),
        ("inner_size", 128),
    ] {
        keys.push((format!("{architecture}.ssm.{key}").leak(), 4, number(value)));
    }
    let mut tensors = vec![
        ("token_embd.weight", &[32, 4][..], Q4_0, rows(4)),
        ("blk.0.ssm_a", &[4], F32, floats(&[-1.0, -2.0, -3.0, -4.0])),
        ("blk.0.ssm_beta.weight", &[32, 4], Q4_0, rows(4)),
        ("blk.0.ssm_out.weight", &[128, 2], Q4_0, rows(8)),
        ("blk.0.ssm_conv1d.weight", &[3, 136], F32, floats(&[0.5; 3 * 136])),
        ("blk.0.ssm_norm.weight", &[32], F32, floats(&[1.0; 32])),
    ];
    change(&mut keys, &mut tensors);
    gguf(&keys, &tensors)
}

struct Files(PathBuf);

impl ReadAt for Files {
    fn read_at(&self, _: usize, position: u64, memory: &mut [u8]) -> Result<()> {
        File::open(&self.0).unwrap().read_exact_at(memory, position).unwrap();
        Ok(())
    }
}

#[test]
fn a_file_is_shown_as_a_folder() {
    let folder = Folder::new();
    let path = folder.write("model.gguf", model());
    let manifest = ModelManifest::read(&path).unwrap();
    assert!(manifest.is_gguf() && manifest.unread().is_none());
    assert_eq!(manifest.model_type(), "llama");
    assert_eq!(manifest.quantization(), Some(&Quantization::new(4, 32, QuantMode::Affine)));
    assert_eq!(manifest.float_dtype(), Some(Dtype::F32));
    assert_eq!(manifest.eos_token_ids().unwrap(), [3]);
    assert_eq!(manifest.parameters(), 32 * 4 + 32 * 8 + 32);
    assert_eq!(manifest.config()["rms_norm_eps"], 1e-6);
    let queries = &manifest.tensors()["model.layers.0.self_attn.q_proj.weight"];
    assert_eq!((queries.dtype, &queries.shape[..], queries.bytes()), (Dtype::U32, &[8, 4][..], 128));
    let source = queries.source.as_ref().unwrap();
    let mut words = vec![0; 128];
    source.read(&Files(path.clone()), 0, &mut words).unwrap();
    assert_eq!(manifest.read_tensor(queries).unwrap(), words);
    // Two heads of four rows each: the pairs that llama.cpp put together are apart again.
    let order: Vec<u8> = words.chunks(16).map(|row| row[0] & 15).collect();
    assert_eq!(order, [0, 2, 1, 3, 4, 6, 5, 7]);
    let biases = manifest.tensors()["model.embed_tokens.biases"].source.as_ref().unwrap();
    let mut bias = [0; 2];
    biases.read(&Files(path.clone()), 2, &mut bias).unwrap();
    assert_eq!(bias, [0x00, 0xc8], "-8 in half precision");
    let full = manifest.in_full().unwrap();
    assert_eq!((full.quantization(), full.parameters()), (None, manifest.parameters()));
    let files = ModelFiles::open(&path).unwrap();
    assert!(files.has("tokenizer.json") && !files.has("config.json"));
    let config: serde_json::Value = files.read_json("tokenizer_config.json", 1 << 20).unwrap();
    assert_eq!(config["chat_template"], "{{ messages }}");
    assert_eq!(config["eos_token"], "<|im_end|>");
}

#[test]
fn a_folder_with_one_model_is_that_model() {
    let folder = Folder::new();
    folder.write("m/mmproj-model.gguf", "GGUF");
    folder.write("m/model.gguf", model());
    let manifest = ModelManifest::read(folder.join("m")).unwrap();
    assert!(manifest.is_gguf());
    assert_eq!(manifest.files(), [folder.join("m/model.gguf")]);
    assert!(ModelFiles::open(&folder.join("m")).unwrap().has("tokenizer.json"));
    folder.write("m/other.gguf", model());
    let manifest = ModelManifest::read(folder.join("m")).unwrap();
    assert!(manifest.unread().unwrap().contains("several models"), "{:?}", manifest.unread());
    let found: Vec<_> = discover(folder.path()).map(|found| found.unwrap().name).collect();
    assert_eq!(found, ["m/model", "m/other"]);
}

#[test]
fn numbered_files_are_one_model() {
    let folder = Folder::new();
    let tensors = [("token_embd.weight", &[32, 4][..], Q4_0, rows(4))];
    let others = [("blk.0.attn_q.weight", &[32, 8][..], Q4_0, rows(8))];
    let split =
        |number: u16| vec![("split.no", 2, number.to_le_bytes().to_vec()), ("split.count", 2, vec![2, 0])];
    let first = [keys("llama"), split(0)].concat();
    folder.write("m-00001-of-00002.gguf", gguf(&first, &tensors));
    let missing = ModelManifest::read(folder.path()).unwrap_err();
    assert!(message(&missing).contains("m-00002-of-00002.gguf: is missing"), "{missing}");
    let second = folder.write("m-00002-of-00002.gguf", gguf(&split(1), &others));
    for path in [folder.path().to_owned(), second.clone()] {
        let manifest = ModelManifest::read(path).unwrap();
        assert_eq!((manifest.files().len(), manifest.tensors().len()), (2, 6));
        assert_eq!(manifest.tensors()["model.layers.0.self_attn.q_proj.weight"].file, 1);
    }
    assert_eq!(discover(folder.path()).count(), 1);
    folder.write("m-00002-of-00002.gguf", gguf(&split(1), &tensors));
    let twice = ModelManifest::read(&second).unwrap_err();
    assert!(message(&twice).contains("token_embd.weight") && message(&twice).contains("too"), "{twice}");
}

#[test]
fn what_is_not_known_is_named_and_what_is_broken_refused() {
    let folder = Folder::new();
    let embedding = |kind: u32, bytes: usize| ("token_embd.weight", &[256, 1][..], kind, vec![0; bytes]);
    let with = |change: &dyn Fn(&mut Vec<Key>)| {
        let mut keys = keys("llama");
        change(&mut keys);
        gguf(&keys, &[embedding(F32, 1024)])
    };
    for (file, says) in [
        (gguf(&keys("mamba9"), &[]), "general.architecture is \"mamba9\", which cannot be read"),
        (gguf(&keys("llama"), &[embedding(IQ4_XS, 136)]), "is in IQ4_XS, which is not supported: use a file"),
        (
            gguf(&keys("llama"), &[embedding(F32, 1024), ("blk.0.odd.weight", &[1], F32, vec![0; 4])]),
            "blk.0.odd.weight is no tensor",
        ),
        (with(&|keys| keys.retain(|key| key.0 != "llama.block_count")), "llama.block_count is missing"),
        (with(&|keys| keys.retain(|key| key.0 != "tokenizer.ggml.pre")), "tokenizer.ggml.pre is missing"),
        (
            with(&|keys| {
                keys.iter_mut()
                    .filter(|key| key.0 == "tokenizer.ggml.pre")
                    .for_each(|key| key.2 = text("new"));
            }),
            "is \"new\", a way to cut words",
        ),
    ] {
        let path = folder.write("model.gguf", file);
        let manifest = ModelManifest::read(&path).unwrap();
        assert!(manifest.is_gguf() && manifest.tensors().is_empty());
        assert!(manifest.unread().unwrap().contains(says), "{:?} does not say {says:?}", manifest.unread());
    }
    let whole = model();
    let path = folder.write("model.gguf", &whole[..whole.len() - 40]);
    let error = ModelManifest::read(&path).unwrap_err();
    assert!(message(&error).contains("model.gguf") && message(&error).contains("cut short"), "{error}");
}

#[test]
fn heads_of_gated_delta_nets_get_their_order_back() {
    let folder = Folder::new();
    let path = folder.write("model.gguf", delta_net(|_, _| ()));
    let manifest = ModelManifest::read(&path).unwrap();
    assert_eq!((manifest.unread(), manifest.model_type()), (None, "qwen3_5"));
    for (key, value) in
        [("linear_value_head_dim", 32), ("linear_num_key_heads", 2), ("full_attention_interval", 4)]
    {
        assert_eq!(manifest.config()[key], value, "{key}");
    }
    let tensor = |name: &str| &manifest.tensors()[&format!("model.layers.0.linear_attn.{name}")];
    let read = |name: &str| manifest.read_tensor(tensor(name)).unwrap();
    // The file has the first of each pair before the second ones.
    assert_eq!(read("A_log"), floats(&[1.0_f32.ln(), 3.0_f32.ln(), 2.0_f32.ln(), 4.0_f32.ln()]));
    let heads = |name| read(name).chunks(16).map(|head| head[0] & 15).collect::<Vec<_>>();
    assert_eq!(heads("in_proj_b.weight"), [0, 2, 1, 3]);
    assert_eq!(heads("out_proj.weight"), [0, 2, 1, 3, 4, 6, 5, 7], "heads are parts of rows here");
    assert_eq!(tensor("conv1d.weight").shape, [136, 3, 1]);
    assert_eq!(read("norm.weight"), floats(&[1.0; 32]));
    // A layer behind the others predicts one token more.
    let more = delta_net(|keys, tensors| {
        keys.iter_mut().filter(|key| key.0.ends_with("block_count")).for_each(|key| key.2 = number(2));
        keys.push(("qwen35.nextn_predict_layers", 4, number(1)));
        tensors.push(("blk.1.nextn.eh_proj.weight", &[64, 32], Q4_0, rows(64)));
        tensors.push(("blk.1.attn_q.weight", &[32, 4], Q4_0, rows(4)));
    });
    let with_more = ModelManifest::read(folder.write("more.gguf", more)).unwrap();
    assert_eq!((with_more.unread(), with_more.parameters()), (None, manifest.parameters()));
    assert_eq!(with_more.config()["num_hidden_layers"], 1);
    // Heads of half a group cannot stay packed.
    let path = folder.write(
        "model.gguf",
        delta_net(|keys, tensors| {
            keys.iter_mut().filter(|key| key.0.ends_with("inner_size")).for_each(|key| key.2 = number(64));
            tensors[3] = ("blk.0.ssm_out.weight", &[64, 2], Q4_0, rows(4));
            tensors[4] = ("blk.0.ssm_conv1d.weight", &[3, 72], F32, floats(&[0.5; 3 * 72]));
        }),
    );
    let manifest = ModelManifest::read(&path).unwrap();
    let out = &manifest.tensors()["model.layers.0.linear_attn.out_proj.weight"];
    assert_eq!((out.dtype, &out.shape[..]), (Dtype::F32, &[2, 64][..]));
    let bytes = manifest.read_tensor(out).unwrap();
    let firsts: Vec<_> = bytes.as_chunks().0.iter().step_by(16).map(|x| f32::from_le_bytes(*x)).collect();
    assert_eq!(firsts, [-8.0, -7.0, -8.0, -7.0, -6.0, -5.0, -6.0, -5.0]);
}

#[test]
fn a_matrix_of_b_and_a_is_taken_apart_with_the_others() {
    let folder = Folder::new();
    let file = |gate: bool, ba: Tensor<'static>| {
        delta_net_of("qwen3next", move |_, tensors| {
            tensors[2] = ba;
            if gate {
                tensors.push(("blk.0.attn_gate.weight", &[32, 128], Q4_0, rows(128)));
            }
        })
    };
    let ba = || ("blk.0.ssm_ba.weight", &[32, 8][..], Q4_0, rows(8));
    let manifest = ModelManifest::read(folder.write("model.gguf", file(true, ba()))).unwrap();
    assert_eq!(manifest.unread(), None);
    let heads = |name: &str| {
        let tensor = &manifest.tensors()[&format!("model.layers.0.linear_attn.{name}.weight")];
        let rows =
            manifest.read_tensor(tensor).unwrap().chunks(16).map(|row| row[0] & 15).collect::<Vec<_>>();
        (tensor.shape[0], rows)
    };
    assert_eq!([heads("in_proj_b"), heads("in_proj_a")], [(4, vec![0, 1, 4, 5]), (4, vec![2, 3, 6, 7])]);
    assert_eq!(heads("in_proj_z").1[..4], [0, 1, 2, 3], "heads of values keep their order");
    let manifest = ModelManifest::read(folder.write("model.gguf", file(false, ba()))).unwrap();
    assert_eq!(manifest.tensors()["model.layers.0.linear_attn.in_proj_ba.weight"].shape, [8, 4]);
    for wrong in
        [("blk.0.ssm_ba.weight", &[32, 6][..], Q4_0, rows(6)), ("blk.0.ssm_ba.weight", &[32], Q4_0, rows(1))]
    {
        let manifest = ModelManifest::read(folder.write("model.gguf", file(true, wrong))).unwrap();
        let why = manifest.unread().unwrap();
        assert!(why.contains("blk.0.ssm_ba.weight has the extents"), "{why}");
    }
}

#[test]
fn gated_delta_nets_that_make_no_sense_are_refused() {
    let folder = Folder::new();
    let set = |name: &'static str, value| {
        delta_net(move |keys, _| match keys.iter_mut().find(|key| key.0 == name) {
            Some(key) => key.2 = number(value),
            None => keys.push((name, 4, number(value))),
        })
    };
    let swap = |at: usize, tensor: Tensor<'static>| delta_net(move |_, tensors| tensors[at] = tensor);
    for (file, says) in [
        (set("qwen35.ssm.group_count", 3), "qwen35.ssm.time_step_rank is 4, expected a multiple of 3"),
        (set("qwen35.ssm.inner_size", 126), "qwen35.ssm.inner_size is 126, expected a multiple of 4"),
        (set("qwen35.ssm.state_size", 0), "qwen35.ssm.state_size is missing or no size"),
        (set("qwen35.ssm.conv_kernel", u32::MAX), "qwen35.ssm.conv_kernel is missing or no size"),
        (set("qwen35.ssm.state_size", i32::MAX as u32), "blk.0.ssm_conv1d.weight has the extents [136, 3]"),
        (set("qwen35.full_attention_interval", 1), "qwen35.full_attention_interval is 1, expected"),
        (
            delta_net(|keys, _| keys.retain(|key| !key.0.ends_with("time_step_rank"))),
            "qwen35.ssm.time_step_rank is missing",
        ),
        (
            swap(1, ("blk.0.ssm_a", &[3], F32, vec![0; 12])),
            "blk.0.ssm_a has the extents [3], expected 4 heads",
        ),
        (
            swap(3, ("blk.0.ssm_out.weight", &[3, 2], F32, vec![0; 24])),
            "blk.0.ssm_out.weight has the extents [2, 3], expected 4 heads",
        ),
        (
            swap(4, ("blk.0.ssm_conv1d.weight", &[3, 8], F32, vec![0; 96])),
            "blk.0.ssm_conv1d.weight has the extents [8, 3], expected 4 heads of equal width behind the first 8",
        ),
        (swap(2, ("blk.0.ssm_beta.weight", &[8, 4, 2], F32, vec![0; 256])), "blk.0.ssm_beta.weight has the"),
    ] {
        let path = folder.write("model.gguf", file);
        let manifest = ModelManifest::read(&path).unwrap();
        assert!(manifest.unread().is_some_and(|why| why.contains(says)), "{:?}: {says:?}", manifest.unread());
    }
    // That an element is no exponential is seen when it is read.
    let path =
        folder.write("model.gguf", swap(1, ("blk.0.ssm_a", &[4], F32, floats(&[-1.0, 0.5, -1.0, -1.0]))));
    let manifest = ModelManifest::read(&path).unwrap();
    let error = manifest.read_tensor(&manifest.tensors()["model.layers.0.linear_attn.A_log"]).unwrap_err();
    let says = "blk.0.ssm_a: has the element 0.5, expected a number below 0";
    assert!(message(&error).contains("model.gguf") && message(&error).contains(says), "{error}");
}

/// A Gemma 4 of one layer that sees all, and has experts.
fn gemma4(change: impl FnOnce(&mut Vec<Key>, &mut Vec<Tensor<'_>>)) -> Vec<u8> {
    let mut keys = keys("gemma4");
    for (key, value) in [
        ("gemma4.attention.key_length", 16),
        ("gemma4.attention.key_length_swa", 8),
        ("gemma4.attention.head_count_kv", 1),
        ("gemma4.expert_count", 2),
        ("gemma4.expert_used_count", 1),
        ("gemma4.expert_feed_forward_length", 2),
    ] {
        keys.push((key, 4, number(value)));
    }
    let flags = [&7_u32.to_le_bytes()[..], &1_u64.to_le_bytes(), &[0]].concat();
    keys.push(("gemma4.attention.sliding_window_pattern", 9, flags));
    let mut tensors = vec![
        ("token_embd.weight", &[32, 4][..], Q4_0, rows(4)),
        ("rope_freqs.weight", &[8], F32, floats(&[1.0, 1.0, 1e30, 1e30, 1e30, 1e30, 1e30, 1e30])),
        ("blk.0.ffn_gate_up_exps.weight", &[32, 4, 2], Q4_0, rows(8)),
        ("blk.0.ffn_down_exps.scale", &[2], F32, floats(&[1.0, 2.0])),
    ];
    change(&mut keys, &mut tensors);
    gguf(&keys, &tensors)
}

#[test]
fn gates_and_what_they_let_through_are_taken_apart() {
    let folder = Folder::new();
    let manifest = ModelManifest::read(folder.write("model.gguf", gemma4(|_, _| ()))).unwrap();
    assert_eq!((manifest.unread(), manifest.model_type()), (None, "gemma4_text"));
    let config = manifest.config();
    assert_eq!((&config["head_dim"], &config["global_head_dim"]), (&8.into(), &16.into()));
    assert_eq!(
        (&config["attention_k_eq_v"], &config["num_global_key_value_heads"]),
        (&true.into(), &1.into())
    );
    assert_eq!(config["rope_parameters"]["full_attention"]["partial_rotary_factor"], 0.25);
    let half = |part: &str| {
        let tensor = &manifest.tensors()[&format!("model.layers.0.experts.switch_glu.{part}_proj.weight")];
        assert_eq!((tensor.dtype, &tensor.shape[..]), (Dtype::U32, &[2, 2, 4][..]));
        manifest.read_tensor(tensor).unwrap().chunks(16).map(|row| row[0] & 15).collect::<Vec<_>>()
    };
    assert_eq!([half("gate"), half("up")], [[0, 1, 4, 5], [2, 3, 6, 7]]);
    assert!(manifest.tensors().contains_key("model.layers.0.router.per_expert_scale"));
    for (file, says) in [
        (
            gemma4(|_, tensors| tensors[2] = ("blk.0.ffn_gate_up_exps.weight", &[32, 3, 2], Q4_0, rows(6))),
            "blk.0.ffn_gate_up_exps.weight has the extents [2, 3, 32], expected an even number of rows",
        ),
        (gemma4(|_, tensors| drop(tensors.remove(1))), "rope_freqs.weight is missing"),
        (
            gemma4(|_, tensors| tensors[1].3 = floats(&[2.0; 8])),
            "rope_freqs.weight has other factors than those of pairs that turn",
        ),
        (
            gemma4(|keys, _| keys.retain(|key| !key.0.ends_with("key_length_swa"))),
            "gemma4.attention.key_length_swa is missing",
        ),
    ] {
        let manifest = ModelManifest::read(folder.write("model.gguf", file)).unwrap();
        assert!(manifest.unread().is_some_and(|why| why.contains(says)), "{:?}: {says:?}", manifest.unread());
    }
}

#[test]
fn parameters_in_the_metadata_are_tensors() {
    let folder = Folder::new();
    let file = |parts: &[&'static str], count: u64| {
        let mut keys = keys("apertus");
        let list = [&6_u32.to_le_bytes()[..], &count.to_le_bytes(), &floats(&vec![0.25; count as usize])];
        keys.extend(parts.iter().map(|part| (*part, 9, list.concat())));
        gguf(&keys, &[("token_embd.weight", &[32, 4], Q4_0, rows(4))])
    };
    let parts = ["xielu.alpha_p", "xielu.alpha_n", "xielu.beta", "xielu.eps"];
    let manifest = ModelManifest::read(folder.write("model.gguf", file(&parts, 1))).unwrap();
    assert_eq!((manifest.unread(), manifest.model_type()), (None, "apertus"));
    for (part, shape) in [("alpha_n", &[1][..]), ("beta", &[])] {
        let tensor = &manifest.tensors()[&format!("model.layers.0.mlp.act_fn.{part}")];
        assert_eq!((&tensor.shape[..], manifest.read_tensor(tensor).unwrap()), (shape, floats(&[0.25])));
    }
    for (file, says) in [
        (file(&parts[..3], 1), "xielu.eps is missing"),
        (file(&parts, 2), "xielu.alpha_p has 2 numbers for 1 layers"),
    ] {
        let manifest = ModelManifest::read(folder.write("model.gguf", file)).unwrap();
        assert!(manifest.unread().is_some_and(|why| why.contains(says)), "{:?}: {says:?}", manifest.unread());
    }
}

#[test]
fn state_spaces_and_latent_attention_that_make_no_sense_are_refused() {
    let folder = Folder::new();
    let with = |architecture: &str, sizes: &[(&str, u32)], tensors: &[Tensor<'_>]| {
        let mut keys = keys(architecture);
        for (key, value) in sizes {
            let key = format!("{architecture}.{key}");
            keys.retain(|known| known.0 != key);
            keys.push((key.leak(), 4, number(*value)));
        }
        gguf(&keys, &[&[("token_embd.weight", &[32, 4][..], Q4_0, rows(4))], tensors].concat())
    };
    let state_space = |inner: u32| {
        let sizes =
            ["conv_kernel", "state_size", "group_count", "time_step_rank"].map(|key| format!("ssm.{key}"));
        let mut sizes: Vec<_> = sizes.iter().map(|key| (&**key, 4)).collect();
        sizes.push(("ssm.inner_size", inner));
        sizes.into_iter().map(|(key, size)| (key.to_owned(), size)).collect::<Vec<_>>()
    };
    let named = |sizes: &[(String, u32)], architecture: &str, tensors: &[Tensor<'_>]| {
        let sizes: Vec<_> = sizes.iter().map(|(key, size)| (&**key, *size)).collect();
        with(architecture, &sizes, tensors)
    };
    let latent = [("rope.dimension_count", 4), ("attention.key_length", 3), ("attention.kv_lora_rank", 4)];
    for (file, says) in [
        (
            named(&state_space(6), "mamba2", &[]),
            "mamba2.ssm.inner_size is 6, expected a multiple of the 4 heads",
        ),
        (
            named(&state_space(8), "mamba2", &[]),
            "mamba2.ssm.inner_size is 8, expected a multiple of the width 32",
        ),
        (named(&state_space(64), "nemotron_h", &[]), "blk.0 has no part that a layer of this family can be"),
        (with("mamba2", &[], &[]), "mamba2.ssm.inner_size is missing"),
        (
            with("deepseek2", &latent, &[]),
            "deepseek2.rope.dimension_count is 4, expected at most the 3 of a head",
        ),
        (with("deepseek2", &[], &[]), "deepseek2.rope.dimension_count is missing"),
        (
            with(
                "deepseek2",
                &[
                    latent[0],
                    latent[2],
                    ("attention.key_length", 8),
                    ("attention.value_length", 8),
                    ("expert_count", 2),
                    ("expert_used_count", 1),
                    ("expert_feed_forward_length", 2),
                ],
                &[],
            ),
            "deepseek2.expert_count has no corrections of experts' scores",
        ),
        (
            with(
                "gemma3n",
                &[("embedding_length_per_layer_input", 4), ("altup.num_inputs", 2)],
                &[
                    ("per_layer_token_embd.weight", &[4, 4], F32, floats(&[0.0; 16])),
                    ("blk.0.laurel_l.weight", &[32, 2], F32, floats(&[0.0; 64])),
                    ("altup_proj.weight", &[32, 32], F32, floats(&[0.0; 1024])),
                ],
            ),
            "altup_proj.weight has the extents [32, 32], expected up to 64 matrices",
        ),
    ] {
        let manifest = ModelManifest::read(folder.write("model.gguf", file)).unwrap();
        assert!(manifest.unread().is_some_and(|why| why.contains(says)), "{:?}: {says:?}", manifest.unread());
    }
}

#[test]
fn short_convolutions_are_told_from_attention() {
    let folder = Folder::new();
    let counts = [&5_u32.to_le_bytes()[..], &2_u64.to_le_bytes(), &number(0), &number(1)].concat();
    let with = |change: &dyn Fn(&mut Vec<Key>)| {
        let mut keys = keys("lfm2");
        keys.iter_mut().filter(|key| key.0 == "lfm2.block_count").for_each(|key| key.2 = number(2));
        keys.push(("lfm2.shortconv.l_cache", 4, number(3)));
        keys.push(("lfm2.attention.head_count_kv", 9, counts.clone()));
        change(&mut keys);
        let convolution = ("blk.0.shortconv.conv.weight", &[3, 32][..], F32, floats(&[0.5; 96]));
        let embedding = ("token_embd.weight", &[32, 4][..], Q4_0, rows(4));
        gguf(&keys, &[embedding, convolution])
    };
    let manifest = ModelManifest::read(folder.write("model.gguf", with(&|_| ()))).unwrap();
    assert_eq!((manifest.unread(), manifest.model_type()), (None, "lfm2"));
    let config = manifest.config();
    assert_eq!(config["layer_types"], serde_json::json!(["conv", "full_attention"]));
    assert_eq!((&config["num_key_value_heads"], &config["conv_L_cache"]), (&1.into(), &3.into()));
    assert_eq!(manifest.tensors()["model.layers.0.conv.conv.weight"].shape, [32, 3, 1]);
    for (file, says) in [
        (with(&|keys| keys.retain(|key| !key.0.contains("l_cache"))), "lfm2.shortconv.l_cache is missing"),
        (
            with(&|keys| keys.push(("lfm2.attention.sliding_window", 4, number(9)))),
            "lfm2.attention.sliding_window is 9, which is not supported",
        ),
        (
            with(&|keys| {
                keys.iter_mut().for_each(|key| {
                    if key.1 == 9 && key.0.contains("kv") {
                        key.2 = [&counts[..4], &2_u64.to_le_bytes(), &number(1), &number(2)].concat();
                    }
                });
            }),
            "lfm2.attention.head_count_kv differs between layers",
        ),
    ] {
        let manifest = ModelManifest::read(folder.write("model.gguf", file)).unwrap();
        assert!(manifest.unread().is_some_and(|why| why.contains(says)), "{:?}: {says:?}", manifest.unread());
    }
}
