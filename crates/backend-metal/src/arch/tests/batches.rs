//! Rows of a batch give what each gives alone: prompts around the window, forks, rewinds, imports, paused rows.

use mlx_rs::Array;
use serde_json::json;

use super::{
    fixtures::{Variant, device, tokens},
    golden::{TOLERANCE, cached, distance, rows},
};
use crate::{
    mlx::{QuantizationMode, QuantizationScheme},
    nn::{Architecture, ExecMode, KvCache, Rotation, Rows},
};

/// One of each family that has windows, with several heads of keys and values and with one.
const WINDOWED: &[&str] = &[
    "mistral-window",
    "gemma2-window",
    "gemma3_text",
    "qwen2-window",
    "qwen3-window",
    "gpt_oss",
    "mixtral-window",
];

/// A text and its cache.
#[derive(Clone)]
struct Row {
    ids: Vec<u32>,
    cache: KvCache,
}

/// What a text gives when a new cache of the same kind takes it alone.
fn alone(model: &dyn Architecture, row: &Row) -> Vec<f32> {
    cached(model, &row.ids, &mut row.cache.empty_like()).pop().unwrap()
}

/// Compares the next logits of each row with those of the row alone.
struct Check<'a> {
    model: &'a dyn Architecture,
    tolerance: f32,
    what: String,
}

impl Check<'_> {
    fn rows(&self, step: &str, rows: &[Row], logits: &[Vec<f32>]) {
        for (index, (row, logits)) in rows.iter().zip(logits).enumerate() {
            let far = distance(&alone(self.model, row), logits);
            let len = row.ids.len();
            assert!(
                far <= self.tolerance,
                "{}, {step}: row {index} of {len} tokens differs by {far}",
                self.what
            );
        }
    }

    /// One more token for each row, in one forward pass.
    fn step(&self, step: &str, rows_: &mut [Row], seed: u32) {
        let next: Vec<_> = (0..rows_.len() as u32).map(|row| token(seed + 31 * row)).collect();
        rows_.iter_mut().zip(&next).for_each(|(row, id)| row.ids.push(*id));
        let mut caches: Vec<_> = rows_.iter_mut().map(|row| &mut row.cache).collect();
        let tokens = Array::from_slice(&next, &[next.len() as i32, 1]);
        let hidden = self.model.hidden(&tokens, Rows::cached(&mut caches)).unwrap();
        let logits = rows(&self.model.logits(&hidden).unwrap());
        self.rows(step, rows_, &logits);
    }
}

fn token(seed: u32) -> u32 {
    (seed.wrapping_mul(2_654_435_761) >> 16) % 128
}

fn text(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|at| token(seed * 1009 + at)).collect()
}

/// Computes more tokens of each text in one pass, as the scheduler does; the logits behind each row's last.
fn extend_together(model: &dyn Architecture, rows_: &mut [Row], more: &[Vec<u32>]) -> Vec<Vec<f32>> {
    let lengths: Vec<usize> = more.iter().map(Vec::len).collect();
    let width = lengths.iter().copied().max().unwrap();
    let mut tokens = vec![0; rows_.len() * width];
    for (more, tokens) in more.iter().zip(tokens.chunks_exact_mut(width)) {
        tokens[..more.len()].copy_from_slice(more);
    }
    let tokens = Array::from_slice(&tokens, &[rows_.len() as i32, width as i32]);
    let mut caches: Vec<_> = rows_.iter_mut().map(|row| &mut row.cache).collect();
    let hidden =
        model.hidden(&tokens, Rows::Cached { caches: &mut caches, lengths: Some(&lengths) }).unwrap();
    let logits = rows(&model.logits(&hidden).unwrap());
    rows_.iter_mut().zip(more).for_each(|(row, more)| row.ids.extend(more));
    lengths.iter().enumerate().map(|(row, length)| logits[row * width + length - 1].clone()).collect()
}

