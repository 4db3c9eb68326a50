//! The kinds of values, and what can be said of one at once.

use std::{
    cell::{Cell, RefCell},
    fmt,
    ops::Deref,
    rc::Rc,
    sync::Arc,
};

use num_bigint::BigInt;
use num_traits::ToPrimitive;

use super::text::Text;
use crate::{
    budget::Hold,
    error::{Error, Result, runtime},
};

/// How deep lists and dicts may lie within one another. Values are walked recursively, so depth is stack.
pub(crate) const MAX_DEPTH: usize = 100;

#[derive(Debug, Clone)]
pub(crate) enum Value {
    /// A name, attribute or item that does not exist, with how it was asked for.
    Undefined(Rc<Held<Missing>>),
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits.
    BigInt(Rc<Held<BigInt>>),
    Float(f64),
    Str(Text),
    List(Rc<Seq>),
    Tuple(Rc<Seq>),
    /// What Python's lazy filters give: true even if empty, with no length and no index.
    Iter(Rc<Seq>),
    Dict(Rc<Dict>),
    /// The number of a namespace on the heap. Numbers in place of references: a namespace may come to hold itself.
    Namespace(usize),
    Macro(Rc<Held<MacroValue>>),
    Loop(Rc<Held<LoopState>>),
    /// A built-in function.
    Function(&'static str),
    /// A method that was looked up and not called yet.
    Method(Rc<Held<Method>>),
    Cycler(Rc<Held<Cycler>>),
    Joiner(Rc<Held<Joiner>>),
}

/// Something small on the heap, with the memory that is held for it.
#[derive(Debug)]
pub(crate) struct Held<T> {
    pub(super) inner: T,
    pub(super) _hold: Hold,
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.inner
    }
}

/// The elements of a list.
#[derive(Debug)]
pub(crate) struct Seq {
    pub(super) items: Vec<Value>,
    pub(super) nesting: Nesting,
    pub(super) _hold: Hold,
}

impl Deref for Seq {
    type Target = [Value];

    fn deref(&self) -> &[Value] {
        &self.items
    }
}

/// The entries of a dict, in order. Dicts of templates have a handful of entries: a search is as fast as a hash.
#[derive(Debug)]
pub(crate) struct Dict {
    pub(super) entries: Vec<(Value, Value)>,
    pub(super) nesting: Nesting,
    pub(super) _hold: Hold,
}

impl Deref for Dict {
    type Target = [(Value, Value)];

    fn deref(&self) -> &[(Value, Value)] {
        &self.entries
    }
}

/// A name of the template's source, or one made while rendering.
#[derive(Debug, Clone)]
pub(crate) enum Name {
    Source(Arc<str>),
    Made(Text),
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        match self {
            Self::Source(name) => name,
            Self::Made(text) => text,
        }
    }
}

/// What does not exist.
#[derive(Debug, Clone)]
pub(crate) enum Missing {
    Variable(Name),
    /// A parameter that was not given.
    Parameter(Name),
    /// Of a value of this type.
    Attribute(Name, &'static str),
    Element(i64, &'static str),
    Other(&'static str),
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Variable(name) => write!(f, "'{}' is undefined", &**name),
            Self::Parameter(name) => write!(f, "parameter '{}' was not provided", &**name),
            Self::Attribute(name, owner) => write!(f, "'{owner} object' has no attribute '{}'", &**name),
            Self::Element(index, owner) => write!(f, "'{owner} object' has no element {index}"),
            Self::Other(what) => write!(f, "{what} is undefined"),
        }
    }
}

/// A macro, or the body of a `{% call %}`, with the scope that it was defined in.
#[derive(Debug)]
pub(crate) struct MacroValue {
    pub(crate) id: usize,
    pub(crate) scope: usize,
}

/// What a loop body sees as `loop`.
#[derive(Debug)]
pub(crate) struct LoopState {
    pub(crate) id: usize,
    pub(crate) items: Rc<Seq>,
    pub(crate) index: Cell<usize>,
    /// How many recursive loops it lies in.
    pub(crate) depth: usize,
    /// What `loop.changed` saw last.
    pub(crate) seen: RefCell<Option<Rc<Seq>>>,
    /// Whether `loop(…)` runs it again.
    pub(crate) recursive: bool,
    /// The scope that the loop lies in, while it runs.
    pub(crate) scope: Cell<Option<usize>>,
}

#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) object: Value,
    pub(crate) name: Name,
}

