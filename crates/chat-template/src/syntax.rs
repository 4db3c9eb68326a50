//! From a template's source to its syntax tree: lexer → tokens → parser.

pub(crate) mod ast;
mod cursor;
mod escapes;
mod expressions;
mod lexer;
mod statements;
mod token;

use crate::error::Result;

/// Reads a source.
pub(crate) fn parse(source: &str) -> Result<ast::Ast> {
    // Jinja2 reads all line ends as one, and drops the last.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = source.strip_suffix('\n').unwrap_or(&source);
    statements::parse(lexer::tokenize(source)?)
}
