//! The interpreter: walks minijinja's syntax tree by Jinja2's rules.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
};

use jiff::civil::DateTime;
use minijinja::machinery::ast::{self, CallArg, Expr, Stmt};
use serde_json::Map;

use super::{
    budget::{self, Budget, STEP},
    checks, filters, functions, methods, ops, print,
    value::{Fallible, Value},
};

/// Expressions, blocks and macro calls within one another. Each takes a few KB of the interpreter's stack.
const MAX_NESTING: usize = 4_000;

/// A macro, or the body of a `{% call %}`: where it stands in the template, and the scope that it was defined in.
#[derive(Debug)]
pub(super) struct Macro {
    id: usize,
    scope: usize,
}

/// What a loop body sees as `loop`.
#[derive(Debug)]
pub(super) struct LoopState {
    pub(super) items: Vec<Value>,
    pub(super) index: Cell<usize>,
    /// How many recursive loops it lies in.
    pub(super) depth: usize,
    /// What `loop.changed` saw last.
    pub(super) seen: RefCell<Option<Vec<Value>>>,
    /// The loop to run again on `loop(…)`, where it is recursive.
    recursive: Option<usize>,
}

/// The arguments of a call.
#[derive(Debug, Default)]
pub(super) struct Args {
    pub(super) pos: Vec<Value>,
    pub(super) named: Vec<(String, Value)>,
}

/// How a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Normal,
    Break,
    Continue,
}

#[derive(Debug, Default)]
struct Scope<'t> {
    variables: HashMap<&'t str, Value>,
    parent: Option<usize>,
}

/// One rendering.
#[derive(Debug)]
pub(super) struct Interpreter<'t> {
    pub(super) budget: Budget,
    pub(super) now: DateTime,
    globals: HashMap<String, Value>,
    /// All scopes in use, and those that macros were defined in. Indices in place of references: a macro and its scope
    /// hold each other.
    scopes: Vec<Scope<'t>>,
    scope: usize,
    macros: Vec<&'t ast::Macro<'t>>,
    loops: Vec<&'t ast::ForLoop<'t>>,
    /// The text so far, and on top of it the captures in progress.
    out: Vec<String>,
    nesting: usize,
    line: usize,
}

/// Renders a template.
pub(super) fn render(
    template: &Stmt<'_>,
    variables: &Map<String, serde_json::Value>,
    now: DateTime,
) -> Result<String, String> {
    let budget = Budget::new();
    let globals = variables
        .iter()
        .map(|(name, value)| Ok((name.clone(), Value::from_json(value, &budget)?)))
        .collect::<Fallible<_>>()?;
    let mut interpreter = Interpreter {
        budget,
        now,
        globals,
        scopes: vec![Scope::default()],
        scope: 0,
        macros: vec![],
        loops: vec![],
        out: vec![String::new()],
        nesting: 0,
        line: 0,
    };
    match interpreter.statement(template) {
        Ok(_) => Ok(interpreter.out.pop().unwrap_or_default()),
        Err(reason) => Err(format!("line {}: {reason}", interpreter.line)),
    }
}