/// Prompts of these lengths, computed side by side or each alone, and all that can happen to them then.
fn are_as_alone(check: &Check<'_>, empty: &KvCache, lengths: &[usize], together: bool) {
    let mut all: Vec<_> =
        lengths.iter().map(|_| Row { ids: Vec::new(), cache: empty.clone().empty_like() }).collect();
    let prompts: Vec<_> = (1..).zip(lengths).map(|(seed, len)| text(seed, *len)).collect();
    let logits = if together {
        extend_together(check.model, &mut all, &prompts)
    } else {
        let alone = |(row, prompt): (&mut Row, &Vec<u32>)| {
            row.ids.clone_from(prompt);
            cached(check.model, prompt, &mut row.cache).pop().unwrap()
        };
        all.iter_mut().zip(&prompts).map(alone).collect()
    };
    check.rows("prompts", &all, &logits);
    // Chunks of other lengths, behind texts of other lengths; then one row is decoded beside another's chunk, and one begins.
    for (step, lengths) in
        [("chunks", [2, 5, 3]), ("a token beside chunks", [1, 4, 7]), ("a row that begins", [3, 1, 6])]
    {
        if step == "a row that begins" {
            let last = all.len() - 1;
            all[last] = Row { ids: Vec::new(), cache: empty.empty_like() };
        }
        let more: Vec<_> =
            all.iter().zip(lengths).map(|(row, len)| text(40 + row.ids.len() as u32, len)).collect();
        let logits = extend_together(check.model, &mut all, &more);
        check.rows(step, &all, &logits);
    }
    check.step("the first token", &mut all, 1);
    check.step("the second token", &mut all, 2);
    // A fork goes another way beside the row that it was made of.
    all.push(all[0].clone());
    check.step("a fork", &mut all, 3);
    check.step("after a fork", &mut all, 4);
    // One row waits.
    let mut paused = all.remove(1);
    paused.cache.detach().unwrap();
    check.step("a row waits", &mut all, 5);
    all.insert(0, paused);
    check.step("a row goes on", &mut all, 6);
    // Rows are rewound where they can be, or as far, one of them while a fork still needs what it had.
    let forked = all[0].clone();
    for row in &mut all {
        let len = row.cache.reach(row.ids.len().saturating_sub(3));
        if len > 0 {
            row.cache.rewind(len);
            row.ids.truncate(len);
        }
    }
    all.push(forked);
    check.step("rewound", &mut all, 7);
    check.step("after a rewind", &mut all, 8);
    // A chunk is computed after the row that it was forked from has gone on.
    let mut chunked = all[0].clone();
    let ids = text(99, 5);
    chunked.ids.extend(&ids);
    let hidden = check.model.hidden(&tokens(&ids), Rows::cached(&mut [&mut chunked.cache])).unwrap();
    check.step("beside a chunk", &mut all, 20);
    check.step("beside a chunk again", &mut all, 21);
    let logits = rows(&check.model.logits(&hidden).unwrap()).pop().unwrap();
    check.rows("a chunk", &[chunked], &[logits]);
    // What was exported is views of the row that goes on.
    let exported = all[0].cache.export().unwrap();
    let mut imported = Row { ids: all[0].ids.clone(), cache: empty.empty_like() };
    imported.cache.import(exported, imported.ids.len());
    all.push(imported);
    check.step("imported", &mut all, 9);
    check.step("after an import", &mut all, 10);
}

fn modes() -> Vec<ExecMode> {
    if crate::mlx::on_cpu() { vec![ExecMode::CpuKernels, ExecMode::Mlx] } else { vec![ExecMode::Mlx] }
}

#[test]
fn rows_around_a_window_are_as_alone() {
    device();
    for (v, name) in WINDOWED.iter().enumerate() {
        for (w, window) in [1_usize, 5, 8].into_iter().enumerate() {
            let variant = Variant::changed(name, |config, _| {
                config["sliding_window"] = json!(window);
            });
            let model = variant.load();
            let windows = model.config().states.iter().filter_map(|state| state.attention?.window);
            assert!(windows.into_iter().any(|found| found == window), "{name}");
            for (m, mode) in modes().into_iter().enumerate() {
                // The prompt that fills the window exactly is always there, first or last.
                let others = [window + 1, window.saturating_sub(1).max(1), 2 * window, 2 * window + 1];
                let mut lengths = vec![window, others[(v + w) % 4], others[(v + w + m + 1) % 4]];
                lengths.rotate_left((v + w + m) % 3);
                let what = format!("{name}, window {window}, {lengths:?}, {mode:?}");
                let check = Check { model: &*model, tolerance: TOLERANCE, what };
                mode.scope(|| are_as_alone(&check, &model.new_cache(), &lengths, true));
            }
        }
    }
}

/// Layers whose states are recurrent, or latent: of every kind of mixer one.
#[test]
fn rows_of_other_states_are_as_alone() {
    device();
    for name in [
        "qwen3_5",
        "qwen3_next",
        "lfm2_moe",
        "granitemoehybrid",
        "falcon_h1",
        "deepseek_v3",
        "gemma4_text",
        "mamba2",
        "gemma3n_text",
        "llama4_text",
    ] {
        let variant = Variant::named(name);
        let model = variant.load();
        for (m, mode) in modes().into_iter().enumerate() {
            for together in [true, false] {
                let what = format!("{name}, together {together}, {mode:?}");
                let check = Check { model: &*model, tolerance: TOLERANCE, what };
                let lengths: &[usize] = if m == 0 { &[9, 1, 17] } else { &[2, 3, 33] };
                mode.scope(|| are_as_alone(&check, &model.new_cache(), lengths, together));
            }
        }
    }
}

