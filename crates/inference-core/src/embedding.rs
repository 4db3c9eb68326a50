//! Embeddings: texts as vectors that lie near each other where texts mean the same; and relevance of documents to a query.

use serde::Serialize;

use crate::{EmbedOptions, EmbeddingFormat, Error, Result};

/// The vector of one text.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Embedding {
    /// The vector.
    pub vector: EmbeddingVector,
    /// Tokens of the text, with its prefix and the special tokens around it.
    pub prompt_tokens: usize,
}

/// A vector in the form that was asked for.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum EmbeddingVector {
    /// In single precision.
    Float(Vec<f32>),
    /// In 8 bits: element `i` is about `values[i] · scale`.
    Int8 {
        /// Whole numbers from −127 to 127.
        values: Vec<i8>,
        /// What they are multiplied with.
        scale: f32,
    },
    /// One bit for each element, 1 where it is positive: eight in a byte, the first in its highest bit. The last byte is padded with 0.
    Binary {
        /// The bits.
        bits: Vec<u8>,
        /// How many of them are elements.
        dimensions: usize,
    },
}

/// How relevant one document is to a query.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Relevance {
    /// The model's logit, or σ of it: see [`RerankOptions::raw`](crate::RerankOptions::raw). Higher is more relevant.
    pub score: f32,
    /// Tokens of query and document together, with what stands around them.
    pub prompt_tokens: usize,
}

impl Embedding {
    /// The vector of a text that has so many tokens.
    pub fn new(vector: EmbeddingVector, prompt_tokens: usize) -> Self {
        Self { vector, prompt_tokens }
    }

    /// What an engine does with a pooled vector: cuts it to the options' dimensions, normalises it if the options say so, or else the
    /// model, and puts it into the form that was asked for.
    ///
    /// # Errors
    /// [`Error::InvalidOption`]: more dimensions than the vector has.
    pub fn from_pooled(
        mut vector: Vec<f32>,
        prompt_tokens: usize,
        options: &EmbedOptions,
        model_normalizes: bool,
    ) -> Result<Self> {
        if let Some(dimensions) = options.dimensions {
            if dimensions > vector.len() {
                let reason = format!("{dimensions}, but the model's vectors have {}", vector.len());
                return Err(Error::invalid_option("dimensions", reason));
            }
            vector.truncate(dimensions);
        }
        if options.normalize.unwrap_or(model_normalizes) {
            normalize(&mut vector);
        }
        Ok(Self { vector: EmbeddingVector::in_format(vector, options.format), prompt_tokens })
    }

    /// The vector in single precision, of whichever form: of bits, 1 and −1.
    #[must_use]
    pub fn to_floats(&self) -> Vec<f32> {
        self.vector.to_floats()
    }
}

impl EmbeddingVector {
    /// A vector in single precision, in this form.
    #[must_use]
    pub fn in_format(vector: Vec<f32>, format: EmbeddingFormat) -> Self {
        match format {
            EmbeddingFormat::Float => Self::Float(vector),
            EmbeddingFormat::Int8 => {
                let largest = vector.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                let scale = largest / 127.0;
                let quantized = |x: &f32| if scale > 0.0 { (x / scale).round() as i8 } else { 0 };
                Self::Int8 { values: vector.iter().map(quantized).collect(), scale }
            }
            EmbeddingFormat::Binary => {
                let byte = |bits: &[f32]| {
                    let set = bits.iter().enumerate().filter(|(_, x)| **x > 0.0);
                    set.fold(0_u8, |byte, (at, _)| byte | 0x80 >> at)
                };
                Self::Binary { bits: vector.chunks(8).map(byte).collect(), dimensions: vector.len() }
            }
        }
    }

