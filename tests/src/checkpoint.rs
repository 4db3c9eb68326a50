//! Checkpoints of random weights that a few numbers describe: `crates/backend-metal/tests/fixtures` holds such descriptions, beside
//! what the reference implementations make of the weights.

use std::{fs, io, path::Path};

use half::{bf16, f16};
use serde_json::{Map, Value, json};

/// A tensor's name, type, shape, mean and spread: what they mean says `xtask/python/golden/weights.py`.
pub type Rule = (String, String, Vec<usize>, f64, f64);

/// Writes the config, and the tensors that the rules describe, to a folder.
///
/// # Errors
/// The file system's.
pub fn write(folder: &Path, config: &Value, rules: &[Rule]) -> io::Result<()> {
    fs::write(folder.join("config.json"), config.to_string())?;
    let mut header = Map::new();
    let mut data = Vec::new();
    for rule in rules {
        let (name, dtype, shape, ..) = rule;
        let start = data.len();
        data.extend(tensor(rule));
        header.insert(
            name.clone(),
            json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]}),
        );
    }
    let header = Value::Object(header).to_string().into_bytes();
    let file = [&(header.len() as u64).to_le_bytes(), &header[..], &data].concat();
    fs::write(folder.join("model.safetensors"), file)
}

/// The bytes that a rule stands for.
#[must_use]
pub fn tensor((name, dtype, shape, mean, spread): &Rule) -> Vec<u8> {
    let seed = name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |value, byte| {
        (value ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
    });
    let hash = |i: u64| {
        let z = seed.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    };
    let value = |bits: u64| *mean as f32 + *spread as f32 * ((bits >> 40) as f32 / 8_388_608.0 - 1.0);
    (0..shape.iter().product::<usize>() as u64)
        .map(hash)
        .flat_map(|bits| match dtype.as_str() {
            "U32" => ((bits >> 32) as u32 & *spread as u32).to_le_bytes().to_vec(),
            "U8" => vec![(*mean as u64 + bits % *spread as u64) as u8],
            "F16" => f16::from_f32(value(bits)).to_le_bytes().to_vec(),
            "BF16" => bf16::from_f32(value(bits)).to_le_bytes().to_vec(),
            _ => value(bits).to_le_bytes().to_vec(),
        })
        .collect()
}
