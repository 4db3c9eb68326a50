//! Tokens that were chosen on the device and not yet read.

use std::rc::Rc;

use inference_core::{Alternative, Token};
use mlx_rs::{Array, error::Result};

use super::sampler::{Choice, LogprobArrays};
use crate::{
    mlx::{exception, slice},
    nn::Pending,
};

/// A token that was chosen on the device and not yet read.
#[derive(Debug)]
pub(super) enum InFlight {
    /// In MLX's graph.
    Mlx(MlxChoice),
    /// In a step of the CUDA kernels, and the row's place in it.
    Cuda(Rc<Pending>, usize),
}

/// A choice in MLX's graph.
#[derive(Debug)]
pub(super) struct MlxChoice {
    /// [n], u32: the choices of the step, which its rows share.
    ids: Rc<Array>,
    /// [n], f32: finite where the logits that the choices were made from are.
    scores: Rc<Array>,
    /// The row's place in them.
    index: usize,
    logprobs: Option<LogprobArrays>,
    /// The id, where the logits had no say.
    forced: Option<u32>,
}

impl InFlight {
    /// One of the choices that rows made together.
    pub(super) fn shared(ids: &Rc<Array>, scores: &Rc<Array>, index: usize) -> Self {
        Self::Mlx(MlxChoice { ids: ids.clone(), scores: scores.clone(), index, logprobs: None, forced: None })
    }

    /// A row's own choice, and its id where the logits had no say.
    pub(super) fn own(choice: Choice, forced: Option<u32>) -> Self {
        let Choice { ids, scores, logprobs } = choice;
        Self::Mlx(MlxChoice { ids: Rc::new(ids), scores: Rc::new(scores), index: 0, logprobs, forced })
    }

    /// Whether a step of the CUDA kernels chose it.
    pub(super) fn is_cuda(&self) -> bool {
        matches!(self, Self::Cuda(..))
    }

    /// All that MLX has to compute.
    pub(super) fn arrays(&self) -> impl Iterator<Item = &Array> {
        let choice = match self {
            Self::Mlx(choice) => Some(choice),
            Self::Cuda(..) => None,
        };
        choice.into_iter().flat_map(|choice| {
            let logprobs = choice.logprobs.iter().flat_map(LogprobArrays::arrays);
            [&*choice.ids, &*choice.scores].into_iter().chain(logprobs)
        })
    }

    /// The id, where the logits had no say.
    pub(super) fn forced(&self) -> Option<u32> {
        match self {
            Self::Mlx(choice) => choice.forced,
            Self::Cuda(..) => None,
        }
    }

    /// The ids of the step that it is part of, and its place in them.
    pub(super) fn step(&self) -> Option<(&Rc<Array>, usize)> {
        match self {
            Self::Mlx(choice) => Some((&choice.ids, choice.index)),
            Self::Cuda(..) => None,
        }
    }

    /// The id, which may still be on the device: [1], u32.
    pub(super) fn id(&self) -> Result<Array> {
        match self {
            Self::Mlx(MlxChoice { ids, .. }) if ids.dim(0) == 1 => Ok((**ids).clone()),
            Self::Mlx(MlxChoice { ids, index, .. }) => slice(ids, 0, *index as i32, *index as i32 + 1),
            Self::Cuda(..) => Ok(Array::from_slice(&[self.read()?.token.id], &[1])),
        }
    }

    /// Waits until what writes beside MLX is done.
    pub(super) fn wait(&self) -> Result<()> {
        match self {
            Self::Mlx(_) => Ok(()),
            Self::Cuda(pending, _) => pending.wait().map_err(exception),
        }
    }

    /// Waits for the device.
    pub(super) fn read(&self) -> Result<ChosenToken> {
        let choice = match self {
            Self::Mlx(choice) => choice,
            Self::Cuda(pending, row) => {
                let chosen = pending.token(*row).map_err(exception)?;
                let token = Token::new(chosen.unwrap_or_default(), "");
                return Ok(ChosenToken { token, is_finite: chosen.is_some() });
            }
        };
        let id = choice.ids.try_as_slice::<u32>().map_err(exception)?[choice.index];
        let score = choice.scores.try_as_slice::<f32>().map_err(exception)?[choice.index];
        let mut token = Token::new(id, "");
        if let Some(logprobs) = &choice.logprobs {
            read_logprobs(logprobs, &mut token)?;
        }
        Ok(ChosenToken { token, is_finite: score.is_finite() })
    }
}

/// A choice that was read.
#[derive(Debug)]
pub(super) struct ChosenToken {
    pub(super) token: Token,
    /// Whether the logits were numbers.
    pub(super) is_finite: bool,
}

fn read_logprobs(logprobs: &LogprobArrays, token: &mut Token) -> Result<()> {
    token.log_probability = Some(logprobs.chosen.try_item_exact::<f32>().map_err(exception)?);
    if let Some((ids, values)) = &logprobs.top {
        let ids = ids.to_vec_exact::<u32>().map_err(exception)?;
        let values = values.to_vec_exact::<f32>().map_err(exception)?;
        let top = ids.into_iter().zip(values);
        token.top = top.map(|(id, log_probability)| Alternative::new(id, log_probability)).collect();
    }
    Ok(())
}
