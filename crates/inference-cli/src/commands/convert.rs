//! `inference convert`: a quantised copy of a model, or a dense one.

use std::{path::PathBuf, process::ExitCode, str::FromStr};

use clap::ValueEnum;
use inference::{
    manifest::{Dtype, ModelManifest, QuantMode, Quantization},
    metal::{ConvertOptions, convert},
};
use serde_json::json;

use crate::{
    interrupt::Scope,
    model,
    render::{self, Out},
};

/// Write a quantised copy of a model, or a dense one
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The copy is a folder like the original, which mlx_lm loads too. It appears when it is complete; a conversion that fails \
or is interrupted leaves nothing. Experts that are packed as published, gpt-oss's, stay so unless --dense unpacks them.

A rule is PATTERN=BITS, PATTERN=BITS/GROUP or PATTERN=none: * stands for any characters, and of several that fit the \
last one counts.

Examples:
  inference convert ~/models/Qwen3-0.6B ~/models/Qwen3-0.6B-4bit --bits 4
  inference convert ~/models/Qwen3-0.6B ./mixed --bits 4 --rule '*.down_proj=6' --rule 'lm_head=none'
  inference convert ~/models/Qwen3-0.6B ./mxfp4 --mode mxfp4
  inference convert ~/models/Qwen3-0.6B-4bit ./dense --dense --dtype bf16
  inference convert Qwen3-0.6B-Q4_K_M.gguf ./qwen3 --keep --dtype bf16"
)]
#[command(group(clap::ArgGroup::new("form").required(true).multiple(true).args(["bits", "mode", "dense", "dtype", "keep"])))]
pub(crate) struct Args {
    /// The folder of the model to convert, or a GGUF file
    source: PathBuf,

    /// The new folder
    target: PathBuf,

    /// Bits of a quantised weight [default: 4, or what the mode prescribes]
    #[arg(long, value_name = "BITS")]
    bits: Option<u32>,

    /// Weights that share a scale [default: 64, or what the mode prescribes]
    #[arg(long, value_name = "WEIGHTS")]
    group_size: Option<u32>,

    /// How weights are quantised [default: affine]
    #[arg(long, value_enum)]
    mode: Option<Mode>,

    /// An exception for the matrices whose name fits; may be repeated
    #[arg(long = "rule", value_name = "PATTERN=SETTING")]
    rules: Vec<Rule>,

    /// Undo the quantisation
    #[arg(long, conflicts_with_all = ["bits", "group_size", "mode", "rules"])]
    dense: bool,

    /// Leave what is quantised as it is, such as the matrices of a GGUF file
    #[arg(long, conflicts_with_all = ["bits", "group_size", "mode", "rules", "dense"])]
    keep: bool,

    /// The type of weights that are not quantised, and of scales [default: as they are]
    #[arg(long, value_enum)]
    dtype: Option<Float>,

    /// Print a JSON object
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print no progress on stderr
    #[arg(long, short, help_heading = "Output")]
    quiet: bool,
}

/// MLX's ways to quantise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Mode {
    /// Integers of 2 to 8 bits with a scale and a bias
    Affine,
    /// Four-bit floats, scales are powers of two
    Mxfp4,
    /// Four-bit floats, scales are eight-bit floats
    Nvfp4,
    /// Eight-bit floats, scales are powers of two
    Mxfp8,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Float {
    F32,
    F16,
    Bf16,
}

