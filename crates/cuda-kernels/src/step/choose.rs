//! The launches that choose tokens from logits that are stored.

use super::{Part, Planner, Product};
use crate::{
    DevicePtr, Result,
    arguments::{ArgmaxArgs, DrawArgs, GemvArgs},
    class::Logits,
    instance::Instance,
    sampling::DrawSize,
    stream::Size,
};

impl<'a> Planner<'a> {
    /// Has a product of `blocks` blocks find the likeliest tokens, of row `first` and those behind it.
    pub(super) fn set_choice(&self, argument: &mut GemvArgs, blocks: usize, first: usize) {
        let state = self.state;
        let row = |ptr: DevicePtr, bytes: usize| ptr.offset(first * bytes);
        if self.class.logits == Logits::Discard {
            argument.out = DevicePtr::NULL;
        }
        argument.best = row(state.best.ptr(), 4 * blocks);
        argument.best_index = row(state.best_index.ptr(), 4 * blocks);
        argument.ticket = state.head_ticket(first, self.spec.heads);
        // Without an address for tokens, rows stay where they are until theirs are drawn.
        if self.class.logits != Logits::Draw {
            argument.token = row(state.token.ptr(), 4);
        }
        argument.position = row(state.position.ptr(), 4);
        argument.history = row(state.history.ptr(), 4 * state.history_len);
        argument.history_len = state.history_len as u32;
        argument.steps = row(state.steps.ptr(), 4);
    }

    /// Chooses the likeliest tokens by logits that a product has stored, unless they are drawn.
    pub(super) fn argmax(&mut self, product: &Product<'a>) {
        if self.class.logits == Logits::Draw {
            return;
        }
        let state = self.state;
        let argument = ArgmaxArgs {
            logits: product.out,
            token: state.token.ptr(),
            position: state.position.ptr(),
            history: state.history.ptr(),
            steps: state.steps.ptr(),
            n: self.spec.vocabulary() as u32,
            history_len: state.history_len as u32,
        };
        let instance = Instance::Argmax { half: self.half() };
        self.push(product.part, instance, Size::new([self.rows, 1, 1], 1024, 0), &argument);
    }

    /// Draws tokens from the logits that are stored.
    pub(super) fn draw(&mut self) -> Result<()> {
        let (state, vocabulary) = (self.state, self.spec.vocabulary());
        let DrawSize { cluster, per, shared } = DrawSize::new(vocabulary, self.limits)?;
        let argument = DrawArgs {
            logits: state.logits,
            draws: state.draws.ptr(),
            token: state.token.ptr(),
            position: state.position.ptr(),
            history: state.history.ptr(),
            steps: state.steps.ptr(),
            n: vocabulary as u32,
            history_len: state.history_len as u32,
            cluster: cluster as u32,
            per: per as u32,
        };
        let size =
            Size { cluster: cluster as u32, ..Size::new([cluster, self.rows, 1], 1024, shared as u32) };
        self.push(Part::Draw, Instance::Draw { half: self.half() }, size, &argument);
        Ok(())
    }
}
