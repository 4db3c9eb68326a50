//! Which kernels there are: templates of the sources, and the parameters they are compiled with.

use crate::spec::{Activation, Half, Layout};

/// Everything the kernels are made of, in the order of inclusion.
const SOURCES: [&str; 8] = [
    include_str!("kernels/common.cuh"),
    include_str!("kernels/unpack.cuh"),
    include_str!("kernels/tiles.cuh"),
    include_str!("kernels/gemv.cuh"),
    include_str!("kernels/batch.cuh"),
    include_str!("kernels/attention.cuh"),
    include_str!("kernels/token.cuh"),
    include_str!("kernels/draw.cuh"),
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
}

impl Instance {
    /// Its name in the compiled module.
    pub(crate) fn name(&self) -> String {
        match *self {
            Self::Gemv { rows, layout, even, subtiles, prologue, epilogue, .. } => {
                let (epilogue, activation) = epilogue.parameters();
                let (bits, group) = layout.parameters();
                format!(
                    "gemv_r{rows}_b{bits}_g{group}_v{}_t{subtiles}_p{}_e{epilogue}_a{activation}",
                    u32::from(even),
                    prologue as u32
                )
            }
            Self::Pack { rows, layout, prologue, .. } => {
                let (bits, group) = layout.parameters();
                format!("pack_r{rows}_b{bits}_g{group}_p{}", prologue as u32)
            }
            Self::Batch { rows, layout, subtiles, epilogue, .. } => {
                let (epilogue, activation) = epilogue.parameters();
                let (bits, group) = layout.parameters();
                format!("batch_r{rows}_b{bits}_g{group}_t{subtiles}_e{epilogue}_a{activation}")
            }
            Self::Plain { layout, epilogue, .. } => {
                let (epilogue, activation) = epilogue.parameters();
                let (bits, group) = layout.parameters();
                format!("plain_b{bits}_g{group}_e{epilogue}_a{activation}")
            }
            Self::Attention { head_dim, heads, deep, .. } => {
                format!("attention_d{head_dim}_h{heads}_v{}", u32::from(deep))
            }
            Self::Embed { layout, .. } => {
                let (bits, group) = layout.parameters();
                format!("embed_b{bits}_g{group}")
            }
            Self::Norm { .. } => "norm_only".to_owned(),
            Self::Argmax { .. } => "argmax_rows".to_owned(),
            Self::Draw { .. } => "draw_rows".to_owned(),
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
            | Self::Draw { half } => half,
        }
    }

    fn scale_kind(&self) -> u32 {
        match *self {
            Self::Gemv { layout, .. }
            | Self::Plain { layout, .. }
            | Self::Embed { layout, .. }
            | Self::Batch { layout, .. }
            | Self::Pack { layout, .. } => layout.scale_kind(),
            Self::Attention { .. } | Self::Norm { .. } | Self::Argmax { .. } | Self::Draw { .. } => 0,
        }
    }

    /// The type of its argument, its launch bounds, and the template.
    fn definition(&self) -> (&'static str, &'static str, String) {
        match *self {
            Self::Gemv { rows, layout, even, subtiles, prologue, epilogue, .. } => {
                let (epilogue, activation) = epilogue.parameters();
                let (bits, group) = layout.parameters();
                let prologue = prologue as u32;
                (
                    "GemvArgs",
                    "384, 1",
                    format!(
                        "gemv<{rows}, {bits}, {group}, {even}, {subtiles}, {prologue}, {epilogue}, {activation}>"
                    ),
                )
            }
            Self::Pack { rows, layout, prologue, .. } => {
                let (bits, group) = layout.parameters();
                ("PackArgs", "256", format!("pack<{rows}, {bits}, {group}, {}>", prologue as u32))
            }
            Self::Batch { rows, layout, subtiles, epilogue, .. } => {
                let (epilogue, activation) = epilogue.parameters();
                let (bits, group) = layout.parameters();
                let call = format!("batch<{rows}, {bits}, {group}, {subtiles}, {epilogue}, {activation}>");
                ("GemvArgs", "416, 1", call)
            }
            Self::Plain { layout, epilogue, .. } => {
                let (epilogue, activation) = epilogue.parameters();
                let (bits, group) = layout.parameters();
                ("PlainArgs", "256", format!("plain<{bits}, {group}, {epilogue}, {activation}>"))
            }
            Self::Attention { head_dim, heads, deep, .. } => {
                // Few registers leave room for the products that start meanwhile; more heads need all they can get.
                let bounds = if heads <= 2 && !deep { "256, 3" } else { "256" };
                ("AttentionArgs", bounds, format!("attention<{head_dim}, {heads}, {deep}>"))
            }
            Self::Embed { layout, .. } => {
                let (bits, group) = layout.parameters();
                ("EmbedArgs", "256", format!("embed<{bits}, {group}>"))
            }
            Self::Norm { .. } => ("NormArgs", "256", "norm_rows".to_owned()),
            Self::Argmax { .. } => ("ArgmaxArgs", "1024", "argmax".to_owned()),
            Self::Draw { .. } => ("DrawArgs", "1024", "draw".to_owned()),
        }
    }
}