/// What matrices a rule is for, and their setting; `None` leaves them dense.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    pattern: String,
    setting: Option<(u32, Option<u32>)>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let scope = Scope::enter();
    let cancel = scope.token();
    let source = ModelManifest::read(model::find(&args.source)?)?;
    let bar = render::progress(source.weight_bytes(), "converting {wide_bar:.cyan} {bytes}/{total_bytes}");
    if args.quiet {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let converted = convert(&source, &args.target, &args.options(), &mut |progress| {
        bar.set_position(progress.bytes);
        !cancel.is_cancelled()
    });
    bar.finish_and_clear();
    converted?;
    let target = ModelManifest::read(&args.target)?;
    let mut out = Out::new();
    if args.json {
        out.json(&json!({
            "path": args.target,
            "bytes_before": source.weight_bytes(),
            "bytes_after": target.weight_bytes(),
            "quantization": target.quantization(),
        }))?;
    } else {
        let (before, after) = (render::bytes(source.weight_bytes()), render::bytes(target.weight_bytes()));
        out.line(&format!("{}: {after} of weights, from {before}", render::path(&args.target)))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn options(&self) -> ConvertOptions {
        let mut options = ConvertOptions::default();
        options.keep = self.keep;
        if self.bits.is_some() || self.mode.is_some() {
            options.quantization = Some(self.quantization(self.bits, self.group_size));
        }
        let setting = |(bits, group)| self.quantization(Some(bits), group);
        options.rules =
            self.rules.iter().map(|rule| (rule.pattern.clone(), rule.setting.map(setting))).collect();
        options.dtype = self.dtype.map(|dtype| match dtype {
            Float::F32 => Dtype::F32,
            Float::F16 => Dtype::F16,
            Float::Bf16 => Dtype::Bf16,
        });
        options
    }

    fn quantization(&self, bits: Option<u32>, group: Option<u32>) -> Quantization {
        let (mode, own_bits, own_group) = match self.mode.unwrap_or(Mode::Affine) {
            Mode::Affine => (QuantMode::Affine, 4, 64),
            Mode::Mxfp4 => (QuantMode::Mxfp4, 4, 32),
            Mode::Nvfp4 => (QuantMode::Nvfp4, 4, 16),
            Mode::Mxfp8 => (QuantMode::Mxfp8, 8, 32),
        };
        Quantization::new(bits.unwrap_or(own_bits), group.or(self.group_size).unwrap_or(own_group), mode)
    }
}

impl FromStr for Rule {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || "expected PATTERN=BITS, PATTERN=BITS/GROUP or PATTERN=none".to_owned();
        let (pattern, setting) = text.rsplit_once('=').ok_or_else(expected)?;
        let number = |text: &str| text.parse().map_err(|_| expected());
        let setting = match setting.split_once('/') {
            _ if setting == "none" => None,
            Some((bits, group)) => Some((number(bits)?, Some(number(group)?))),
            None => Some((number(setting)?, None)),
        };
        Ok(Self { pattern: pattern.to_owned(), setting })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn options(line: &[&str]) -> Result<ConvertOptions, clap::Error> {
        let line = ["convert", "from", "to"].into_iter().chain(line.iter().copied());
        Line::try_parse_from(line).map(|line| line.args.options())
    }

    #[test]
    fn modes_prescribe_what_is_not_given() {
        let quantization = |line: &[&str]| options(line).unwrap().quantization.unwrap();
        assert_eq!(quantization(&["--bits=8"]), Quantization::new(8, 64, QuantMode::Affine));
        assert_eq!(
            quantization(&["--bits=3", "--group-size=32"]),
            Quantization::new(3, 32, QuantMode::Affine)
        );
        assert_eq!(quantization(&["--mode=mxfp8"]), Quantization::new(8, 32, QuantMode::Mxfp8));
        assert_eq!(quantization(&["--mode=nvfp4"]), Quantization::new(4, 16, QuantMode::Nvfp4));
    }

    #[test]
    fn rules_keep_their_order() {
        let options = options(&["--bits=4", "--rule=*.down_proj=6/32", "--rule=lm_head=none"]).unwrap();
        let expected = [
            ("*.down_proj".to_owned(), Some(Quantization::new(6, 32, QuantMode::Affine))),
            ("lm_head".to_owned(), None),
        ];
        assert_eq!(options.rules, expected);
        assert!("lm_head".parse::<Rule>().is_err() && "lm_head=x".parse::<Rule>().is_err());
    }

    #[test]
    fn dense_is_dense_and_nothing_is_no_conversion() {
        let dense = options(&["--dense", "--dtype=bf16"]).unwrap();
        assert_eq!((dense.quantization, dense.dtype), (None, Some(Dtype::Bf16)));
        assert!(options(&[]).is_err());
        assert!(options(&["--dense", "--bits=4"]).is_err());
        assert!(options(&["--group-size=32"]).is_err());
    }
}
