//! GPTQ, AWQ, block-scaled FP8 and compressed-tensors: what is read has the values of each format's own formula.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use common::Folder;
use half::{bf16, f16};
use inference_core::{Dtype, ModelManifest, QuantMode, Quantization, Result, backend::ReadAt};
use serde_json::{Value, json};

const INPUTS: usize = 64;
const OUTPUTS: usize = 16;
const GROUP: usize = 32;

struct Files(PathBuf);

impl ReadAt for Files {
    fn read_at(&self, _: usize, position: u64, memory: &mut [u8]) -> Result<()> {
        File::open(&self.0).unwrap().read_exact_at(memory, position).unwrap();
        Ok(())
    }
}

/// Numbers that look drawn.
fn drawn(seed: usize, at: usize) -> usize {
    (at * 2_654_435_761 + seed * 40_503) >> 7
}

/// The value of an input for an output, the zero and the scale of a group for an output.
fn value(output: usize, input: usize) -> u32 {
    (drawn(1, output * INPUTS + input) % 16) as u32
}

fn zero(output: usize, group: usize) -> u32 {
    (drawn(2, output * 8 + group) % 15 + 1) as u32
}

fn scale(output: usize, group: usize) -> f16 {
    f16::from_f32(0.001 + (drawn(3, output * 8 + group) % 97) as f32 / 5000.0)
}

fn words(rows: usize, columns: usize, word: impl Fn(usize, usize) -> u32) -> Vec<u8> {
    (0..rows * columns).flat_map(|i| word(i / columns, i % columns).to_le_bytes()).collect()
}

/// Eight values in a word, the first lowest.
fn packed(values: impl Fn(usize) -> u32) -> u32 {
    (0..8).map(|i| values(i) << (4 * i)).sum()
}

fn write(
    folder: &Folder,
    quantization: &Value,
    tensors: &[(&str, &str, Vec<usize>, Vec<u8>)],
) -> ModelManifest {
    let config = json!({"model_type": "llama", "quantization_config": quantization});
    folder.write("config.json", config.to_string());
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    for (name, dtype, shape, bytes) in tensors {
        let begin = data.len();
        data.extend(bytes);
        header.insert(
            (*name).to_owned(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [begin, data.len()]}),
        );
    }
    folder.write("model.safetensors", common::file(Value::Object(header).to_string(), &data));
    folder.manifest().unwrap()
}

fn bytes(folder: &Folder, manifest: &ModelManifest, name: &str) -> Vec<u8> {
    let info = &manifest.tensors()[name];
    let source = info.source.as_ref().unwrap();
    let mut memory = vec![0; info.bytes() as usize];
    // In two pieces: the second begins in the middle.
    let half = memory.len() / source.unit() / 2 * source.unit();
    let files = Files(folder.join("model.safetensors"));
    let (one, other) = memory.split_at_mut(half);
    source.read(&files, 0, one).unwrap();
    source.read(&files, half as u64, other).unwrap();
    memory
}

