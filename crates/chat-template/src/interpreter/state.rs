//! What a rendering knows: scopes, captures, and the place in the template.

use std::cell::Cell;

use serde_json::{Map, Value as Json};

use crate::{
    budget::{Hold, STEP},
    context::Context,
    environment::Environment,
    error::Result,
    functions,
    syntax::ast::{Ast, ForLoop, Literal, LiteralId, Macro, Symbol},
    value::{Heap, Missing, Name, TextBuilder, Value, from_json},
};

/// What a scope takes without its variables.
const SCOPE: usize = 112;

/// One rendering.
pub(crate) struct Interpreter<'t> {
    pub(super) ast: &'t Ast,
    pub(super) context: Context,
    /// The variables of the outermost scope by symbol: those of the caller, and what the template sets there.
    top: Vec<Option<Value>>,
    /// All inner scopes in use, and those that macros were defined in; the first stands for the outermost. Indices in place of
    /// references: a macro and its scope hold each other.
    scopes: Vec<Scope>,
    pub(super) scope: usize,
    literals: Vec<Option<Value>>,
    /// The macros and loops that were reached, by their numbers.
    pub(super) macros: Vec<Option<&'t Macro>>,
    pub(super) loops: Vec<Option<&'t ForLoop>>,
    /// How many macros were defined so far.
    pub(super) defined: usize,
    /// The text so far, and on top of it the captures in progress.
    pub(super) out: Vec<TextBuilder>,
    pub(super) line: u32,
    _hold: Hold,
}

struct Scope {
    variables: Vec<(Symbol, Value)>,
    parent: usize,
    hold: Hold,
}

/// Where to go back to when a scope ends.
#[derive(Clone, Copy)]
pub(super) struct Mark {
    scope: usize,
    scopes: usize,
    defined: usize,
}

impl<'t> Interpreter<'t> {
    pub(crate) fn new(
        ast: &'t Ast,
        environment: &Environment,
        variables: &Map<String, Json>,
    ) -> Result<Self> {
        let heap = Heap::new(environment.limits, environment.cancelled.clone());
        let slots = ast.names.len() + ast.literals.len();
        let hold = heap
            .hold(slots.saturating_add(ast.macros + ast.loops).saturating_mul(size_of::<Option<Value>>()))?;
        let mut top = Vec::with_capacity(ast.names.len());
        // Only what the template names is converted.
        for name in &ast.names {
            let found = variables.get(&**name).or_else(|| environment.globals.get(&**name));
            top.push(found.map(|json| from_json(json, &heap)).transpose()?);
        }
        let outermost = Scope { variables: Vec::new(), parent: 0, hold: heap.hold(0)? };
        Ok(Self {
            ast,
            top,
            scopes: vec![outermost],
            scope: 0,
            literals: vec![None; ast.literals.len()],
            macros: vec![None; ast.macros],
            loops: vec![None; ast.loops],
            defined: 0,
            out: vec![heap.builder()],
            line: 0,
            context: Context {
                heap,
                now: Cell::new(environment.now),
                random: Cell::new(environment.seed),
                nesting: Cell::new(0),
            },
            _hold: hold,
        })
    }

    /// Renders the template.
    pub(crate) fn run(mut self) -> Result<String> {
        let ast = self.ast;
        match self.block(&ast.body) {
            Ok(_) => Ok(self.out.pop().map(TextBuilder::into_string).unwrap_or_default()),
            Err(error) => Err(error.at(self.line)),
        }
    }

    pub(super) fn heap(&self) -> &Heap {
        &self.context.heap
    }

    /// The value of a variable.
    pub(super) fn lookup(&self, symbol: Symbol) -> Result<Value> {
        let mut at = self.scope;
        while let Some(scope) = self.scopes.get(at).filter(|_| at > 0) {
            self.heap().charge(2 + scope.variables.len())?;
            if let Some((_, value)) = scope.variables.iter().find(|(known, _)| *known == symbol) {
                return Ok(value.clone());
            }
            at = scope.parent;
        }
        self.heap().charge(STEP / 4)?;
        if let Some(Some(value)) = self.top.get(symbol as usize) {
            return Ok(value.clone());
        }
        let name = &self.ast.names[symbol as usize];
        match functions::named(name) {
            Some(function) => Ok(Value::Function(function)),
            None => self.heap().undefined(Missing::Variable(Name::Source(name.clone()))),
        }
    }

    /// Sets a variable of the innermost scope.
    pub(super) fn set(&mut self, symbol: Symbol, value: Value) -> Result<()> {
        if self.scope == 0 {
            if let Some(slot) = self.top.get_mut(symbol as usize) {
                *slot = Some(value);
            }
            return Ok(());
        }
        let Some(scope) = self.scopes.get_mut(self.scope) else { return Ok(()) };
        self.context.heap.charge(scope.variables.len())?;
        match scope.variables.iter_mut().find(|(known, _)| *known == symbol) {
            Some((_, old)) => *old = value,
            None => {
                scope.hold.make_room(&mut scope.variables, 1)?;
                scope.variables.push((symbol, value));
            }
        }
        Ok(())
    }

    /// Opens a scope within `parent`.
    pub(super) fn push_scope(&mut self, parent: usize) -> Result<Mark> {
        self.heap().charge(STEP)?;
        let hold = self.heap().hold(SCOPE)?;
        let mark = Mark { scope: self.scope, scopes: self.scopes.len(), defined: self.defined };
        self.scopes.push(Scope { variables: Vec::new(), parent, hold });
        self.scope = mark.scopes;
        Ok(mark)
    }

    /// Goes back to a scope. Those opened since are dropped unless a macro was defined, which still needs them.
    pub(super) fn pop_scope(&mut self, mark: Mark) {
        self.scope = mark.scope;
        if self.defined == mark.defined {
            self.scopes.truncate(mark.scopes);
        }
    }

    /// Begins to collect text for something else than the result.
    pub(super) fn begin_capture(&mut self) {
        let builder = self.heap().builder();
        self.out.push(builder);
    }

    /// The text collected since the capture began.
    pub(super) fn end_capture(&mut self) -> Result<Value> {
        match self.out.pop() {
            Some(builder) => builder.finish().map(Value::Str),
            None => self.heap().str(""),
        }
    }

    /// The value of a literal, made when it is first needed.
    pub(super) fn literal(&mut self, id: LiteralId) -> Result<Value> {
        let Some(slot) = self.literals.get_mut(id as usize) else { return Ok(Value::None) };
        if let Some(value) = slot {
            return Ok(value.clone());
        }
        let heap = &self.context.heap;
        let value = match &self.ast.literals[id as usize] {
            Literal::None => Value::None,
            Literal::Bool(flag) => Value::Bool(*flag),
            Literal::Int(int) => Value::Int(*int),
            Literal::BigInt(int) => {
                let _room = heap.hold(usize::try_from(int.bits() / 8).unwrap_or(usize::MAX))?;
                heap.integer(int.clone())?
            }
            Literal::Float(float) => Value::Float(*float),
            Literal::Text(text) => heap.str(text)?,
        };
        *slot = Some(value.clone());
        Ok(value)
    }
}
