//! The launches of one step of a decoder: each row reads its token, and the next is chosen.

mod choose;
mod experts;

use crate::{
    DevicePtr, Result,
    arguments::{Argument, AttentionArgs, EmbedArgs, GemvArgs, NormArgs, PackArgs, PlainArgs},
    batch,
    class::{Class, Logits, MAX_ROWS},
    geometry::{Geometry, Limits},
    instance::{Epilogue, Instance, Prologue, gemv_threads},
    product::{End, Input, Part, Product, Residual, outputs},
    spec::{AttentionSpec, DecoderSpec, FeedForwardSpec, Half, LayerSpec, MlpSpec, Weight},
    state::{MAX_CLUSTERS, State},
    stream::Size,
};

/// Positions that a block of attention takes before another cluster helps, as the source says.
const BLOCK_POSITIONS: usize = 256;

/// Copies of keys and values that are on their way at once, as the source says.
const ATTENTION_DEPTH: usize = 4;

/// Rows of x that `gemv` multiplies at once, at most.
const MOST_AT_ONCE: usize = 8;

/// A launch before its kernel is compiled.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    pub(crate) part: Part,
    pub(crate) instance: Instance,
    pub(crate) size: Size,
    pub(crate) argument: std::sync::Arc<[u64]>,
}

/// Makes the launches of a bucket.
pub(crate) struct Planner<'a> {
    spec: &'a DecoderSpec,
    state: &'a State,
    limits: Limits,
    rows: usize,
    class: Class,
    launches: Vec<Planned>,
    /// Counters of tiles that are in use.
    counters: usize,
}

impl<'a> Planner<'a> {
    /// The launches of a step.
    pub(crate) fn plan(
        spec: &'a DecoderSpec,
        state: &'a State,
        limits: Limits,
        class: Class,
    ) -> Result<Vec<Planned>> {
        let mut planner =
            Self { spec, state, limits, rows: class.rows, class, launches: Vec::new(), counters: 0 };
        planner.embed();
        let mut residual = Residual::new(state);
        for (i, layer) in spec.layers.iter().enumerate() {
            planner.layer(i, layer, &mut residual)?;
        }
        let x = residual.input(&spec.norm);
        planner.product(&Product {
            part: Part::Head,
            weights: std::slice::from_ref(&spec.head),
            input: x,
            epilogue: Epilogue::Logits,
            out: state.logits,
            out_stride: spec.vocabulary(),
        });
        if class.logits == Logits::Draw {
            planner.draw()?;
        }
        Ok(planner.launches)
    }

    fn layer(&mut self, i: usize, layer: &'a LayerSpec, residual: &mut Residual<'a>) -> Result<()> {
        let [after_attention, after_mlp] = match &layer.post_norms {
            Some([attention, mlp]) => [Some(attention), Some(mlp)],
            None => [None; 2],
        };
        let x = residual.input(&layer.input_norm);
        self.attention(i, &layer.attention, x);
        let end = residual.end(after_attention);
        self.last(Part::Output, &layer.attention.output, self.state.attended.ptr(), end);
        let x = residual.input(&layer.mlp_norm);
        let again = Input::Normed(residual.x, &layer.mlp_norm);
        let end = residual.end(after_mlp);
        match &layer.mlp {
            FeedForwardSpec::Dense(mlp) => {
                let gated = self.state.gated.ptr();
                self.gate_up(mlp, x, gated);
                self.last(Part::Down, &mlp.down, gated, end);
            }
            FeedForwardSpec::Experts(experts) => self.experts(experts, [x, again], end)?,
        }
        Ok(())
    }

    fn push(&mut self, part: Part, instance: Instance, size: Size, argument: &impl Argument) {
        self.launches.push(Planned { part, instance, size, argument: argument.words() });
    }

    fn half(&self) -> Half {
        self.spec.half
    }

    fn embed(&mut self) {
        let (spec, state) = (self.spec, self.state);
        let weight = &spec.embedding;
        let argument = EmbedArgs {
            data: weight.data,
            scales: weight.scales,
            biases: weight.biases,
            token: state.token.ptr(),
            position: state.position.ptr(),
            out: state.x[0].ptr(),
            k: spec.hidden as u32,
            vocabulary: spec.vocabulary() as u32,
            scale: spec.embedding_scale,
            reserved: 0,
        };
        let instance = Instance::Embed { half: self.half(), layout: weight.layout };
        self.push(
            Part::Embed,
            instance,
            Size::new([spec.hidden.div_ceil(256), self.rows, 1], 256, 0),
            &argument,
        );
    }

