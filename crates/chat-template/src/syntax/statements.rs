//! The parser of statements, by Jinja2's grammar and with the two extensions of transformers: loop controls and
//! `{% generation %}`, which marks what the assistant says.

use super::{
    ast::{
        Ast, Branch, CALLER, CallBlock, Expr, ForLoop, Invocation, Macro, Postfix, Stmt, Symbol, Target, Uses,
    },
    cursor::Cursor,
    expressions::{expression, invocation, tuple},
    token::{Kind, Operator, Token},
};
use crate::error::Result;

/// Reads all statements of a template.
pub(super) fn parse(tokens: Vec<Token<'_>>) -> Result<Ast> {
    let mut cursor = Cursor::new(tokens);
    let body = statements(&mut cursor, &[])?;
    Ok(Ast {
        body,
        names: cursor.names,
        literals: cursor.literals,
        loops: cursor.loops,
        macros: cursor.macros,
    })
}

/// Statements up to a tag with one of these names, which is left; up to the end of the template if there are none.
fn statements(cursor: &mut Cursor<'_>, ends: &[&str]) -> Result<Vec<Stmt>> {
    let mut found = Vec::new();
    loop {
        let line = cursor.line();
        match cursor.peek() {
            Kind::Data(text) => {
                let text = (*text).into();
                cursor.next();
                found.push(Stmt::Text(text));
            }
            Kind::PrintBegin => {
                cursor.next();
                let value = tuple(cursor, true, None)?;
                cursor.expect(&Kind::PrintEnd)?;
                found.push(Stmt::Print { line, value });
            }
            Kind::BlockBegin => {
                cursor.next();
                if ends.iter().any(|end| cursor.is_word(end)) {
                    return Ok(found);
                }
                found.push(statement(cursor)?);
                cursor.expect(&Kind::BlockEnd)?;
            }
            Kind::End if ends.is_empty() => return Ok(found),
            _ => return Err(cursor.unexpected(format_args!("'{}'", ends.first().unwrap_or(&"text")))),
        }
    }
}

/// The body of a block: its tag is read up to `%}`, and the name of the tag that ends it is left.
fn body(cursor: &mut Cursor<'_>, ends: &[&str]) -> Result<Vec<Stmt>> {
    cursor.skip_operator(Operator::Colon);
    cursor.expect(&Kind::BlockEnd)?;
    cursor.enter()?;
    let found = statements(cursor, ends)?;
    cursor.leave();
    Ok(found)
}

/// The body of a block that ends with one tag.
fn body_to(cursor: &mut Cursor<'_>, end: &str) -> Result<Vec<Stmt>> {
    let found = body(cursor, &[end])?;
    cursor.expect_word(end)?;
    Ok(found)
}

fn statement(cursor: &mut Cursor<'_>) -> Result<Stmt> {
    let line = cursor.line();
    let name = cursor.expect_name()?;
    Ok(match name {
        "if" => if_statement(cursor)?,
        "for" => for_loop(cursor, line)?,
        "set" => set(cursor, line)?,
        "macro" => macro_statement(cursor, line)?,
        "call" => call_block(cursor, line)?,
        "with" => with(cursor, line)?,
        "filter" => filter_block(cursor, line)?,
        "generation" => Stmt::Scope(body_to(cursor, "endgeneration")?),
        "block" => block(cursor)?,
        "autoescape" => autoescape(cursor, line)?,
        "do" => Stmt::Do { line, value: expression(cursor)? },
        "break" | "continue" if !cursor.in_loop => {
            return Err(cursor.fail(format_args!("'{name}' outside of a loop")));
        }
        "break" => Stmt::Break,
        "continue" => Stmt::Continue,
        "print" => print(cursor, line)?,
        "include" | "import" | "from" | "extends" => {
            while !matches!(cursor.peek(), Kind::BlockEnd | Kind::End) {
                cursor.next();
            }
            Stmt::Load { line }
        }
        other => return Err(cursor.fail(format_args!("unknown tag '{other}'"))),
    })
}

fn filter_block(cursor: &mut Cursor<'_>, line: u32) -> Result<Stmt> {
    let filters = filters(cursor)?;
    Ok(Stmt::FilterBlock { line, filters, body: body_to(cursor, "endfilter")? })
}

