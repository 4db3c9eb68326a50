//! What the configs of all families have in common, checked once.

use inference_core::{Error, ModelManifest, Result};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::{Map, Value, json};

use crate::nn::{Dimensions, QueryScale, Weights};

/// Which positions the layers attend to, by their names in config.json. Families with layers of other kinds name their own types.
#[derive(Debug, Clone, Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
pub(crate) struct Layers<T = LayerType> {
    #[serde(default, deserialize_with = "layer_types")]
    layer_types: Option<Vec<T>>,
    #[serde(default, deserialize_with = "sliding_window")]
    sliding_window: Option<usize>,
}

// A flattened field's error does not tell its name.

fn layer_types<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Option::deserialize(deserializer).map_err(|error| D::Error::custom(format_args!("layer_types: {error}")))
}

fn sliding_window<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<usize>, D::Error> {
    Option::deserialize(deserializer)
        .map_err(|error| D::Error::custom(format_args!("sliding_window: {error}")))
}

/// What one layer attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LayerType {
    /// All positions before.
    FullAttention,
    /// The positions of a window.
    SlidingAttention,
}

impl<T: Copy> Layers<T> {
    /// The type of each layer: as config.json lists them, or by the family's rule.
    ///
    /// # Errors
    /// [`Error::InvalidModel`]: the list is not as long as there are layers; the window is zero.
    pub(crate) fn types(
        self,
        manifest: &ModelManifest,
        dims: &Dimensions,
        rule: impl Fn(usize) -> T,
    ) -> Result<impl Iterator<Item = T>> {
        let invalid =
            |key: &str, reason: String| Err(Error::invalid_key(manifest.config_path(), key, reason));
        if let Some(types) = &self.layer_types
            && types.len() != dims.num_hidden_layers
        {
            return invalid(
                "layer_types",
                format!("{} entries for {} layers", types.len(), dims.num_hidden_layers),
            );
        }
        if self.sliding_window == Some(0) {
            return invalid("sliding_window", "0, expected a positive number".to_owned());
        }
        Ok((0..dims.num_hidden_layers)
            .map(move |i| self.layer_types.as_ref().map_or_else(|| rule(i), |types| types[i])))
    }
}

impl Layers {
    /// The window of a layer of this type, where it is a limit.
    pub(crate) fn window(&self, layer_type: LayerType) -> Option<usize> {
        // A window that no text fills is none.
        self.sliding_window
            .filter(|window| layer_type == LayerType::SlidingAttention && *window < i32::MAX as usize)
    }
}

/// A family's view of config.json.
#[derive(Debug)]
pub(crate) struct Config<T> {
    /// The sizes, checked.
    pub(crate) dims: Dimensions,
    /// The family's own fields.
    pub(crate) own: T,
    /// The object that both came from, with the family's defaults.
    pub(crate) value: Value,
}

impl<T: DeserializeOwned> Config<T> {
    /// Reads `section` of config.json, or all of it, over the family's `defaults`: what its publishers leave out.
    ///
    /// # Errors
    /// [`Error::InvalidModel`] names the field that is missing, has another type or makes no sense.
    pub(crate) fn read(manifest: &ModelManifest, section: Option<&str>, defaults: Value) -> Result<Self> {
        Self::read_renamed(manifest, section, defaults, &[])
    }

    /// The same of a family that calls fields otherwise: `renamed` has its names, and those that they have here.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn read_renamed(
        manifest: &ModelManifest,
        section: Option<&str>,
        defaults: Value,
        renamed: &[(&str, &str)],
    ) -> Result<Self> {
        Self::read_edited(manifest, section, defaults, renamed, |_| Ok(()))
    }

    /// The same, with what `edit` makes of the merged object.
    ///
    /// # Errors
    /// As [`read`](Self::read), and those of `edit`.
    pub(crate) fn read_edited(
        manifest: &ModelManifest,
        section: Option<&str>,
        defaults: Value,
        renamed: &[(&str, &str)],
        edit: impl FnOnce(&mut Map<String, Value>) -> Result<()>,
    ) -> Result<Self> {
        let path = manifest.config_path();
        let given = match section {
            None => manifest.config(),
            Some(name) => {
                manifest.config().get(name).ok_or_else(|| Error::invalid_key(&path, name, "is missing"))?
            }
        };
        let (Value::Object(given), Value::Object(mut merged)) = (given, defaults) else {
            return Err(Error::invalid_file(&path, "is no object"));
        };
        let plain = given.iter().map(|(key, value)| (key.as_str(), value));
        // What the family calls otherwise is meant where both are there.
        let renamed = renamed.iter().filter_map(|(own, name)| Some((*name, given.get(*own)?)));
        for (key, value) in plain.chain(renamed) {
            // `null` says that there is none, whatever the default.
            match value {
                Value::Null => drop(merged.remove(key)),
                value => drop(merged.insert(key.to_owned(), value.clone())),
            }
        }
        if merged.contains_key("hidden_activation") {
            merged.remove("hidden_act");
        }
        edit(&mut merged)?;
        let value = Value::Object(merged);
        let dims: Dimensions = parse(manifest, section, &value)?;
        let own = parse(manifest, section, &value)?;
        dims.check(manifest)?;
        Ok(Self { dims, own, value })
    }
}

