//! Which kernels there are: templates of the sources, and the parameters they are compiled with.

use crate::spec::{Activation, Gating, Half, Layout};

/// Everything the kernels are made of, in the order of inclusion.
const SOURCES: [&str; 9] = [
    include_str!("kernels/common.cuh"),
    include_str!("kernels/unpack.cuh"),
    include_str!("kernels/tiles.cuh"),
    include_str!("kernels/gemv.cuh"),
    include_str!("kernels/batch.cuh"),
    include_str!("kernels/attention.cuh"),
    include_str!("kernels/token.cuh"),
    include_str!("kernels/draw.cuh"),
    include_str!("kernels/experts.cuh"),
];

/// What is done to x before a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Prologue {
    /// Nothing: x is halves.
    Copy = 0,
    /// RMS norm.
    Norm = 1,
    /// x + norm(y), and the norm of that.
    Sandwich = 2,
}

/// What is done with a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Epilogue {
    /// It is stored.
    Store,
    /// It is added to the residual.
    Add,
    /// activation(gate) · up
    Gated(Activation),
    /// They are logits, of which the best is found.
    Logits,
}

impl Epilogue {
    fn parameters(self) -> (u32, u32) {
        match self {
            Self::Store => (0, 0),
            Self::Add => (1, 0),
            Self::Gated(activation) => (2, activation as u32),
            Self::Logits => (3, 0),
        }
    }
}

/// How the sources call what stands between gate and up of experts.
pub(crate) fn gating_kind(gating: Gating) -> u32 {
    match gating {
        Gating::Glu(activation) => activation as u32,
        Gating::Clamped { .. } => 3,
    }
}

/// Threads of a block of `gemv`, and its launch bounds: eight warps multiply, one copies a dense matrix, four another.
pub(crate) fn gemv_threads(layout: Layout) -> (u32, &'static str) {
    if layout == Layout::Dense { (288, "288, 1") } else { (384, "384, 1") }
}

/// A kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Instance {
    Gemv {
        half: Half,
        rows: u32,
        layout: Layout,
        even: bool,
        subtiles: u32,
        prologue: Prologue,
        epilogue: Epilogue,
    },
    Pack {
        half: Half,
        rows: u32,
        layout: Layout,
        prologue: Prologue,
    },
    Batch {
        half: Half,
        rows: u32,
        layout: Layout,
        subtiles: u32,
        epilogue: Epilogue,
    },
    Plain {
        half: Half,
        layout: Layout,
        epilogue: Epilogue,
    },
    Attention {
        half: Half,
        head_dim: u32,
        heads: u32,
        deep: bool,
    },
    Embed {
        half: Half,
        layout: Layout,
    },
    Norm {
        half: Half,
    },
    Argmax {
        half: Half,
    },
    Draw {
        half: Half,
    },
    Route {
        half: Half,
        /// That of a shared expert's gate.
        layout: Layout,
        /// Experts that a lane holds.
        held: u32,
    },
    ExpertGateUp {
        half: Half,
        layout: Layout,
        gating: u32,
    },
    ExpertDown {
        half: Half,
        layout: Layout,
    },
}

impl Instance {
    /// Its name in the compiled module.
    pub(crate) fn name(&self) -> String {
        let stored = |layout: Layout| {
            let (bits, group) = layout.parameters();
            format!("b{bits}_g{group}")
        };
        let ended = |epilogue: Epilogue| {
            let (epilogue, activation) = epilogue.parameters();
            format!("e{epilogue}_a{activation}")
        };
        match *self {
            Self::Gemv { rows, layout, even, subtiles, prologue, epilogue, .. } => format!(
                "gemv_r{rows}_{}_v{}_t{subtiles}_p{}_{}",
                stored(layout),
                u32::from(even),
                prologue as u32,
                ended(epilogue)
            ),
            Self::Pack { rows, layout, prologue, .. } => {
                format!("pack_r{rows}_{}_p{}", stored(layout), prologue as u32)
            }
            Self::Batch { rows, layout, subtiles, epilogue, .. } => {
                format!("batch_r{rows}_{}_t{subtiles}_{}", stored(layout), ended(epilogue))
            }
            Self::Plain { layout, epilogue, .. } => format!("plain_{}_{}", stored(layout), ended(epilogue)),
            Self::Attention { head_dim, heads, deep, .. } => {
                format!("attention_d{head_dim}_h{heads}_v{}", u32::from(deep))
            }
            Self::Embed { layout, .. } => format!("embed_{}", stored(layout)),
            Self::Norm { .. } => "norm_only".to_owned(),
            Self::Argmax { .. } => "argmax_rows".to_owned(),
            Self::Draw { .. } => "draw_rows".to_owned(),
            Self::Route { layout, held, .. } => format!("route_{}_h{held}", stored(layout)),
            Self::ExpertGateUp { layout, gating, .. } => {
                format!("expert_gate_up_{}_a{gating}", stored(layout))
            }
            Self::ExpertDown { layout, .. } => format!("expert_down_{}", stored(layout)),
        }
    }