    fn attention(&mut self, layer: usize, attention: &'a AttentionSpec, input: Input<'a>) {
        let width = (self.spec.heads + 2 * self.spec.kv_heads) * self.spec.head_dim;
        let qkv = self.state.qkv.ptr();
        let project = |weights, at: usize| Product {
            part: Part::Qkv,
            weights,
            input,
            epilogue: Epilogue::Store,
            out: qkv.offset(4 * at),
            out_stride: width,
        };
        if attention.qkv.iter().all(|weight| weight.layout == attention.qkv[0].layout) {
            self.product(&project(&attention.qkv, 0));
        } else {
            let mut at = 0;
            for weight in &attention.qkv {
                self.product(&project(std::slice::from_ref(weight), at));
                at += weight.rows;
            }
        }
        self.attend(layer, attention);
    }

    fn attend(&mut self, layer: usize, attention: &AttentionSpec) {
        let (spec, state) = (self.spec, self.state);
        let rope = attention.rope.map(|rope| (&spec.ropes[rope], state.ropes[rope].ptr()));
        let group = spec.heads / spec.kv_heads;
        // Heads of a block: several read keys and values once, few fill the GPU.
        let units = |heads: usize| self.rows * spec.kv_heads * group.div_ceil(heads);
        let heads = [4, 2].into_iter().find(|&heads| units(heads) * 8 >= self.limits.multiprocessors * 3 / 4);
        let parts = group.div_ceil(heads.unwrap_or(1));
        let heads = group.div_ceil(parts);
        let units = units(heads);
        // Blocks of a cluster, such that all units have at most two blocks on a multiprocessor.
        let most = if units * 8 <= self.limits.multiprocessors / 2 {
            16
        } else {
            2 * self.limits.multiprocessors / units
        };
        let cluster =
            if most == 16 { 16 } else { [8, 4, 2].into_iter().find(|&blocks| blocks <= most).unwrap_or(1) };
        let positions = attention.window.unwrap_or(usize::MAX).min(self.class.positions);
        let clusters = positions.div_ceil(cluster * BLOCK_POSITIONS).clamp(1, MAX_CLUSTERS);
        let table = 8 * MAX_ROWS * layer;
        let norm = |i: usize| attention.qk_norm.map(|norms| (&norms[i]).into()).unwrap_or_default();
        let argument = AttentionArgs {
            qkv: state.qkv.ptr(),
            out: state.attended.ptr(),
            keys: state.tables.keys.ptr().offset(table),
            values: state.tables.values.ptr().offset(table),
            capacity: state.tables.capacity.ptr().offset(table / 2),
            position: state.position.ptr(),
            frequencies: rope.map(|(_, frequencies)| frequencies).unwrap_or_default(),
            sinks: attention.sinks,
            part: state.part.ptr(),
            part_state: state.part_state.ptr(),
            ticket: state.tickets.ptr(),
            q_norm: norm(0),
            k_norm: norm(1),
            heads: spec.heads as u32,
            kv_heads: spec.kv_heads as u32,
            rotated: rope.map_or(0, |(rope, _)| 2 * rope.frequencies.len() as u32),
            window: attention.window.unwrap_or(0) as u32,
            interleaved: rope.map_or(0, |(rope, _)| u32::from(rope.interleaved)),
            cluster: cluster as u32,
            scale: attention.scale,
            cap: attention.cap.unwrap_or(0.0),
            eps: spec.eps,
            magnitude: rope.map_or(1.0, |(rope, _)| rope.magnitude),
        };
        let dim = spec.head_dim;
        // Queries, the new key and value, the rotation, and the sums of eight warps with their states.
        let shared = 4 * (heads * dim + 4 * dim + 18 * heads + 8 * heads * dim);
        // With many rows, keys and values on their way as well, two vectors of 16 bytes of each for a thread.
        let deep = self.rows > MOST_AT_ONCE;
        let shared = shared + if deep { ATTENTION_DEPTH * 2 * 2 * 256 * 16 + 16 } else { 0 };
        let instance =
            Instance::Attention { half: self.half(), head_dim: dim as u32, heads: heads as u32, deep };
        let grid = [clusters * cluster, spec.kv_heads * parts, self.rows];
        let size = Size { cluster: cluster as u32, ..Size::new(grid, 256, shared as u32) };
        self.push(Part::Attention, instance, size, &argument);
    }

