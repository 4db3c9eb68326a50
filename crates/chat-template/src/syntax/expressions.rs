//! The parser of expressions, by Jinja2's grammar. Operators of one precedence are read in a loop: a long chain of them is
//! as deep as a short one.

use num_bigint::BigInt;

use super::{
    ast::{Arguments, BinaryOp, CompareOp, Expr, IfExpr, Invocation, Literal, Postfix},
    cursor::Cursor,
    token::{Kind, Operator},
};
use crate::error::Result;

/// The most digits of an integer, as in Python.
const MAX_DIGITS: usize = 4_300;

/// An expression, `a if b else c` among them.
pub(super) fn expression(cursor: &mut Cursor<'_>) -> Result<Expr> {
    cursor.enter()?;
    let then = or(cursor)?;
    let mut conditions = Vec::new();
    let mut otherwise = None;
    while cursor.skip_word("if") {
        conditions.push(or(cursor)?);
        if cursor.skip_word("else") {
            otherwise = Some(expression(cursor)?);
        }
    }
    cursor.leave();
    Ok(if conditions.is_empty() { then } else { Expr::If(Box::new(IfExpr { then, conditions, otherwise })) })
}

/// An expression without `if`.
pub(super) fn plain_expression(cursor: &mut Cursor<'_>) -> Result<Expr> {
    cursor.enter()?;
    let value = or(cursor)?;
    cursor.leave();
    Ok(value)
}

/// One expression, or a tuple of several without brackets. `ends` is the word that may follow a last comma.
pub(super) fn tuple(cursor: &mut Cursor<'_>, with_if: bool, ends: Option<&str>) -> Result<Expr> {
    match items(cursor, with_if, ends)? {
        Items::One(value) => Ok(value),
        Items::Several(items) if items.is_empty() => Err(cursor.unexpected("an expression")),
        Items::Several(items) => Ok(Expr::Tuple(items)),
    }
}

enum Items {
    One(Expr),
    Several(Vec<Expr>),
}

fn items(cursor: &mut Cursor<'_>, with_if: bool, ends: Option<&str>) -> Result<Items> {
    let mut items = Vec::new();
    loop {
        let ended =
            matches!(cursor.peek(), Kind::PrintEnd | Kind::BlockEnd | Kind::Operator(Operator::ParenClose))
                || ends.is_some_and(|word| cursor.is_word(word));
        if ended {
            return Ok(Items::Several(items));
        }
        items.push(if with_if { expression(cursor)? } else { plain_expression(cursor)? });
        if !cursor.skip_operator(Operator::Comma) {
            return Ok(match items.pop() {
                Some(item) if items.is_empty() => Items::One(item),
                Some(item) => {
                    items.push(item);
                    Items::Several(items)
                }
                None => Items::Several(items),
            });
        }
    }
}

fn or(cursor: &mut Cursor<'_>) -> Result<Expr> {
    joined(cursor, "or", and, Expr::Or)
}

fn and(cursor: &mut Cursor<'_>) -> Result<Expr> {
    joined(cursor, "and", not, Expr::And)
}

