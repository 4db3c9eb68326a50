//! What the codes of small floats stand for.

/// The values of the four-bit floats.
pub(crate) const FP4: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The float with four bits of exponent and three of mantissa. It has no infinity; what would be NaN is 480, as in MLX.
#[inline]
pub(crate) fn e4m3(byte: u8) -> f32 {
    let magnitude = u32::from(byte & 0x7f) << 20;
    let sign = u32::from(byte & 0x80) << 24;
    // The exponent's bias is 7 here and 127 there; small numbers come out right, too.
    f32::from_bits(magnitude) * f32::from_bits((127 + 120) << 23) * f32::from_bits(sign | 1.0_f32.to_bits())
}

/// The power of two with this biased exponent.
#[inline]
pub(crate) fn e8m0(byte: u8) -> f32 {
    f32::from_bits(if byte == 0 { 1 << 22 } else { u32::from(byte) << 23 })
}
