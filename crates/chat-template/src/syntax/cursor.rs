//! The parser's place among the tokens, and what it has found so far.

use std::{collections::HashMap, fmt, sync::Arc};

use super::{
    ast::{Literal, LiteralId, SPECIAL, Symbol, Uses},
    token::{Kind, Operator, Token},
};
use crate::error::{Error, Result};

/// How deep expressions and blocks may lie within one another. Published templates reach about 15. The parser's and the
/// interpreter's stack grow with it.
const MAX_NESTING: usize = 80;

pub(super) struct Cursor<'s> {
    tokens: Vec<Token<'s>>,
    at: usize,
    nesting: usize,
    symbols: HashMap<Arc<str>, Symbol>,
    pub(super) names: Vec<Arc<str>>,
    pub(super) literals: Vec<Literal>,
    /// How many loops and macros there are so far.
    pub(super) loops: usize,
    pub(super) macros: usize,
    /// The special variables named so far in each macro that is being read.
    pub(super) uses: Vec<Uses>,
    /// Whether `break` has a loop to leave.
    pub(super) in_loop: bool,
}

impl<'s> Cursor<'s> {
    /// Begins at the first token; the last is [`Kind::End`].
    pub(super) fn new(tokens: Vec<Token<'s>>) -> Self {
        let mut cursor = Self {
            tokens,
            at: 0,
            nesting: 0,
            symbols: HashMap::new(),
            names: Vec::new(),
            literals: Vec::new(),
            loops: 0,
            macros: 0,
            uses: Vec::new(),
            in_loop: false,
        };
        for name in SPECIAL {
            cursor.symbol(name);
        }
        cursor
    }

    pub(super) fn peek(&self) -> &Kind<'s> {
        self.tokens.get(self.at).map_or(&Kind::End, |token| &token.kind)
    }

    pub(super) fn peek_second(&self) -> &Kind<'s> {
        self.tokens.get(self.at + 1).map_or(&Kind::End, |token| &token.kind)
    }

    pub(super) fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |token| token.line)
    }

    /// Takes the next token, and leaves nothing of it behind.
    pub(super) fn next(&mut self) -> Kind<'s> {
        let taken = self.tokens.get_mut(self.at).map(|token| std::mem::replace(&mut token.kind, Kind::End));
        self.at += 1;
        taken.unwrap_or(Kind::End)
    }

    pub(super) fn is_operator(&self, operator: Operator) -> bool {
        matches!(self.peek(), Kind::Operator(next) if *next == operator)
    }

    /// Takes an operator if it is next.
    pub(super) fn skip_operator(&mut self, operator: Operator) -> bool {
        let found = self.is_operator(operator);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect_operator(&mut self, operator: Operator) -> Result<()> {
        if self.skip_operator(operator) { Ok(()) } else { Err(self.unexpected(operator.text())) }
    }

    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(self.peek(), Kind::Name(name) if *name == word)
    }

    pub(super) fn second_is_word(&self, word: &str) -> bool {
        matches!(self.peek_second(), Kind::Name(name) if *name == word)
    }

    /// Takes a word of the language if it is next.
    pub(super) fn skip_word(&mut self, word: &str) -> bool {
        let found = self.is_word(word);
        self.at += usize::from(found);
        found
    }

    pub(super) fn expect_word(&mut self, word: &str) -> Result<()> {
        if self.skip_word(word) { Ok(()) } else { Err(self.unexpected(word)) }
    }

    pub(super) fn expect_name(&mut self) -> Result<&'s str> {
        match *self.peek() {
            Kind::Name(name) => {
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    pub(super) fn expect(&mut self, kind: &Kind<'_>) -> Result<()> {
        if self.peek() == kind {
            self.at += 1;
            Ok(())
        } else {
            Err(self.unexpected(kind))
        }
    }

    pub(super) fn fail(&self, message: fmt::Arguments<'_>) -> Error {
        Error::syntax(self.line(), message)
    }

    /// The failure that another token was expected here.
    pub(super) fn unexpected(&self, expected: impl fmt::Display) -> Error {
        self.fail(format_args!("syntax error: unexpected {}, expected {expected}", self.peek()))
    }

    /// The number of a variable's name.
    pub(super) fn symbol(&mut self, name: &str) -> Symbol {
        if let Some(symbol) = self.symbols.get(name) {
            return *symbol;
        }
        let symbol = self.names.len() as Symbol;
        let name: Arc<str> = name.into();
        self.names.push(Arc::clone(&name));
        self.symbols.insert(name, symbol);
        symbol
    }

    /// A name that may stand in the template often.
    pub(super) fn shared(&mut self, name: &str) -> Arc<str> {
        let symbol = self.symbol(name);
        Arc::clone(&self.names[symbol as usize])
    }

    pub(super) fn literal(&mut self, literal: Literal) -> LiteralId {
        self.literals.push(literal);
        (self.literals.len() - 1) as LiteralId
    }

    /// Notes that a special variable of macros is named here.
    pub(super) fn note_use(&mut self, name: &str) {
        for uses in &mut self.uses {
            match name {
                "caller" => uses.caller = true,
                "varargs" => uses.varargs = true,
                "kwargs" => uses.kwargs = true,
                _ => return,
            }
        }
    }

    /// Goes one level deeper, into an expression or a block.
    pub(super) fn enter(&mut self) -> Result<()> {
        self.nesting += 1;
        if self.nesting <= MAX_NESTING {
            return Ok(());
        }
        let message = format_args!("expressions and blocks lie more than {MAX_NESTING} deep in one another");
        Err(Error::limit(message).at(self.line()))
    }

    pub(super) fn leave(&mut self) {
        self.nesting -= 1;
    }
}
