//! A prefill under way: prompt tokens whose graph is built, and whose layers are computed a few at a time.
//!
//! MLX computes what is asked for. Keys and values of a layer need all layers before it, so asking for those of layer n
//! computes the model up to there. Between two such requests the engine can cancel, or serve somebody else.

use std::time::Instant;

use mlx_rs::{Array, error::Result, transforms};

use super::{decode::choose, pace::Pace, plan::RowId, row::Row};
use crate::nn::{Architecture, KvCache, Rows};

/// Parts of the prompts of some rows.
pub(super) struct PrefillRun {
    /// `None` where a row was taken out meanwhile.
    rows: Vec<Option<Row>>,
    /// The position that each row's part ends at.
    ends: Vec<usize>,
    /// Hidden states `[B, width, D]`: each row's begin where its cached tokens end, and have padding behind them.
    hidden: Array,
    layers: usize,
    /// Layers whose keys and values were submitted.
    submitted: usize,
    /// What was submitted last and nobody has waited for.
    unfinished: Option<Piece>,
}

struct Piece {
    arrays: Vec<Array>,
    layers: usize,
}

/// How far a prefill has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PrefillProgress {
    /// Layers are left.
    UnderWay,
    /// Every layer is computed or submitted. Where a prompt is complete, its first token is, too.
    Complete,
}

impl PrefillRun {
    /// Builds the graph of the tokens of each row up to its position in `ends`: hidden states `[B, width, D]`.
    ///
    /// # Errors
    /// MLX's own; so below.
    pub(super) fn build(model: &dyn Architecture, rows: &mut [Row], ends: &[usize]) -> Result<Array> {
        let lengths: Vec<usize> = rows.iter().zip(ends).map(|(row, end)| end - row.prefilled).collect();
        let width = lengths.iter().copied().max().unwrap_or(0);
        let mut tokens = vec![0; rows.len() * width];
        for ((row, end), tokens) in rows.iter().zip(ends).zip(tokens.chunks_exact_mut(width.max(1))) {
            let own = &row.tokens[row.prefilled..*end];
            tokens[..own.len()].copy_from_slice(own);
        }
        let tokens = Array::from_slice(&tokens, &[rows.len() as i32, width as i32]);
        let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.cache).collect();
        model.hidden(&tokens, Rows::Cached { caches: &mut caches, lengths: Some(&lengths) })
    }

    /// The prefill of these rows, whose graph was built.
    pub(super) fn new(model: &dyn Architecture, rows: Vec<Row>, ends: Vec<usize>, hidden: Array) -> Self {
        let (rows, layers) = (rows.into_iter().map(Some).collect(), model.config().layers);
        Self { rows, ends, hidden, layers, submitted: 0, unfinished: None }
    }

    /// Tokens of all rows, padding included.
    fn tokens(&self) -> usize {
        (self.hidden.dim(0) * self.hidden.dim(1)) as usize
    }

    /// The rows that are part of it.
    pub(super) fn ids(&self) -> Vec<RowId> {
        self.rows().map(|row| row.id).collect()
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().flatten()
    }

    pub(super) fn rows_mut(&mut self) -> impl Iterator<Item = &mut Row> {
        self.rows.iter_mut().flatten()
    }

    /// Takes a row out whose caller wants no more. It keeps the keys and values of the chunks before, where they can be told
    /// apart from those of this one, and of this one where all layers were submitted.
    pub(super) fn take(&mut self, id: RowId) -> Option<Row> {
        let place = self.rows.iter().position(|row| row.as_ref().is_some_and(|row| row.id == id))?;
        let mut row = self.rows[place].take()?;
        if self.submitted == self.layers {
            row.prefilled = self.ends[place];
        } else if row.prefilled == 0 || !row.cache.abandon_pass(row.prefilled, self.submitted) {
            row.forget_cache();
        }
        Some(row)
    }

    /// All rows, once the prefill is complete or has failed.
    pub(super) fn into_rows(self) -> Vec<Row> {
        self.rows.into_iter().flatten().collect()
    }

    /// Waits for the layers that were submitted last, and measures them.
    pub(super) fn wait(&mut self, pace: &mut Pace) -> Result<()> {
        let Some(Piece { arrays, layers }) = self.unfinished.take() else { return Ok(()) };
        let since = Instant::now();
        transforms::eval(&arrays)?;
        pace.measured(self.tokens(), layers, since.elapsed());
        Ok(())
    }

    /// Submits as many layers as a step should compute.
    pub(super) fn advance(&mut self, model: &dyn Architecture, pace: &Pace) -> Result<PrefillProgress> {
        let layers = pace.layers(self.tokens());
        if self.submitted + layers < self.layers {
            return self.submit_layers(layers).map(|()| PrefillProgress::UnderWay);
        }
        let mut rows = self.rows.iter().zip(&self.ends);
        let chooses = rows.any(|(row, end)| row.as_ref().is_some_and(|row| chooses(row, *end)));
        if !chooses && self.submitted < self.layers {
            // The last layers are waited for like the others: what follows builds on all of them.
            return self.submit_layers(self.layers - self.submitted).map(|()| PrefillProgress::UnderWay);
        }
        self.complete(model)
    }

    /// Submits all layers that are left.
    pub(super) fn complete(&mut self, model: &dyn Architecture) -> Result<PrefillProgress> {
        self.finish(model)?;
        Ok(PrefillProgress::Complete)
    }

    fn submit_layers(&mut self, layers: usize) -> Result<()> {
        let (start, end) = (self.submitted, self.submitted + layers);
        let arrays: Vec<Array> = self.rows().flat_map(|row| row.cache.layer_arrays(start..end)).collect();
        transforms::async_eval(&arrays)?;
        self.submitted = end;
        self.unfinished = Some(Piece { arrays, layers });
        Ok(())
    }

    /// Counts the tokens, and submits the next one of every row whose text is complete.
    fn finish(&mut self, model: &dyn Architecture) -> Result<()> {
        let width = self.hidden.dim(1) as usize;
        let (mut choosing, mut others, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for (index, (row, end)) in self.rows.iter_mut().zip(&self.ends).enumerate() {
            let Some(row) = row else { continue };
            let last = index * width + end - row.prefilled - 1;
            row.prefilled = *end;
            if chooses(row, *end) {
                places.push(last as u32);
                choosing.push(row);
            } else {
                others.push(row);
            }
        }
        if !choosing.is_empty() {
            let count = places.len() as i32;
            let hidden = self.hidden.reshape(&[-1, self.hidden.dim(-1)])?;
            let hidden = hidden.take_axis(Array::from_slice(&places, &[count]), 0)?.expand_dims(1)?;
            choose(&mut choosing, &model.logits(&hidden)?.reshape(&[count, -1])?)?;
            // Keys and values hold on to the prompts' activations until they are computed.
            transforms::async_eval(&choosing.iter().flat_map(|row| row.cache.arrays()).collect::<Vec<_>>())?;
        }
        others.iter().try_for_each(|row| row.cache.evaluate())?;
        if choosing.is_empty() { mlx_rs::memory::clear_cache() } else { Ok(()) }
    }
}

/// Whether the row's next token is chosen once its text is computed up to position `end`.
fn chooses(row: &Row, end: usize) -> bool {
    end == row.tokens.len() && row.wants_more()
}