/// What `section` of config.json says, as a type.
///
/// # Errors
/// [`Error::InvalidModel`] names the field.
pub(crate) fn parse<T: DeserializeOwned>(
    manifest: &ModelManifest,
    section: Option<&str>,
    value: &Value,
) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|error: serde_path_to_error::Error<serde_json::Error>| {
        let field = error.path().to_string();
        let key = section.into_iter().chain((field != ".").then_some(&*field)).collect::<Vec<_>>().join(".");
        let (path, reason) = (manifest.config_path(), error.into_inner().to_string());
        if key.is_empty() { Error::invalid_file(path, reason) } else { Error::invalid_key(path, key, reason) }
    })
}

/// The section of config.json that describes the language tower of a multimodal model, where there is one.
pub(crate) fn text_section(manifest: &ModelManifest) -> Option<&'static str> {
    manifest.config().get("text_config").map(|_| "text_config")
}

/// Where a checkpoint has the output layer and the rest of its language tower.
pub(crate) fn tower<'a>(weights: &Weights<'a>) -> [Weights<'a>; 2] {
    if weights.has_any("language_model") {
        [weights.at("language_model"), weights.at("language_model.model")]
    } else if weights.has_any("model.language_model") {
        [weights.at("model"), weights.at("model.language_model")]
    } else if weights.has_any("model") {
        [weights.at(""), weights.at("model")]
    } else {
        // A model that was saved without its output layer.
        [weights.at(""), weights.at("")]
    }
}

/// Experts for each token, once it is sure that there are as many.
///
/// # Errors
/// [`Error::InvalidModel`] names both numbers.
pub(crate) fn top_k(manifest: &ModelManifest, top_k: usize, experts: usize) -> Result<usize> {
    if top_k == 0 || top_k > experts {
        let reason = format!("{top_k} of {experts} experts, expected from 1 to all");
        return Err(Error::invalid_key(manifest.config_path(), "num_experts_per_tok", reason));
    }
    Ok(top_k)
}

/// A factor of config.json that must be a positive number.
///
/// # Errors
/// [`Error::InvalidModel`] names it.
pub(crate) fn positive(manifest: &ModelManifest, key: &str, value: f32) -> Result<f32> {
    if value.is_finite() && value > 0.0 {
        return Ok(value);
    }
    Err(Error::invalid_key(manifest.config_path(), key, format!("{value}, expected a positive number")))
}

/// The settings of rope for layers that see all and for those with a window, whichever style the config has: the key and the default
/// of their bases. `rope_scaling` is meant for the layers that see all.
pub(crate) fn rope_by_type(config: &Value, [full, sliding]: [(&str, f64); 2]) -> Value {
    let section = |name: &str, (theta, default): (&str, f64), scaling: Option<&Map<String, Value>>| {
        let given = config.pointer(&format!("/rope_parameters/{name}")).and_then(Value::as_object);
        let mut settings = given.cloned().unwrap_or_default();
        settings.extend(scaling.into_iter().flatten().map(|(key, value)| (key.clone(), value.clone())));
        settings.entry("rope_theta").or_insert_with(|| config.get(theta).cloned().unwrap_or(json!(default)));
        settings
    };
    let scaling = config.get("rope_scaling").and_then(Value::as_object);
    json!({"rope_parameters": {
        "full_attention": section("full_attention", full, scaling),
        "sliding_attention": section("sliding_attention", sliding, None),
    }})
}

/// How queries are scaled by their positions, where the config says so.
///
/// # Errors
/// [`Error::InvalidModel`] names the setting that makes no sense.
pub(crate) fn query_scale(weights: &Weights<'_>, config: &Value) -> Result<Option<QueryScale>> {
    let Some(settings) = config.get("rope_parameters") else { return Ok(None) };
    let Some(beta) = settings.get("llama_4_scaling_beta").filter(|beta| !beta.is_null()) else {
        return Ok(None);
    };
    let original = settings.get("original_max_position_embeddings").and_then(Value::as_u64);
    let original =
        original.and_then(|original| i32::try_from(original).ok()).filter(|original| *original > 0);
    match (beta.as_f64().filter(|beta| beta.is_finite()), original) {
        (Some(beta), Some(original)) => {
            Ok(Some(QueryScale { beta: beta as f32, original: original as usize, shift: 0 }))
        }
        _ => {
            let reason = "needs a number, and original_max_position_embeddings";
            let key = "rope_parameters.llama_4_scaling_beta";
            Err(Error::invalid_key(weights.manifest().config_path(), key, reason))
        }
    }
}
