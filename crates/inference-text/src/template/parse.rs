//! From a template's source to minijinja's syntax tree, and off to a thread with room to walk it.

use minijinja::{
    machinery::{Token, ast::Stmt, parse, tokenize},
    syntax::SyntaxConfig,
};
use serde_json::{Map, Value};

use jiff::civil::DateTime;

use super::eval;

/// Room for the deepest tree that a source of the allowed length can make; only what is used of it takes memory.
const STACK: usize = 256 << 20;

/// Checks that a source is a template.
pub(super) fn check(source: &str) -> Result<(), String> {
    with_room(|| tree(source, |_| Ok(())))
}

/// Parses and renders a source.
pub(super) fn render(source: &str, variables: &Map<String, Value>, now: DateTime) -> Result<String, String> {
    with_room(|| tree(source, |template| eval::render(template, variables, now)))
}

fn tree<T>(source: &str, use_it: impl FnOnce(&Stmt<'_>) -> Result<T, String>) -> Result<T, String> {
    // Jinja2 reads all line ends as one.
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let source = without_generation_tags(&source)?;
    let template = parse(&source, "chat template", syntax()?).map_err(|error| error.to_string())?;
    use_it(&template)
}

/// As transformers sets Jinja2.
fn syntax() -> Result<SyntaxConfig, String> {
    SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(|error| error.to_string())
}

/// transformers' `{% generation %}` marks what the assistant said, for training; the text is what stands in it. It opens a
/// scope, as `{% with %}` does.
fn without_generation_tags(source: &str) -> Result<String, String> {
    let mut out = String::with_capacity(source.len());
    let mut taken = 0;
    if source.contains("generation") {
        let mut opened = false;
        for token in tokenize(source, false, syntax()?) {
            let (token, span) = token.map_err(|error| error.to_string())?;
            let tag = match token {
                Token::Ident("generation") if opened => "with",
                Token::Ident("endgeneration") if opened => "endwith",
                _ => "",
            };
            if !tag.is_empty() {
                out.push_str(&source[taken..span.start_offset as usize]);
                out.push_str(tag);
                taken = span.end_offset as usize;
            }
            opened = matches!(token, Token::BlockStart);
        }
    }
    out.push_str(&source[taken..]);
    Ok(out)
}

/// Runs on a thread of its own: a syntax tree is walked and dropped recursively, however deep a hostile source makes it.
fn with_room<T: Send>(work: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
        let thread = thread
            .spawn_scoped(scope, work)
            .map_err(|error| format!("there is no thread for it: {error}"))?;
        // The parser is a large program that reads a hostile one.
        thread.join().unwrap_or_else(|_| Err("it brought its interpreter down".to_owned()))
    })
}
