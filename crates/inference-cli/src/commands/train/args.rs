//! What the person types, and what it becomes in the library.

use std::path::PathBuf;

use clap::ValueEnum;
use inference::{
    CancellationToken,
    train::{
        AdapterDtype, AdapterOptions, FullOptions, LossOn, Optimizer, Schedule, TrainLength, TrainOptions,
        Truncation,
    },
};

use crate::{failure::Usage, options::LoadArgs};

/// Fine-tune a model on examples
#[derive(Debug, clap::Args)]
#[command(
    after_help = "DATA is a folder with train.jsonl and valid.jsonl, or one file. A line is {\"prompt\": …, \"completion\": …}, \
{\"messages\": […]} or {\"text\": …}, as mlx_lm has it. OUTPUT gets adapters.safetensors and adapter_config.json, which \
--adapter of the other commands and mlx_lm load; checkpoints; metrics.jsonl with every figure; and loss.svg.

Ctrl-C ends after the step under way and saves; the same command with --resume goes on as if it had not been stopped.

Examples:
  inference train --model ~/models/Qwen3-0.6B --data data --output adapter --steps 200
  inference chat --model ~/models/Qwen3-0.6B --adapter adapter 'What have you learnt?'
  inference fuse --model ~/models/Qwen3-0.6B --adapter adapter --output ~/models/mine"
)]
pub(crate) struct Args {
    /// The model's folder [default: the demo model]
    #[arg(long, short, value_name = "PATH")]
    pub(super) model: Option<PathBuf>,

    /// A folder with train.jsonl and perhaps valid.jsonl, or a file of such lines
    #[arg(long, short, value_name = "PATH")]
    pub(super) data: PathBuf,

    /// The folder to write
    #[arg(long, short, value_name = "PATH")]
    pub(super) output: PathBuf,

    /// Resume from the last checkpoint in OUTPUT
    #[arg(long)]
    resume: bool,

    /// What is trained
    #[arg(long, value_enum, default_value_t = MethodKind::Lora, help_heading = "Method")]
    pub(super) method: MethodKind,

    /// The adapters' rank [default: 8]
    #[arg(long, value_name = "NUMBER", help_heading = "Method")]
    rank: Option<usize>,

    /// The factor on an adapter's output [default: 20]
    #[arg(long, value_name = "NUMBER", help_heading = "Method", allow_negative_numbers = true)]
    scale: Option<f32>,

    /// Scale times rank, as peft has it
    #[arg(long, value_name = "NUMBER", help_heading = "Method", conflicts_with = "scale")]
    alpha: Option<f32>,

    /// The dropout rate: on an adapter's inputs or, with full training, on what each block adds [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Method", allow_negative_numbers = true)]
    dropout: Option<f32>,

    /// The layers that get adapters, such as self_attn.q_proj,self_attn.v_proj [default: every linear layer]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "Method")]
    keys: Option<Vec<String>>,

    /// Train only the last BLOCKS blocks [default: all]
    #[arg(long, value_name = "BLOCKS", help_heading = "Method")]
    layers: Option<usize>,

    /// Adapt the token embedding too
    #[arg(long, help_heading = "Method")]
    embeddings: bool,

    /// The type of the adapters' weights [default: f32]
    #[arg(long, value_enum, help_heading = "Method")]
    adapter_dtype: Option<AdapterFloat>,

    /// With full training: compute in bfloat16, and keep weights and optimiser in float32
    #[arg(long, help_heading = "Method")]
    mixed_precision: bool,

    /// The optimiser
    #[arg(long, value_enum, default_value_t = OptimizerKind::Adamw, help_heading = "Steps")]
    optimizer: OptimizerKind,

