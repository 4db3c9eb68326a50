//! Statements.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use super::state::Interpreter;
use crate::{
    budget::STEP,
    error::{Result, runtime},
    filters,
    ops::print::write_text,
    syntax::ast::{Branch, CallBlock, Expr, ForLoop, Invocation, LOOP, Macro, Stmt, Target},
    value::{Held, LoopState, Name, Seq, Value},
};

/// How a block ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    Normal,
    Break,
    Continue,
}

impl<'t> Interpreter<'t> {
    pub(super) fn block(&mut self, statements: &'t [Stmt]) -> Result<Flow> {
        for statement in statements {
            let flow = self.statement(statement)?;
            if flow != Flow::Normal {
                return Ok(flow);
            }
        }
        Ok(Flow::Normal)
    }

    fn statement(&mut self, statement: &'t Stmt) -> Result<Flow> {
        match statement {
            Stmt::Text(text) => self.emit(text)?,
            Stmt::Break => return Ok(Flow::Break),
            Stmt::Continue => return Ok(Flow::Continue),
            statement => {
                self.context.enter()?;
                let flow = self.compound(statement)?;
                self.context.leave();
                return Ok(flow);
            }
        }
        Ok(Flow::Normal)
    }

    /// Each kind has a function of its own, so that a level of nesting takes little of the stack.
    fn compound(&mut self, statement: &'t Stmt) -> Result<Flow> {
        match statement {
            Stmt::If { branches, otherwise } => return self.choose(branches, otherwise),
            Stmt::With { line, assignments, body } => return self.with(*line, assignments, body),
            Stmt::Scope(body) => return self.scoped(body),
            Stmt::Autoescape { line, on, body } => return self.autoescape(*line, on, body),
            statement => self.simple(statement)?,
        }
        Ok(Flow::Normal)
    }

    /// A statement that no `break` leaves.
    fn simple(&mut self, statement: &'t Stmt) -> Result<()> {
        match statement {
            Stmt::Print { line, value } => self.print(*line, value),
            Stmt::For(for_loop) => self.for_loop(for_loop),
            Stmt::Set { line, target, value } => self.set_statement(*line, target, value),
            Stmt::SetBlock { line, target, filters, body } => self.set_block(*line, target, filters, body),
            Stmt::FilterBlock { line, filters, body } => self.filter_block(*line, filters, body),
            Stmt::Macro { line, declared } => self.macro_statement(*line, declared),
            Stmt::Call(block) => self.call_block(block),
            Stmt::Do { line, value } => {
                self.line = *line;
                self.eval(value).map(drop)
            }
            Stmt::Load { line } => {
                self.line = *line;
                Err(runtime!("a chat template cannot load other templates"))
            }
            _ => Ok(()),
        }
    }

    fn set_statement(&mut self, line: u32, target: &'t Target, value: &'t Expr) -> Result<()> {
        self.line = line;
        let value = self.eval(value)?;
        self.assign(target, value)
    }

    fn set_block(
        &mut self,
        line: u32,
        target: &'t Target,
        filters: &'t [Invocation],
        body: &'t [Stmt],
    ) -> Result<()> {
        let value = self.filtered_block(line, filters, body)?;
        self.assign(target, value)
    }

    fn filter_block(&mut self, line: u32, filters: &'t [Invocation], body: &'t [Stmt]) -> Result<()> {
        let value = self.filtered_block(line, filters, body)?;
        self.write(&value)
    }

    fn macro_statement(&mut self, line: u32, declared: &'t Macro) -> Result<()> {
        self.line = line;
        let value = self.define(declared)?;
        self.set(declared.symbol, value)
    }

    fn autoescape(&mut self, line: u32, on: &'t Expr, body: &'t [Stmt]) -> Result<Flow> {
        self.line = line;
        if self.eval(on)?.is_true() {
            return Err(runtime!("autoescape is not supported"));
        }
        self.scoped(body)
    }

    fn emit(&mut self, text: &str) -> Result<()> {
        self.out.last_mut().map_or(Ok(()), |out| out.push_str(text))
    }

    /// Adds a value's text to the output.
    fn write(&mut self, value: &Value) -> Result<()> {
        let Self { out, context, .. } = self;
        out.last_mut().map_or(Ok(()), |out| write_text(value, out, &context.heap))
    }

    fn print(&mut self, line: u32, value: &'t Expr) -> Result<()> {
        self.line = line;
        let value = self.eval(value)?;
        self.write(&value)
    }

    fn choose(&mut self, branches: &'t [Branch], otherwise: &'t [Stmt]) -> Result<Flow> {
        for branch in branches {
            self.line = branch.line;
            if self.eval(&branch.condition)?.is_true() {
                return self.block(&branch.body);
            }
        }
        self.block(otherwise)
    }

    fn scoped(&mut self, body: &'t [Stmt]) -> Result<Flow> {
        let mark = self.push_scope(self.scope)?;
        let flow = self.block(body)?;
        self.pop_scope(mark);
        Ok(flow)
    }

