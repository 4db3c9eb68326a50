//! Calls of macros, functions, methods and loops.

use std::sync::Arc;

use super::state::Interpreter;
use crate::{
    args::Args,
    error::{Result, runtime},
    functions, methods,
    ops::{lookup, print::text},
    syntax::ast::{Arguments, CALLER, KWARGS, Macro, Symbol, VARARGS},
    value::{DictBuilder, LoopState, MacroValue, Missing, Name, Value, missing},
};

impl<'t> Interpreter<'t> {
    /// Adds the arguments of `*items` and `**mapping`.
    pub(super) fn spread(&mut self, given: &'t Arguments, args: &mut Args) -> Result<()> {
        if let Some(items) = &given.star {
            let items = self.eval(items)?;
            args.positional.extend(&self.heap().iterate(&items)?)?;
        }
        if let Some(mapping) = &given.star_star {
            let Value::Dict(dict) = self.eval(mapping)? else {
                return Err(runtime!("argument after ** must be a mapping"));
            };
            for (key, value) in dict.iter() {
                args.push_named(Name::Made(text(key, self.heap())?), value.clone())?;
            }
        }
        Ok(())
    }

    /// Calls `object.name(…)`: a method, or an attribute that can be called.
    pub(super) fn call_method(
        &mut self,
        object: &Value,
        name: &Arc<str>,
        args: &'t Arguments,
    ) -> Result<Value> {
        if let Some(error) = missing(object) {
            return Err(error);
        }
        let args = self.args(args)?;
        if let Some(result) = methods::call(object, name, &args, self.heap())? {
            return Ok(result);
        }
        let callee = lookup::attribute(object, &Name::Source(Arc::clone(name)), self.heap())?;
        self.call_value(&callee, args)
    }

    /// Calls a value.
    pub(super) fn call_value(&mut self, callee: &Value, args: Args) -> Result<Value> {
        match callee {
            Value::Function(name) => functions::call(&self.context, name, &args),
            Value::Macro(called) => self.call_macro(called, args),
            Value::Method(method) => methods::call(&method.object, &method.name, &args, self.heap())?
                .ok_or_else(|| runtime!("'{}' object has no such method", method.object.type_name())),
            Value::Loop(state) => self.call_loop(state, &args),
            Value::Joiner(joiner) => {
                let [] = args.bind("joiner", [])?;
                if joiner.used.replace(true) { Ok(joiner.separator.clone()) } else { self.heap().str("") }
            }
            other => {
                Err(missing(other)
                    .unwrap_or_else(|| runtime!("'{}' object is not callable", other.type_name())))
            }
        }
    }

    /// `loop(items)`: the text of the loop for other items.
    fn call_loop(&mut self, state: &LoopState, args: &Args) -> Result<Value> {
        let running = self.loops.get(state.id).copied().flatten().zip(state.scope.get());
        let Some((for_loop, scope)) = running.filter(|_| state.recursive) else {
            return Err(runtime!("only a loop that is marked recursive, and runs, can be called"));
        };
        let [items] = args.bind("loop", ["iterable"])?;
        let items = items.ok_or_else(|| runtime!("loop() needs the items to loop over"))?;
        self.context.enter()?;
        self.begin_capture();
        self.run_loop(for_loop, &items, scope, state.depth + 1)?;
        self.context.leave();
        self.end_capture()
    }

    fn call_macro(&mut self, called: &MacroValue, args: Args) -> Result<Value> {
        let Some(declared) = self.macros.get(called.id).copied().flatten() else {
            return Err(runtime!("a macro is not defined"));
        };
        self.context.enter()?;
        let mark = self.push_scope(called.scope)?;
        self.bind_parameters(declared, args)?;
        self.begin_capture();
        self.block(&declared.body)?;
        self.pop_scope(mark);
        self.context.leave();
        self.end_capture()
    }

    /// Gives the variables of a macro their values, in the scope of its call.
    fn bind_parameters(&mut self, declared: &'t Macro, mut args: Args) -> Result<()> {
        for (at, (symbol, default)) in declared.parameters.iter().enumerate() {
            let value = match (self.parameter(declared, at, *symbol, &mut args)?, default) {
                (Some(value), _) => value,
                (None, Some(default)) => self.eval(default)?,
                (None, None) => {
                    let name = Name::Source(self.ast.names[*symbol as usize].clone());
                    self.heap().undefined(Missing::Parameter(name))?
                }
            };
            self.set(*symbol, value)?;
        }
        self.bind_rest(declared, args)
    }

    /// The argument of a parameter, if it was given.
    fn parameter(
        &self,
        declared: &Macro,
        at: usize,
        symbol: Symbol,
        args: &mut Args,
    ) -> Result<Option<Value>> {
        let name = &self.ast.names[symbol as usize];
        match (args.positional.get(at).cloned(), args.take_named(name)?) {
            (Some(_), Some(_)) => {
                Err(runtime!("macro '{}' got two values for argument '{name}'", declared.name))
            }
            (Some(value), None) => Ok(Some(value)),
            (None, named) => Ok(named),
        }
    }

    /// `caller`, `kwargs` and `varargs`, as far as the macro names them; other arguments that are left are an error.
    fn bind_rest(&mut self, declared: &'t Macro, mut args: Args) -> Result<()> {
        let name = &*declared.name;
        let has_caller = declared.parameters.iter().any(|(symbol, _)| *symbol == CALLER);
        if declared.uses.caller && !has_caller {
            let caller = match args.take_named("caller")? {
                Some(caller) => caller,
                None => self.heap().undefined(Missing::Other("'caller'"))?,
            };
            self.set(CALLER, caller)?;
        }
        if declared.uses.kwargs {
            let mut kwargs = DictBuilder::new(self.heap())?;
            for (name, value) in args.named() {
                kwargs.insert(self.heap().str(name)?, value.clone())?;
            }
            let kwargs = kwargs.finish()?;
            self.set(KWARGS, kwargs)?;
        } else if let Some((unknown, _)) = args.named().first() {
            return Err(runtime!("macro '{name}' takes no keyword argument '{}'", &**unknown));
        }
        let count = declared.parameters.len();
        if declared.uses.varargs {
            let mut varargs = self.heap().items();
            varargs.extend(args.positional.get(count..).unwrap_or_default())?;
            let varargs = varargs.tuple()?;
            self.set(VARARGS, varargs)?;
        } else if args.positional.len() > count {
            return Err(runtime!("macro '{name}' takes not more than {count} argument(s)"));
        }
        Ok(())
    }
}
