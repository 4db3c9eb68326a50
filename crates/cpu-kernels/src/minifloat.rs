//! The values of 4-bit and 8-bit floats.

/// The values of E2M1, by code.
pub(crate) const FP4: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The value of E4M3. It has no infinity, and the code of NaN is 480, as in MLX.
#[inline(always)]
pub(crate) fn e4m3(byte: u8) -> f32 {
    let magnitude = u32::from(byte & 0x7f) << 20;
    let sign = u32::from(byte & 0x80) << 24;
    // The bias of the exponent is 7 in E4M3 and 127 in f32. The product also converts subnormal numbers.
    f32::from_bits(magnitude) * f32::from_bits((127 + 120) << 23) * f32::from_bits(sign | 1.0_f32.to_bits())
}

/// The value of E8M0: a power of two, by its biased exponent.
#[inline(always)]
pub(crate) fn e8m0(byte: u8) -> f32 {
    f32::from_bits(if byte == 0 { 1 << 22 } else { u32::from(byte) << 23 })
}
