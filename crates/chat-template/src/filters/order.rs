//! Filters that order and group.

use std::cmp::Ordering;

use crate::{
    args::{Args, is_true},
    error::{Result, runtime},
    ops::{
        lookup::{follow, path},
        sort::sorted,
    },
    value::{Heap, Items, Missing, Value, compare, equals},
};

/// Applies one of these filters.
pub(super) fn apply(name: &str, value: &Value, args: &Args, heap: &Heap) -> Result<Value> {
    match name {
        "sort" => {
            let [reverse, case, attribute] = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let keys = Keys::new(attribute.as_ref(), None, is_true(case.as_ref()), true, heap)?;
            let pairs = keys.pairs(&heap.iterate(value)?, heap)?;
            seconds(&by_key(pairs, is_true(reverse.as_ref()), heap)?, heap)?.list()
        }
        "unique" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let keys = Keys::new(attribute.as_ref(), None, is_true(case.as_ref()), false, heap)?;
            unique(&keys, &heap.iterate(value)?, heap)
        }
        "min" | "max" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let keys = Keys::new(attribute.as_ref(), None, is_true(case.as_ref()), false, heap)?;
            extreme(name == "max", &keys, &heap.iterate(value)?, heap)
        }
        "groupby" => {
            let [attribute, default, case] = args.bind(name, ["attribute", "default", "case_sensitive"])?;
            let attribute = attribute.ok_or_else(|| runtime!("groupby() needs an attribute"))?;
            let keys = Keys::new(Some(&attribute), default, is_true(case.as_ref()), false, heap)?;
            group(&keys, &heap.iterate(value)?, heap)
        }
        _ => {
            let [case, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"])?;
            let by_value = match by.as_ref().map(Value::as_str) {
                None | Some(Some("key")) => false,
                Some(Some("value")) => true,
                _ => return Err(runtime!("You can only sort by either 'key' or 'value'")),
            };
            let Value::Dict(dict) = value else {
                return Err(runtime!("dictsort needs a dict, found '{}'", value.type_name()));
            };
            let keys = Keys::new(None, None, is_true(case.as_ref()), false, heap)?;
            let mut pairs = heap.items();
            for (key, value) in dict.iter() {
                let key_of_order = keys.of(if by_value { value } else { key }, heap)?;
                pairs.push(heap.pair(key_of_order, heap.pair(key.clone(), value.clone())?)?)?;
            }
            seconds(&by_key(pairs, is_true(reverse.as_ref()), heap)?, heap)?.list()
        }
    }
}

/// What items are ordered by.
struct Keys {
    /// The paths of attributes. None: the item itself.
    paths: Vec<Items>,
    /// Whether there are several keys to an item, in a list.
    several: bool,
    default: Option<Value>,
    case_sensitive: bool,
}

impl Keys {
    /// `several`: whether commas in the attribute stand between several of them.
    fn new(
        attribute: Option<&Value>,
        default: Option<Value>,
        case_sensitive: bool,
        several: bool,
        heap: &Heap,
    ) -> Result<Self> {
        let mut paths = Vec::new();
        match attribute {
            None | Some(Value::None) => {}
            Some(Value::Str(names)) if several => {
                heap.charge(names.len())?;
                for name in names.split(',') {
                    // A path has a header, which the budget does not see.
                    heap.charge(size_of::<Items>())?;
                    if paths.len() > 1_000 {
                        return Err(runtime!("more than 1000 attributes to sort by"));
                    }
                    paths.push(path(&heap.str(name)?, heap)?);
                }
            }
            Some(attribute) => paths.push(path(attribute, heap)?),
        }
        Ok(Self { several: paths.len() > 1, paths, default, case_sensitive })
    }

    /// The key of an item.
    fn of(&self, item: &Value, heap: &Heap) -> Result<Value> {
        if !self.several {
            return self.folded(&self.unfolded(item, heap)?, heap);
        }
        let mut keys = heap.items();
        for path in &self.paths {
            keys.push(self.folded(&follow(item, path, self.default.as_ref(), heap)?, heap)?)?;
        }
        keys.list()
    }

