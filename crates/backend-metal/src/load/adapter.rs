//! Adapters from the folders that mlx_lm and our own training write.

use std::rc::Rc;

use inference_core::{
    Error, ModelManifest, Result,
    backend::{AdaptedLayer, AdapterManifest, TensorInfo},
    train::Method,
};

use super::check_free_memory;
use crate::{
    mlx::{Tensors, mlx_dtype},
    nn::{Adapter, AdapterSlot, Architecture, Param, SlotKind},
};

/// The model with the weights of a full training in place of its own; with other adapters, as it is.
///
/// # Errors
/// [`Error::InvalidModel`] names a tensor that the model has not.
pub(crate) fn with_trained_weights(
    model: ModelManifest,
    adapter: Option<&AdapterManifest>,
) -> Result<ModelManifest> {
    match adapter {
        Some(adapter) if matches!(adapter.config().method, Method::Full(_)) => {
            model.with_tensors(adapter.file(), adapter.tensors())
        }
        _ => Ok(model),
    }
}

/// Gives a loaded model low-rank adapters, for good.
///
/// # Errors
/// [`Error::InvalidModel`] names the layer that the model has not, or has in another shape.
pub(crate) fn attach(model: &dyn Architecture, adapter: &AdapterManifest) -> Result<()> {
    let (Method::Lora(options) | Method::Dora(options)) = &adapter.config().method else { return Ok(()) };
    let path = adapter.file();
    let slots = model.registry().slots();
    // All are checked before any is applied.
    let found = adapter.layers().iter().map(|layer| {
        let slot = slots.iter().find(|slot| slot.name() == layer.path).ok_or_else(|| {
            let reason = "the model has no such layer that could have an adapter";
            Error::invalid_key(&path, &layer.path, reason)
        })?;
        check(slot, layer, options.rank)
            .and_then(|()| match (&adapter.config().method, slot.kind()) {
                (Method::Dora(_), SlotKind::Embedding) => {
                    Err("is an embedding, which DoRA does not adapt here".to_owned())
                }
                _ => Ok(()),
            })
            .map_err(|reason| Error::invalid_key(&path, &layer.path, reason))?;
        Ok(slot)
    });
    let found = found.collect::<Result<Vec<_>>>()?;
    check_size(adapter)?;
    let tensors = Tensors::open(&path)?;
    for slot in found {
        let param = |part: &str| {
            let name = format!("{}.{part}", slot.name());
            let Some(info) = adapter.tensors().get(&name) else { return Ok(None) };
            let array = tensors.read(info, mlx_dtype(info.dtype).unwrap_or(mlx_rs::Dtype::Float32))?;
            Ok(Some(Param::new(name, Some(array))))
        };
        let (Some(a), Some(b)) = (param("lora_a")?, param("lora_b")?) else { continue };
        slot.set(Some(Rc::new(Adapter {
            a,
            b,
            magnitude: param("m")?,
            scale: options.scale,
            dropout: None.into(),
            norms: Some(None.into()),
        })));
    }
    Ok(())
}

/// Refuses an adapter that does not fit into memory.
///
/// # Errors
/// [`Error::OutOfMemory`]
pub(super) fn check_size(adapter: &AdapterManifest) -> Result<()> {
    let bytes = adapter.tensors().values().map(TensorInfo::bytes).fold(0, u64::saturating_add);
    check_free_memory(bytes, || format!("the adapter {}", adapter.file().display()))
}

fn check(slot: &AdapterSlot, layer: &AdaptedLayer, rank: usize) -> std::result::Result<(), String> {
    let found = match layer.experts {
        None => [vec![layer.inputs, rank], vec![rank, layer.outputs]],
        Some(n) => [vec![n, rank, layer.inputs], vec![n, layer.outputs, rank]],
    };
    let needed = slot.shapes(rank);
    if found == needed {
        return Ok(());
    }
    let ([a, b], [needed_a, needed_b]) = (found, needed);
    Err(format!("has lora_a {a:?} and lora_b {b:?}, the layer needs {needed_a:?} and {needed_b:?}"))
}
