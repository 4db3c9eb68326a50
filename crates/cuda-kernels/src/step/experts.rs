//! The launches of a mixture of experts.

use super::Planner;
use crate::{
    Error, Result,
    arguments::{ExpertArgs, NormArgs, RouteArgs},
    geometry::Limits,
    instance::{Epilogue, Instance, gating_kind},
    product::{End, Input, Part, Product},
    spec::{ExpertsSpec, Gating, Layout, RoutingSpec, Scoring, Stack},
    stream::Size,
};

/// Warps of a block.
const WARPS: usize = 8;
/// Blocks for each multiprocessor where there is enough to do: as many as it runs at once.
const BLOCKS: usize = 4;

impl<'a> Planner<'a> {
    /// Has each row pick its experts, and ends with the sum of what they give. The input is given twice: as the first product takes it, and
    /// as those behind that do.
    pub(super) fn experts(
        &mut self,
        experts: &'a ExpertsSpec,
        [first, again]: [Input<'a>; 2],
        end: End,
    ) -> Result<()> {
        let state = self.state;
        self.product(&Product {
            part: Part::Route,
            weights: std::slice::from_ref(&experts.router),
            input: first,
            epilogue: Epilogue::Store,
            out: state.scores.ptr(),
            out_stride: experts.router.rows,
        });
        if let Some(shared) = &experts.shared {
            self.gate_up(&shared.mlp, again, state.shared.ptr());
        }
        self.route(experts, again);
        self.expert_gate_up(experts)?;
        self.expert_down(experts, end)?;
        if let Some(shared) = &experts.shared {
            self.last(Part::Down, &shared.mlp.down, state.shared.ptr(), (Epilogue::Add, end.1));
        }
        Ok(())
    }

    /// Normalises the input, picks experts, and applies the gate of a shared one.
    fn route(&mut self, experts: &'a ExpertsSpec, input: Input<'a>) {
        let (state, spec) = (self.state, self.spec);
        let ExpertsSpec { router, routing, shared, .. } = experts;
        let RoutingSpec { scoring, bias, top_k, normalize, scale } = *routing;
        let mut norm =
            NormArgs { out: state.normed.ptr(), k: spec.hidden as u32, eps: spec.eps, ..NormArgs::default() };
        if let Input::Normed(x, weights) = input {
            (norm.x, norm.norm) = (x, weights.into());
        }
        let gate = shared.as_ref().and_then(|shared| shared.gate.as_ref());
        let argument = RouteArgs {
            norm,
            gate: gate.map(Into::into).unwrap_or_default(),
            scores: state.scores.ptr(),
            bias,
            picks: state.picks.ptr(),
            weights: state.pick_weights.ptr(),
            shared: state.shared.ptr(),
            experts: router.rows as u32,
            top_k: top_k as u32,
            sigmoid: u32::from(scoring == Scoring::Sigmoid),
            normalize: u32::from(normalize.is_some()),
            shared_k: shared.as_ref().map_or(0, |shared| shared.mlp.down.columns as u32),
            epsilon: normalize.unwrap_or(0.0),
            scale,
            reserved: 0,
        };
        let held = router.rows.div_ceil(32).next_power_of_two().max(4) as u32;
        let layout = gate.map_or(Layout::Dense, |gate| gate.layout);
        let instance = Instance::Route { half: self.half(), layout, held };
        self.push(Part::Route, instance, Size::new([self.rows, 1, 1], 256, 0), &argument);
    }

    fn expert_gate_up(&mut self, experts: &ExpertsSpec) -> Result<()> {
        let [gate, up] = &experts.gate_up;
        let (top_k, n, k) = (experts.routing.top_k, gate.first.rows, gate.first.columns);
        let (alpha, limit) = match experts.gating {
            Gating::Glu(_) => (0.0, 0.0),
            Gating::Clamped { alpha, limit } => (alpha, limit),
        };
        let (size, each) = expert_size([n, top_k, self.rows], k, self.limits)?;
        let argument = ExpertArgs {
            a: self.state.normed.ptr(),
            out: self.state.gated.ptr(),
            each,
            alpha,
            limit,
            ..self.expert_arguments([gate, up], top_k)?
        };
        let layout = gate.first.layout;
        let instance =
            Instance::ExpertGateUp { half: self.half(), layout, gating: gating_kind(experts.gating) };
        self.push(Part::GateUp, instance, size, &argument);
        Ok(())
    }

    fn expert_down(&mut self, experts: &ExpertsSpec, (epilogue, out): End) -> Result<()> {
        let down = &experts.down;
        let (top_k, n, k) = (experts.routing.top_k, down.first.rows, down.first.columns);
        let (size, each) = expert_size([n, 1, self.rows], top_k * k, self.limits)?;
        let argument = ExpertArgs {
            a: self.state.gated.ptr(),
            out,
            each,
            add: u32::from(epilogue == Epilogue::Add),
            ..self.expert_arguments([down, down], top_k)?
        };
        let instance = Instance::ExpertDown { half: self.half(), layout: down.first.layout };
        self.push(Part::Down, instance, size, &argument);
        Ok(())
    }

    fn expert_arguments(&self, stacks: [&Stack; 2], top_k: usize) -> Result<ExpertArgs> {
        stacks.into_iter().try_for_each(check_address)?;
        let Stack { first, step, .. } = stacks[0];
        Ok(ExpertArgs {
            matrices: stacks.map(Into::into),
            picks: self.state.picks.ptr(),
            weights: self.state.pick_weights.ptr(),
            k: first.columns as u32,
            n: first.rows as u32,
            top_k: top_k as u32,
            step: *step as u32,
            ..ExpertArgs::default()
        })
    }
}

/// Checks that a lane's part of a row can be loaded at once.
fn check_address(stack: &Stack) -> Result<()> {
    let alignment = match stack.first.layout.parameters() {
        (16 | 8, _) => 16,
        (4, _) => 8,
        _ => 2,
    };
    let address = stack.first.data.0;
    if address.is_multiple_of(alignment) {
        return Ok(());
    }
    let expected = format!("a multiple of {alignment}");
    Err(Error::invalid("the address of experts", format!("{address:#x}"), expected))
}

/// The launch of a product with so many outputs, of so many experts one by one and of so many rows, each of which reads `inputs`
/// elements of x; and the outputs of a block.
fn expert_size([outputs, experts, rows]: [usize; 3], inputs: usize, limits: Limits) -> Result<(Size, u32)> {
    // Halves, and a sum of each sixteen.
    let shared = 2 * inputs + inputs / 4;
    if shared > limits.shared - SPARE {
        let expected = format!("as many halves as {} bytes hold", limits.shared);
        return Err(Error::invalid("the inputs of experts", inputs, expected));
    }
    let each = (outputs * experts * rows).div_ceil(BLOCKS * limits.multiprocessors);
    let each = each.next_multiple_of(WARPS);
    let grid = [outputs.div_ceil(each), experts, rows];
    Ok((Size::new(grid, 32 * WARPS as u32, shared as u32), each as u32))
}

/// Shared memory for the picks of a row.
const SPARE: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DevicePtr, spec::Weight};

    const H100: Limits = Limits { multiprocessors: 132, shared: 227 << 10 };

    #[test]
    fn blocks_cover_all_outputs_and_keep_all_multiprocessors_at_work() {
        for (outputs, experts, rows, inputs) in
            [(768, 8, 1, 2048), (2048, 1, 1, 8 * 768), (14_336, 2, 32, 4096), (24, 1, 2, 64)]
        {
            let (size, each) = expert_size([outputs, experts, rows], inputs, H100).unwrap();
            let [blocks, of_experts, of_rows] = size.grid.map(|size| size as usize);
            let each = each as usize;
            assert_eq!((of_experts, of_rows, each % WARPS), (experts, rows, 0));
            assert!(blocks * each >= outputs && (blocks - 1) * each < outputs, "{blocks} of {each}");
            let enough = outputs * experts * rows >= WARPS * BLOCKS * H100.multiprocessors;
            assert!(!enough || size.grid.iter().product::<u32>() >= 132, "{:?}", size.grid);
        }
    }

    #[test]
    fn addresses_that_cannot_be_loaded_are_refused() {
        let stack = |layout, address| {
            let (data, null) = (DevicePtr(address), DevicePtr::NULL);
            let first = Weight { layout, rows: 8, columns: 64, data, scales: data, biases: null, bias: null };
            check_address(&Stack { first, stride: 8, step: 1 }).is_ok()
        };
        let affine = |bits| Layout::Affine { bits, group: 64 };
        assert!(stack(Layout::Dense, 32) && stack(affine(4), 24) && stack(affine(3), 18));
        assert!(!stack(Layout::Dense, 24) && !stack(Layout::Mxfp8, 24) && !stack(affine(4), 20));
    }

    #[test]
    fn inputs_that_do_not_fit_are_refused() {
        let size = |inputs| expert_size([4096, 1, 1], inputs, H100).map(|(size, _)| size.shared);
        assert_eq!(size(2 * 14_336).unwrap(), 64_512);
        let refused = size(120_000).unwrap_err().to_string();
        assert!(refused.contains("120000"), "{refused}");
    }
}
