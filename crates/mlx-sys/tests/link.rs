//! mlx-rs, as published, over this crate.

use half::{bf16, f16};
use mlx_rs::Array;

#[test]
fn arrays_are_added() {
    let sum = Array::from_slice(&[1.0_f32, 2.0], &[2]).add(Array::from_slice(&[3.0_f32, 4.0], &[2])).unwrap();
    assert_eq!(sum.as_slice::<f32>(), [4.0, 6.0]);
}

#[test]
fn half_precision_numbers_keep_their_bits() {
    assert_eq!(Array::from_slice(&[f16::from_f32(-1.5)], &[1]).item_exact::<f16>(), f16::from_f32(-1.5));
    assert_eq!(Array::from_slice(&[bf16::from_f32(-1.5)], &[1]).item_exact::<bf16>(), bf16::from_f32(-1.5));
}
