//! Products before they are planned.

use crate::{
    DevicePtr,
    arguments::GemvArgs,
    instance::{Epilogue, Prologue},
    spec::{NormWeight, Weight},
    state::State,
};

/// What a launch is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Part {
    /// Embeddings of tokens.
    Embed,
    /// Norm, and the projections of queries, keys and values.
    Qkv,
    /// Norms of heads, rotation, cache, attention.
    Attention,
    /// The projection of what was attended to.
    Output,
    /// Norm, scores of experts, the choice of some.
    Route,
    /// Norm, gate and up, activation.
    GateUp,
    /// Down.
    Down,
    /// Norm, logits, the choice of the likeliest token.
    Head,
    /// The draw of a token.
    Draw,
}

/// Where x of a product comes from.
#[derive(Clone, Copy)]
pub(crate) enum Input<'a> {
    /// Halves.
    Halves(DevicePtr),
    /// The residual, normalised.
    Normed(DevicePtr, &'a NormWeight),
    /// The residual and what is added to it after a norm of its own; the sum goes to the last address, and is normalised.
    Sandwich { x: DevicePtr, y: DevicePtr, post: &'a NormWeight, norm: &'a NormWeight, out: DevicePtr },
}

/// The residual between blocks.
pub(crate) struct Residual<'a> {
    /// Where it is.
    pub(crate) x: DevicePtr,
    /// Where it is next, once something is added behind a norm.
    spare: DevicePtr,
    /// What is added to it then.
    y: DevicePtr,
    /// The norm of that.
    pending: Option<&'a NormWeight>,
}

/// What is done with the product at the end of a block, and where it goes.
pub(crate) type End = (Epilogue, DevicePtr);

impl<'a> Residual<'a> {
    pub(crate) fn new(state: &State) -> Self {
        let [x, spare] = [state.x[0].ptr(), state.x[1].ptr()];
        Self { x, spare, y: state.y.ptr(), pending: None }
    }

    /// The input of the first product of a block.
    pub(crate) fn input(&mut self, norm: &'a NormWeight) -> Input<'a> {
        let Some(post) = self.pending.take() else { return Input::Normed(self.x, norm) };
        std::mem::swap(&mut self.x, &mut self.spare);
        Input::Sandwich { x: self.spare, y: self.y, post, norm, out: self.x }
    }

    /// The end of a block: added at once, or by the next input where a norm is between.
    pub(crate) fn end(&mut self, post: Option<&'a NormWeight>) -> End {
        self.pending = post;
        if post.is_some() { (Epilogue::Store, self.y) } else { (Epilogue::Add, self.x) }
    }
}

/// A product.
pub(crate) struct Product<'a> {
    pub(crate) part: Part,
    pub(crate) weights: &'a [Weight],
    pub(crate) input: Input<'a>,
    pub(crate) epilogue: Epilogue,
    pub(crate) out: DevicePtr,
    /// Elements from one row of the output to the next.
    pub(crate) out_stride: usize,
}

/// Outputs of a product for a row.
pub(crate) fn outputs(product: &Product<'_>) -> usize {
    match product.epilogue {
        Epilogue::Gated(_) => product.weights[0].rows,
        _ => product.weights.iter().map(|weight| weight.rows).sum(),
    }
}

impl GemvArgs {
    /// Sets what the product reads, from row `first` of x `[rows, k]` on, and returns how it is read.
    pub(crate) fn set_input(&mut self, input: Input<'_>, k: usize, first: usize) -> Prologue {
        let row = |ptr: DevicePtr, bytes: usize| ptr.offset(first * bytes);
        match input {
            Input::Halves(a) => {
                self.a = row(a, 2 * k);
                Prologue::Copy
            }
            Input::Normed(x, norm) => {
                self.x = row(x, 4 * k);
                self.norm = norm.into();
                Prologue::Norm
            }
            Input::Sandwich { x, y, post, norm, out } => {
                (self.x, self.y, self.x_out) = (row(x, 4 * k), row(y, 4 * k), row(out, 4 * k));
                (self.norm, self.post) = (norm.into(), post.into());
                Prologue::Sandwich
            }
        }
    }
}
