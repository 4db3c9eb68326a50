//! The values of a template: Python's, as far as templates see them.

use std::{cell::RefCell, cmp::Ordering, rc::Rc};

use serde_json::Map;

use super::{
    budget::Budget,
    eval::{LoopState, Macro},
};

/// Failures are told in one sentence; the interpreter adds the line.
pub(super) type Fallible<T> = Result<T, String>;

/// How deep lists and dicts may lie within one another. Values are walked recursively, so depth is stack.
pub(super) const MAX_DEPTH: usize = 100;

#[derive(Debug, Clone)]
pub(super) enum Value {
    /// A name or attribute that does not exist, with how it was asked for.
    Undefined(Rc<str>),
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Str(Text),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    /// What Python's lazy filters give: true even if empty, with no length and no index.
    Iter(Rc<Seq>),
    Dict(Rc<Dict>),
    Namespace(Rc<Fields>),
    Macro(Rc<Macro>),
    Loop(Rc<LoopState>),
    /// A built-in function.
    Function(&'static str),
    /// A method that was looked up and not called yet.
    Method(Rc<(Value, Rc<str>)>),
}

/// The fields of a namespace, in order.
pub(super) type Fields = RefCell<Vec<(Rc<str>, Value)>>;

/// A string.
#[derive(Debug, Clone)]
pub(super) struct Text {
    text: Rc<str>,
    /// Whether it is what Python calls `Markup`: added to another string, it has that one escaped for HTML.
    pub(super) markup: bool,
}

impl From<String> for Text {
    fn from(text: String) -> Self {
        Self { text: text.into(), markup: false }
    }
}

impl std::ops::Deref for Text {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

/// The elements of a list.
#[derive(Debug)]
pub(super) struct Seq {
    pub(super) items: Vec<Value>,
    nesting: Nesting,
}

/// The entries of a dict, in order. Dicts of templates have a handful of entries: a search is as fast as a hash.
#[derive(Debug)]
pub(super) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    nesting: Nesting,
}

/// What lies within a value, known without walking it: shared parts make a small value endless to walk.
#[derive(Debug, Clone, Copy, Default)]
struct Nesting {
    depth: usize,
    /// Bytes of texts and number of elements, shared ones counted each time.
    size: usize,
    /// Whether anything in it can change or holds a part of the template, and so might come to hold itself.
    live: bool,
    /// Whether it is or holds a list or a dict, which cannot be a part of a key.
    mutable: bool,
}

impl Nesting {
    fn around<'a>(values: impl Iterator<Item = &'a Value>) -> Fallible<Self> {
        let inner = values.map(Value::nesting).fold(Self::default(), |a, b| Self {
            depth: a.depth.max(b.depth),
            size: a.size.saturating_add(b.size).saturating_add(1),
            live: a.live || b.live,
            mutable: a.mutable || b.mutable,
        });
        if inner.depth >= MAX_DEPTH {
            return Err(format!("lists and dicts lie more than {MAX_DEPTH} deep in one another"));
        }
        Ok(Self { depth: inner.depth + 1, ..inner })
    }
}

impl Seq {
    pub(super) fn new(items: Vec<Value>) -> Fallible<Rc<Self>> {
        Ok(Rc::new(Self { nesting: Nesting::around(items.iter())?, items }))
    }
}

impl Value {
    pub(super) fn str(text: impl AsRef<str>) -> Self {
        Self::Str(Text { text: text.as_ref().into(), markup: false })
    }

    pub(super) fn markup(text: impl AsRef<str>) -> Self {
        Self::Str(Text { text: text.as_ref().into(), markup: true })
    }

    pub(super) fn list(items: Vec<Self>) -> Fallible<Self> {
        Ok(Self::List(Seq::new(items)?))
    }

    pub(super) fn tuple(items: Vec<Self>) -> Fallible<Self> {
        Ok(Self::Tuple(Seq::new(items)?))
    }

    pub(super) fn iter(items: Vec<Self>) -> Fallible<Self> {
        Ok(Self::Iter(Seq::new(items)?))
    }

