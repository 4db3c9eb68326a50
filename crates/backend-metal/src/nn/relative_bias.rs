//! Biases of attention by the distance of two tokens.

use mlx_rs::{Array, error::Result};

use crate::mlx::exception;

/// What is added to the scores of a key by its distance to the query, as T5 and MPNet have it: distances share buckets, which are
/// exact for the nearest and logarithmic beyond.
#[derive(Debug)]
pub(crate) struct RelativeBias {
    /// `[buckets, heads]`
    weights: Array,
}

/// Buckets of distances, and the distance that the last ones begin at.
pub(crate) const BUCKETS: usize = 32;
const FARTHEST: f64 = 128.0;

impl RelativeBias {
    /// The biases with these weights, `[BUCKETS, heads]` in single precision.
    pub(crate) fn new(weights: Array) -> Self {
        Self { weights }
    }

    /// The biases of a text of this length: `[1, heads, length, length]`.
    pub(super) fn of_length(&self, length: i32) -> Result<Array> {
        let distances = 1 - length..length;
        let buckets: Vec<u32> = distances.map(bucket).collect();
        let buckets = Array::from_slice(&buckets, &[2 * length - 1]);
        // Key − query + length − 1, of each pair.
        let places: Vec<u32> = (0..length)
            .flat_map(|query| (0..length).map(move |key| (key - query + length - 1) as u32))
            .collect();
        let places = Array::from_slice(&places, &[length, length]);
        let by_distance = self.weights.take_axis(&buckets, 0)?;
        let biases = by_distance.take_axis(&places, 0)?.transpose_axes(&[2, 0, 1])?.expand_dims(0)?;
        biases.contiguous().map_err(exception)
    }
}

/// The bucket of a key that lies so far behind the query.
fn bucket(distance: i32) -> u32 {
    let half = BUCKETS as u32 / 2;
    let later = if distance > 0 { half } else { 0 };
    let (away, exact) = (distance.unsigned_abs(), half / 2);
    if away < exact {
        return later + away;
    }
    let exact = f64::from(exact);
    // In single precision, as the reference computes it: the last digit decides at the edges.
    let logarithm = (away as f32 / exact as f32).ln() / (FARTHEST / exact).ln() as f32;
    later + (exact as u32 + (logarithm * (f64::from(half) - exact) as f32) as u32).min(half - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_reference() {
        let expected = [
            (0, 0),
            (-1, 1),
            (-7, 7),
            (-8, 8),
            (-16, 10),
            (-127, 15),
            (-5000, 15),
            (1, 17),
            (8, 24),
            (200, 31),
        ];
        for (distance, of) in expected {
            assert_eq!(bucket(distance), of, "{distance}");
        }
    }
}