/// Positions depend on the length of each row's text, and not on how long the others are.
#[test]
fn rows_of_other_lengths_are_rotated_as_alone() {
    device();
    for name in ["llama-dynamic", "phi3-longrope", "phi3-crossing"] {
        let model = Variant::named(name).load();
        assert!(model.config().length_dependent, "{name}");
        for mode in modes() {
            let prompts = [(1, 5), (2, 40), (3, 17)].map(|(seed, len)| text(seed, len));
            let begin = |_: &Vec<u32>| Row { ids: Vec::new(), cache: model.new_cache() };
            let mut rows: Vec<_> = prompts.iter().map(begin).collect();
            let check = Check { model: &*model, tolerance: TOLERANCE, what: format!("{name}, {mode:?}") };
            mode.scope(|| {
                let logits = extend_together(&*model, &mut rows, &prompts);
                check.rows("prompts", &rows, &logits);
            });
        }
    }
}

/// A text that went on after its prompt is rewound to the end of a chunk, and goes another way from there.
#[test]
fn recurrent_states_go_back_to_chunks() {
    device();
    for name in ["qwen3_5", "lfm2", "granitemoehybrid", "mamba2", "nemotron_h"] {
        let model = Variant::named(name).load();
        let (first, second) = (text(1, 40), text(2, 9));
        let mut cache = model.new_cache();
        for chunk in first.chunks(12) {
            let _ = cached(&*model, chunk, &mut cache);
        }
        for id in text(3, 5) {
            let _ = cached(&*model, &[id], &mut cache);
        }
        assert_eq!(
            (cache.len(), cache.reach(44), cache.reach(39), cache.reach(11)),
            (45, 40, 36, 0),
            "{name}"
        );
        for (wanted, reached) in [(43, 40), (30, 24)] {
            let mut back = cache.clone();
            assert_eq!(back.reach(wanted), reached, "{name}");
            back.rewind(reached);
            let logits = cached(&*model, &second, &mut back).pop().unwrap();
            let whole = [&first[..reached], &second].concat();
            let fresh = cached(&*model, &whole, &mut model.new_cache()).pop().unwrap();
            let far = distance(&logits, &fresh);
            assert!(far <= TOLERANCE, "{name}: after {reached} of {wanted} tokens {far} apart");
        }
    }
}

/// A pass of which only the first layers were computed is given up, and the text goes another way from where it began.
#[test]
fn a_pass_that_is_given_up_leaves_recurrent_states_as_they_were() {
    device();
    for name in ["qwen3_5", "lfm2", "granitemoehybrid", "mamba2", "nemotron_h"] {
        let model = Variant::named(name).load();
        let (first, given_up, second) = (text(1, 12), text(2, 7), text(3, 9));
        let whole = [&first[..], &second].concat();
        let fresh = cached(&*model, &whole, &mut model.new_cache()).pop().unwrap();
        for layers in 0..=model.config().states.len() {
            let mut cache = model.new_cache();
            let _ = cached(&*model, &first, &mut cache);
            let _ = model.hidden(&tokens(&given_up), Rows::cached(&mut [&mut cache])).unwrap();
            mlx_rs::transforms::eval(&cache.layer_arrays(0..layers)).unwrap();
            assert!(cache.abandon_pass(first.len(), layers), "{name}, {layers} layers");
            let logits = cached(&*model, &second, &mut cache).pop().unwrap();
            let far = distance(&logits, &fresh);
            assert!(far <= TOLERANCE, "{name}, {layers} layers: {far} apart");
        }
    }
}

/// Buffers are filled to the last position where prompts are as long as they grow by.
#[test]
fn rows_that_fill_their_buffers_are_as_alone() {
    device();
    let model = Variant::named("llama").load();
    for mode in modes() {
        let check = Check { model: &*model, tolerance: TOLERANCE, what: format!("llama, {mode:?}") };
        mode.scope(|| are_as_alone(&check, &model.new_cache(), &[256, 253], true));
    }
}

#[test]
fn rotating_and_quantised_rows_are_as_alone() {
    device();
    for name in ["mistral-window", "llama", "gpt_oss"] {
        let variant = Variant::named(name);
        let model = variant.load();
        let head_dim = model.config().head_dim;
        for mode in modes() {
            for (size, together) in [(6, false), (9, false), (6, true), (9, true)] {
                let empty = model.new_cache().rotating(Rotation { keep: 2, size });
                let what = format!("{name}, rotating in {size}, together {together}, {mode:?}");
                let check = Check { model: &*model, tolerance: TOLERANCE, what };
                mode.scope(|| are_as_alone(&check, &empty, &[size, size - 1, size + 1], together));
            }
            for together in [false, true].into_iter().filter(|_| head_dim.is_multiple_of(32)) {
                let scheme = QuantizationScheme { mode: QuantizationMode::Affine, bits: 8, group_size: 32 };
                let empty = model.new_cache().quantized(Some(scheme));
                // Where a number lies between two steps, its last bit decides between them.
                let tolerance = variant.golden.std / 50.0;
                let check = Check { model: &*model, tolerance, what: format!("{name}, 8 bits, {mode:?}") };
                mode.scope(|| are_as_alone(&check, &empty, &[8, 7, 9], together));
            }
        }
    }
}