fn floats(manifest: &ModelManifest, name: &str, bytes: &[u8]) -> Vec<f32> {
    match manifest.tensors()[name].dtype {
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

/// Checks `scale · q + bias` of every element, in groups of 32.
fn check(folder: &Folder, manifest: &ModelManifest, expected: impl Fn(usize, usize) -> f32) {
    check_affine(folder, manifest, (4, GROUP), expected);
}

fn check_affine(
    folder: &Folder,
    manifest: &ModelManifest,
    (bits, group): (usize, usize),
    expected: impl Fn(usize, usize) -> f32,
) {
    let setting = Quantization::new(bits as u32, group as u32, QuantMode::Affine);
    assert_eq!(manifest.quantization_of("l").unwrap(), Some(setting));
    assert_eq!(manifest.quant_method(), None);
    assert_eq!(manifest.parameters(), (INPUTS * OUTPUTS) as u64);
    let words = bytes(folder, manifest, "l.weight");
    let words: Vec<u32> = words.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let [scales, biases] =
        ["l.scales", "l.biases"].map(|name| floats(manifest, name, &bytes(folder, manifest, name)));
    for (output, input) in (0..OUTPUTS * INPUTS).map(|i| (i / INPUTS, i % INPUTS)) {
        let per_word = 32 / bits;
        let word = words[(output * INPUTS + input) / per_word];
        let q = word >> (bits * (input % per_word)) & ((1 << bits) - 1);
        let at = (output * INPUTS + input) / group;
        let (found, expected) = (scales[at] * q as f32 + biases[at], expected(output, input));
        assert!(
            (found - expected).abs() <= expected.abs() * 1e-6 + 1e-9,
            "{output} {input}: {found}, {expected}"
        );
    }
}

/// Words with eight inputs, zeros with eight outputs less one.
fn gptq(zero: impl Fn(usize, usize) -> u32) -> Vec<(&'static str, &'static str, Vec<usize>, Vec<u8>)> {
    let groups = INPUTS / GROUP;
    vec![
        (
            "l.qweight",
            "I32",
            vec![INPUTS / 8, OUTPUTS],
            words(INPUTS / 8, OUTPUTS, |word, output| packed(|i| value(output, word * 8 + i))),
        ),
        (
            "l.qzeros",
            "I32",
            vec![groups, OUTPUTS / 8],
            words(groups, OUTPUTS / 8, |group, word| packed(|i| zero(word * 8 + i, group) - 1)),
        ),
        (
            "l.scales",
            "F16",
            vec![groups, OUTPUTS],
            (0..groups * OUTPUTS).flat_map(|i| scale(i % OUTPUTS, i / OUTPUTS).to_le_bytes()).collect(),
        ),
        (
            "l.g_idx",
            "I32",
            vec![INPUTS],
            (0..INPUTS as u32).flat_map(|i| (i / GROUP as u32).to_le_bytes()).collect(),
        ),
    ]
}

#[test]
fn gptq_has_its_values() {
    let folder = Folder::new();
    let config =
        json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": false});
    let manifest = write(&folder, &config, &gptq(zero));
    assert_eq!((manifest.float_dtype(), manifest.tensors().len()), (Some(Dtype::F32), 3));
    check(&folder, &manifest, |output, input| {
        scale(output, input / GROUP).to_f32()
            * (value(output, input) as f32 - zero(output, input / GROUP) as f32)
    });
    // In the middle, half precision holds the biases.
    let config = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": true});
    let manifest = write(&folder, &config, &gptq(|_, _| 8));
    assert_eq!(manifest.tensors()["l.biases"].dtype, Dtype::F16);
    check(&folder, &manifest, |output, input| {
        scale(output, input / GROUP).to_f32() * (value(output, input) as f32 - 8.0)
    });
}

#[test]
fn awq_has_its_values() {
    const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
    let (folder, groups) = (Folder::new(), INPUTS / GROUP);
    let tensors = [
        (
            "l.qweight",
            "I32",
            vec![INPUTS, OUTPUTS / 8],
            words(INPUTS, OUTPUTS / 8, |input, word| packed(|i| value(word * 8 + ORDER[i], input))),
        ),
        (
            "l.qzeros",
            "I32",
            vec![groups, OUTPUTS / 8],
            words(groups, OUTPUTS / 8, |group, word| packed(|i| zero(word * 8 + ORDER[i], group))),
        ),
        (
            "l.scales",
            "F16",
            vec![groups, OUTPUTS],
            (0..groups * OUTPUTS).flat_map(|i| scale(i % OUTPUTS, i / OUTPUTS).to_le_bytes()).collect(),
        ),
    ];
    let config =
        json!({"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": true});
    let manifest = write(&folder, &config, &tensors);
    check(&folder, &manifest, |output, input| {
        scale(output, input / GROUP).to_f32()
            * (value(output, input) as f32 - zero(output, input / GROUP) as f32)
    });
}

#[test]
fn scaled_floats_have_their_values() {
    let folder = Folder::new();
    // All 256 codes but those of no number, in blocks of 16 rows and 8 columns.
    let codes: Vec<u8> = (0..=255).map(|code: u8| if code & 0x7f == 0x7f { 0 } else { code }).collect();
    let scales: Vec<u8> = (0..4).flat_map(|i| (0.5_f32 + i as f32).to_le_bytes()).collect();
    let tensors = [
        ("l.weight", "F8_E4M3", vec![16, 16], codes.clone()),
        ("l.weight_scale_inv", "F32", vec![2, 2], scales),
    ];
    let config = json!({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [8, 8]});
    let manifest = write(&folder, &config, &tensors);
    assert_eq!((manifest.quantization(), manifest.float_dtype()), (None, Some(Dtype::Bf16)));
    let found = bytes(&folder, &manifest, "l.weight");
    for (i, (found, code)) in found.as_chunks().0.iter().zip(codes).enumerate() {
        // The definition of e4m3, from the bits of a float32 with its exponent moved.
        let bits = u32::from(code & 0x80) << 24 | u32::from(code & 0x7f) << 20;
        let value = f32::from_bits(bits) * 120.0_f32.exp2();
        let scale = 0.5 + (i / 16 / 8 * 2 + i % 16 / 8) as f32;
        assert_eq!(bf16::from_le_bytes(*found), bf16::from_f32(value * scale), "{code:#x} at {i}");
    }
}

/// The settings of compressed-tensors, and what a layer has beside its values.
fn compressed(format: &str) -> Value {
    let weights =
        json!({"num_bits": 4, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32});
    let activations = json!({"num_bits": 8, "type": "int", "dynamic": true, "strategy": "token"});
    let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": activations});
    json!({"quant_method": "compressed-tensors", "format": format, "ignore": ["lm_head"], "config_groups": {"group_0": group}})
}

type Named = (&'static str, &'static str, Vec<usize>, Vec<u8>);

fn pack_quantized(scales: usize) -> Vec<Named> {
    let shape = [OUTPUTS as i64, INPUTS as i64].iter().flat_map(|n| n.to_le_bytes()).collect();
    vec![
        (
            "l.weight_packed",
            "I32",
            vec![OUTPUTS, INPUTS / 8],
            words(OUTPUTS, INPUTS / 8, |output, word| packed(|i| value(output, word * 8 + i))),
        ),
        ("l.weight_shape", "I64", vec![2], shape),
        (
            "l.weight_scale",
            "F16",
            vec![OUTPUTS, scales],
            (0..OUTPUTS * scales).flat_map(|i| scale(i / scales, i % scales).to_le_bytes()).collect(),
        ),
        ("l.input_scale", "F32", vec![1], vec![0; 4]),
    ]
}

#[test]
fn packed_words_of_compressed_tensors_have_their_values() {
    let groups = INPUTS / GROUP;
    let folder = Folder::new();
    // q + 8 is stored, so that the middle is 8.
    let manifest = write(&folder, &compressed("pack-quantized"), &pack_quantized(groups));
    assert_eq!((manifest.float_dtype(), manifest.tensors().len()), (Some(Dtype::F16), 3));
    check(&folder, &manifest, |output, input| {
        scale(output, input / GROUP).to_f32() * (value(output, input) as f32 - 8.0)
    });
    // A scale for each row is one for each group.
    let manifest = write(&folder, &compressed("pack-quantized"), &pack_quantized(1));
    check_affine(&folder, &manifest, (4, 64), |output, input| {
        scale(output, 0).to_f32() * (value(output, input) as f32 - 8.0)
    });
    // Zeros of eight rows are in a word.
    let mut tensors = pack_quantized(groups);
    let zeros = words(OUTPUTS / 8, groups, |word, group| packed(|i| zero(word * 8 + i, group)));
    tensors.push(("l.weight_zero_point", "I32", vec![OUTPUTS / 8, groups], zeros));
    let manifest = write(&folder, &compressed("pack-quantized"), &tensors);
    assert_eq!(manifest.float_dtype(), Some(Dtype::F32));
    let asymmetric =
        |output: usize, input: usize| value(output, input) as f32 - zero(output, input / GROUP) as f32;
    check(&folder, &manifest, |output, input| {
        scale(output, input / GROUP).to_f32() * asymmetric(output, input)
    });
    // The first versions had a byte for each.
    let bytes_of = |i: usize| (zero(i / groups, i % groups) as i32 - 8) as u8;
    tensors.pop();
    tensors.push((
        "l.weight_zero_point",
        "I8",
        vec![OUTPUTS, groups],
        (0..OUTPUTS * groups).map(bytes_of).collect(),
    ));
    let manifest = write(&folder, &compressed("pack-quantized"), &tensors);
    check(&folder, &manifest, |output, input| {
        scale(output, input / GROUP).to_f32() * asymmetric(output, input)
    });
    // Inputs of a group that lie apart are put in full.
    let order = |input: usize| (input * 5 + 1) % groups;
    let order_bytes = (0..INPUTS).flat_map(|input| (order(input) as u32).to_le_bytes()).collect();
    tensors.push(("l.weight_g_idx", "I32", vec![INPUTS], order_bytes));
    let manifest = write(&folder, &compressed("pack-quantized"), &tensors);
    assert_eq!((manifest.quantization(), manifest.tensors().len()), (None, 1));
    let found = floats(&manifest, "l.weight", &bytes(&folder, &manifest, "l.weight"));
    for (i, found) in found.into_iter().enumerate() {
        let (output, input) = (i / INPUTS, i % INPUTS);
        let q = value(output, input) as f32 - zero(output, order(input)) as f32;
        let expected = f16::from_f32(scale(output, order(input)).to_f32() * q).to_f32();
        assert_eq!(found, expected, "{output} {input}");
    }
}

#[test]
fn bytes_of_compressed_tensors_have_their_values() {
    let byte = |i: usize| (drawn(5, i) % 256) as u8;
    let values = || (0..OUTPUTS * INPUTS).map(byte).collect::<Vec<u8>>();
    let folder = Folder::new();
    for rows in [OUTPUTS, 1] {
        let scales = (0..rows).flat_map(|row| scale(row, 0).to_le_bytes()).collect();
        let shape = if rows == 1 { vec![1] } else { vec![rows, 1] };
        let tensors =
            [("l.weight", "I8", vec![OUTPUTS, INPUTS], values()), ("l.weight_scale", "F16", shape, scales)];
        let manifest = write(&folder, &compressed("int-quantized"), &tensors);
        check_affine(&folder, &manifest, (8, 64), |output, input| {
            let q = byte(output * INPUTS + input).cast_signed();
            scale(if rows == 1 { 0 } else { output }, 0).to_f32() * f32::from(q)
        });
    }
    // Floats of eight bits: one scale, one for each row, one for each block of which the last are cut.
    let codes: Vec<u8> = (0..=255).map(|code: u8| if code & 0x7f == 0x7f { 0 } else { code }).collect();
    let mut config = compressed("float-quantized");
    config["config_groups"]["group_0"]["weights"]["block_structure"] = json!([8, 12]);
    for (shape, block) in
        [(vec![1], [16, 16]), (vec![16, 1], [1, 16]), (vec![16, 2], [1, 8]), (vec![2, 2], [8, 12])]
    {
        let count = shape.iter().product::<usize>();
        let scales = (0..count).flat_map(|i| bf16::from_f32(0.5 + i as f32).to_le_bytes()).collect();
        let across = shape.get(1).copied().unwrap_or(1);
        let tensors =
            [("l.weight", "F8_E4M3", vec![16, 16], codes.clone()), ("l.weight_scale", "BF16", shape, scales)];
        let manifest = write(&folder, &config, &tensors);
        assert_eq!((manifest.quantization(), manifest.float_dtype()), (None, Some(Dtype::Bf16)));
        let found = bytes(&folder, &manifest, "l.weight");
        for (i, (found, code)) in found.as_chunks().0.iter().zip(&codes).enumerate() {
            let bits = u32::from(code & 0x80) << 24 | u32::from(code & 0x7f) << 20;
            let value = f32::from_bits(bits) * 120.0_f32.exp2();
            let scale = 0.5 + (i / 16 / block[0] * across + i % 16 / block[1]) as f32;
            assert_eq!(bf16::from_le_bytes(*found), bf16::from_f32(value * scale), "{code:#x} at {i}");
        }
    }
}

#[test]
fn what_compressed_tensors_has_and_mlx_has_not_is_named() {
    let groups = INPUTS / GROUP;
    let mut sparse = compressed("pack-quantized");
    sparse["sparsity_config"] = json!({"format": "sparse-24-bitmask"});
    let mut turned = compressed("pack-quantized");
    turned["transform_config"] = json!({"config_groups": {"R1": {"type": "hadamard"}}});
    let mut mixed = compressed("mixed-precision");
    mixed["config_groups"]["group_0"]["format"] = json!("nvfp4-pack-quantized");
    let (plain, mut narrow, mut wrong) =
        (compressed("pack-quantized"), pack_quantized(groups), pack_quantized(groups));
    // Three bits a value.
    (narrow[0].2, narrow[0].3) = (vec![OUTPUTS, INPUTS * 3 / 32], vec![0; OUTPUTS * INPUTS * 3 / 8]);
    (wrong[2].2, wrong[2].3) = (vec![OUTPUTS, 4], vec![0; OUTPUTS * 8]);
    let whole = pack_quantized(groups);
    for (config, tensors, says) in [
        (compressed("marlin-24"), &whole, "marlin-24"),
        (sparse, &whole, "sparse-24-bitmask"),
        (turned, &whole, "turns activations"),
        (mixed, &whole, "nvfp4-pack-quantized"),
        (plain.clone(), &narrow, "words of 2, 4 or 8 bits"),
        (plain, &wrong, "groups that divide by 32"),
    ] {
        let folder = Folder::new();
        let manifest = write(&folder, &config, tensors);
        assert!(manifest.unread().unwrap().contains(says), "{:?} does not say {says:?}", manifest.unread());
    }
}

#[test]
fn what_has_no_form_is_named() {
    let base = json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": false});
    for (key, given, says) in [
        ("bits", json!(3), "only 4"),
        ("group_size", json!(-1), "expected 32, 64 or 128"),
        ("desc_act", json!(true), "another order"),
        ("checkpoint_format", json!("marlin"), "expected gptq"),
        ("group_size", json!(64), "do not belong together"),
    ] {
        let folder = Folder::new();
        let mut config = base.clone();
        config[key] = given;
        let manifest = write(&folder, &config, &gptq(zero));
        assert!(manifest.unread().unwrap().contains(says), "{:?} does not say {says:?}", manifest.unread());
    }
    // What the config says of the order and of zeros is looked at when the tensors are read.
    for (config, change, part, says) in [
        (base.clone(), 3, "l.weight", "another order"),
        (
            json!({"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": false, "sym": true}),
            0,
            "l.biases",
            "not in the middle",
        ),
    ] {
        let folder = Folder::new();
        let mut tensors = gptq(zero);
        if change == 3 {
            tensors[3].3.reverse();
        }
        let manifest = write(&folder, &config, &tensors);
        let info = &manifest.tensors()[part];
        let mut memory = vec![0; info.bytes() as usize];
        let read =
            info.source.as_ref().unwrap().read(&Files(folder.join("model.safetensors")), 0, &mut memory);
        assert!(read.unwrap_err().to_string().contains(says), "{part}");
    }
}
