//! One token for each row of a batch: the forward pass, and the choice from the logits.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    rc::Rc,
};

use mlx_rs::{Array, error::Result, ops, transforms};

use super::{
    in_flight::InFlight,
    row::Row,
    sampler::{draw_from, greedy},
};
use crate::{
    mlx::slice,
    nn::{Architecture, KvCache, Rows, ban},
};

/// Submits the next token of every row, without waiting for it.
pub(super) fn decode_batch(model: &dyn Architecture, rows: &mut [Row]) -> Result<()> {
    // Those whose keys and values can share buffers are computed together.
    rows.sort_by_key(|row| (row.cache.capacity_bucket(1), row.cache.rotation()));
    let count = rows.len() as i32;
    let tokens = inputs(rows)?.reshape(&[count, 1])?;
    let mut caches: Vec<&mut KvCache> = rows.iter_mut().map(|row| &mut row.cache).collect();
    let hidden = model.hidden(&tokens, Rows::cached(&mut caches))?;
    let mut rows: Vec<&mut Row> = rows.iter_mut().collect();
    choose(&mut rows, &model.logits(&hidden)?.reshape(&[count, -1])?)
}

/// Submits a token for every row, chosen from its logits `[rows, V]`.
pub(super) fn choose(rows: &mut [&mut Row], logits: &Array) -> Result<()> {
    let logits = &masked(rows, logits)?;
    let choices = if rows.iter().all(|row| row.is_greedy()) {
        let choice = greedy(logits)?;
        let (ids, scores) = (Rc::new(choice.ids), Rc::new(choice.scores));
        (0..rows.len()).map(|index| InFlight::shared(&ids, &scores, index)).collect()
    } else {
        choose_each(rows, logits)?
    };
    submit(&choices)?;
    for (row, choice) in rows.iter_mut().zip(choices) {
        row.in_flight.push_back(choice);
        row.constraints.forget_mask();
    }
    Ok(())
}

/// The logits `[rows, V]` without the tokens that rows may not say: those are −∞. The masks are computed while the device computes
/// the logits.
fn masked(rows: &mut [&mut Row], logits: &Array) -> Result<Array> {
    if !rows.iter().any(|row| row.is_shaped()) {
        return Ok(logits.clone());
    }
    transforms::async_eval([logits])?;
    rows.iter_mut().try_for_each(|row| row.compute_mask())?;
    let allowed: Vec<_> = rows.iter().map(|row| row.mask().map(|mask| mask.words().to_vec())).collect();
    ban(logits, &allowed)
}

/// The choices of rows that differ: those that only draw are computed together, each other by itself.
fn choose_each(rows: &mut [&mut Row], logits: &Array) -> Result<Vec<InFlight>> {
    let drawing = rows.iter().enumerate().filter_map(|(index, row)| Some((index, row.pure_sampling()?)));
    let (indices, samplers): (Vec<usize>, Vec<_>) = drawing.unzip();
    let mut chosen = BTreeMap::new();
    if indices.len() > 1 {
        let own = if indices.len() == rows.len() {
            logits.clone()
        } else {
            let places: Vec<u32> = indices.iter().map(|index| *index as u32).collect();
            logits.take_axis(Array::from_slice(&places, &[places.len() as i32]), 0)?
        };
        let drawn = draw_from(&samplers, &own)?;
        let (scores, ids) = (Rc::new(drawn.scores), Rc::new(drawn.ids));
        for (place, index) in indices.into_iter().enumerate() {
            chosen.insert(index, InFlight::shared(&ids, &scores, place));
        }
    }
    for (index, row) in rows.iter_mut().enumerate() {
        if let Entry::Vacant(unchosen) = chosen.entry(index) {
            let own = match logits.dim(0) {
                1 => logits.clone(),
                _ => slice(logits, 0, index as i32, index as i32 + 1)?,
            };
            unchosen.insert(row.choose(&own)?);
        }
    }
    Ok(chosen.into_values().collect())
}

/// The last token of every row: [n], u32. Where the rows are those of the step before, its choices serve as they are.
fn inputs(rows: &[Row]) -> Result<Array> {
    let step = |row: &Row| row.in_flight.back().and_then(InFlight::step).map(|(ids, at)| (ids.clone(), at));
    if let Some((previous, _)) = step(&rows[0])
        && previous.dim(0) as usize == rows.len()
        && rows
            .iter()
            .enumerate()
            .all(|(index, row)| step(row).is_some_and(|(ids, at)| at == index && Rc::ptr_eq(&ids, &previous)))
    {
        return Ok((*previous).clone());
    }
    let tokens = rows.iter().map(Row::last_token).collect::<Result<Vec<_>>>()?;
    ops::concatenate(&tokens, 0)
}

/// Has the device compute choices, without waiting for them.
pub(super) fn submit<'a>(choices: impl IntoIterator<Item = &'a InFlight>) -> Result<()> {
    transforms::async_eval(choices.into_iter().flat_map(InFlight::arrays))
}