/// Operands with a word between them.
fn joined(
    cursor: &mut Cursor<'_>,
    word: &str,
    operand: fn(&mut Cursor<'_>) -> Result<Expr>,
    join: fn(Vec<Expr>) -> Expr,
) -> Result<Expr> {
    let first = operand(cursor)?;
    if !cursor.is_word(word) {
        return Ok(first);
    }
    let mut operands = vec![first];
    while cursor.skip_word(word) {
        operands.push(operand(cursor)?);
    }
    Ok(join(operands))
}

fn not(cursor: &mut Cursor<'_>) -> Result<Expr> {
    if !cursor.skip_word("not") {
        return comparison(cursor);
    }
    cursor.enter()?;
    let value = not(cursor)?;
    cursor.leave();
    Ok(Expr::Not(Box::new(value)))
}

fn comparison(cursor: &mut Cursor<'_>) -> Result<Expr> {
    let first = sum(cursor)?;
    let mut links = Vec::new();
    loop {
        let op = match cursor.peek() {
            Kind::Operator(Operator::Equal) => CompareOp::Equal,
            Kind::Operator(Operator::NotEqual) => CompareOp::NotEqual,
            Kind::Operator(Operator::Less) => CompareOp::Less,
            Kind::Operator(Operator::LessEqual) => CompareOp::LessEqual,
            Kind::Operator(Operator::Greater) => CompareOp::Greater,
            Kind::Operator(Operator::GreaterEqual) => CompareOp::GreaterEqual,
            Kind::Name("in") => CompareOp::In,
            Kind::Name("not") if cursor.second_is_word("in") => CompareOp::NotIn,
            _ => break,
        };
        cursor.next();
        if op == CompareOp::NotIn {
            cursor.next();
        }
        links.push((op, sum(cursor)?));
    }
    Ok(if links.is_empty() { first } else { Expr::Compare(Box::new(first), links) })
}

fn sum(cursor: &mut Cursor<'_>) -> Result<Expr> {
    binary(cursor, concatenation, |operator| match operator {
        Operator::Add => Some(BinaryOp::Add),
        Operator::Subtract => Some(BinaryOp::Subtract),
        _ => None,
    })
}

fn concatenation(cursor: &mut Cursor<'_>) -> Result<Expr> {
    let first = product(cursor)?;
    if !cursor.is_operator(Operator::Tilde) {
        return Ok(first);
    }
    let mut parts = vec![first];
    while cursor.skip_operator(Operator::Tilde) {
        parts.push(product(cursor)?);
    }
    Ok(Expr::Concat(parts))
}

fn product(cursor: &mut Cursor<'_>) -> Result<Expr> {
    binary(cursor, power, |operator| match operator {
        Operator::Multiply => Some(BinaryOp::Multiply),
        Operator::Divide => Some(BinaryOp::Divide),
        Operator::FloorDiv => Some(BinaryOp::FloorDivide),
        Operator::Modulo => Some(BinaryOp::Modulo),
        _ => None,
    })
}

fn power(cursor: &mut Cursor<'_>) -> Result<Expr> {
    binary(cursor, filtered, |operator| (operator == Operator::Power).then_some(BinaryOp::Power))
}

/// Operands with operators of one precedence between them.
fn binary(
    cursor: &mut Cursor<'_>,
    operand: fn(&mut Cursor<'_>) -> Result<Expr>,
    known: fn(Operator) -> Option<BinaryOp>,
) -> Result<Expr> {
    let first = operand(cursor)?;
    let mut rest = Vec::new();
    while let Kind::Operator(operator) = *cursor.peek()
        && let Some(op) = known(operator)
    {
        cursor.next();
        rest.push((op, operand(cursor)?));
    }
    Ok(if rest.is_empty() { first } else { Expr::Binary(Box::new(first), rest) })
}

/// A value with a sign, and all that follows it, filters and tests too.
fn filtered(cursor: &mut Cursor<'_>) -> Result<Expr> {
    let value = signed(cursor)?;
    let mut steps = Vec::new();
    postfix(cursor, &mut steps)?;
    loop {
        if cursor.skip_operator(Operator::Pipe) {
            steps.push(Postfix::Filter(invocation(cursor)?));
        } else if cursor.skip_word("is") {
            steps.push(test(cursor)?);
        } else if cursor.is_operator(Operator::ParenOpen) {
            steps.push(Postfix::Call(arguments(cursor)?));
        } else {
            return Ok(with_steps(value, steps));
        }
    }
}

fn with_steps(value: Expr, mut steps: Vec<Postfix>) -> Expr {
    if steps.is_empty() {
        return value;
    }
    match value {
        Expr::Postfix(value, mut first) => {
            first.append(&mut steps);
            Expr::Postfix(value, first)
        }
        value => Expr::Postfix(Box::new(value), steps),
    }
}

/// A value with a sign, its attributes, items and calls.
fn signed(cursor: &mut Cursor<'_>) -> Result<Expr> {
    let sign = match cursor.peek() {
        Kind::Operator(Operator::Subtract) => Expr::Negative,
        Kind::Operator(Operator::Add) => Expr::Positive,
        _ => {
            let value = primary(cursor)?;
            let mut steps = Vec::new();
            postfix(cursor, &mut steps)?;
            return Ok(with_steps(value, steps));
        }
    };
    cursor.next();
    cursor.enter()?;
    let value = signed(cursor)?;
    cursor.leave();
    Ok(sign(Box::new(value)))
}

/// A name, a literal, or what stands in brackets.
fn primary(cursor: &mut Cursor<'_>) -> Result<Expr> {
    let literal = match cursor.peek() {
        Kind::Name(name) => {
            let name = *name;
            let literal = match name {
                "true" | "True" => Literal::Bool(true),
                "false" | "False" => Literal::Bool(false),
                "none" | "None" => Literal::None,
                _ => {
                    cursor.next();
                    cursor.note_use(name);
                    return Ok(Expr::Name(cursor.symbol(name)));
                }
            };
            cursor.next();
            literal
        }
        Kind::Text(_) => {
            let mut text = String::new();
            while let Kind::Text(_) = cursor.peek() {
                let Kind::Text(part) = cursor.next() else { break };
                text.push_str(&part);
            }
            Literal::Text(text.into())
        }
        Kind::Integer(_) => integer(cursor)?,
        Kind::Float(number) => {
            let number = *number;
            cursor.next();
            Literal::Float(number)
        }
        Kind::Operator(Operator::ParenOpen) => return parenthesised(cursor),
        Kind::Operator(Operator::BracketOpen) => return list(cursor),
        Kind::Operator(Operator::BraceOpen) => return dict(cursor),
        _ => return Err(cursor.unexpected("an expression")),
    };
    Ok(Expr::Literal(cursor.literal(literal)))
}

fn integer(cursor: &mut Cursor<'_>) -> Result<Literal> {
    let Kind::Integer(written) = cursor.next() else { return Err(cursor.unexpected("an integer")) };
    let lower = written.to_ascii_lowercase();
    let (digits, radix) = match lower.get(..2) {
        Some("0b") => (&lower[2..], 2),
        Some("0o") => (&lower[2..], 8),
        Some("0x") => (&lower[2..], 16),
        _ => (&*lower, 10),
    };
    if digits.len() > MAX_DIGITS {
        return Err(cursor.fail(format_args!("an integer has more than {MAX_DIGITS} digits")));
    }
    if let Ok(int) = i64::from_str_radix(digits, radix) {
        return Ok(Literal::Int(int));
    }
    let int = BigInt::parse_bytes(digits.as_bytes(), radix);
    int.map(Literal::BigInt).ok_or_else(|| cursor.fail(format_args!("'{written}' is not an integer")))
}

fn parenthesised(cursor: &mut Cursor<'_>) -> Result<Expr> {
    cursor.expect_operator(Operator::ParenOpen)?;
    let value = match items(cursor, true, None)? {
        Items::One(value) => value,
        Items::Several(items) => Expr::Tuple(items),
    };
    cursor.expect_operator(Operator::ParenClose)?;
    Ok(value)
}

fn list(cursor: &mut Cursor<'_>) -> Result<Expr> {
    cursor.expect_operator(Operator::BracketOpen)?;
    let mut items = Vec::new();
    while !cursor.skip_operator(Operator::BracketClose) {
        items.push(expression(cursor)?);
        if !cursor.skip_operator(Operator::Comma) {
            cursor.expect_operator(Operator::BracketClose)?;
            break;
        }
    }
    Ok(Expr::List(items))
}

fn dict(cursor: &mut Cursor<'_>) -> Result<Expr> {
    cursor.expect_operator(Operator::BraceOpen)?;
    let mut entries = Vec::new();
    while !cursor.skip_operator(Operator::BraceClose) {
        let key = expression(cursor)?;
        cursor.expect_operator(Operator::Colon)?;
        entries.push((key, expression(cursor)?));
        if !cursor.skip_operator(Operator::Comma) {
            cursor.expect_operator(Operator::BraceClose)?;
            break;
        }
    }
    Ok(Expr::Dict(entries))
}

/// Attributes, items and calls that follow a value.
fn postfix(cursor: &mut Cursor<'_>, steps: &mut Vec<Postfix>) -> Result<()> {
    loop {
        if cursor.skip_operator(Operator::Dot) {
            steps.push(match cursor.peek() {
                Kind::Name(name) => {
                    let name = *name;
                    cursor.next();
                    Postfix::Attribute(cursor.shared(name))
                }
                Kind::Integer(_) => {
                    let index = integer(cursor)?;
                    Postfix::Item(Expr::Literal(cursor.literal(index)))
                }
                _ => return Err(cursor.unexpected("a name or a number")),
            });
        } else if cursor.skip_operator(Operator::BracketOpen) {
            steps.push(subscript(cursor)?);
        } else if cursor.is_operator(Operator::ParenOpen) {
            steps.push(Postfix::Call(arguments(cursor)?));
        } else {
            return Ok(());
        }
    }
}

/// What stands in the brackets behind a value.
fn subscript(cursor: &mut Cursor<'_>) -> Result<Postfix> {
    let mut keys = Vec::new();
    while !cursor.is_operator(Operator::BracketClose) {
        if !keys.is_empty() {
            cursor.expect_operator(Operator::Comma)?;
        }
        let first = if cursor.is_operator(Operator::Colon) { None } else { Some(expression(cursor)?) };
        if keys.is_empty() && cursor.is_operator(Operator::Colon) {
            let slice = slice(cursor, first)?;
            cursor.expect_operator(Operator::BracketClose)?;
            return Ok(Postfix::Slice(Box::new(slice)));
        }
        keys.push(first.ok_or_else(|| cursor.unexpected("an expression"))?);
    }
    cursor.expect_operator(Operator::BracketClose)?;
    Ok(Postfix::Item(match keys.pop() {
        Some(key) if keys.is_empty() => key,
        key => {
            keys.extend(key);
            Expr::Tuple(keys)
        }
    }))
}

/// The rest of `start:stop:step`, from the first colon.
fn slice(cursor: &mut Cursor<'_>, start: Option<Expr>) -> Result<[Option<Expr>; 3]> {
    let mut bounds = [start, None, None];
    for bound in &mut bounds[1..] {
        if !cursor.skip_operator(Operator::Colon) {
            break;
        }
        if !cursor.is_operator(Operator::Colon) && !cursor.is_operator(Operator::BracketClose) {
            *bound = Some(expression(cursor)?);
        }
    }
    Ok(bounds)
}

/// A filter's name and arguments, `|` being read.
pub(super) fn invocation(cursor: &mut Cursor<'_>) -> Result<Invocation> {
    let name = invoked_name(cursor)?;
    let args =
        if cursor.is_operator(Operator::ParenOpen) { arguments(cursor)? } else { Arguments::default() };
    Ok(Invocation { name, args })
}

/// A name, with dots in it or not.
fn invoked_name(cursor: &mut Cursor<'_>) -> Result<std::sync::Arc<str>> {
    let mut name = cursor.expect_name()?.to_owned();
    while cursor.skip_operator(Operator::Dot) {
        name.push('.');
        name.push_str(cursor.expect_name()?);
    }
    Ok(cursor.shared(&name))
}

/// A test's name and arguments, `is` being read.
fn test(cursor: &mut Cursor<'_>) -> Result<Postfix> {
    let negated = cursor.skip_word("not");
    let name = invoked_name(cursor)?;
    let mut args = Arguments::default();
    let takes_value = match cursor.peek() {
        Kind::Operator(Operator::ParenOpen) => {
            args = arguments(cursor)?;
            false
        }
        Kind::Name("is") => return Err(cursor.fail(format_args!("tests cannot be chained with 'is'"))),
        Kind::Name(word) => !matches!(*word, "else" | "or" | "and"),
        Kind::Operator(operator) => matches!(operator, Operator::BracketOpen | Operator::BraceOpen),
        kind => matches!(kind, Kind::Text(_) | Kind::Integer(_) | Kind::Float(_)),
    };
    if takes_value {
        cursor.enter()?;
        let value = primary(cursor)?;
        let mut steps = Vec::new();
        postfix(cursor, &mut steps)?;
        cursor.leave();
        args.positional.push(with_steps(value, steps));
    }
    Ok(Postfix::Test { test: Invocation { name, args }, negated })
}

/// The arguments of a call, with their brackets.
pub(super) fn arguments(cursor: &mut Cursor<'_>) -> Result<Arguments> {
    cursor.expect_operator(Operator::ParenOpen)?;
    let mut args = Arguments::default();
    while !cursor.skip_operator(Operator::ParenClose) {
        let misplaced = if cursor.skip_operator(Operator::Multiply) {
            let misplaced = args.star.is_some() || args.star_star.is_some();
            args.star = Some(Box::new(expression(cursor)?));
            misplaced
        } else if cursor.skip_operator(Operator::Power) {
            let misplaced = args.star_star.is_some();
            args.star_star = Some(Box::new(expression(cursor)?));
            misplaced
        } else if matches!(cursor.peek_second(), Kind::Operator(Operator::Assign))
            && let Kind::Name(name) = *cursor.peek()
        {
            cursor.next();
            cursor.next();
            let name = cursor.shared(name);
            args.named.push((name, expression(cursor)?));
            args.star_star.is_some()
        } else {
            args.positional.push(expression(cursor)?);
            args.star.is_some() || args.star_star.is_some() || !args.named.is_empty()
        };
        if misplaced {
            return Err(cursor.fail(format_args!("arguments of a call are in the wrong order")));
        }
        if !cursor.skip_operator(Operator::Comma) {
            cursor.expect_operator(Operator::ParenClose)?;
            break;
        }
    }
    Ok(args)
}
