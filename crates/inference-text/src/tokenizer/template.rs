//! The special tokens that a tokenizer puts around a text.

use std::path::Path;

use inference_core::{Error, Result};

use super::{
    file::{PostProcessorStep, SequenceId, TemplatePiece},
    limits::MAX_TEMPLATE_TOKENS,
};

/// Ids before and behind a text.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct TextTemplate {
    pub(super) before: Vec<u32>,
    pub(super) behind: Vec<u32>,
}

impl TextTemplate {
    /// What all steps together put around a text.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: a step repeats or drops the text, names a token that it does not define, or adds too many.
    pub(super) fn new(path: &Path, steps: Vec<PostProcessorStep>) -> Result<Self> {
        let mut template = Self::default();
        for step in steps {
            let (before, behind) = around(path, step)?;
            template.before.splice(0..0, before);
            template.behind.extend(behind);
            let added = template.before.len() + template.behind.len();
            if added > MAX_TEMPLATE_TOKENS {
                let reason =
                    format!("adds {added} special tokens to a text, expected at most {MAX_TEMPLATE_TOKENS}");
                return Err(Error::invalid_key(path, "post_processor", reason));
            }
        }
        Ok(template)
    }
}

fn around(path: &Path, step: PostProcessorStep) -> Result<(Vec<u32>, Vec<u32>)> {
    let (single, special_tokens) = match step {
        PostProcessorStep::ByteLevel(_) => return Ok(Default::default()),
        PostProcessorStep::BertProcessing { sep, cls } => return Ok((vec![cls.1], vec![sep.1])),
        PostProcessorStep::RobertaProcessing { sep, cls, .. } => return Ok((vec![cls.1], vec![sep.1])),
        PostProcessorStep::TemplateProcessing { single, special_tokens, .. } => (single, special_tokens),
    };
    let invalid = |reason: String| Error::invalid_key(path, "post_processor.single", reason);
    let texts = single.iter().filter(|piece| matches!(piece, TemplatePiece::Sequence { .. })).count();
    if texts != 1 {
        return Err(invalid(format!("repeats the text {texts} times, expected once")));
    }
    let (mut before, mut behind, mut text_seen) = (Vec::new(), Vec::new(), false);
    for piece in single {
        match piece {
            TemplatePiece::Sequence { id: SequenceId::A, .. } => text_seen = true,
            TemplatePiece::Sequence { id: SequenceId::B, .. } => {
                return Err(invalid("takes the text \"B\", expected \"A\"".to_owned()));
            }
            TemplatePiece::SpecialToken { id, .. } => {
                let Some(token) = special_tokens.get(&id) else {
                    return Err(invalid(format!("has {id:?}, which special_tokens does not define")));
                };
                let ids = if text_seen { &mut behind } else { &mut before };
                ids.extend(&token.ids);
                if ids.len() > MAX_TEMPLATE_TOKENS {
                    return Err(invalid(format!(
                        "adds more than {MAX_TEMPLATE_TOKENS} special tokens to a text"
                    )));
                }
            }
        }
    }
    Ok((before, behind))
}
