use mlx_rs::{Device, random};

use super::*;
use crate::mlx::QuantizationMode;

/// Keys that say which position they are of; values that are their negatives.
fn tokens(positions: Range<usize>) -> [Array; 2] {
    let numbers: Vec<f32> = positions.clone().map(|position| position as f32).collect();
    let keys = Array::from_slice(&numbers, &[1, 1, positions.len() as i32, 1]);
    let values = keys.negative().unwrap();
    [keys, values]
}

/// The positions that a layer shows to the tokens of each step.
fn seen(window: Option<usize>, steps: &[usize]) -> Vec<Vec<usize>> {
    Device::set_default(&Device::cpu());
    let mut cache = KvCache::new([window]);
    let mut at = 0;
    let mut shown = Vec::new();
    for step in steps {
        let [keys, values] = tokens(at..at + step);
        let [keys, values] = cache.update(0, [&keys, &values], *step).unwrap();
        cache.advance(*step);
        assert!(values.eq_values(keys.negative().unwrap()).unwrap());
        let keys = keys.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
        shown.push(keys.into_iter().map(|key| key as usize).collect());
        at += step;
    }
    shown
}

#[test]
fn without_a_window_everything_is_seen_in_order() {
    let shown = seen(None, &[3, 1, 300, 1]);
    assert_eq!(shown[1], (0..4).collect::<Vec<_>>());
    assert_eq!(shown[3], (0..305).collect::<Vec<_>>());
}

#[test]
fn single_tokens_go_round_a_window() {
    let shown = seen(Some(4), &[1; 11]);
    for (position, mut shown) in shown.into_iter().enumerate() {
        shown.sort_unstable();
        assert_eq!(shown, (position.saturating_sub(3)..=position).collect::<Vec<_>>());
    }
}

#[test]
fn chunks_see_the_window_before_them_in_order() {
    for steps in [vec![3, 3, 3, 3], vec![9, 2, 7], vec![1, 1, 5, 1, 4, 1], vec![4, 4, 1, 3], vec![2, 300, 5]]
    {
        let shown = seen(Some(4), &steps);
        let mut at = 0_usize;
        for (step, mut shown) in steps.iter().zip(shown) {
            let first = at.saturating_sub(3);
            if *step == 1 {
                shown.sort_unstable();
            }
            let expected: Vec<_> = (first..at + step).collect();
            assert_eq!(
                shown[shown.len() - expected.len().min(shown.len())..],
                expected[..],
                "{steps:?} at {at}"
            );
            at += step;
        }
    }
}

/// Padding behind a row's tokens leaves what the tokens alone leave, in a window, around it and without one.
#[test]
fn padding_is_not_kept() {
    Device::set_default(&Device::cpu());
    let empty = || {
        let windowed = KvCache::new([Some(4)]);
        [KvCache::new([None]), windowed, KvCache::new([None]).rotating(Rotation { keep: 2, size: 6 })]
    };
    for steps in [vec![3, 3, 3, 3], vec![9, 2, 7], vec![1, 1, 5, 1, 4, 1], vec![2, 2, 1, 1], vec![5, 300, 5]]
    {
        for (mut alone, mut padded) in empty().into_iter().zip(empty()) {
            let mut at = 0;
            for step in &steps {
                let [keys, values] = tokens(at..at + step);
                alone.update(0, [&keys, &values], *step).unwrap();
                let [keys, values] = tokens(at..at + step + 3);
                padded.update(0, [&keys, &values], *step).unwrap();
                [&mut alone, &mut padded].into_iter().for_each(|cache| cache.advance(*step));
                at += step;
                let [alone, padded] = [&alone, &padded].map(|cache| cache.export().unwrap().concat());
                for (alone, padded) in alone.iter().zip(&padded) {
                    assert!(
                        alone.eq_values(padded).unwrap(),
                        "{steps:?}, {at} tokens: {alone:?}, {padded:?}"
                    );
                }
            }
        }
    }
}

