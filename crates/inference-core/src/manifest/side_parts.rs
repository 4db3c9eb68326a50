//! Parts of a checkpoint beside the language model.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ModelManifest;

/// A part of a checkpoint that generating text from text does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum SidePart {
    /// What sees images.
    Vision,
    /// What hears.
    Audio,
    /// What predicts tokens after the next one.
    MultiTokenPrediction,
}

impl SidePart {
    const ALL: [Self; 3] = [Self::Vision, Self::Audio, Self::MultiTokenPrediction];

    /// Whether a tensor of this name belongs to the part.
    #[must_use]
    pub fn holds(self, tensor: &str) -> bool {
        let name = tensor.strip_prefix("model.").unwrap_or(tensor);
        let name = name.strip_prefix("language_model.").unwrap_or(name);
        let prefixes: &[&str] = match self {
            Self::Vision => &[
                "vision_tower.",
                "vision_model.",
                "visual.",
                "multi_modal_projector.",
                "embed_vision.",
                "vision_embedder.",
            ],
            Self::Audio => &["audio_tower.", "embed_audio."],
            Self::MultiTokenPrediction => &["mtp."],
        };
        prefixes.iter().any(|prefix| name.starts_with(prefix))
    }

    /// Its name in messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Vision => "vision",
            Self::Audio => "audio",
            Self::MultiTokenPrediction => "multi-token prediction",
        }
    }
}

impl ModelManifest {
    /// The parts beside the language model that the files hold, and their bytes.
    #[must_use]
    pub fn side_parts(&self) -> BTreeMap<SidePart, u64> {
        let mut parts = BTreeMap::new();
        for (name, tensor) in &self.tensors {
            if let Some(part) = SidePart::ALL.into_iter().find(|part| part.holds(name)) {
                *parts.entry(part).or_default() += tensor.bytes();
            }
        }
        parts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_told_by_the_beginning_of_names() {
        for name in ["model.visual.blocks.0.attn.qkv.weight", "vision_tower.x", "model.vision_tower.x"] {
            assert!(SidePart::Vision.holds(name), "{name}");
        }
        assert!(SidePart::MultiTokenPrediction.holds("mtp.fc.weight"));
        assert!(SidePart::MultiTokenPrediction.holds("language_model.mtp.fc.weight"));
        assert!(
            !SidePart::ALL.iter().any(|part| part.holds("model.language_model.layers.0.mlp.up_proj.weight"))
        );
    }
}