/// `cycler(…)`: gives its items in turn.
#[derive(Debug)]
pub(crate) struct Cycler {
    pub(crate) items: Rc<Seq>,
    pub(crate) at: Cell<usize>,
}

/// `joiner(…)`: gives nothing at first, and its separator from then on.
#[derive(Debug)]
pub(crate) struct Joiner {
    pub(crate) separator: Value,
    pub(crate) used: Cell<bool>,
}

/// What lies within a value, known without walking it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Nesting {
    pub(super) depth: usize,
    /// Whether it holds a loop, which could come to hold itself through `loop.changed`.
    pub(super) has_loop: bool,
    /// Whether it is or holds a list or a dict, which cannot be a part of a key.
    pub(super) mutable: bool,
}

impl Nesting {
    /// One level about these values.
    pub(super) fn around<'a>(values: impl Iterator<Item = &'a Value>) -> Result<Self> {
        let inner = values.map(Value::nesting).fold(Self::default(), |a, b| Self {
            depth: a.depth.max(b.depth),
            has_loop: a.has_loop || b.has_loop,
            mutable: a.mutable || b.mutable,
        });
        if inner.depth >= MAX_DEPTH {
            return Err(Error::limit(format_args!(
                "lists and dicts lie more than {MAX_DEPTH} deep in one another"
            )));
        }
        Ok(Self { depth: inner.depth + 1, ..inner })
    }
}

impl Value {
    pub(super) fn nesting(&self) -> Nesting {
        match self {
            Self::Tuple(seq) | Self::Iter(seq) => seq.nesting,
            Self::List(seq) => Nesting { mutable: true, ..seq.nesting },
            Self::Dict(dict) => Nesting { mutable: true, ..dict.nesting },
            Self::Cycler(cycler) => cycler.items.nesting,
            Self::Joiner(joiner) => {
                let inner = joiner.separator.nesting();
                Nesting { depth: inner.depth + 1, ..inner }
            }
            Self::Method(method) => {
                let inner = method.object.nesting();
                Nesting { depth: inner.depth + 1, ..inner }
            }
            Self::Loop(state) => Nesting { has_loop: true, ..state.items.nesting },
            _ => Nesting::default(),
        }
    }

    /// Whether the value is or holds a loop.
    pub(crate) fn has_loop(&self) -> bool {
        self.nesting().has_loop
    }

    pub(crate) fn is_undefined(&self) -> bool {
        matches!(self, Self::Undefined(_))
    }

    pub(crate) fn is_hashable(&self) -> bool {
        match self {
            Self::List(_) | Self::Dict(_) => false,
            Self::Tuple(seq) => !seq.nesting.mutable,
            _ => true,
        }
    }

    pub(crate) fn is_true(&self) -> bool {
        match self {
            Self::Undefined(_) | Self::None => false,
            Self::Bool(flag) => *flag,
            Self::Int(int) => *int != 0,
            Self::Float(float) => *float != 0.0,
            Self::Str(text) => !text.is_empty(),
            Self::List(seq) | Self::Tuple(seq) => !seq.is_empty(),
            Self::Dict(dict) => !dict.is_empty(),
            _ => true,
        }
    }

    pub(crate) fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// An integer of 64 bits, or the nearest to a larger one; Python's bools are integers.
    pub(crate) fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(int) => Some(*int),
            Self::Bool(flag) => Some((*flag).into()),
            Self::BigInt(int) => {
                Some(if int.sign() == num_bigint::Sign::Minus { i64::MIN } else { i64::MAX })
            }
            _ => None,
        }
    }

    pub(crate) fn as_float(&self) -> Option<f64> {
        match self {
            Self::Float(float) => Some(*float),
            Self::BigInt(int) => int.to_f64(),
            _ => self.as_int().map(|int| int as f64),
        }
    }

    /// Python's name of the type.
    pub(crate) fn type_name(&self) -> &'static str {
        match self {
            Self::Undefined(_) => "Undefined",
            Self::None => "NoneType",
            Self::Bool(_) => "bool",
            Self::Int(_) | Self::BigInt(_) => "int",
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
            Self::Cycler(_) => "Cycler",
            Self::Joiner(_) => "Joiner",
        }
    }
}

/// The failure that an undefined value was used.
pub(crate) fn missing(value: &Value) -> Option<Error> {
    if let Value::Undefined(missing) = value { Some(runtime!("{}", ***missing)) } else { None }
}
