//! The forward pass: blocks of queries, shared by the threads.

use super::{
    block::{AttentionBlock, QUERY_BLOCK},
    params::AttentionParams,
};
use crate::{
    error::{Error, Result},
    kernels::Kernels,
    kv::{KvCache, Queries},
    operand::{FloatsMut, length, product, with_slice},
    shared_slice::SharedSlice,
};

impl Kernels {
    /// Causal attention: `queries` of as many rows as `caches` → `out` `[rows, tokens, heads, head_dim]`. A query sees its own
    /// position and those before it.
    ///
    /// # Errors
    /// Operands whose sizes do not match.
    pub fn attention(
        &self,
        queries: &Queries<'_>,
        caches: &[KvCache<'_>],
        params: &AttentionParams<'_>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        check(queries, caches, params, out.len())?;
        if out.is_empty() {
            return Ok(());
        }
        let AttentionParams { heads, kv_heads, .. } = *params;
        let tokens = queries.tokens;
        let heads_per_kv = heads / kv_heads;
        let block_tokens = (QUERY_BLOCK / heads_per_kv).max(1);
        let blocks = tokens.div_ceil(block_tokens);
        let tasks = caches.len() * kv_heads * blocks;
        // With fewer tasks than threads, the heads that share keys and values become tasks of their own.
        let task_heads = heads_per_kv.div_ceil(self.threads().div_ceil(tasks.max(1)));
        let splits = heads_per_kv.div_ceil(task_heads);
        with_slice!(out, FloatsMut, out => {
            let out = SharedSlice::new(out);
            self.pool.run(tasks * splits, &|task| {
                let (task, split) = (task / splits, task % splits);
                // The last tokens see the most keys: they go first.
                let (block, rest) = (blocks - 1 - task / (caches.len() * kv_heads), task % (caches.len() * kv_heads));
                let (row, kv_head) = (rest / kv_heads, rest % kv_heads);
                let (first, end) = (split * task_heads, heads_per_kv.min((split + 1) * task_heads));
                self.isa.run(AttentionBlock {
                    queries,
                    cache: &caches[row],
                    params,
                    row,
                    first_out: row * tokens,
                    both_ways: false,
                    kv_head,
                    heads: kv_head * heads_per_kv + first..kv_head * heads_per_kv + end,
                    tokens: block * block_tokens..tokens.min((block + 1) * block_tokens),
                    out: &out,
                });
            });
        });
        Ok(())
    }
}

fn check(
    queries: &Queries<'_>,
    caches: &[KvCache<'_>],
    params: &AttentionParams<'_>,
    out: usize,
) -> Result<()> {
    params.check()?;
    let AttentionParams { heads, kv_heads, head_dim, .. } = *params;
    let tokens = queries.tokens;
    length("out", out, product("out", &[caches.len(), tokens, heads, head_dim])?)?;
    for (row, cache) in caches.iter().enumerate() {
        let offset = product("queries", &[row, queries.row_stride])?;
        queries.first.check("queries", offset, heads, tokens, head_dim)?;
        cache.keys.check("keys", kv_heads, cache.len, head_dim)?;
        cache.values.check("values", kv_heads, cache.len, head_dim)?;
        if cache.len < tokens {
            let expected = format!("at least the {tokens} new ones");
            return Err(Error::Invalid { name: "the number of positions", found: cache.len, expected });
        }
    }
    Ok(())
}
