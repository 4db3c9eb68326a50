//! Expressions. Each kind has a function of its own, so that a level of nesting takes little of the stack.

use super::state::Interpreter;
use crate::{
    args::Args,
    budget::STEP,
    error::Result,
    filters,
    jinja_tests::passes,
    ops::{
        binary::{binary, compare_with, concat_values},
        lookup, numbers, slices,
    },
    syntax::ast::{Arguments, BinaryOp, CompareOp, Expr, IfExpr, Invocation, Postfix},
    value::{DictBuilder, Heap, Items, Missing, Name, Value},
};

impl<'t> Interpreter<'t> {
    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &'t Expr) -> Result<Value> {
        match expr {
            Expr::Name(symbol) => self.lookup(*symbol),
            Expr::Literal(id) => self.literal(*id),
            expr => {
                self.context.enter()?;
                let value = self.compound_value(expr)?;
                self.context.leave();
                Ok(value)
            }
        }
    }

    fn compound_value(&mut self, expr: &'t Expr) -> Result<Value> {
        match expr {
            Expr::Name(symbol) => self.lookup(*symbol),
            Expr::Literal(id) => self.literal(*id),
            Expr::List(items) => self.eval_all(items).and_then(Items::list),
            Expr::Tuple(items) => self.eval_all(items).and_then(Items::tuple),
            Expr::Dict(entries) => self.dict(entries),
            Expr::Not(value) => self.eval(value).map(|value| Value::Bool(!value.is_true())),
            Expr::Negative(value) => self.signed(value, numbers::negate),
            Expr::Positive(value) => self.signed(value, numbers::positive),
            Expr::And(operands) => self.first_that_is(false, operands),
            Expr::Or(operands) => self.first_that_is(true, operands),
            Expr::Concat(parts) => self.concatenation(parts),
            Expr::Binary(first, rest) => self.binary_chain(first, rest),
            Expr::Compare(first, links) => self.comparison(first, links),
            Expr::If(choice) => self.if_value(choice),
            Expr::Postfix(value, steps) => self.postfix(value, steps),
        }
    }

    fn eval_all(&mut self, exprs: &'t [Expr]) -> Result<Items> {
        let mut items = self.heap().items();
        for expr in exprs {
            items.push(self.eval(expr)?)?;
        }
        Ok(items)
    }

    fn signed(&mut self, value: &'t Expr, sign: fn(&Value, &Heap) -> Result<Value>) -> Result<Value> {
        let value = self.eval(value)?;
        sign(&value, self.heap())
    }

    fn concatenation(&mut self, parts: &'t [Expr]) -> Result<Value> {
        let parts = self.eval_all(parts)?;
        concat_values(&parts, self.heap())
    }

    fn dict(&mut self, entries: &'t [(Expr, Expr)]) -> Result<Value> {
        let mut pairs = self.heap().items();
        for (key, value) in entries {
            pairs.push(self.eval(key)?)?;
            pairs.push(self.eval(value)?)?;
        }
        let mut dict = DictBuilder::new(self.heap())?;
        for pair in pairs.chunks_exact(2) {
            dict.insert(pair[0].clone(), pair[1].clone())?;
        }
        dict.finish()
    }

    /// `and`, `or`: the first operand that decides, or the last.
    fn first_that_is(&mut self, wanted: bool, operands: &'t [Expr]) -> Result<Value> {
        let mut value = Value::None;
        for operand in operands {
            self.heap().charge(STEP)?;
            value = self.eval(operand)?;
            if value.is_true() == wanted {
                break;
            }
        }
        Ok(value)
    }

    fn binary_chain(&mut self, first: &'t Expr, rest: &'t [(BinaryOp, Expr)]) -> Result<Value> {
        let mut left = self.eval(first)?;
        for (op, right) in rest {
            self.heap().charge(STEP)?;
            let right = self.eval(right)?;
            left = binary(*op, &left, &right, self.heap())?;
        }
        Ok(left)
    }

    fn comparison(&mut self, first: &'t Expr, links: &'t [(CompareOp, Expr)]) -> Result<Value> {
        let mut left = self.eval(first)?;
        for (op, right) in links {
            self.heap().charge(STEP)?;
            let right = self.eval(right)?;
            if !compare_with(*op, &left, &right, self.heap())? {
                return Ok(Value::Bool(false));
            }
            left = right;
        }
        Ok(Value::Bool(true))
    }

    fn if_value(&mut self, choice: &'t IfExpr) -> Result<Value> {
        for (at, condition) in choice.conditions.iter().enumerate().rev() {
            if self.eval(condition)?.is_true() {
                continue;
            }
            return match &choice.otherwise {
                Some(otherwise) if at + 1 == choice.conditions.len() => self.eval(otherwise),
                _ => self.heap().undefined(Missing::Other("the inline if-expression")),
            };
        }
        self.eval(&choice.then)
    }

    fn postfix(&mut self, value: &'t Expr, steps: &'t [Postfix]) -> Result<Value> {
        let mut value = self.eval(value)?;
        let mut rest = steps;
        while let Some((step, after)) = rest.split_first() {
            rest = after;
            value = match (step, after) {
                (Postfix::Attribute(name), [Postfix::Call(args), after @ ..]) => {
                    rest = after;
                    self.call_method(&value, name, args)?
                }
                _ => self.step(&value, step)?,
            };
        }
        Ok(value)
    }

    /// The value of one step behind another value.
    fn step(&mut self, value: &Value, step: &'t Postfix) -> Result<Value> {
        self.heap().charge(STEP)?;
        match step {
            Postfix::Attribute(name) => lookup::attribute(value, &Name::Source(name.clone()), self.heap()),
            Postfix::Item(key) => self.item(value, key),
            Postfix::Slice(bounds) => self.slice(value, bounds),
            Postfix::Call(args) => self.call(value, args),
            Postfix::Filter(filter) => self.filter(value, filter),
            Postfix::Test { test, negated } => {
                self.test(value, test).map(|passes| Value::Bool(passes != *negated))
            }
        }
    }

    fn item(&mut self, value: &Value, key: &'t Expr) -> Result<Value> {
        let key = self.eval(key)?;
        lookup::item(value, &key, self.heap())
    }

    fn call(&mut self, callee: &Value, args: &'t Arguments) -> Result<Value> {
        let args = self.args(args)?;
        self.call_value(callee, args)
    }

    fn slice(&mut self, value: &Value, bounds: &'t [Option<Expr>; 3]) -> Result<Value> {
        let mut values = [None, None, None];
        for (value, bound) in values.iter_mut().zip(bounds) {
            *value = bound.as_ref().map(|bound| self.eval(bound)).transpose()?;
        }
        slices::slice(value, &values, self.heap())
    }

    fn filter(&mut self, value: &Value, filter: &'t Invocation) -> Result<Value> {
        let args = self.args(&filter.args)?;
        filters::apply(&self.context, &filter.name, value, &args)
    }

    fn test(&mut self, value: &Value, test: &'t Invocation) -> Result<bool> {
        let args = self.args(&test.args)?;
        passes(&test.name, value, &args, filters::exists, self.heap())
    }

    /// The values of a call's arguments.
    pub(super) fn args(&mut self, given: &'t Arguments) -> Result<Args> {
        let mut args = Args::new(self.heap())?;
        for expr in &given.positional {
            args.positional.push(self.eval(expr)?)?;
        }
        for (name, expr) in &given.named {
            let value = self.eval(expr)?;
            args.push_named(Name::Source(name.clone()), value)?;
        }
        if given.star.is_some() || given.star_star.is_some() {
            self.spread(given, &mut args)?;
        }
        Ok(args)
    }
}