    /// How many elements it has.
    #[must_use]
    pub fn dimensions(&self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::Int8 { values, .. } => values.len(),
            Self::Binary { dimensions, .. } => *dimensions,
        }
    }

    /// The elements in single precision: of bits, 1 and −1.
    #[must_use]
    pub fn to_floats(&self) -> Vec<f32> {
        match self {
            Self::Float(values) => values.clone(),
            Self::Int8 { values, scale } => values.iter().map(|value| f32::from(*value) * scale).collect(),
            Self::Binary { bits, dimensions } => (0..*dimensions)
                .map(|at| {
                    let set = bits.get(at / 8).is_some_and(|byte| byte & 0x80 >> (at % 8) != 0);
                    if set { 1.0 } else { -1.0 }
                })
                .collect(),
        }
    }
}

impl Relevance {
    /// The relevance that a logit stands for: itself where it is wanted `raw`, else σ of it.
    pub fn from_logit(logit: f32, prompt_tokens: usize, raw: bool) -> Self {
        Self { score: if raw { logit } else { 1.0 / (1.0 + (-logit).exp()) }, prompt_tokens }
    }
}

/// Divides a vector by its length; one without length stays.
fn normalize(vector: &mut [f32]) {
    let squares: f64 = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum();
    if squares > 0.0 {
        let factor = 1.0 / squares.sqrt();
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) * factor) as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(vector: &[f32], options: &EmbedOptions, model_normalizes: bool) -> EmbeddingVector {
        Embedding::from_pooled(vector.to_vec(), 3, options, model_normalizes).unwrap().vector
    }

    #[test]
    fn a_vector_is_cut_and_then_normalised() {
        let options = EmbedOptions::new().dimensions(2);
        assert_eq!(made(&[3.0, 4.0, 12.0], &options, true), EmbeddingVector::Float(vec![0.6, 0.8]));
        assert_eq!(made(&[3.0, 4.0, 12.0], &options, false), EmbeddingVector::Float(vec![3.0, 4.0]));
        let options = options.normalize(true);
        assert_eq!(made(&[3.0, 4.0, 12.0], &options, false), EmbeddingVector::Float(vec![0.6, 0.8]));
        assert_eq!(made(&[0.0, 0.0], &EmbedOptions::new(), true), EmbeddingVector::Float(vec![0.0, 0.0]));
        let error = Embedding::from_pooled(vec![1.0], 1, &options, true).unwrap_err();
        assert!(error.to_string().contains("dimensions: 2, but the model's vectors have 1"), "{error}");
    }

    #[test]
    fn quantised_vectors_are_near_the_whole_ones() {
        let vector = [0.5, -1.0, 0.004, 0.0, 0.25, -0.1, 0.9, 0.2, -0.7];
        let EmbeddingVector::Int8 { values, scale } =
            made(&vector, &EmbedOptions::new().format(EmbeddingFormat::Int8), false)
        else {
            panic!("expected 8 bits");
        };
        assert_eq!(values[1], -127);
        for (value, x) in values.iter().zip(vector) {
            assert!((f32::from(*value) * scale - x).abs() <= scale / 2.0 + 1e-6);
        }
        let bits = made(&vector, &EmbedOptions::new().format(EmbeddingFormat::Binary), false);
        let expected = EmbeddingVector::Binary { bits: vec![0b1010_1011, 0], dimensions: 9 };
        assert_eq!(bits, expected);
        assert_eq!(bits.to_floats(), [1.0, -1.0, 1.0, -1.0, 1.0, -1.0, 1.0, 1.0, -1.0]);
        assert_eq!(made(&[0.0], &EmbedOptions::new().format(EmbeddingFormat::Int8), true).to_floats(), [0.0]);
    }

    #[test]
    fn a_logit_is_a_score_between_0_and_1() {
        assert_eq!(Relevance::from_logit(0.0, 1, false).score, 0.5);
        assert_eq!(Relevance::from_logit(-3.5, 1, true).score, -3.5);
        assert_eq!(Relevance::from_logit(-1e9, 1, false).score, 0.0);
    }
}