/// Each token of every chunk sees the kept positions and the last ones, as it does where it comes alone.
#[test]
fn a_rotating_cache_keeps_the_beginning() {
    Device::set_default(&Device::cpu());
    for steps in
        [vec![1; 15], vec![3, 3, 3, 3], vec![9, 2, 7, 1, 1], vec![1, 1, 5, 1, 4, 1], vec![2, 30, 5, 1]]
    {
        let mut cache = KvCache::new([None]).rotating(Rotation { keep: 2, size: 6 });
        let mut at = 0_usize;
        for step in steps {
            let [keys, values] = tokens(at..at + step);
            let sink_mask = cache.sink_mask(0, step);
            let [keys, _] = cache.update(0, [&keys, &values], step).unwrap();
            cache.advance(step);
            let keys = keys.contiguous().unwrap().to_vec_exact::<f32>().unwrap();
            let keys: Vec<usize> = keys.into_iter().map(|key| key as usize).collect();
            let visible = sink_mask.map(|sink_mask| {
                assert_eq!(sink_mask.seen, keys);
                sink_mask.mask(step).to_vec_exact::<bool>().unwrap()
            });
            for (row, query) in (at..at + step).enumerate() {
                let sees = |(column, key): (usize, &usize)| match &visible {
                    Some(mask) => mask[row * keys.len() + column],
                    None => *key <= query,
                };
                let mut seen: Vec<_> =
                    keys.iter().enumerate().filter(|(c, k)| sees((*c, k))).map(|(_, k)| *k).collect();
                seen.sort_unstable();
                let expected: Vec<_> = (0..=query).filter(|key| *key < 2 || key + 4 > query).collect();
                assert_eq!(seen, expected, "{query}, of {step} from {at}");
            }
            at += step;
        }
    }
}

#[test]
fn a_text_can_be_cut_short_until_a_window_has_let_go_of_it() {
    Device::set_default(&Device::cpu());
    let mut cache = KvCache::new([None, Some(4)]);
    for position in 0..4 {
        let [keys, values] = tokens(position..position + 1);
        for layer in 0..2 {
            cache.update(layer, [&keys, &values], 1).unwrap();
        }
        cache.advance(1);
    }
    assert!(cache.can_rewind_to(2) && !cache.can_rewind_to(5));
    cache.rewind(2);
    assert_eq!(cache.len(), 2);
    cache.advance(3);
    assert!(cache.can_rewind_to(5) && !cache.can_rewind_to(2));
    // Room for 256 positions and for 4, of one float each.
    assert_eq!(cache.bytes(), 2 * (256 + 4) * 4);
}

#[test]
fn quantised_ones_are_as_near_as_their_bits_and_as_small() {
    Device::set_default(&Device::cpu());
    for (bits, share) in [(8, (64 + 4) as f64 / 128.0), (4, (32 + 4) as f64 / 128.0)] {
        let scheme = QuantizationScheme { mode: QuantizationMode::Affine, bits, group_size: 64 };
        // All in order, in a window that is filled, wrapped by chunks and gone round one by one.
        for window in [None, Some(20)] {
            let mut plain = KvCache::new([window]);
            let mut quantised = KvCache::new([window]).quantized(Some(scheme));
            for tokens in [7, 1, 30, 1, 1] {
                let [keys, values] = [0, 1].map(|part| {
                    let key = random::key(plain.len() as u64 * 2 + part).unwrap();
                    let new = random::uniform::<f32, f32>(-1.0, 1.0, &[1, 2, tokens, 64], &key).unwrap();
                    new.as_dtype(Dtype::Float16).unwrap()
                });
                let exact = plain.update(0, [&keys, &values], tokens as usize).unwrap();
                let near = quantised.update(0, [&keys, &values], tokens as usize).unwrap();
                for (exact, near) in exact.iter().zip(&near) {
                    let off = exact.subtract(near).unwrap().abs().unwrap().max(false).unwrap();
                    let off = off.as_dtype(Dtype::Float32).unwrap().item_exact::<f32>();
                    // Half of a step of a group from -1 to 1, and a step for the scale's and the bias's roundings.
                    let step = 2.0 / ((1 << bits) - 1) as f32;
                    assert!(off > 0.0 && off <= 1.5 * step, "{bits} bits: {off}, a step is {step}");
                }
                plain.advance(tokens as usize);
                quantised.advance(tokens as usize);
            }
            let found = quantised.bytes() as f64 / plain.bytes() as f64;
            assert!((found - share).abs() < 1e-9, "{bits} bits: {found} of the bytes, expected {share}");
            assert_ne!(quantised.format_id(), plain.format_id());
        }
    }
}
