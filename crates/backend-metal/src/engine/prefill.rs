//! A prefill under way: prompt tokens whose graph is built, and whose layers are computed a few at a time.
//!
//! MLX computes what is asked for. Keys and values of a layer need all layers before it, so asking for those of layer n
//! computes the model up to there. Between two such requests the engine can cancel, or serve somebody else.

use std::time::Instant;

use mlx_rs::{Array, error::Result, transforms};

use super::{decode::choose, pace::Pace, plan::RowId, row::Row};
use crate::{
    mlx::{on_cuda, slice},
    nn::{Architecture, Rows, SharedPrefix},
};

/// Prompt tokens of one row, or the whole prompts of several.
pub(super) struct PrefillRun {
    /// `None` where a row was taken out meanwhile.
    rows: Vec<Option<Row>>,
    work: Work,
    /// Tokens of all rows, padding included.
    tokens: usize,
    layers: usize,
    /// Layers whose keys and values were submitted.
    submitted: usize,
    /// What was submitted last and nobody has waited for.
    unfinished: Option<Piece>,
}

/// What is to be computed.
pub(super) struct Graph {
    work: Work,
    tokens: usize,
}

enum Work {
    /// The tokens of one row up to position `end`; hidden states `[1, T, D]`.
    Chunk { hidden: Array, end: usize },
    /// Whole prompts, padded to `width`; hidden states `[B, width, D]`.
    Batch { hidden: Array, prompts: SharedPrefix, width: usize },
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
    /// Builds the graph of the row's tokens up to position `end`.
    ///
    /// # Errors
    /// MLX's own; so below.
    pub(super) fn build_chunk(model: &dyn Architecture, row: &mut Row, end: usize) -> Result<Graph> {
        let count = end - row.prefilled;
        let tokens = Array::from_slice(&row.tokens[row.prefilled..end], &[1, count as i32]);
        let hidden = model.hidden(&tokens, Rows::Cached(&mut [&mut row.cache]))?;
        Ok(Graph { work: Work::Chunk { hidden, end }, tokens: count })
    }

    /// Builds the graph of whole prompts side by side.
    pub(super) fn build_batch(model: &dyn Architecture, rows: &[Row]) -> Result<Graph> {
        let width = padded_width(rows.iter().map(|row| row.tokens.len()).max().unwrap_or(0));
        let mut tokens = vec![0; rows.len() * width];
        for (row, tokens) in rows.iter().zip(tokens.chunks_exact_mut(width.max(1))) {
            tokens[..row.tokens.len()].copy_from_slice(&row.tokens);
        }
        let count = tokens.len();
        let tokens = Array::from_slice(&tokens, &[rows.len() as i32, width as i32]);
        let mut prompts = SharedPrefix::of_lengths(rows.iter().map(|row| row.tokens.len()).collect());
        let prefixed = Rows::Prefixed { prefix: &SharedPrefix::default(), store: Some(&mut prompts) };
        let hidden = model.hidden(&tokens, prefixed)?;
        Ok(Graph { work: Work::Batch { hidden, prompts, width }, tokens: count })
    }

    /// The prefill of these rows, whose graph was built.
    pub(super) fn new(model: &dyn Architecture, rows: Vec<Row>, graph: Graph) -> Self {
        let (rows, layers) = (rows.into_iter().map(Some).collect(), model.config().layers);
        let Graph { work, tokens } = graph;
        Self { rows, work, tokens, layers, submitted: 0, unfinished: None }
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
        let slot = self.rows.iter_mut().find(|row| row.as_ref().is_some_and(|row| row.id == id))?;
        let mut row = slot.take()?;
        match self.work {
            Work::Chunk { end, .. } if self.submitted == self.layers => row.prefilled = end,
            Work::Chunk { .. } if row.cache.abandon_pass(row.prefilled, self.submitted) => {}
            Work::Chunk { .. } | Work::Batch { .. } => row.forget_cache(),
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
        pace.measured(self.tokens, layers, since.elapsed());
        Ok(())
    }

    /// Submits as many layers as a step should compute.
    pub(super) fn advance(&mut self, model: &dyn Architecture, pace: &Pace) -> Result<PrefillProgress> {
        let layers = pace.layers(self.tokens);
        if self.submitted + layers < self.layers {
            return self.submit_layers(layers).map(|()| PrefillProgress::UnderWay);
        }
        let chooses = self.rows().any(|row| self.completes(row) && row.wants_more());
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
        let arrays: Vec<Array> = match &self.work {
            Work::Chunk { .. } => self.rows().flat_map(|row| row.cache.layer_arrays(start..end)).collect(),
            Work::Batch { prompts, .. } => prompts.arrays(start..end),
        };
        transforms::async_eval(&arrays)?;
        self.submitted = end;
        self.unfinished = Some(Piece { arrays, layers });
        Ok(())
    }

    /// Whether the row's whole text is computed with this.
    fn completes(&self, row: &Row) -> bool {
        match self.work {
            Work::Chunk { end, .. } => end == row.tokens.len(),
            Work::Batch { .. } => true,
        }
    }

    /// Counts the tokens, and submits the next one of every row whose text is complete.
    fn finish(&mut self, model: &dyn Architecture) -> Result<()> {
        match &self.work {
            Work::Chunk { hidden, end } => {
                let [Some(row)] = &mut self.rows[..] else { return Ok(()) };
                row.prefilled = *end;
                if *end < row.tokens.len() || !row.wants_more() {
                    row.cache.evaluate()?;
                    return mlx_rs::memory::clear_cache();
                }
                let hidden = slice(hidden, 1, hidden.dim(1) - 1, hidden.dim(1))?;
                let logits = model.logits(&hidden)?.reshape(&[1, -1])?;
                choose(&mut [row], &logits)
            }
            Work::Batch { hidden, prompts, width } => {
                finish_batch(model, &mut self.rows, hidden, prompts, *width)
            }
        }
    }
}

/// The tokens that prompts are padded to, so many of the longest. On CUDA, attention is planned and its kernels are compiled once for each
/// length, so that there are few.
pub(super) fn padded_width(tokens: usize) -> usize {
    if on_cuda() { tokens.next_multiple_of(32) } else { tokens }
}

fn finish_batch(
    model: &dyn Architecture,
    rows: &mut [Option<Row>],
    hidden: &Array,
    prompts: &SharedPrefix,
    width: usize,
) -> Result<()> {
    let live = rows.iter_mut().enumerate().filter_map(|(index, row)| Some((index, row.as_mut()?)));
    let mut live: Vec<(usize, &mut Row)> = live.collect();
    let ends: Vec<u32> =
        live.iter().map(|(index, row)| (index * width + row.tokens.len() - 1) as u32).collect();
    let count = live.len() as i32;
    let hidden = hidden.reshape(&[-1, hidden.dim(-1)])?;
    let hidden = hidden.take_axis(Array::from_slice(&ends, &[count]), 0)?;
    for (index, row) in &mut live {
        let len = row.tokens.len();
        prompts.copy_row(*index, len, &mut row.cache)?;
        row.prefilled = len;
    }
    let mut rows: Vec<&mut Row> = live.into_iter().map(|(_, row)| row).collect();
    choose(&mut rows, &model.logits(&hidden.expand_dims(1)?)?.reshape(&[count, -1])?)?;
    // Rows would hold on to keys and values of others until their own are copied.
    transforms::async_eval(&rows.iter().flat_map(|row| row.cache.arrays()).collect::<Vec<_>>())
}