    fn with(&mut self, line: u32, assignments: &'t [(Target, Expr)], body: &'t [Stmt]) -> Result<Flow> {
        self.line = line;
        let mut values = self.heap().items();
        for (_, value) in assignments {
            values.push(self.eval(value)?)?;
        }
        let mark = self.push_scope(self.scope)?;
        for ((target, _), value) in assignments.iter().zip(values.iter()) {
            self.assign(target, value.clone())?;
        }
        let flow = self.block(body)?;
        self.pop_scope(mark);
        Ok(flow)
    }

    fn for_loop(&mut self, for_loop: &'t ForLoop) -> Result<()> {
        self.line = for_loop.line;
        if let Some(slot) = self.loops.get_mut(for_loop.id) {
            *slot = Some(for_loop);
        }
        let items = self.eval(&for_loop.items)?;
        self.run_loop(for_loop, &items, self.scope, 0)
    }

    /// Runs the body of a loop for each of the items.
    pub(super) fn run_loop(
        &mut self,
        for_loop: &'t ForLoop,
        items: &Value,
        scope: usize,
        depth: usize,
    ) -> Result<()> {
        let items = self.looped_items(for_loop, items, scope)?;
        if items.is_empty() {
            let mark = self.push_scope(scope)?;
            self.block(&for_loop.otherwise)?;
            self.pop_scope(mark);
            return Ok(());
        }
        let state = self.heap().held(LoopState {
            id: for_loop.id,
            items,
            index: Cell::new(0),
            depth,
            seen: RefCell::new(None),
            recursive: for_loop.recursive,
            scope: Cell::new(Some(scope)),
        })?;
        for at in 0..state.items.len() {
            if self.iteration(for_loop, &state, at, scope)? == Flow::Break {
                break;
            }
        }
        // The scope may be gone when somebody calls what is left of the loop.
        state.scope.set(None);
        Ok(())
    }

    /// The items of a loop that its condition lets pass.
    fn looped_items(&mut self, for_loop: &'t ForLoop, items: &Value, scope: usize) -> Result<Rc<Seq>> {
        let items = self.heap().iterate(items)?;
        let Some(condition) = &for_loop.condition else { return Ok(items) };
        let mut kept = self.heap().items();
        for item in items.iter() {
            let mark = self.push_scope(scope)?;
            self.assign(&for_loop.target, item.clone())?;
            if self.eval(condition)?.is_true() {
                kept.push(item.clone())?;
            }
            self.pop_scope(mark);
        }
        kept.seq()
    }

    /// Runs the body of a loop for one of its items.
    fn iteration(
        &mut self,
        for_loop: &'t ForLoop,
        state: &Rc<Held<LoopState>>,
        at: usize,
        scope: usize,
    ) -> Result<Flow> {
        self.heap().charge(STEP)?;
        state.index.set(at);
        let mark = self.push_scope(scope)?;
        self.set(LOOP, Value::Loop(Rc::clone(state)))?;
        self.assign(&for_loop.target, state.items[at].clone())?;
        let flow = self.block(&for_loop.body)?;
        self.pop_scope(mark);
        Ok(flow)
    }

    /// Sets a name, an attribute of a namespace, or several at once.
    fn assign(&mut self, target: &'t Target, value: Value) -> Result<()> {
        match target {
            Target::Name(symbol) => self.set(*symbol, value),
            Target::Attribute(symbol, name) => match self.lookup(*symbol)? {
                Value::Namespace(namespace) => {
                    self.heap().set_field(namespace, Name::Source(name.clone()), value)
                }
                _ => Err(runtime!("cannot assign attribute '{name}' on a non-namespace object")),
            },
            Target::Tuple(targets) => {
                let values = self.heap().iterate(&value)?;
                if values.len() != targets.len() {
                    return Err(runtime!(
                        "cannot unpack {} values into {} names",
                        values.len(),
                        targets.len()
                    ));
                }
                for (target, value) in targets.iter().zip(values.iter()) {
                    self.heap().charge(STEP)?;
                    self.assign(target, value.clone())?;
                }
                Ok(())
            }
        }
    }

    /// The text that a block makes, with filters applied.
    fn filtered_block(&mut self, line: u32, filters: &'t [Invocation], body: &'t [Stmt]) -> Result<Value> {
        self.begin_capture();
        self.scoped(body)?;
        let mut value = self.end_capture()?;
        self.line = line;
        for filter in filters {
            let args = self.args(&filter.args)?;
            value = filters::apply(&self.context, &filter.name, &value, &args)?;
        }
        Ok(value)
    }

    /// The value of a macro.
    fn define(&mut self, declared: &'t Macro) -> Result<Value> {
        if let Some(slot) = self.macros.get_mut(declared.id) {
            *slot = Some(declared);
        }
        self.defined += 1;
        self.heap().macro_value(declared.id, self.scope)
    }

    fn call_block(&mut self, block: &'t CallBlock) -> Result<()> {
        self.line = block.line;
        let caller = self.define(&block.body)?;
        let callee = self.eval(&block.callee)?;
        let mut args = self.args(&block.args)?;
        args.push_named(Name::Source(block.body.name.clone()), caller)?;
        let value = self.call_value(&callee, args)?;
        self.write(&value)
    }
}