    fn gate_up(&mut self, mlp: &'a MlpSpec, input: Input<'a>, out: DevicePtr) {
        self.product(&Product {
            part: Part::GateUp,
            weights: &mlp.gate_up,
            input,
            epilogue: Epilogue::Gated(mlp.activation),
            out,
            out_stride: mlp.down.columns,
        });
    }

    /// The last product of a block.
    fn last(&mut self, part: Part, weight: &'a Weight, input: DevicePtr, (epilogue, out): End) {
        let (weights, out_stride) = (std::slice::from_ref(weight), self.spec.hidden);
        self.product(&Product { part, weights, input: Input::Halves(input), epilogue, out, out_stride });
    }

    /// A product by `batch` where there are many rows, by `gemv`, of as many rows at once as shared memory holds, or a plain one.
    fn product(&mut self, product: &Product<'a>) {
        if let Some(geometry) = batch::Geometry::new(product, self.rows, self.limits) {
            return self.batch(product, geometry);
        }
        let gated = matches!(product.epilogue, Epilogue::Gated(_));
        let mut at_once = self.rows.min(MOST_AT_ONCE);
        let geometry = loop {
            if let Some(geometry) = Geometry::new(product.weights, gated, at_once, self.limits) {
                break geometry;
            }
            if at_once == 1 {
                return self.plain(product);
            }
            at_once /= 2;
        };
        for first in (0..self.rows).step_by(at_once) {
            self.gemv(product, geometry, first, at_once);
        }
    }

    fn gemv(&mut self, product: &Product<'a>, geometry: Geometry, first: usize, rows: usize) {
        let spec = self.spec;
        let layout = product.weights[0].layout;
        let k = product.weights[0].columns;
        let mut argument = GemvArgs {
            k: k as u32,
            n: outputs(product) as u32,
            tiles: geometry.tiles,
            pieces: geometry.pieces,
            piece: geometry.piece,
            stages: geometry.stages,
            slots: geometry.slots,
            row_bytes: layout.row_bytes(k) as u32,
            stride: geometry.stride,
            scale_bytes: geometry.scale_bytes,
            out_stride: product.out_stride as u32,
            eps: spec.eps,
            cap: spec.logit_cap.unwrap_or(0.0),
            scale: spec.logit_scale,
            inverse_k: (k as f32).recip(),
            ..GemvArgs::default()
        };
        for (matrix, weight) in argument.matrices.iter_mut().zip(product.weights) {
            *matrix = weight.into();
        }
        if geometry.asks && product.epilogue != Epilogue::Add {
            argument.next = self.counter();
        }
        let row = |ptr: DevicePtr, bytes: usize| ptr.offset(first * bytes);
        let prologue = argument.set_input(product.input, k, first);
        let bytes = if matches!(product.epilogue, Epilogue::Gated(_)) { 2 } else { 4 };
        argument.out = row(product.out, bytes * product.out_stride);
        if product.epilogue == Epilogue::Logits {
            self.set_choice(&mut argument, geometry.grid as usize, first);
        }
        let instance = Instance::Gemv {
            half: self.half(),
            rows: rows as u32,
            layout,
            even: geometry.even,
            subtiles: geometry.subtiles,
            prologue,
            epilogue: product.epilogue,
        };
        self.push(
            product.part,
            instance,
            Size::new([geometry.grid as usize, 1, 1], gemv_threads(layout).0, geometry.shared),
            &argument,
        );
    }

