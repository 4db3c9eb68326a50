//! Whole texts one after the other, without padding: how encoders compute many texts in one pass.

use std::sync::Arc;

use mlx_rs::{
    Array,
    error::{Exception, Result},
    fast::{self, ScaledDotProductAttentionMask as Mask},
    ops,
};

use super::{attention_params::AttentionParams, cpu, rope::Offsets, sdpa::masked};
use crate::mlx::slice;

/// The tokens of some texts, one after the other. Neighbours of equal length are computed together.
#[derive(Debug)]
pub(crate) struct PackedTokens {
    tokens: Vec<u32>,
    /// The position of each token in its text.
    positions: Vec<i32>,
    /// What each token belongs to: 0 for the first text of a pair, 1 for the second. Empty: 0 for all.
    token_types: Vec<u32>,
    lengths: Arc<[usize]>,
}

/// Texts of one length that lie one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Group {
    /// Where the first begins, in tokens.
    pub(crate) start: usize,
    pub(crate) texts: usize,
    /// Tokens of each.
    pub(crate) length: usize,
}

impl PackedTokens {
    /// Those of these texts, of which none is empty, with the types of their tokens where they have any.
    pub(crate) fn new<'t>(texts: impl IntoIterator<Item = (&'t [u32], Option<&'t [u32]>)>) -> Self {
        let (mut tokens, mut positions, mut token_types) = (Vec::new(), Vec::new(), Vec::new());
        let mut lengths = Vec::new();
        for (text, types) in texts {
            tokens.extend(text);
            positions.extend(0..text.len() as i32);
            lengths.push(text.len());
            if let Some(types) = types {
                token_types.resize(tokens.len() - text.len(), 0);
                token_types.extend(types);
            }
        }
        if !token_types.is_empty() {
            token_types.resize(tokens.len(), 0);
        }
        Self { tokens, positions, token_types, lengths: lengths.into() }
    }

    /// All tokens.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// All tokens as rows, `[N, 1]`.
    pub(crate) fn rows(&self) -> Array {
        Array::from_slice(&self.tokens, &[self.tokens.len() as i32, 1])
    }

    /// The position of each token in its text.
    pub(crate) fn positions(&self) -> &[i32] {
        &self.positions
    }

    /// Where each row begins, of a pass over so many rows and tokens of each.
    ///
    /// # Errors
    /// Rows are not these tokens.
    pub(super) fn offsets(&self, rows: i32, count: i32) -> Result<Offsets> {
        if rows as usize != self.tokens.len() || count != 1 {
            let tokens = self.tokens.len();
            return Err(Exception::custom(format!(
                "tokens [{rows}, {count}] for texts of {tokens} together"
            )));
        }
        Ok(Offsets::Each(Array::from_slice(&self.positions, &[rows])))
    }

    /// What each token belongs to; empty where that is the first text for all.
    pub(crate) fn token_types(&self) -> &[u32] {
        &self.token_types
    }

    /// How many texts there are.
    pub(crate) fn texts(&self) -> usize {
        self.lengths.len()
    }

    /// The length of each token's text.
    pub(crate) fn row_lengths(&self) -> Vec<usize> {
        self.lengths.iter().flat_map(|length| std::iter::repeat_n(*length, *length)).collect()
    }

    /// The length of each text.
    pub(crate) fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Where each text begins.
    pub(crate) fn starts(&self) -> Vec<u32> {
        let starts = self.lengths.iter().scan(0, |start, length| {
            *start += length;
            Some((*start - length) as u32)
        });
        starts.collect()
    }

    /// The texts, in groups of neighbours of equal length.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = Vec::new();
        let mut start = 0;
        for &length in &*self.lengths {
            match groups.last_mut() {
                Some(group) if group.length == length => group.texts += 1,
                _ => groups.push(Group { start, texts: 1, length }),
            }
            start += length;
        }
        groups
    }
}