    /// The key with its case.
    fn unfolded(&self, item: &Value, heap: &Heap) -> Result<Value> {
        match self.paths.first() {
            Some(path) => follow(item, path, self.default.as_ref(), heap),
            None => Ok(item.clone()),
        }
    }

    /// A text without its case, unless that counts.
    fn folded(&self, key: &Value, heap: &Heap) -> Result<Value> {
        match key {
            Value::Str(text) if !self.case_sensitive => {
                let mut out = heap.builder();
                out.push_cased(text, false)?;
                out.finish().map(Value::Str)
            }
            key => Ok(key.clone()),
        }
    }

    /// Each item behind its key.
    fn pairs(&self, items: &[Value], heap: &Heap) -> Result<Items> {
        let mut pairs = heap.items();
        for item in items {
            pairs.push(heap.pair(self.of(item, heap)?, item.clone())?)?;
        }
        Ok(pairs)
    }
}

/// The two sides of a pair that [`Keys::pairs`] made.
fn sides(pair: &Value) -> (&Value, &Value) {
    match pair {
        Value::Tuple(sides) if sides.len() == 2 => (&sides[0], &sides[1]),
        other => (other, other),
    }
}

/// Pairs in the order of their keys; equal ones keep their order, reversed or not.
fn by_key(pairs: Items, reverse: bool, heap: &Heap) -> Result<Items> {
    sorted(pairs, heap, |a, b| {
        let order = compare(sides(a).0, sides(b).0, heap)?;
        Ok(if reverse { order.reverse() } else { order })
    })
}

fn seconds(pairs: &[Value], heap: &Heap) -> Result<Items> {
    let mut items = heap.items();
    for pair in pairs {
        items.push(sides(pair).1.clone())?;
    }
    Ok(items)
}

fn unique(keys: &Keys, items: &[Value], heap: &Heap) -> Result<Value> {
    let (mut seen, mut kept) = (heap.items(), heap.items());
    for item in items {
        let key = keys.of(item, heap)?;
        if !key.is_hashable() {
            return Err(runtime!("unhashable type: '{}'", key.type_name()));
        }
        let mut is_new = true;
        for known in seen.iter() {
            heap.charge(1)?;
            if equals(known, &key, heap)? {
                is_new = false;
                break;
            }
        }
        if is_new {
            seen.push(key)?;
            kept.push(item.clone())?;
        }
    }
    kept.iter_value()
}

fn extreme(largest: bool, keys: &Keys, items: &[Value], heap: &Heap) -> Result<Value> {
    let mut best: Option<(Value, &Value)> = None;
    for item in items {
        let key = keys.of(item, heap)?;
        let wanted = if largest { Ordering::Greater } else { Ordering::Less };
        let is_better = match &best {
            Some((known, _)) => compare(&key, known, heap)? == wanted,
            None => true,
        };
        if is_better {
            best = Some((key, item));
        }
    }
    match best {
        Some((_, item)) => Ok(item.clone()),
        None => heap.undefined(Missing::Other("an item of an empty sequence")),
    }
}

/// Pairs of a key and the items that have it, in the order of the keys.
fn group(keys: &Keys, items: &[Value], heap: &Heap) -> Result<Value> {
    let pairs = by_key(keys.pairs(items, heap)?, false, heap)?;
    let mut groups = heap.items();
    let mut start = 0;
    for at in 1..=pairs.len() {
        let (first, item) = sides(&pairs[start]);
        if at < pairs.len() && equals(first, sides(&pairs[at]).0, heap)? {
            continue;
        }
        let members = seconds(&pairs[start..at], heap)?.list()?;
        // The pairs have names too: `grouper` and `list`.
        groups.push(heap.pair(keys.unfolded(item, heap)?, members)?)?;
        start = at;
    }
    groups.list()
}