    /// Packs x and multiplies it.
    fn batch(&mut self, product: &Product<'a>, geometry: batch::Geometry) {
        let (spec, state, rows) = (self.spec, self.state, self.rows as u32);
        let (layout, k) = (product.weights[0].layout, product.weights[0].columns);
        self.pack(product);
        let mut argument = GemvArgs {
            x: state.packed_sums.ptr(),
            a: state.packed.ptr(),
            out: product.out,
            k: k as u32,
            n: outputs(product) as u32,
            tiles: geometry.tiles as u32,
            pieces: geometry.pieces as u32,
            stages: geometry.stages as u32,
            row_bytes: layout.row_bytes(k) as u32,
            stride: geometry.stride as u32,
            out_stride: product.out_stride as u32,
            cap: spec.logit_cap.unwrap_or(0.0),
            scale: spec.logit_scale,
            ..GemvArgs::default()
        };
        for (matrix, weight) in argument.matrices.iter_mut().zip(product.weights) {
            *matrix = weight.into();
        }
        let (half, subtiles, epilogue) = (self.half(), geometry.subtiles as u32, product.epilogue);
        let instance = Instance::Batch { half, rows, layout, subtiles, epilogue };
        self.push(product.part, instance, geometry.size(), &argument);
        if epilogue == Epilogue::Logits {
            self.argmax(product);
        }
    }

    fn pack(&mut self, product: &Product<'a>) {
        let (layout, k) = (product.weights[0].layout, product.weights[0].columns);
        let mut argument = PackArgs {
            out: self.state.packed.ptr(),
            sums: self.state.packed_sums.ptr(),
            k: k as u32,
            eps: self.spec.eps,
            ..PackArgs::default()
        };
        let prologue = match product.input {
            Input::Halves(a) => {
                argument.a = a;
                Prologue::Copy
            }
            Input::Normed(x, norm) => {
                (argument.x, argument.norm) = (x, norm.into());
                Prologue::Norm
            }
            Input::Sandwich { x, y, post, norm, out } => {
                (argument.x, argument.y, argument.x_out) = (x, y, out);
                (argument.norm, argument.post) = (norm.into(), post.into());
                Prologue::Sandwich
            }
        };
        // Rows that are only copied are shared by blocks of 2,048 columns.
        let blocks = if prologue == Prologue::Copy { k.div_ceil(2048) } else { 1 };
        let instance = Instance::Pack { half: self.half(), rows: self.rows as u32, layout, prologue };
        self.push(product.part, instance, Size::new([self.rows, blocks, 1], 256, 0), &argument);
    }

    /// A counter of tiles, or none where all are in use. Each product has its own: the next one begins while this one runs.
    fn counter(&mut self) -> DevicePtr {
        if 4 * self.counters == self.state.tiles.bytes() {
            return DevicePtr::NULL;
        }
        self.counters += 1;
        self.state.tiles.ptr().offset(4 * (self.counters - 1))
    }

    fn plain(&mut self, product: &Product<'a>) {
        let spec = self.spec;
        let k = product.weights[0].columns;
        let a = match product.input {
            Input::Halves(a) => a,
            Input::Normed(x, norm) => {
                let norm = NormArgs { x, norm: norm.into(), ..NormArgs::default() };
                self.norm(product.part, norm)
            }
            Input::Sandwich { x, y, post, norm, out } => {
                let (norm, post) = (norm.into(), post.into());
                self.norm(
                    product.part,
                    NormArgs { x, y, x_out: out, norm, post, sandwich: 1, ..NormArgs::default() },
                )
            }
        };
        let mut argument = PlainArgs {
            a,
            out: product.out,
            rows: self.rows as u32,
            k: k as u32,
            n: outputs(product) as u32,
            out_stride: product.out_stride as u32,
            cap: spec.logit_cap.unwrap_or(0.0),
            scale: spec.logit_scale,
            ..PlainArgs::default()
        };
        for (matrix, weight) in argument.matrices.iter_mut().zip(product.weights) {
            *matrix = weight.into();
        }
        let layout = product.weights[0].layout;
        let instance = Instance::Plain { half: self.half(), layout, epilogue: product.epilogue };
        self.push(product.part, instance, Size::new([outputs(product).div_ceil(8), 1, 1], 256, 0), &argument);
        if product.epilogue == Epilogue::Logits {
            self.argmax(product);
        }
    }

    /// Normalised rows, as halves.
    fn norm(&mut self, part: Part, argument: NormArgs) -> DevicePtr {
        let out = self.state.normed.ptr();
        let argument = NormArgs { out, k: self.spec.hidden as u32, eps: self.spec.eps, ..argument };
        self.push(
            part,
            Instance::Norm { half: self.half() },
            Size::new([self.rows, 1, 1], 256, 0),
            &argument,
        );
        out
    }
}