impl Group {
    /// The rows of these texts, of an array `[N, ..]`.
    pub(crate) fn of(&self, x: &Array) -> Result<Array> {
        let end = self.start + self.texts * self.length;
        if self.start == 0 && end == x.dim(0) as usize {
            return Ok(x.clone());
        }
        slice(x, 0, self.start as i32, end as i32)
    }
}

/// Attention of each text to itself: queries `[N, heads, 1, head_dim]`, keys and values `[N, kv_heads, 1, head_dim]` →
/// `[N, 1, heads · head_dim]`.
pub(super) fn attend(texts: &PackedTokens, qkv: [&Array; 3], params: &AttentionParams) -> Result<Array> {
    if let Some(output) = cpu::attention_packed(qkv, &texts.lengths, params) {
        return output;
    }
    let outputs = texts.groups().into_iter().map(|group| attend_group(group, qkv, params));
    let outputs = outputs.collect::<Result<Vec<_>>>()?;
    if let [whole] = &outputs[..] { Ok(whole.clone()) } else { ops::concatenate(&outputs, 0) }
}

fn attend_group(group: Group, qkv: [&Array; 3], params: &AttentionParams) -> Result<Array> {
    let (texts, length) = (group.texts as i32, group.length as i32);
    let heads_first = |x: &Array| {
        let &[_, heads, 1, head_dim] = x.shape() else {
            return Err(Exception::custom("packed texts have vectors [N, heads, 1, head_dim]"));
        };
        group.of(x)?.reshape(&[texts, length, heads, head_dim])?.swap_axes(1, 2)
    };
    let [queries, keys, values] = [heads_first(qkv[0])?, heads_first(qkv[1])?, heads_first(qkv[2])?];
    let heads = match &params.bias {
        Some(bias) => {
            let bias = bias.of_length(length)?.as_dtype(queries.dtype())?;
            let mask = Some(Mask::Array(&bias));
            fast::scaled_dot_product_attention(queries, keys, values, params.scale, mask, None)?
        }
        None => {
            let mask = mask(length, params)?;
            masked(&queries, &keys, &values, params, mask.as_ref())?
        }
    };
    heads.swap_axes(1, 2)?.reshape(&[texts * length, 1, -1])
}

/// Which keys a query of a text of this length sees, `[length, length]`; `None`: all.
fn mask(length: i32, params: &AttentionParams) -> Result<Option<Array>> {
    let window =
        params.window.and_then(|window| i32::try_from(window).ok()).filter(|window| *window < length);
    if params.both_ways && window.is_none() {
        return Ok(None);
    }
    let keys = ops::arange::<_, i32>(0, length, None)?.expand_dims(0)?;
    let queries = ops::arange::<_, i32>(0, length, None)?.expand_dims(1)?;
    let mut seen = vec![];
    if !params.both_ways {
        seen.push(keys.le(&queries)?);
    }
    if let Some(window) = window {
        seen.push(keys.gt(queries.subtract(Array::from_int(window))?)?);
        seen.push(keys.lt(queries.add(Array::from_int(window))?)?);
    }
    let mut seen = seen.into_iter();
    let first = seen.next();
    first.map(|first| seen.try_fold(first, |all, next| all.logical_and(&next))).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_one_length_are_groups() {
        let texts: [&[u32]; 4] = [&[1], &[2, 3], &[4, 5], &[6, 7, 8]];
        let packed = PackedTokens::new(texts.map(|text| (text, None)));
        assert_eq!(packed.tokens(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(packed.positions(), [0, 0, 1, 0, 1, 0, 1, 2]);
        assert_eq!(packed.starts(), [0, 1, 3, 5]);
        let groups: Vec<_> =
            packed.groups().iter().map(|group| (group.start, group.texts, group.length)).collect();
        assert_eq!(groups, [(0, 1, 1), (1, 2, 2), (5, 1, 3)]);
        assert!(packed.token_types().is_empty());
        let pairs = PackedTokens::new([(texts[0], None), (texts[1], Some(&[0, 1][..])), (texts[2], None)]);
        assert_eq!(pairs.token_types(), [0, 0, 1, 0, 0]);
    }
}
