//! Filters that order, group and cut lists.

use super::{
    budget::Budget,
    eval::Args,
    filters::{order, path},
    methods, ops,
    value::{Fallible, Value},
};

use minijinja::machinery::ast::BinOpKind;

/// Applies one of these filters.
pub(super) fn apply(name: &str, value: &Value, args: &Args, budget: &Budget) -> Fallible<Value> {
    match name {
        "sort" => {
            let [reverse, case, attribute] = args.bind(name, ["reverse", "case_sensitive", "attribute"])?;
            let reverse = reverse.is_some_and(|reverse| reverse.is_true());
            let keyed = keyed(value.iterate(budget)?, attribute.as_ref(), budget)?;
            let sorted = sort(keyed, reverse, is_true(case.as_ref()), budget)?;
            Value::list(sorted.into_iter().map(|(_, item)| item).collect())
        }
        "unique" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let mut kept: Vec<(Value, Value)> = Vec::new();
            for (key, item) in keyed(value.iterate(budget)?, attribute.as_ref(), budget)? {
                let key = if is_true(case.as_ref()) { key } else { folded(&key, budget)? };
                budget.charge(kept.len().saturating_mul(key.size().max(1)))?;
                if !kept.iter().any(|(known, _)| known.equals(&key)) {
                    kept.push((key, item));
                }
            }
            Value::iter(kept.into_iter().map(|(_, item)| item).collect())
        }
        "min" | "max" => {
            let [case, attribute] = args.bind(name, ["case_sensitive", "attribute"])?;
            let keyed = keyed(value.iterate(budget)?, attribute.as_ref(), budget)?;
            let mut sorted = sort(keyed, name == "max", is_true(case.as_ref()), budget)?.into_iter();
            Ok(sorted
                .next()
                .map_or_else(|| Value::Undefined("an item of an empty sequence".into()), |(_, item)| item))
        }
        "groupby" => {
            let [attribute, default, case] = args.bind(name, ["attribute", "default", "case_sensitive"])?;
            let attribute = attribute.ok_or("groupby() needs an attribute")?;
            let mut keyed = keyed(value.iterate(budget)?, Some(&attribute), budget)?;
            for (key, _) in &mut keyed {
                if key.is_undefined() {
                    *key = default.clone().unwrap_or_else(|| key.clone());
                }
            }
            let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
            let case = is_true(case.as_ref());
            for (key, item) in sort(keyed, false, case, budget)? {
                match groups.last_mut() {
                    Some((known, group)) if order(known, &key, case)?.is_eq() => group.push(item),
                    _ => groups.push((key, vec![item])),
                }
            }
            // Jinja2's pairs have names too: `grouper` and `list`.
            let pair = |(key, group)| Value::tuple(vec![key, Value::list(group)?]);
            Value::list(groups.into_iter().map(pair).collect::<Fallible<_>>()?)
        }
        "dictsort" => {
            let [case, by, reverse] = args.bind(name, ["case_sensitive", "by", "reverse"])?;
            let Value::Dict(dict) = value else {
                return Err(format!("dictsort needs a dict, found '{}'", value.type_name()));
            };
            budget.charge_elements(dict.entries.len())?;
            let by_value = by.as_ref().and_then(Value::as_str) == Some("value");
            let key = |(key, value): &(Value, Value)| if by_value { value.clone() } else { key.clone() };
            let keyed = dict.entries.iter().map(key).zip(methods::pairs(&dict.entries)?).collect();
            let sorted = sort(keyed, is_true(reverse.as_ref()), is_true(case.as_ref()), budget)?;
            Value::list(sorted.into_iter().map(|(_, pair)| pair).collect())
        }
        "sum" => {
            let [attribute, start] = args.bind(name, ["attribute", "start"])?;
            let keyed = keyed(value.iterate(budget)?, attribute.as_ref(), budget)?;
            keyed.iter().try_fold(start.unwrap_or(Value::Int(0)), |sum, (item, _)| {
                ops::binary(BinOpKind::Add, &sum, item, budget)
            })
        }
        "batch" => {
            let [size, fill] = args.bind(name, ["linecount", "fill_with"])?;
            let size = count(size.as_ref(), "batch")?;
            let items = value.iterate(budget)?;
            let mut rows: Vec<Vec<Value>> = items.chunks(size).map(<[Value]>::to_vec).collect();
            if let (Some(fill), Some(last)) = (fill, rows.last_mut()) {
                budget.charge_elements(size)?;
                last.resize(size, fill);
            }
            Value::iter(rows.into_iter().map(Value::list).collect::<Fallible<_>>()?)
        }
        _ => {
            let [slices, fill] = args.bind(name, ["slices", "fill_with"])?;
            let slices = count(slices.as_ref(), "slice")?;
            let items = value.iterate(budget)?;
            budget.charge_elements(slices)?;
            let (each, longer) = (items.len() / slices, items.len() % slices);
            let mut rest = &items[..];
            let mut columns = Vec::new();
            for at in 0..slices {
                let (column, tail) = rest.split_at(each + usize::from(at < longer));
                rest = tail;
                let mut column = column.to_vec();
                if at >= longer {
                    column.extend(fill.clone());
                }
                columns.push(Value::list(column)?);
            }
            Value::iter(columns)
        }
    }
}

fn is_true(value: Option<&Value>) -> bool {
    value.is_some_and(Value::is_true)
}

fn count(value: Option<&Value>, name: &str) -> Fallible<usize> {
    let count =
        value.and_then(Value::as_int).and_then(|int| usize::try_from(int).ok()).filter(|count| *count > 0);
    count.ok_or_else(|| format!("{name}() needs a number above 0"))
}

/// Each item with what it is ordered by.
fn keyed(items: Vec<Value>, attribute: Option<&Value>, budget: &Budget) -> Fallible<Vec<(Value, Value)>> {
    let key = |item: Value| match attribute {
        Some(attribute) => Ok((path(&item, attribute, None, budget)?, item)),
        None => Ok((item.clone(), item)),
    };
    items.into_iter().map(key).collect()
}

/// A text without its case.
fn folded(key: &Value, budget: &Budget) -> Fallible<Value> {
    let Value::Str(text) = key else { return Ok(key.clone()) };
    budget.charge_text(text.len())?;
    Ok(Value::str(text.to_lowercase()))
}

/// Sorts by the keys; equal ones keep their order, reversed or not.
fn sort(
    mut keyed: Vec<(Value, Value)>,
    reverse: bool,
    case_sensitive: bool,
    budget: &Budget,
) -> Fallible<Vec<(Value, Value)>> {
    let size = keyed.iter().map(|(key, _)| key.size()).fold(keyed.len(), usize::saturating_add);
    budget.charge(size.saturating_mul(keyed.len().max(1).ilog2() as usize + 1))?;
    let mut failure = None;
    keyed.sort_by(|(a, _), (b, _)| {
        let (a, b) = if reverse { (b, a) } else { (a, b) };
        order(a, b, case_sensitive).unwrap_or_else(|reason| {
            failure.get_or_insert(reason);
            std::cmp::Ordering::Equal
        })
    });
    failure.map_or(Ok(keyed), Err)
}