fn autoescape(cursor: &mut Cursor<'_>, line: u32) -> Result<Stmt> {
    let on = expression(cursor)?;
    Ok(Stmt::Autoescape { line, on, body: body_to(cursor, "endautoescape")? })
}

fn if_statement(cursor: &mut Cursor<'_>) -> Result<Stmt> {
    let mut branches = Vec::new();
    loop {
        let line = cursor.line();
        let condition = tuple(cursor, false, None)?;
        let body = body(cursor, &["elif", "else", "endif"])?;
        branches.push(Branch { line, condition, body });
        if cursor.skip_word("elif") {
            continue;
        }
        let otherwise = if cursor.skip_word("else") {
            body_to(cursor, "endif")?
        } else {
            cursor.expect_word("endif")?;
            Vec::new()
        };
        return Ok(Stmt::If { branches, otherwise });
    }
}

fn for_loop(cursor: &mut Cursor<'_>, line: u32) -> Result<Stmt> {
    let target = target(cursor, Some("in"), false)?;
    cursor.expect_word("in")?;
    let items = tuple(cursor, false, Some("recursive"))?;
    let condition = if cursor.skip_word("if") { Some(expression(cursor)?) } else { None };
    let recursive = cursor.skip_word("recursive");
    let id = cursor.loops;
    cursor.loops += 1;
    let outer = std::mem::replace(&mut cursor.in_loop, true);
    let body = body(cursor, &["endfor", "else"])?;
    cursor.in_loop = outer;
    let otherwise = if cursor.skip_word("else") {
        body_to(cursor, "endfor")?
    } else {
        cursor.expect_word("endfor")?;
        Vec::new()
    };
    Ok(Stmt::For(Box::new(ForLoop { id, line, target, items, condition, recursive, body, otherwise })))
}

fn set(cursor: &mut Cursor<'_>, line: u32) -> Result<Stmt> {
    let target = target(cursor, None, true)?;
    if cursor.skip_operator(Operator::Assign) {
        return Ok(Stmt::Set { line, target, value: tuple(cursor, true, None)? });
    }
    let filters = if cursor.skip_operator(Operator::Pipe) { filters(cursor)? } else { Vec::new() };
    Ok(Stmt::SetBlock { line, target, filters, body: body_to(cursor, "endset")? })
}

/// Filters without a value before them, the first `|` being read or left out.
fn filters(cursor: &mut Cursor<'_>) -> Result<Vec<Invocation>> {
    let mut found = vec![invocation(cursor)?];
    while cursor.skip_operator(Operator::Pipe) {
        found.push(invocation(cursor)?);
    }
    Ok(found)
}

fn with(cursor: &mut Cursor<'_>, line: u32) -> Result<Stmt> {
    let mut assignments = Vec::new();
    while !matches!(cursor.peek(), Kind::BlockEnd) {
        if !assignments.is_empty() {
            cursor.expect_operator(Operator::Comma)?;
        }
        let target = target(cursor, None, false)?;
        cursor.expect_operator(Operator::Assign)?;
        assignments.push((target, expression(cursor)?));
    }
    Ok(Stmt::With { line, assignments, body: body_to(cursor, "endwith")? })
}

/// `{% block name %}`, which stands for its body, as there is no template that could replace it.
fn block(cursor: &mut Cursor<'_>) -> Result<Stmt> {
    let name = cursor.expect_name()?;
    cursor.skip_word("scoped");
    cursor.skip_word("required");
    let body = body_to(cursor, "endblock")?;
    cursor.skip_word(name);
    Ok(Stmt::Scope(body))
}

fn print(cursor: &mut Cursor<'_>, line: u32) -> Result<Stmt> {
    let mut values = vec![expression(cursor)?];
    while cursor.skip_operator(Operator::Comma) {
        values.push(expression(cursor)?);
    }
    Ok(Stmt::Print { line, value: Expr::Concat(values) })
}

fn macro_statement(cursor: &mut Cursor<'_>, line: u32) -> Result<Stmt> {
    let name = cursor.expect_name()?;
    let parameters = parameters(cursor)?;
    let declared = Box::new(declared(cursor, name, parameters, "endmacro")?);
    Ok(Stmt::Macro { line, declared })
}

type Parameters = Vec<(Symbol, Option<Expr>)>;

