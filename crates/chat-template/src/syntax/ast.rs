//! The syntax tree of a template. Its depth is bounded by the parser, so that it may be walked and dropped recursively.

use std::sync::Arc;

use num_bigint::BigInt;

/// A parsed template.
#[derive(Debug)]
pub(crate) struct Ast {
    pub(crate) body: Vec<Stmt>,
    /// The names of variables by [`Symbol`].
    pub(crate) names: Vec<Arc<str>>,
    /// Literals by [`LiteralId`].
    pub(crate) literals: Vec<Literal>,
    /// How many loops and macros it has; each has a number below that.
    pub(crate) loops: usize,
    pub(crate) macros: usize,
}

/// The number of a variable's name.
pub(crate) type Symbol = u32;

/// Names that the interpreter gives values to. They are the first symbols of every template.
pub(crate) const SPECIAL: [&str; 4] = ["loop", "caller", "varargs", "kwargs"];
pub(crate) const LOOP: Symbol = 0;
pub(crate) const CALLER: Symbol = 1;
pub(crate) const VARARGS: Symbol = 2;
pub(crate) const KWARGS: Symbol = 3;

/// The number of a literal.
pub(crate) type LiteralId = u32;

/// A constant.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    None,
    Bool(bool),
    Int(i64),
    BigInt(BigInt),
    Float(f64),
    Text(Box<str>),
}

/// A statement.
#[derive(Debug)]
pub(crate) enum Stmt {
    Text(Box<str>),
    Print {
        line: u32,
        value: Expr,
    },
    If {
        branches: Vec<Branch>,
        otherwise: Vec<Stmt>,
    },
    For(Box<ForLoop>),
    Set {
        line: u32,
        target: Target,
        value: Expr,
    },
    SetBlock {
        line: u32,
        target: Target,
        filters: Vec<Invocation>,
        body: Vec<Stmt>,
    },
    FilterBlock {
        line: u32,
        filters: Vec<Invocation>,
        body: Vec<Stmt>,
    },
    With {
        line: u32,
        assignments: Vec<(Target, Expr)>,
        body: Vec<Stmt>,
    },
    Macro {
        line: u32,
        declared: Box<Macro>,
    },
    Call(Box<CallBlock>),
    Do {
        line: u32,
        value: Expr,
    },
    Break,
    Continue,
    /// A body in a scope of its own: `{% generation %}`, `{% block %}`.
    Scope(Vec<Stmt>),
    Autoescape {
        line: u32,
        on: Expr,
        body: Vec<Stmt>,
    },
    /// `include`, `import`, `extends`: fails when it is reached.
    Load {
        line: u32,
    },
}

/// One condition of an `if` with what depends on it.
#[derive(Debug)]
pub(crate) struct Branch {
    pub(crate) line: u32,
    pub(crate) condition: Expr,
    pub(crate) body: Vec<Stmt>,
}

#[derive(Debug)]
pub(crate) struct ForLoop {
    /// Its number among the template's loops.
    pub(crate) id: usize,
    pub(crate) line: u32,
    pub(crate) target: Target,
    pub(crate) items: Expr,
    pub(crate) condition: Option<Expr>,
    pub(crate) recursive: bool,
    pub(crate) body: Vec<Stmt>,
    pub(crate) otherwise: Vec<Stmt>,
}

/// A macro, or the body of a `{% call %}`.
#[derive(Debug)]
pub(crate) struct Macro {
    /// Its number among the template's macros.
    pub(crate) id: usize,
    pub(crate) name: Arc<str>,
    pub(crate) symbol: Symbol,
    pub(crate) parameters: Vec<(Symbol, Option<Expr>)>,
    pub(crate) body: Vec<Stmt>,
    pub(crate) uses: Uses,
}

/// Which of the special variables of a macro its body names.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Uses {
    pub(crate) caller: bool,
    pub(crate) varargs: bool,
    pub(crate) kwargs: bool,
}

#[derive(Debug)]
pub(crate) struct CallBlock {
    pub(crate) line: u32,
    /// What is called, its last step being the call.
    pub(crate) callee: Expr,
    pub(crate) args: Arguments,
    pub(crate) body: Macro,
}

/// What can be assigned to.
#[derive(Debug)]
pub(crate) enum Target {
    Name(Symbol),
    /// `name.attribute`, where the name is a namespace's.
    Attribute(Symbol, Arc<str>),
    Tuple(Vec<Target>),
}

/// An expression.
#[derive(Debug)]
pub(crate) enum Expr {
    Name(Symbol),
    Literal(LiteralId),
    List(Vec<Expr>),
    Tuple(Vec<Expr>),
    Dict(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negative(Box<Expr>),
    Positive(Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    /// Texts of all joined by `~`.
    Concat(Vec<Expr>),
    /// Operators of one precedence, from left to right.
    Binary(Box<Expr>, Vec<(BinaryOp, Expr)>),
    Compare(Box<Expr>, Vec<(CompareOp, Expr)>),
    If(Box<IfExpr>),
    /// What follows a value, from left to right.
    Postfix(Box<Expr>, Vec<Postfix>),
}

/// `then if condition else otherwise`. Where several conditions follow each other, as in `a if b if c else d`, the last decides
/// about `otherwise`; if an earlier one is false, the value is undefined.
#[derive(Debug)]
pub(crate) struct IfExpr {
    pub(crate) then: Expr,
    pub(crate) conditions: Vec<Expr>,
    pub(crate) otherwise: Option<Expr>,
}

#[derive(Debug)]
pub(crate) enum Postfix {
    /// `.name`
    Attribute(Arc<str>),
    /// `[key]`
    Item(Expr),
    /// `[start:stop:step]`
    Slice(Box<[Option<Expr>; 3]>),
    /// `(…)`
    Call(Arguments),
    /// `|name(…)`
    Filter(Invocation),
    /// `is name(…)`
    Test { test: Invocation, negated: bool },
}

/// A filter or test with its arguments.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) name: Arc<str>,
    pub(crate) args: Arguments,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(crate) struct Arguments {
    pub(crate) positional: Vec<Expr>,
    pub(crate) named: Vec<(Arc<str>, Expr)>,
    /// `*items`
    pub(crate) star: Option<Box<Expr>>,
    /// `**mapping`
    pub(crate) star_star: Option<Box<Expr>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinaryOp {
    Add,
    Subtract,
    Multiply,
    Divide,
    FloorDivide,
    Modulo,
    Power,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompareOp {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    In,
    NotIn,
}
