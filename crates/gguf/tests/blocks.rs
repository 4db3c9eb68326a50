//! The elements of blocks are those that the Python package gguf finds, to the bit, in whatever form they are kept.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests")]

use gguf::{Groups, Packing, TensorType, mxfp4_codes, mxfp4_scales};
use half::f16;
use serde_json::Value;

/// Made by `xtask/python/gguf/blocks.py`.
const VECTORS: &str = include_str!("blocks.json");

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
}

/// Each type with blocks and their elements.
fn vectors() -> Vec<(TensorType, Vec<u8>, Vec<f32>)> {
    let all: Value = serde_json::from_str(VECTORS).unwrap();
    let kinds = (0..64).filter_map(TensorType::from_number);
    let found = kinds.filter_map(|kind| {
        let vector = all.get(kind.to_string())?;
        let bits = bytes(vector["elements"].as_str().unwrap());
        let elements = bits.chunks(4).map(|b| f32::from_bits(u32::from_be_bytes(b.try_into().unwrap())));
        Some((kind, bytes(vector["blocks"].as_str().unwrap()), elements.collect()))
    });
    let found: Vec<_> = found.collect();
    assert_eq!(found.len(), all.as_object().unwrap().len());
    found
}

#[test]
fn elements_are_the_references() {
    for (kind, blocks, expected) in vectors() {
        let mut elements = vec![0.0; expected.len()];
        kind.dequantize(&blocks, &mut elements).unwrap();
        assert_eq!(elements, expected, "{kind}");
    }
}

/// A string of `bits` bits for each value, the first lowest.
fn values(packed: &[u8], bits: usize) -> Vec<u32> {
    let bit = |at: usize| u32::from(packed[at / 8] >> (at % 8) & 1);
    let value = |i: usize| (0..bits).map(|b| bit(i * bits + b) << b).sum();
    (0..packed.len() * 8 / bits).map(value).collect()
}

#[test]
fn affine_groups_have_the_same_elements() {
    let mut checked = 0;
    for (kind, blocks, expected) in vectors() {
        let Some(Packing::Affine { bits, wide }) = kind.packing() else { continue };
        let groups = expected.len() / 32;
        let mut packed = vec![0; groups * 4 * bits as usize];
        Groups::pack_values(kind, &blocks, &mut packed).unwrap();
        let size = if wide { 4 } else { 2 };
        let (mut scales, mut biases) = (vec![0; groups * size], vec![0; groups * size]);
        Groups::scales(kind, &blocks, &mut scales).unwrap();
        Groups::biases(kind, &blocks, &mut biases).unwrap();
        let number = |bytes: &[u8], i: usize| match wide {
            true => f32::from_le_bytes(bytes[i * 4..][..4].try_into().unwrap()),
            false => f16::from_le_bytes(bytes[i * 2..][..2].try_into().unwrap()).to_f32(),
        };
        for (i, value) in values(&packed, bits as usize).into_iter().enumerate() {
            let element = number(&scales, i / 32) * value as f32 + number(&biases, i / 32);
            assert!(element == expected[i], "{kind}: element {i} is {element}, expected {}", expected[i]);
        }
        checked += 1;
    }
    assert_eq!(checked, 7);
}

#[test]
fn four_bit_floats_keep_their_codes() {
    const E2M1: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let (kind, blocks, expected) = vectors().into_iter().find(|v| v.0 == TensorType::MXFP4).unwrap();
    let (mut codes, mut scales) = (vec![0; expected.len() / 2], vec![0; expected.len() / 32]);
    mxfp4_codes(&blocks, &mut codes).unwrap();
    mxfp4_scales(&blocks, &mut scales).unwrap();
    for (i, code) in values(&codes, 4).into_iter().enumerate() {
        let size = E2M1[code as usize & 7] * (f32::from(scales[i / 32]) - 127.0).exp2();
        let element = if code & 8 == 0 { size } else { -size };
        assert!(element == expected[i], "{kind}: element {i} is {element}, expected {}", expected[i]);
    }
}

#[test]
fn lengths_that_do_not_belong_together_are_refused() {
    for (kind, blocks, expected) in vectors() {
        let mut elements = vec![0.0; expected.len()];
        assert!(kind.dequantize(&blocks[1..], &mut elements).is_none(), "{kind}");
        assert!(Groups::pack_values(kind, &blocks[1..], &mut []).is_none(), "{kind}");
    }
    assert!(TensorType::IQ4_XS.dequantize(&[0; 136], &mut [0.0; 256]).is_none());
    let huge = [&f16::MAX.to_le_bytes()[..], &[0; 16]].concat();
    assert!(Groups::biases(TensorType::Q4_0, &huge, &mut [0; 2]).is_none(), "half precision cannot hold it");
}