impl<'t> Interpreter<'t> {
    fn block(&mut self, statements: &'t [Stmt<'t>]) -> Fallible<Flow> {
        for statement in statements {
            let flow = self.statement(statement)?;
            if flow != Flow::Normal {
                return Ok(flow);
            }
        }
        Ok(Flow::Normal)
    }

    fn statement(&mut self, statement: &'t Stmt<'t>) -> Fallible<Flow> {
        self.enter()?;
        let flow = self.statement_within(statement)?;
        self.nesting -= 1;
        Ok(flow)
    }

    fn statement_within(&mut self, statement: &'t Stmt<'t>) -> Fallible<Flow> {
        match statement {
            Stmt::Template(template) => return self.block(&template.children),
            Stmt::EmitRaw(raw) => self.emit(raw.raw)?,
            Stmt::EmitExpr(emit) => {
                self.line = emit.span().start_line as usize;
                let value = self.eval(&emit.expr)?;
                let text = print::text(&value, &self.budget)?;
                self.emit(&text)?;
            }
            Stmt::IfCond(cond) => {
                self.line = cond.span().start_line as usize;
                let body = if self.eval(&cond.expr)?.is_true() { &cond.true_body } else { &cond.false_body };
                return self.block(body);
            }
            Stmt::ForLoop(body) => {
                self.line = body.span().start_line as usize;
                self.loops.push(body);
                let id = self.loops.len() - 1;
                let items = self.eval(&body.iter)?;
                self.run_loop(id, &items, 0)?;
                self.loops.truncate(id);
            }
            Stmt::Set(set) => {
                self.line = set.span().start_line as usize;
                let value = self.eval(&set.expr)?;
                self.assign(&set.target, value)?;
            }
            Stmt::SetBlock(set) => {
                let text = self.capture(&set.body)?;
                let value = match &set.filter {
                    Some(filter) => self.filter_block(filter, text)?,
                    None => Value::str(text),
                };
                self.assign(&set.target, value)?;
            }
            Stmt::FilterBlock(filter) => {
                let text = self.capture(&filter.body)?;
                let value = self.filter_block(&filter.filter, text)?;
                let text = print::text(&value, &self.budget)?;
                self.emit(&text)?;
            }
            Stmt::WithBlock(with) => {
                let values = with
                    .assignments
                    .iter()
                    .map(|(_, value)| self.eval(value))
                    .collect::<Fallible<Vec<_>>>()?;
                let outer = self.push_scope(self.scope)?;
                for ((target, _), value) in with.assignments.iter().zip(values) {
                    self.assign(target, value)?;
                }
                let flow = self.block(&with.body)?;
                self.scope = outer;
                return Ok(flow);
            }
            Stmt::Macro(declared) => {
                let value = self.declare(declared);
                self.scopes[self.scope].variables.insert(declared.name, value);
            }
            Stmt::CallBlock(block) => {
                self.line = block.span().start_line as usize;
                let caller = self.declare(&block.macro_decl);
                let mut args = self.args(&block.call.args)?;
                args.named.push(("caller".to_owned(), caller));
                let value = self.call(&block.call.expr, args)?;
                let text = print::text(&value, &self.budget)?;
                self.emit(&text)?;
            }
            Stmt::Do(call) => {
                let args = self.args(&call.call.args)?;
                self.call(&call.call.expr, args)?;
            }
            Stmt::Continue(_) => return Ok(Flow::Continue),
            Stmt::Break(_) => return Ok(Flow::Break),
            Stmt::AutoEscape(block) => return self.block(&block.body),
            Stmt::Block(block) => return self.block(&block.body),
            Stmt::Import(_) | Stmt::FromImport(_) | Stmt::Extends(_) | Stmt::Include(_) => {
                return Err("a chat template cannot load other templates".to_owned());
            }
        }
        Ok(Flow::Normal)
    }

    /// Runs the body of a loop for each of the items.
    fn run_loop(&mut self, id: usize, items: &Value, depth: usize) -> Fallible<()> {
        let body = self.loops[id];
        let mut items = items.iterate(&self.budget)?;
        let marks = (self.scopes.len(), self.macros.len());
        let outer = self.scope;
        if let Some(condition) = &body.filter_expr {
            let mut kept = Vec::new();
            for item in items {
                self.push_scope(outer)?;
                self.assign(&body.target, item.clone())?;
                if self.eval(condition)?.is_true() {
                    kept.push(item);
                }
                self.pop_scope(outer, marks);
            }
            items = kept;
        }
        if items.is_empty() {
            self.push_scope(outer)?;
            self.block(&body.else_body)?;
            self.pop_scope(outer, marks);
            return Ok(());
        }
        let state = Rc::new(LoopState {
            items,
            index: Cell::new(0),
            depth,
            seen: RefCell::new(None),
            recursive: body.recursive.then_some(id),
        });
        for at in 0..state.items.len() {
            state.index.set(at);
            self.push_scope(outer)?;
            self.scopes[self.scope].variables.insert("loop", Value::Loop(Rc::clone(&state)));
            self.assign(&body.target, state.items[at].clone())?;
            let flow = self.block(&body.body)?;
            self.pop_scope(outer, marks);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(())
    }

    /// Sets a name, an attribute of a namespace, or several at once.
    fn assign(&mut self, target: &'t Expr<'t>, value: Value) -> Fallible<()> {
        match target {
            Expr::Var(name) => {
                self.scopes[self.scope].variables.insert(name.id, value);
                Ok(())
            }
            Expr::GetAttr(attribute) => {
                let Value::Namespace(namespace) = self.eval(&attribute.expr)? else {
                    return Err(format!(
                        "cannot assign attribute {} on a non-namespace object",
                        attribute.name
                    ));
                };
                if value.is_live() {
                    // It would hold itself, in the end.
                    return Err("a namespace cannot hold namespaces, macros or loops".to_owned());
                }
                functions::set_attribute(&namespace, attribute.name, value);
                Ok(())
            }
            Expr::Tuple(targets) => self.unpack(&targets.items, &value),
            Expr::List(targets) => self.unpack(&targets.items, &value),
            other => Err(format!("cannot assign to a {}", other.description())),
        }
    }

    fn unpack(&mut self, targets: &'t [Expr<'t>], value: &Value) -> Fallible<()> {
        let values = value.iterate(&self.budget)?;
        if values.len() != targets.len() {
            return Err(format!("cannot unpack {} values into {} names", values.len(), targets.len()));
        }
        targets.iter().zip(values).try_for_each(|(target, value)| self.assign(target, value))
    }

    /// The text that a block makes.
    fn capture(&mut self, body: &'t [Stmt<'t>]) -> Fallible<String> {
        let marks = (self.scopes.len(), self.macros.len());
        let outer = self.push_scope(self.scope)?;
        self.out.push(String::new());
        self.block(body)?;
        self.pop_scope(outer, marks);
        Ok(self.out.pop().unwrap_or_default())
    }

    /// The filters of `{% filter … %}` and `{% set x | … %}`, which have no value of their own to begin with.
    fn filter_block(&mut self, filter: &'t Expr<'t>, text: String) -> Fallible<Value> {
        match filter {
            Expr::Filter(filter) => {
                let value = match &filter.expr {
                    Some(inner) => self.filter_block(inner, text)?,
                    None => Value::str(text),
                };
                let args = self.args(&filter.args)?;
                filters::apply(self, filter.name, value, args)
            }
            other => Err(format!("expected a filter, found a {}", other.description())),
        }
    }

    fn declare(&mut self, declared: &'t ast::Macro<'t>) -> Value {
        self.macros.push(declared);
        Value::Macro(Rc::new(Macro { id: self.macros.len() - 1, scope: self.scope }))
    }

    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &'t Expr<'t>) -> Fallible<Value> {
        self.enter()?;
        let value = self.eval_within(expr)?;
        self.nesting -= 1;
        Ok(value)
    }

    fn eval_within(&mut self, expr: &'t Expr<'t>) -> Fallible<Value> {
        match expr {
            Expr::Var(name) => Ok(self.lookup(name.id)),
            Expr::Const(constant) => ops::constant(&constant.value, &self.budget),
            Expr::List(list) => Value::list(self.eval_all(&list.items)?),
            Expr::Tuple(tuple) => Value::tuple(self.eval_all(&tuple.items)?),
            Expr::Map(map) => {
                let (keys, values) = (self.eval_all(&map.keys)?, self.eval_all(&map.values)?);
                Value::dict(keys.into_iter().zip(values).collect(), &self.budget)
            }
            Expr::UnaryOp(op) => {
                let value = self.eval(&op.expr)?;
                match op.op {
                    ast::UnaryOpKind::Not => Ok(Value::Bool(!value.is_true())),
                    ast::UnaryOpKind::Neg => ops::negate(&value),
                }
            }
            Expr::BinOp(op) => match op.op {
                ast::BinOpKind::ScAnd => {
                    let left = self.eval(&op.left)?;
                    if left.is_true() { self.eval(&op.right) } else { Ok(left) }
                }
                ast::BinOpKind::ScOr => {
                    let left = self.eval(&op.left)?;
                    if left.is_true() { Ok(left) } else { self.eval(&op.right) }
                }
                kind => {
                    let (left, right) = (self.eval(&op.left)?, self.eval(&op.right)?);
                    ops::binary(kind, &left, &right, &self.budget)
                }
            },
            Expr::Compare(chain) => {
                let mut left = self.eval(&chain.expr)?;
                for link in &chain.ops {
                    let right = self.eval(&link.expr)?;
                    if !ops::compare(link.op, &left, &right, &self.budget)? {
                        return Ok(Value::Bool(false));
                    }
                    left = right;
                }
                Ok(Value::Bool(true))
            }
            Expr::IfExpr(choice) => {
                if self.eval(&choice.test_expr)?.is_true() {
                    return self.eval(&choice.true_expr);
                }
                match &choice.false_expr {
                    Some(otherwise) => self.eval(otherwise),
                    None => Ok(Value::Undefined("the inline if-expression".into())),
                }
            }
            Expr::GetAttr(attribute) => {
                let value = self.eval(&attribute.expr)?;
                ops::attribute(&value, attribute.name, &self.budget)
            }
            Expr::GetItem(item) => {
                let (value, key) = (self.eval(&item.expr)?, self.eval(&item.subscript_expr)?);
                ops::item(&value, &key, &self.budget)
            }
            Expr::Slice(slice) => {
                let value = self.eval(&slice.expr)?;
                let mut bound =
                    |expr: &'t Option<Expr<'t>>| expr.as_ref().map(|expr| self.eval(expr)).transpose();
                let bounds = [bound(&slice.start)?, bound(&slice.stop)?, bound(&slice.step)?];
                ops::slice(&value, &bounds, &self.budget)
            }
            Expr::Filter(filter) => {
                let value = match &filter.expr {
                    Some(expr) => self.eval(expr)?,
                    None => return Err(format!("filter {} has nothing to filter", filter.name)),
                };
                let args = self.args(&filter.args)?;
                filters::apply(self, filter.name, value, args)
            }
            Expr::Test(test) => {
                let value = self.eval(&test.expr)?;
                let args = self.args(&test.args)?;
                Ok(Value::Bool(checks::is(test.name, &value, &args, &self.budget)?))
            }
            Expr::Call(call) => {
                let args = self.args(&call.args)?;
                self.call(&call.expr, args)
            }
        }
    }

    fn eval_all(&mut self, items: &'t [Expr<'t>]) -> Fallible<Vec<Value>> {
        self.budget.charge_elements(items.len())?;
        items.iter().map(|item| self.eval(item)).collect()
    }

    fn args(&mut self, given: &'t [CallArg<'t>]) -> Fallible<Args> {
        let mut args = Args::default();
        for arg in given {
            match arg {
                CallArg::Pos(expr) => args.pos.push(self.eval(expr)?),
                CallArg::Kwarg(name, expr) => args.named.push(((*name).to_owned(), self.eval(expr)?)),
                CallArg::PosSplat(expr) => {
                    let values = self.eval(expr)?;
                    args.pos.extend(values.iterate(&self.budget)?);
                }
                CallArg::KwargSplat(expr) => {
                    let Value::Dict(dict) = self.eval(expr)? else {
                        return Err("argument after ** must be a mapping".to_owned());
                    };
                    self.budget.charge_elements(dict.entries.len())?;
                    for (key, value) in &dict.entries {
                        args.named.push((print::text(key, &self.budget)?, value.clone()));
                    }
                }
            }
        }
        Ok(args)
    }

    /// Calls what an expression names: a method, or any value that can be called.
    fn call(&mut self, callee: &'t Expr<'t>, args: Args) -> Fallible<Value> {
        if let Expr::GetAttr(attribute) = callee {
            let object = self.eval(&attribute.expr)?;
            if let Some(result) = methods::call(&object, attribute.name, &args, &self.budget)? {
                return Ok(result);
            }
            let value = ops::attribute(&object, attribute.name, &self.budget)?;
            return self.call_value(&value, args);
        }
        let value = self.eval(callee)?;
        self.call_value(&value, args)
    }

    fn call_value(&mut self, value: &Value, args: Args) -> Fallible<Value> {
        match value {
            Value::Function(name) => functions::call(self, name, &args),
            Value::Macro(called) => self.call_macro(called, args),
            Value::Method(method) => methods::call(&method.0, &method.1, &args, &self.budget)?
                .ok_or_else(|| format!("'{}' object has no method {}", method.0.type_name(), method.1)),
            Value::Loop(state) => {
                let id = state.recursive.ok_or("only a loop marked recursive can be called")?;
                let [items] = args.bind("loop", ["iterable"])?;
                let items = items.ok_or("loop() needs the items to loop over")?;
                self.out.push(String::new());
                self.enter()?;
                self.run_loop(id, &items, state.depth + 1)?;
                self.nesting -= 1;
                Ok(Value::str(self.out.pop().unwrap_or_default()))
            }
            Value::Undefined(what) => Err(format!("{what} is undefined")),
            other => Err(format!("'{}' object is not callable", other.type_name())),
        }
    }

    fn call_macro(&mut self, called: &Macro, mut args: Args) -> Fallible<Value> {
        self.enter()?;
        let declared = self.macros[called.id];
        let marks = (self.scopes.len(), self.macros.len());
        let outer = self.push_scope(called.scope)?;
        let without_default = declared.args.len() - declared.defaults.len();
        let mut given = args.pos.into_iter();
        for (at, target) in declared.args.iter().enumerate() {
            let Expr::Var(name) = target else { return Err("a macro's argument is no name".to_owned()) };
            let named = args.named.iter().position(|(known, _)| known == name.id);
            let value = match (given.next(), named) {
                (Some(_), Some(_)) => {
                    return Err(format!(
                        "macro '{}' got two values for argument '{}'",
                        declared.name, name.id
                    ));
                }
                (Some(value), None) => value,
                (None, Some(place)) => args.named.swap_remove(place).1,
                (None, None) if at >= without_default => {
                    self.eval(&declared.defaults[at - without_default])?
                }
                (None, None) => Value::Undefined(format!("parameter '{}'", name.id).into()),
            };
            self.scopes[self.scope].variables.insert(name.id, value);
        }
        let varargs = Value::tuple(given.collect())?;
        let caller =
            args.named.iter().position(|(name, _)| name == "caller").map(|at| args.named.swap_remove(at).1);
        let kwargs = args.named.into_iter().map(|(name, value)| (Value::str(name), value)).collect();
        let kwargs = Value::dict(kwargs, &self.budget)?;
        let caller = caller.unwrap_or_else(|| Value::Undefined("'caller'".into()));
        let scope = &mut self.scopes[self.scope].variables;
        for (name, value) in [("varargs", varargs), ("kwargs", kwargs), ("caller", caller)] {
            scope.entry(name).or_insert(value);
        }
        self.out.push(String::new());
        self.block(&declared.body)?;
        self.pop_scope(outer, marks);
        self.nesting -= 1;
        Ok(Value::str(self.out.pop().unwrap_or_default()))
    }

    fn lookup(&self, name: &str) -> Value {
        let mut at = Some(self.scope);
        while let Some(scope) = at {
            if let Some(value) = self.scopes[scope].variables.get(name) {
                return value.clone();
            }
            at = self.scopes[scope].parent;
        }
        if let Some(value) = self.globals.get(name) {
            return value.clone();
        }
        functions::named(name).map_or_else(|| Value::Undefined(format!("'{name}'").into()), Value::Function)
    }

    /// Opens a scope within `parent`; the scope to come back to.
    fn push_scope(&mut self, parent: usize) -> Fallible<usize> {
        self.budget.charge(STEP * 4)?;
        self.scopes.push(Scope { variables: HashMap::new(), parent: Some(parent) });
        Ok(std::mem::replace(&mut self.scope, self.scopes.len() - 1))
    }

    /// Goes back to a scope. Those opened since are dropped unless a macro was defined, which still needs them.
    fn pop_scope(&mut self, outer: usize, (scopes, macros): (usize, usize)) {
        self.scope = outer;
        if self.macros.len() == macros {
            self.scopes.truncate(scopes);
        }
    }

    fn emit(&mut self, text: &str) -> Fallible<()> {
        self.budget.charge(text.len())?;
        let Some(out) = self.out.last_mut() else { return Ok(()) };
        if out.len() + text.len() > budget::MAX_TEXT {
            return Err(format!("it makes more than {} bytes", budget::MAX_TEXT));
        }
        out.push_str(text);
        Ok(())
    }

    fn enter(&mut self) -> Fallible<()> {
        self.budget.charge(STEP)?;
        self.nesting += 1;
        if self.nesting > MAX_NESTING { Err("maximum recursion depth exceeded".to_owned()) } else { Ok(()) }
    }
}

impl Args {
    /// The arguments by their names, in order; those not given are `None`.
    pub(super) fn bind<const N: usize>(
        &self,
        callee: &str,
        names: [&str; N],
    ) -> Fallible<[Option<Value>; N]> {
        if self.pos.len() > N {
            return Err(format!("{callee}() takes at most {N} arguments, {} were given", self.pos.len()));
        }
        let mut bound = [const { None }; N];
        for (place, value) in bound.iter_mut().zip(&self.pos) {
            *place = Some(value.clone());
        }
        for (name, value) in &self.named {
            let at = names.iter().position(|known| known == name);
            let at = at.ok_or_else(|| format!("{callee}() got an unexpected keyword argument '{name}'"))?;
            if bound[at].replace(value.clone()).is_some() {
                return Err(format!("{callee}() got multiple values for argument '{name}'"));
            }
        }
        Ok(bound)
    }
}