    /// The learning rate after warm-up
    #[arg(
        long,
        value_name = "RATE",
        default_value_t = 1e-4,
        help_heading = "Steps",
        allow_negative_numbers = true
    )]
    learning_rate: f32,

    /// AdamW's decay rates of the averages of gradient and squared gradient [default: 0.9,0.999]
    #[arg(long, value_name = "TWO", value_delimiter = ',', num_args = 1, help_heading = "Steps")]
    betas: Option<Vec<f32>>,

    /// The weight decay [default: 0.01 with adamw, 0 with sgd]
    #[arg(long, value_name = "SHARE", help_heading = "Steps", allow_negative_numbers = true)]
    weight_decay: Option<f32>,

    /// SGD's momentum [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Steps", allow_negative_numbers = true)]
    momentum: Option<f32>,

    /// Do not correct the bias of AdamW's averages, as MLX's own optimiser does not
    #[arg(long, help_heading = "Steps")]
    no_bias_correction: bool,

    /// The schedule of the learning rate after warm-up
    #[arg(long, value_enum, default_value_t = ScheduleKind::Constant, help_heading = "Steps")]
    schedule: ScheduleKind,

    /// Steps over which the learning rate rises
    #[arg(long, value_name = "STEPS", default_value_t = 0, help_heading = "Steps")]
    warmup: usize,

    /// The maximum norm of a step's gradients; longer ones are scaled down [default: no limit]
    #[arg(long, alias = "clip", value_name = "NORM", help_heading = "Steps", allow_negative_numbers = true)]
    max_grad_norm: Option<f32>,

    /// Steps of the run [default: 1000]
    #[arg(long, value_name = "STEPS", help_heading = "Steps", conflicts_with = "epochs")]
    steps: Option<usize>,

    /// Passes over all examples, instead of a number of steps
    #[arg(long, value_name = "EPOCHS", help_heading = "Steps")]
    epochs: Option<usize>,

    /// The seed of initial adapters, order of batches and dropout
    #[arg(long, value_name = "NUMBER", default_value_t = 0, help_heading = "Steps")]
    seed: u64,

    /// Examples in a batch
    #[arg(long, value_name = "EXAMPLES", default_value_t = 4, help_heading = "Batches")]
    batch_size: usize,

    /// Tokens in a batch at most, padding included [default: no limit]
    #[arg(long, value_name = "TOKENS", help_heading = "Batches")]
    batch_tokens: Option<usize>,

    /// Batches whose gradients are summed in a step
    #[arg(long, alias = "accumulate", value_name = "BATCHES", default_value_t = 1, help_heading = "Batches")]
    gradient_accumulation_steps: usize,

    /// Recompute activations in the backward pass instead of keeping them: less memory, more time
    #[arg(long, alias = "checkpoint", help_heading = "Batches")]
    gradient_checkpointing: bool,

    /// Tokens of an example at most
    #[arg(long, value_name = "TOKENS", default_value_t = 2048, help_heading = "Data")]
    pub(super) max_length: usize,

    /// What to do with longer examples
    #[arg(long, value_enum, default_value_t = TooLong::Truncate, help_heading = "Data")]
    too_long: TooLong,

    /// The tokens of an example that count in the loss
    #[arg(long, alias = "learn", value_enum, default_value_t = LossTokens::Answer, help_heading = "Data")]
    loss_on: LossTokens,

    /// The share of examples to hold out for validation, without a valid.jsonl [default: 0.1 of a file, 0 of a folder]
    #[arg(long, value_name = "SHARE", help_heading = "Data", allow_negative_numbers = true)]
    split: Option<f32>,

    /// Steps between validations
    #[arg(long, value_name = "STEPS", default_value_t = 200, help_heading = "Data")]
    evaluate_every: usize,

    /// Batches of a validation at most [default: all]
    #[arg(long, value_name = "BATCHES", help_heading = "Data")]
    validation_batches: Option<usize>,

    /// Steps between checkpoints
    #[arg(long, value_name = "STEPS", default_value_t = 100, help_heading = "Output")]
    save_every: usize,

    /// Print every event as JSON Lines
    #[arg(long, help_heading = "Output")]
    pub(crate) json: bool,

    /// Print nothing on stderr
    #[arg(long, short, help_heading = "Output")]
    pub(super) quiet: bool,

    #[command(flatten)]
    pub(super) load: LoadArgs,
}

