//! The launches that choose tokens from logits that are stored.

use super::{Part, Planner, Product};
use crate::{
    Result,
    arguments::{ArgmaxArgs, DrawArgs},
    class::Logits,
    instance::Instance,
    sampling::DrawSize,
    stream::Size,
};

impl<'a> Planner<'a> {
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
