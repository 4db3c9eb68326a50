//! The special tokens that a tokenizer puts around a text, or around two.

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
    /// What stands around two texts, where the tokenizer joins two.
    pub(super) pair: Option<PairTemplate>,
}

/// Two texts and the special tokens around them, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PairTemplate(Vec<PairPiece>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum PairPiece {
    First { token_type: u32 },
    Second { token_type: u32 },
    Special { ids: Vec<u32>, token_type: u32 },
}

/// Two texts as one: its ids, and which of the two, or what else, each belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct EncodedPair {
    /// The ids.
    pub ids: Vec<u32>,
    /// The type of each id: mostly 0 for the first text and 1 for the second.
    pub token_types: Vec<u32>,
}

impl PairTemplate {
    /// How many special tokens there are.
    pub(super) fn added(&self) -> usize {
        let added = |piece: &PairPiece| match piece {
            PairPiece::Special { ids, .. } => ids.len(),
            PairPiece::First { .. } | PairPiece::Second { .. } => 0,
        };
        self.0.iter().map(added).sum()
    }

    /// Two texts as one.
    pub(super) fn join(&self, first: &[u32], second: &[u32]) -> EncodedPair {
        let mut pair = EncodedPair::default();
        for piece in &self.0 {
            let (ids, token_type) = match piece {
                PairPiece::First { token_type } => (first, token_type),
                PairPiece::Second { token_type } => (second, token_type),
                PairPiece::Special { ids, token_type } => (&ids[..], token_type),
            };
            pair.ids.extend(ids);
            pair.token_types.resize(pair.ids.len(), *token_type);
        }
        pair
    }

    /// That of a post-processor; `None` where it does not join two texts.
    fn of(step: &PostProcessorStep) -> Option<Self> {
        let special = |id: u32, token_type| PairPiece::Special { ids: vec![id], token_type };
        let first = PairPiece::First { token_type: 0 };
        match step {
            PostProcessorStep::ByteLevel(_) => None,
            PostProcessorStep::BertProcessing { sep, cls } => {
                let second = PairPiece::Second { token_type: 1 };
                Some(Self(vec![special(cls.1, 0), first, special(sep.1, 0), second, special(sep.1, 1)]))
            }
            PostProcessorStep::RobertaProcessing { sep, cls, .. } => {
                let (sep, second) = (special(sep.1, 0), PairPiece::Second { token_type: 0 });
                Some(Self(vec![special(cls.1, 0), first, sep.clone(), sep.clone(), second, sep]))
            }
            PostProcessorStep::TemplateProcessing { pair, special_tokens, .. } => {
                let piece = |piece: &TemplatePiece| match piece {
                    TemplatePiece::Sequence { id: SequenceId::A, type_id } => {
                        Some(PairPiece::First { token_type: *type_id })
                    }
                    TemplatePiece::Sequence { id: SequenceId::B, type_id } => {
                        Some(PairPiece::Second { token_type: *type_id })
                    }
                    TemplatePiece::SpecialToken { id, type_id } => {
                        let ids = special_tokens.get(id)?.ids.clone();
                        Some(PairPiece::Special { ids, token_type: *type_id })
                    }
                };
                let template = Self(pair.iter().map(piece).collect::<Option<_>>()?);
                let count =
                    |wanted: fn(&PairPiece) -> bool| template.0.iter().filter(|piece| wanted(piece)).count();
                let whole = count(|piece| matches!(piece, PairPiece::First { .. })) == 1
                    && count(|piece| matches!(piece, PairPiece::Second { .. })) == 1
                    && template.added() <= MAX_TEMPLATE_TOKENS;
                whole.then_some(template)
            }
        }
    }
}

impl TextTemplate {
    /// What all steps together put around a text.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: a step repeats or drops the text, names a token that it does not define, or adds too many.
    pub(super) fn new(path: &Path, steps: Vec<PostProcessorStep>) -> Result<Self> {
        let mut template = Self::default();
        // Several steps around two texts would be one around another.
        let mut joins = steps.iter().filter(|step| !matches!(step, PostProcessorStep::ByteLevel(_)));
        template.pair = match (joins.next(), joins.next()) {
            (Some(step), None) => PairTemplate::of(step),
            _ => None,
        };
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
