//! Changes of JSON that leave it JSON: bytes changed at random seldom reach what reads the values.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Value, json};

/// Changes one value of the document, or, one time in four and where it is no JSON, some of its bytes.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random(u64::from(seed) | 1 << 40);
    let parsed = serde_json::from_slice::<Value>(&data[..size]).ok().filter(|_| random.below(4) > 0);
    let changed = parsed.map(|mut document| {
        let mut values = Vec::new();
        collect(&document, &mut values);
        let other = values[random.below(values.len())].clone();
        let mut at = random.below(values.len());
        change(&mut document, &mut at, &other, &mut random);
        document.to_string()
    });
    match changed {
        Some(text) if text.len() <= max_size.min(data.len()) => {
            data[..text.len()].copy_from_slice(text.as_bytes());
            text.len()
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
}

fn collect<'a>(value: &'a Value, values: &mut Vec<&'a Value>) {
    values.push(value);
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect(item, values)),
        Value::Object(fields) => fields.values().for_each(|value| collect(value, values)),
        _ => {}
    }
}

/// Changes the value that `at` others stand before.
fn change(value: &mut Value, at: &mut usize, other: &Value, random: &mut Random) -> bool {
    if *at == 0 {
        replace(value, other, random);
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter_mut().any(|item| change(item, at, other, random)),
        Value::Object(fields) => fields.values_mut().any(|value| change(value, at, other, random)),
        _ => false,
    }
}

fn replace(value: &mut Value, other: &Value, random: &mut Random) {
    let numbers = [json!(-1), json!(0), json!(1), json!(255), json!(1 << 20), json!(u32::MAX), json!(u64::MAX), json!(1e300)];
    let texts = ["", "a", "▁", " ", "##", "[UNK]", "<0x41>", "(a+)+$", "\\s*", "(", "\u{0}", "é"];
    match (random.below(6), &mut *value) {
        (0, Value::Array(items)) if !items.is_empty() => drop(items.remove(random.below(items.len()))),
        (1, Value::Array(items)) => items.insert(random.below(items.len() + 1), other.clone()),
        (0, Value::Object(fields)) if !fields.is_empty() => {
            let key = fields.keys().nth(random.below(fields.len())).cloned();
            key.and_then(|key| fields.remove(&key));
        }
        (1, Value::Object(fields)) => {
            let text = other.as_str().unwrap_or(texts[random.below(texts.len())]).to_owned();
            fields.insert(text, numbers[random.below(numbers.len())].clone());
        }
        (2, Value::String(text)) => {
            let twice = text.repeat(2);
            text.push_str(&twice);
        }
        (3, _) => *value = numbers[random.below(numbers.len())].clone(),
        (4, _) => *value = json!(texts[random.below(texts.len())]),
        (5, _) => *value = [json!(null), json!(true), json!([]), json!({})][random.below(4)].clone(),
        _ => *value = other.clone(),
    }
}

/// SplitMix64.
struct Random(u64);

impl Random {
    /// A number less than `bound`, which is not zero.
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) as usize % bound
    }
}