/// What is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum MethodKind {
    /// Low-rank adapters beside the weights
    Lora,
    /// The same, with the magnitude of each output
    Dora,
    /// The weights themselves
    Full,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum AdapterFloat {
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OptimizerKind {
    Adamw,
    Sgd,
    Adafactor,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum ScheduleKind {
    /// No change
    Constant,
    /// Half a cosine, down to zero
    Cosine,
    /// A straight line, down to zero
    Linear,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum TooLong {
    /// Cut them at the end
    Truncate,
    /// Fail
    Refuse,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum LossTokens {
    /// The completion, or the last message
    Answer,
    /// All tokens
    Everything,
}

impl MethodKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Lora => "LoRA",
            Self::Dora => "DoRA",
            Self::Full => "full training",
        }
    }
}

impl Args {
    /// Whether most of what a step computes with is new memory: weights that were just updated, or activations computed anew.
    pub(super) fn changes_most_buffers(&self) -> bool {
        matches!(self.method, MethodKind::Full) || self.gradient_checkpointing
    }

    /// The share to hold out for validation.
    pub(super) fn split(&self) -> Option<f32> {
        self.split.or_else(|| (!self.data.is_dir()).then_some(0.1))
    }

    /// The library's options; `cancel` ends the run.
    pub(super) fn options(&self, cancel: CancellationToken) -> anyhow::Result<TrainOptions> {
        refuse(self.load.without_effect_on_training(), "training")?;
        let schedule = match self.schedule {
            ScheduleKind::Constant => Schedule::Constant,
            ScheduleKind::Cosine => Schedule::Cosine,
            ScheduleKind::Linear => Schedule::Linear,
        };
        let longer = match self.too_long {
            TooLong::Truncate => Truncation::Truncate,
            TooLong::Refuse => Truncation::Refuse,
        };
        let mut options = TrainOptions::new(&self.output)
            .method(self.method()?)
            .optimizer(self.optimizer()?)
            .learning_rate(self.learning_rate)
            .schedule(schedule, self.warmup)
            .batch_size(self.batch_size)
            .gradient_accumulation_steps(self.gradient_accumulation_steps)
            .gradient_checkpointing(self.gradient_checkpointing)
            .close_model(true)
            .max_length(self.max_length, longer)
            .loss_on(match self.loss_on {
                LossTokens::Answer => LossOn::Answer,
                LossTokens::Everything => LossOn::Everything,
            })
            .evaluate_every(self.evaluate_every, self.validation_batches)
            .save_every(self.save_every)
            .seed(self.seed)
            .resume(self.resume)
            .cancel(cancel);
        options.max_grad_norm = self.max_grad_norm;
        options.batch_tokens = self.batch_tokens;
        options.length = match (self.steps, self.epochs) {
            (None, Some(epochs)) => TrainLength::Epochs(epochs),
            (steps, _) => TrainLength::Steps(steps.unwrap_or(1000)),
        };
        Ok(options)
    }

    fn method(&self) -> anyhow::Result<inference::train::Method> {
        if self.method == MethodKind::Full {
            let adapters_only = [
                ("--rank", self.rank.is_some()),
                ("--scale", self.scale.is_some()),
                ("--alpha", self.alpha.is_some()),
                ("--keys", self.keys.is_some()),
                ("--embeddings", self.embeddings),
                ("--adapter-dtype", self.adapter_dtype.is_some()),
            ];
            refuse(adapters_only, "--method full, which trains the weights themselves")?;
            let mut full =
                FullOptions::new().dropout(self.dropout.unwrap_or(0.0)).mixed_precision(self.mixed_precision);
            full.layers = self.layers;
            return Ok(inference::train::Method::Full(full));
        }
        let full_only = [("--mixed-precision", self.mixed_precision)];
        refuse(full_only, "adapters, whose weights are few")?;
        let mut adapter =
            AdapterOptions::new().embeddings(self.embeddings).dropout(self.dropout.unwrap_or(0.0));
        adapter.rank = self.rank.unwrap_or(adapter.rank);
        let alpha = self.alpha.map(|alpha| alpha / adapter.rank.max(1) as f32);
        adapter.scale = self.scale.or(alpha).unwrap_or(adapter.scale);
        adapter.keys.clone_from(&self.keys);
        adapter.layers = self.layers;
        adapter.dtype = match self.adapter_dtype {
            Some(AdapterFloat::Bf16) => AdapterDtype::Bf16,
            Some(AdapterFloat::F32) | None => AdapterDtype::F32,
        };
        Ok(match self.method {
            MethodKind::Dora => inference::train::Method::Dora(adapter),
            _ => inference::train::Method::Lora(adapter),
        })
    }

    fn optimizer(&self) -> anyhow::Result<Optimizer> {
        let adamw = [("--betas", self.betas.is_some()), ("--no-bias-correction", self.no_bias_correction)];
        let sgd = [("--momentum", self.momentum.is_some())];
        let decay = [("--weight-decay", self.weight_decay.is_some())];
        match self.optimizer {
            OptimizerKind::Adamw => {
                refuse(sgd, "--optimizer adamw")?;
                let betas = match self.betas.as_deref() {
                    None => [0.9, 0.999],
                    Some(&[first, second]) => [first, second],
                    Some(_) => {
                        return Err(
                            Usage("--betas: expected two numbers, such as 0.9,0.98".to_owned()).into()
                        );
                    }
                };
                let weight_decay = self.weight_decay.unwrap_or(0.01);
                Ok(Optimizer::AdamW {
                    betas,
                    eps: 1e-8,
                    weight_decay,
                    bias_correction: !self.no_bias_correction,
                })
            }
            OptimizerKind::Sgd => {
                refuse(adamw, "--optimizer sgd")?;
                let (momentum, weight_decay) =
                    (self.momentum.unwrap_or(0.0), self.weight_decay.unwrap_or(0.0));
                Ok(Optimizer::Sgd { momentum, weight_decay })
            }
            OptimizerKind::Adafactor => {
                refuse(adamw.into_iter().chain(sgd).chain(decay), "--optimizer adafactor")?;
                Ok(Optimizer::Adafactor)
            }
        }
    }
}

/// Refuses options that the chosen way would ignore.
fn refuse(options: impl IntoIterator<Item = (&'static str, bool)>, with: &str) -> anyhow::Result<()> {
    match options.into_iter().find(|(_, set)| *set) {
        Some((option, _)) => Err(Usage(format!("{option} makes no sense with {with}")).into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use inference::train::Method;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn parse(line: &[&str]) -> anyhow::Result<TrainOptions> {
        let line = ["train", "--data=d", "--output=o"].into_iter().chain(line.iter().copied());
        Line::try_parse_from(line)?.args.options(CancellationToken::new())
    }

    #[test]
    fn nothing_typed_is_the_librarys_defaults() {
        // Nobody else uses the model.
        let (typed, default) = (parse(&[]).unwrap(), TrainOptions::new("o").close_model(true));
        assert_eq!(format!("{typed:?}"), format!("{default:?}"));
    }

    #[test]
    fn alpha_is_the_scale_times_the_rank() {
        let options =
            parse(&["--method=dora", "--rank=4", "--alpha=8", "--keys=self_attn.q_proj,mlp.up_proj"])
                .unwrap();
        let Method::Dora(adapter) = options.method else { panic!("{options:?}") };
        assert_eq!((adapter.rank, adapter.scale), (4, 2.0));
        assert_eq!(adapter.keys.unwrap(), ["self_attn.q_proj", "mlp.up_proj"]);
    }

    #[test]
    fn options_of_another_way_are_refused() {
        for line in [
            ["--method=full", "--rank=4"],
            ["--method=full", "--embeddings"],
            ["--method=dora", "--mixed-precision"],
            ["--optimizer=sgd", "--betas=0.9,0.9"],
            ["--optimizer=adafactor", "--weight-decay=0.1"],
            ["--optimizer=adamw", "--momentum=0.1"],
            ["--betas=0.9", "--seed=1"],
            ["--steps=1", "--epochs=1"],
            ["--alpha=1", "--scale=1"],
            ["--max-batch=2", "--seed=1"],
            ["--kv-bits=4", "--seed=1"],
        ] {
            assert!(parse(&line).is_err(), "{line:?}");
        }
    }
}
