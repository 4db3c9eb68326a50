//! Attention of whole texts that lie one after the other, without padding and without a cache.

use super::{
    block::{AttentionBlock, QUERY_BLOCK},
    params::AttentionParams,
};
use crate::{
    error::{Error, Result},
    kernels::Kernels,
    kv::{Heads, KvCache, KvView, Queries},
    operand::{FloatsMut, length, product, with_slice},
    shared_slice::SharedSlice,
};

/// Texts one after the other: vectors `[heads, tokens, head_dim]`, where the tokens are those of all texts.
#[derive(Debug, Clone, Copy)]
pub struct PackedTexts<'a> {
    /// `[heads, tokens, head_dim]`
    pub queries: Heads<'a>,
    /// `[kv_heads, tokens, head_dim]`
    pub keys: Heads<'a>,
    /// As the keys.
    pub values: Heads<'a>,
    /// Tokens of each text, at least one.
    pub lengths: &'a [usize],
}

/// Queries of one text that are a task.
#[derive(Clone, Copy)]
struct Task {
    text: usize,
    /// Where the text begins.
    start: usize,
    block: usize,
    blocks: usize,
}

impl Kernels {
    /// Attention of each text to itself → `out` `[tokens, heads, head_dim]`. A query sees all positions of its text. With a window,
    /// those less than the window away, before and behind. With `causal`, only those up to its own.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn attention_packed(
        &self,
        texts: &PackedTexts<'_>,
        params: &AttentionParams<'_>,
        causal: bool,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        params.check()?;
        let AttentionParams { heads, kv_heads, head_dim, .. } = *params;
        if texts.lengths.contains(&0) {
            let name = "the length of a text";
            return Err(Error::Invalid { name, found: 0, expected: "at least 1".into() });
        }
        let tokens = texts.lengths.iter().fold(0_usize, |tokens, length| tokens.saturating_add(*length));
        length("out", out.len(), product("out", &[tokens, heads, head_dim])?)?;
        texts.queries.check("queries", 0, heads, tokens, head_dim)?;
        texts.keys.check("keys", 0, kv_heads, tokens, head_dim)?;
        texts.values.check("values", 0, kv_heads, tokens, head_dim)?;
        if out.is_empty() {
            return Ok(());
        }
        let heads_per_kv = heads / kv_heads;
        let block_tokens = (QUERY_BLOCK / heads_per_kv).max(1);
        let tasks = tasks(texts.lengths, block_tokens);
        let views = views(texts);
        with_slice!(out, FloatsMut, out => {
            let out = SharedSlice::new(out);
            self.pool.run(tasks.len() * kv_heads, &|task| {
                let (Task { text, start, block, blocks }, kv_head) = (tasks[task / kv_heads], task % kv_heads);
                let (queries, cache) = &views[text];
                let tokens = queries.tokens;
                // Blocks of nearly one size.
                let (first, end) = (block * tokens / blocks, (block + 1) * tokens / blocks);
                self.isa.run(AttentionBlock {
                    queries,
                    cache,
                    params,
                    row: 0,
                    first_out: start,
                    both_ways: !causal,
                    kv_head,
                    heads: kv_head * heads_per_kv..(kv_head + 1) * heads_per_kv,
                    tokens: first..end,
                    out: &out,
                });
            });
        });
        Ok(())
    }
}

/// The blocks of queries of all texts, those of the longest ones first.
fn tasks(lengths: &[usize], block_tokens: usize) -> Vec<Task> {
    let mut tasks = Vec::new();
    let mut start = 0;
    for (text, length) in lengths.iter().enumerate() {
        let blocks = length.div_ceil(block_tokens);
        tasks.extend((0..blocks).map(|block| Task { text, start, block, blocks }));
        start += length;
    }
    tasks.sort_by_key(|task| std::cmp::Reverse(lengths[task.text]));
    tasks
}

/// Each text as a row with a cache of its own.
fn views<'a>(texts: &PackedTexts<'a>) -> Vec<(Queries<'a>, KvCache<'a>)> {
    let mut start = 0;
    let view = |length: &usize| {
        let of = |heads: &Heads<'a>| Heads { data: heads.from(0, start).0, ..*heads };
        let (queries, keys, values) = (of(&texts.queries), of(&texts.keys), of(&texts.values));
        start += length;
        let cache = KvCache { keys: KvView::Floats(keys), values: KvView::Floats(values), len: *length };
        (Queries { first: queries, row_stride: 0, tokens: *length }, cache)
    };
    texts.lengths.iter().map(view).collect()
}