    /// A dict of these entries, of which a later one replaces an earlier one with an equal key.
    pub(super) fn dict(entries: Vec<(Self, Self)>, budget: &Budget) -> Fallible<Self> {
        let mut unique: Vec<(Self, Self)> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            if !key.is_hashable() {
                return Err(format!("unhashable type: '{}'", key.type_name()));
            }
            budget.charge(unique.len().saturating_add(key.size()))?;
            match unique.iter_mut().find(|(known, _)| known.equals(&key)) {
                Some((_, old)) => *old = value,
                None => unique.push((key, value)),
            }
        }
        let nesting = Nesting::around(unique.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self::Dict(Rc::new(Dict { nesting, entries: unique })))
    }

    /// The value of a JSON value.
    pub(super) fn from_json(json: &serde_json::Value, budget: &Budget) -> Fallible<Self> {
        Self::from_json_at(json, budget, 0)
    }

    fn from_json_at(json: &serde_json::Value, budget: &Budget, depth: usize) -> Fallible<Self> {
        if depth > MAX_DEPTH {
            return Err(format!("lists and dicts lie more than {MAX_DEPTH} deep in one another"));
        }
        Ok(match json {
            serde_json::Value::Null => Self::None,
            serde_json::Value::Bool(flag) => Self::Bool(*flag),
            serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
                (Some(int), _) => Self::Int(int.into()),
                (None, Some(int)) => Self::Int(int.into()),
                (None, None) => Self::Float(number.as_f64().unwrap_or(f64::NAN)),
            },
            serde_json::Value::String(text) => {
                budget.charge(text.len())?;
                Self::str(text)
            }
            serde_json::Value::Array(items) => {
                budget.charge_elements(items.len())?;
                Self::list(
                    items
                        .iter()
                        .map(|item| Self::from_json_at(item, budget, depth + 1))
                        .collect::<Result<_, _>>()?,
                )?
            }
            serde_json::Value::Object(object) => Self::from_object(object, budget, depth + 1)?,
        })
    }

    fn from_object(object: &Map<String, serde_json::Value>, budget: &Budget, depth: usize) -> Fallible<Self> {
        budget.charge_elements(object.len())?;
        let entry =
            |(key, value): (&String, _)| Ok((Self::str(key), Self::from_json_at(value, budget, depth)?));
        let entries: Vec<_> = object.iter().map(entry).collect::<Fallible<_>>()?;
        // A JSON object's keys are unique.
        let nesting = Nesting::around(entries.iter().flat_map(|(key, value)| [key, value]))?;
        Ok(Self::Dict(Rc::new(Dict { nesting, entries })))
    }

    fn nesting(&self) -> Nesting {
        match self {
            Self::Tuple(seq) | Self::Iter(seq) => seq.nesting,
            Self::List(seq) => Nesting { mutable: true, ..seq.nesting },
            Self::Dict(dict) => Nesting { mutable: true, ..dict.nesting },
            Self::Namespace(_) | Self::Macro(_) | Self::Loop(_) => {
                Nesting { depth: 1, size: 1, live: true, mutable: false }
            }
            Self::Method(method) => Nesting { live: true, ..method.0.nesting() },
            Self::Str(text) => Nesting { size: text.len(), ..Nesting::default() },
            _ => Nesting { size: 1, ..Nesting::default() },
        }
    }

    /// Whether the value holds anything that can change, and so might come to hold itself.
    pub(super) fn is_live(&self) -> bool {
        self.nesting().live
    }

    pub(super) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(super) fn is_hashable(&self) -> bool {
        match self {
            Self::List(_) | Self::Dict(_) => false,
            Self::Tuple(seq) => !seq.nesting.mutable,
            _ => true,
        }
    }

    pub(super) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(flag) => *flag,
            Self::Int(int) => *int != 0,
            Self::Float(float) => *float != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(seq) | Self::Tuple(seq) => !seq.items.is_empty(),
            Self::Dict(dict) => !dict.entries.is_empty(),
            _ => true,
        }
    }

    pub(super) fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// An integer; Python's bools are integers.
    pub(super) fn as_int(&self) -> Option<i128> {
        match self {
            Self::Int(int) => Some(*int),
            Self::Bool(flag) => Some((*flag).into()),
            _ => None,
        }
    }

    pub(super) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(float) => Some(*float),
            _ => self.as_int().map(|int| int as f64),
        }
    }

    /// The value of a dict's key.
    pub(super) fn get(&self, key: &Self, budget: &Budget) -> Fallible<Option<Self>> {
        let Self::Dict(dict) = self else { return Ok(None) };
        budget.charge(dict.entries.len())?;
        Ok(dict.entries.iter().find(|(known, _)| known.equals(key)).map(|(_, value)| value.clone()))
    }

    /// Python's name of the type.
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Float(_) => "float",
            Self::Str(_) => "str",
            Self::List(_) => "list",
            Self::Tuple(_) => "tuple",
            Self::Iter(_) => "generator",
            Self::Dict(_) => "dict",
            Self::Namespace(_) => "Namespace",
            Self::Macro(_) => "Macro",
            Self::Loop(_) => "LoopContext",
            Self::Function(_) => "function",
            Self::Method(_) => "builtin_function_or_method",
        }
    }

    /// The elements that a loop sees.
    pub(super) fn iterate(&self, budget: &Budget) -> Fallible<Vec<Self>> {
        match self {
            Self::Undefined(_) => Ok(vec![]),
            Self::List(seq) | Self::Tuple(seq) | Self::Iter(seq) => {
                budget.charge_elements(seq.items.len())?;
                Ok(seq.items.clone())
            }
            Self::Dict(dict) => {
                budget.charge_elements(dict.entries.len())?;
                Ok(dict.entries.iter().map(|(key, _)| key.clone()).collect())
            }
            Self::Str(text) => {
                budget.charge_elements(text.len())?;
                Ok(text.chars().map(|c| Self::str(c.encode_utf8(&mut [0; 4]))).collect())
            }
            other => Err(format!("'{}' object is not iterable", other.type_name())),
        }
    }

    /// Python's `len`.
    pub(super) fn length(&self, budget: &Budget) -> Fallible<usize> {
        match self {
            Self::Undefined(_) => Ok(0),
            Self::Str(text) => {
                budget.charge(text.len())?;
                Ok(text.chars().count())
            }
            Self::List(seq) | Self::Tuple(seq) => Ok(seq.items.len()),
            Self::Dict(dict) => Ok(dict.entries.len()),
            other => Err(format!("object of type '{}' has no len()", other.type_name())),
        }
    }

    /// How much there is to read of the value: its texts' bytes and its elements.
    pub(super) fn size(&self) -> usize {
        self.nesting().size
    }

    /// Python's `==`. The caller has charged for the smaller side.
    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Undefined(_), Self::Undefined(_)) | (Self::None, Self::None) => true,
            (Self::Str(a), Self::Str(b)) => **a == **b,
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                Rc::ptr_eq(a, b)
                    || a.items.len() == b.items.len()
                        && a.items.iter().zip(&b.items).all(|(a, b)| a.equals(b))
            }
            (Self::Dict(a), Self::Dict(b)) => {
                let in_b = |key: &Self| {
                    b.entries.iter().find(|(known, _)| known.equals(key)).map(|(_, value)| value)
                };
                Rc::ptr_eq(a, b)
                    || a.entries.len() == b.entries.len()
                        && a.entries
                            .iter()
                            .all(|(key, value)| in_b(key).is_some_and(|other| value.equals(other)))
            }
            (Self::Iter(a), Self::Iter(b)) => Rc::ptr_eq(a, b),
            (Self::Namespace(a), Self::Namespace(b)) => Rc::ptr_eq(a, b),
            (Self::Macro(a), Self::Macro(b)) => Rc::ptr_eq(a, b),
            (Self::Loop(a), Self::Loop(b)) => Rc::ptr_eq(a, b),
            (Self::Function(a), Self::Function(b)) => a == b,
            _ => match (self.as_int(), other.as_int()) {
                (Some(a), Some(b)) => a == b,
                _ => matches!((self.as_float(), other.as_float()), (Some(a), Some(b)) if a == b),
            },
        }
    }

    /// Python's `<` and its kin. The caller has charged for the smaller side.
    pub(super) fn compare(&self, other: &Self) -> Fallible<Ordering> {
        let refuse = || {
            Err(format!(
                "'<' not supported between instances of '{}' and '{}'",
                self.type_name(),
                other.type_name()
            ))
        };
        match (self, other) {
            (Self::Str(a), Self::Str(b)) => Ok((**a).cmp(b)),
            (Self::List(a), Self::List(b)) | (Self::Tuple(a), Self::Tuple(b)) => {
                for (a, b) in a.items.iter().zip(&b.items) {
                    if !a.equals(b) {
                        return a.compare(b);
                    }
                }
                Ok(a.items.len().cmp(&b.items.len()))
            }
            _ => match (self.as_int(), other.as_int(), self.as_float(), other.as_float()) {
                (Some(a), Some(b), ..) => Ok(a.cmp(&b)),
                // Not-a-number sorts nowhere; Python's comparisons with it are all false.
                (_, _, Some(a), Some(b)) => Ok(a.partial_cmp(&b).unwrap_or(Ordering::Equal)),
                _ => refuse(),
            },
        }
    }

    /// Python's `in`: whether `self` holds `item`.
    pub(super) fn contains(&self, item: &Self, budget: &Budget) -> Fallible<bool> {
        match self {
            Self::Str(text) => {
                let Some(part) = item.as_str() else {
                    let found = item.type_name();
                    return Err(format!("'in <string>' requires string as left operand, not {found}"));
                };
                budget.charge(text.len())?;
                Ok(text.contains(part))
            }
            Self::Dict(_) if !item.is_hashable() => Err(format!("unhashable type: '{}'", item.type_name())),
            Self::Dict(_) => Ok(self.get(item, budget)?.is_some()),
            Self::Undefined(_) => Ok(false),
            Self::List(seq) | Self::Tuple(seq) | Self::Iter(seq) => {
                let size = item.size();
                budget.charge(seq.items.len().saturating_mul(size.max(1)))?;
                Ok(seq.items.iter().any(|known| known.equals(item)))
            }
            other => Err(format!("argument of type '{}' is not iterable", other.type_name())),
        }
    }
}