/// A macro from where its body begins.
fn declared(cursor: &mut Cursor<'_>, name: &str, parameters: Parameters, end: &str) -> Result<Macro> {
    let (name, symbol) = (cursor.shared(name), cursor.symbol(name));
    let outer = std::mem::take(&mut cursor.in_loop);
    cursor.uses.push(Uses::default());
    let body = body_to(cursor, end)?;
    let uses = cursor.uses.pop().unwrap_or_default();
    cursor.in_loop = outer;
    let id = cursor.macros;
    cursor.macros += 1;
    Ok(Macro { id, name, symbol, parameters, body, uses })
}

fn parameters(cursor: &mut Cursor<'_>) -> Result<Parameters> {
    let mut found = Parameters::new();
    cursor.expect_operator(Operator::ParenOpen)?;
    while !cursor.skip_operator(Operator::ParenClose) {
        let name = cursor.expect_name()?;
        let symbol = cursor.symbol(name);
        let default = if cursor.skip_operator(Operator::Assign) { Some(expression(cursor)?) } else { None };
        if default.is_none() && symbol == CALLER {
            return Err(cursor.fail(format_args!("the parameter 'caller' must have a default")));
        }
        if default.is_none() && found.last().is_some_and(|(_, default)| default.is_some()) {
            return Err(cursor.fail(format_args!("parameter '{name}' without a default follows one with it")));
        }
        found.push((symbol, default));
        if !cursor.skip_operator(Operator::Comma) {
            cursor.expect_operator(Operator::ParenClose)?;
            break;
        }
    }
    Ok(found)
}

fn call_block(cursor: &mut Cursor<'_>, line: u32) -> Result<Stmt> {
    let parameters = if cursor.is_operator(Operator::ParenOpen) { parameters(cursor)? } else { Vec::new() };
    let called = expression(cursor)?;
    let Expr::Postfix(callee, mut steps) = called else {
        return Err(cursor.fail(format_args!("expected a call")));
    };
    let Some(Postfix::Call(args)) = steps.pop() else {
        return Err(cursor.fail(format_args!("expected a call")));
    };
    let callee = if steps.is_empty() { *callee } else { Expr::Postfix(callee, steps) };
    let body = declared(cursor, "caller", parameters, "endcall")?;
    Ok(Stmt::Call(Box::new(CallBlock { line, callee, args, body })))
}

/// What is assigned to: a name, names with commas between them, or with `attributes` an attribute of a name.
fn target(cursor: &mut Cursor<'_>, ends: Option<&str>, attributes: bool) -> Result<Target> {
    let mut found = Vec::new();
    let mut is_tuple = false;
    loop {
        let ended = matches!(
            cursor.peek(),
            Kind::BlockEnd | Kind::Operator(Operator::ParenClose | Operator::BracketClose)
        ) || ends.is_some_and(|word| cursor.is_word(word));
        if ended {
            break;
        }
        found.push(single_target(cursor, attributes)?);
        if !cursor.skip_operator(Operator::Comma) {
            break;
        }
        is_tuple = true;
    }
    match found.pop() {
        None => Err(cursor.unexpected("a name")),
        Some(target) if !is_tuple => Ok(target),
        Some(target) => {
            found.push(target);
            Ok(Target::Tuple(found))
        }
    }
}

fn single_target(cursor: &mut Cursor<'_>, attributes: bool) -> Result<Target> {
    let close = match cursor.peek() {
        Kind::Operator(Operator::ParenOpen) => Operator::ParenClose,
        Kind::Operator(Operator::BracketOpen) => Operator::BracketClose,
        _ => {
            let name = cursor.expect_name()?;
            if matches!(name, "true" | "false" | "none" | "True" | "False" | "None") {
                return Err(cursor.fail(format_args!("cannot assign to '{name}'")));
            }
            let symbol = cursor.symbol(name);
            if attributes && cursor.skip_operator(Operator::Dot) {
                let attribute = cursor.expect_name()?;
                return Ok(Target::Attribute(symbol, cursor.shared(attribute)));
            }
            return Ok(Target::Name(symbol));
        }
    };
    cursor.next();
    cursor.enter()?;
    let inner = target(cursor, None, false)?;
    cursor.leave();
    cursor.expect_operator(close)?;
    Ok(inner)
}