    /// The sources that define it.
    pub(crate) fn source(&self) -> String {
        let (argument, bounds, call) = self.definition();
        let kinds = [("HALF_KIND", self.half() as u32), ("SCALE_KIND", self.scale_kind())];
        let mut source: String = kinds.map(|(name, kind)| format!("#define {name} {kind}\n")).concat();
        source.extend(SOURCES);
        source += &format!(
            "\nextern \"C\" __global__ void __launch_bounds__({bounds}) {}(const __grid_constant__ {argument} a) {{ {call}(a); }}\n",
            self.name(),
        );
        source
    }

    fn half(&self) -> Half {
        match *self {
            Self::Gemv { half, .. }
            | Self::Pack { half, .. }
            | Self::Batch { half, .. }
            | Self::Plain { half, .. }
            | Self::Attention { half, .. }
            | Self::Embed { half, .. }
            | Self::Norm { half }
            | Self::Argmax { half }
            | Self::Draw { half }
            | Self::Route { half, .. }
            | Self::ExpertGateUp { half, .. }
            | Self::ExpertDown { half, .. } => half,
        }
    }

    fn scale_kind(&self) -> u32 {
        match *self {
            Self::Gemv { layout, .. }
            | Self::Plain { layout, .. }
            | Self::Embed { layout, .. }
            | Self::Batch { layout, .. }
            | Self::Pack { layout, .. }
            | Self::Route { layout, .. }
            | Self::ExpertGateUp { layout, .. }
            | Self::ExpertDown { layout, .. } => layout.scale_kind(),
            Self::Attention { .. } | Self::Norm { .. } | Self::Argmax { .. } | Self::Draw { .. } => 0,
        }
    }

    /// The type of its argument, its launch bounds, and the template.
    fn definition(&self) -> (&'static str, &'static str, String) {
        let stored = |layout: Layout| {
            let (bits, group) = layout.parameters();
            format!("{bits}, {group}")
        };
        let ended = |epilogue: Epilogue| {
            let (epilogue, activation) = epilogue.parameters();
            format!("{epilogue}, {activation}")
        };
        match *self {
            Self::Gemv { rows, layout, even, subtiles, prologue, epilogue, .. } => {
                let (stored, prologue, ended) = (stored(layout), prologue as u32, ended(epilogue));
                let call = format!("gemv<{rows}, {stored}, {even}, {subtiles}, {prologue}, {ended}>");
                ("GemvArgs", gemv_threads(layout).1, call)
            }
            Self::Pack { rows, layout, prologue, .. } => {
                let call = format!("pack<{rows}, {}, {}>", stored(layout), prologue as u32);
                ("PackArgs", "256", call)
            }
            Self::Batch { rows, layout, subtiles, epilogue, .. } => {
                let call = format!("batch<{rows}, {}, {subtiles}, {}>", stored(layout), ended(epilogue));
                ("GemvArgs", "416, 1", call)
            }
            Self::Plain { layout, epilogue, .. } => {
                ("PlainArgs", "256", format!("plain<{}, {}>", stored(layout), ended(epilogue)))
            }
            Self::Attention { head_dim, heads, deep, .. } => {
                // Few registers leave room for the products that start meanwhile; more heads need all they can get.
                let bounds = if heads <= 2 && !deep { "256, 3" } else { "256" };
                ("AttentionArgs", bounds, format!("attention<{head_dim}, {heads}, {deep}>"))
            }
            Self::Embed { layout, .. } => ("EmbedArgs", "256", format!("embed<{}>", stored(layout))),
            Self::Norm { .. } => ("NormArgs", "256", "norm_rows".to_owned()),
            Self::Argmax { .. } => ("ArgmaxArgs", "1024", "argmax".to_owned()),
            Self::Draw { .. } => ("DrawArgs", "1024", "draw".to_owned()),
            Self::Route { layout, held, .. } => {
                ("RouteArgs", "256", format!("route<{}, {held}>", stored(layout)))
            }
            Self::ExpertGateUp { layout, gating, .. } => {
                ("ExpertArgs", "256", format!("expert_gate_up<{}, {gating}>", stored(layout)))
            }
            Self::ExpertDown { layout, .. } => {
                ("ExpertArgs", "256", format!("expert_down<{}>", stored(layout)))
            }
        }
    }
}
