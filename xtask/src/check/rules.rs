//! Rules about single files: where MLX and `unsafe` may be used, retired names, sizes.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use syn::{spanned::Spanned as _, visit::Visit};

use super::sources::{Crate, attributes, is_test};

/// The longest file in lines; generated code and tests may be longer.
const MAX_FILE_LINES: usize = 500;

/// The longest function in lines; one that only matches on a value, a table, may be longer.
const MAX_FUNCTION_LINES: usize = 60;

/// A word that only some folders of a crate may use.
struct Room {
    krate: &'static str,
    word: &'static str,
    folders: &'static [&'static str],
}

const ROOMS: [Room; 2] = [
    Room { krate: "backend-metal", word: "mlx_sys", folders: &["src/mlx/"] },
    Room { krate: "backend-metal", word: "unsafe", folders: &["src/mlx/", "src/nn/cpu/", "src/nn/cuda/"] },
];

/// Files that a tool writes.
const GENERATED: [&str; 1] = ["crates/mlx-sys/src/bindings.rs"];

/// Everything that the crates' files do against the rules.
///
/// # Errors
/// A file cannot be read, or the list of retired names is malformed.
pub(super) fn violations(root: &Path, crates: &[Crate]) -> Result<Vec<String>> {
    let retired = retired_names(&root.join("xtask/retired_names.txt"))?;
    let mut found = Vec::new();
    for krate in crates {
        let mut files: Vec<&Path> = krate.modules.values().map(|module| module.file.as_path()).collect();
        files.sort_unstable();
        files.dedup();
        for file in files {
            let text = fs::read_to_string(root.join(file))
                .with_context(|| format!("cannot read {}", file.display()))?;
            let shown = file.to_string_lossy();
            if GENERATED.contains(&&*shown) {
                continue;
            }
            found.extend(size(&shown, &text));
            found.extend(rooms(krate, &shown, &text));
            found.extend(names(&shown, &text, &retired));
        }
        for module in krate.modules.values() {
            let mut functions =
                Functions { file: module.file.to_string_lossy().into_owned(), found: Vec::new() };
            module.items.iter().for_each(|item| functions.visit_item(item));
            found.extend(functions.found);
        }
    }
    Ok(found)
}

/// A file's own tests, which end it, do not count.
fn size(file: &str, text: &str) -> Option<String> {
    let lines = text.lines().take_while(|line| *line != "#[cfg(test)]").count();
    (lines > MAX_FILE_LINES && !file.ends_with("tests.rs"))
        .then(|| format!("{file}: {lines} lines, more than {MAX_FILE_LINES}"))
}

fn rooms(krate: &Crate, file: &str, text: &str) -> Vec<String> {
    let inside = |room: &Room| room.folders.iter().any(|folder| file.contains(folder));
    let rooms = ROOMS.iter().filter(|room| room.krate == krate.name && !inside(room));
    rooms
        .flat_map(|room| {
            let lines = code_lines(text).filter(|(_, line)| words(line).any(|word| word == room.word));
            lines.map(move |(number, _)| {
                let folders = room.folders.join(", ");
                format!("{file}:{number}: `{}` belongs in {folders} alone", room.word)
            })
        })
        .collect()
}

fn names(file: &str, text: &str, retired: &HashMap<String, String>) -> Vec<String> {
    let mut found = Vec::new();
    for (number, line) in code_lines(text) {
        for word in words(line) {
            if let Some(name) = retired.get(word) {
                found.push(format!("{file}:{number}: `{word}` is a retired name; use `{name}`"));
            }
        }
    }
    found
}

/// Lines with their numbers, comments aside.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines()).filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// Reads lines of a retired name and the name that replaced it; `#` begins a comment.
fn retired_names(path: &Path) -> Result<HashMap<String, String>> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut names = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((old, new)) = line.split_once(char::is_whitespace) else {
            bail!("{}:{number}: expected a retired name and its replacement, found {line:?}", path.display());
        };
        names.insert(old.to_owned(), new.trim().to_owned());
    }
    Ok(names)
}

struct Functions {
    file: String,
    found: Vec<String>,
}

impl Functions {
    fn check(&mut self, name: &syn::Ident, block: &syn::Block) {
        let lines = block.span().end().line + 1 - block.span().start().line;
        if lines > MAX_FUNCTION_LINES && !is_table(block) {
            let start = block.span().start().line;
            let file = &self.file;
            self.found
                .push(format!("{file}:{start}: `{name}` has {lines} lines, more than {MAX_FUNCTION_LINES}"));
        }
    }
}

/// Whether a function's longest statement, a `match` or a literal, is nearly all of it.
fn is_table(block: &syn::Block) -> bool {
    let lines = |span: proc_macro2::Span| span.end().line + 1 - span.start().line;
    let total = lines(block.span());
    block.stmts.iter().any(|statement| {
        let expression = match statement {
            syn::Stmt::Expr(expression, _) => expression,
            syn::Stmt::Local(syn::Local { init: Some(init), .. }) => &init.expr,
            _ => return false,
        };
        let mut tables = Tables::default();
        tables.visit_expr(expression);
        2 * tables.longest > total
    })
}

/// The longest `match`, `vec!`, `json!`, array or struct literal within an expression.
#[derive(Default)]
struct Tables {
    longest: usize,
}

impl<'ast> Visit<'ast> for Tables {
    fn visit_expr(&mut self, expression: &'ast syn::Expr) {
        let is_table = matches!(
            expression,
            syn::Expr::Match(_) | syn::Expr::Macro(_) | syn::Expr::Array(_) | syn::Expr::Struct(_)
        );
        if is_table {
            let span = expression.span();
            self.longest = self.longest.max(span.end().line + 1 - span.start().line);
        }
        syn::visit::visit_expr(self, expression);
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attributes(item)) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.sig.ident, &item.block);
        syn::visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check(&item.sig.ident, &item.block);
        syn::visit::visit_impl_item_fn(self, item);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_retired_name_is_found_in_code_and_not_in_comments() {
        let retired = HashMap::from([("OldName".to_owned(), "NewName".to_owned())]);
        let found = names("a.rs", "// an OldName\nstruct OldName;\nstruct OldNames;", &retired);
        assert_eq!(found, ["a.rs:2: `OldName` is a retired name; use `NewName`"]);
    }

    #[test]
    fn a_long_function_is_found_unless_it_is_a_table() {
        let check = |body: &str| {
            let text = format!("fn f() {{\n{body}\n}}");
            let mut functions = Functions { file: "a.rs".to_owned(), found: Vec::new() };
            functions.visit_file(&syn::parse_file(&text).unwrap());
            functions.found.len()
        };
        assert_eq!(check(&"g();\n".repeat(70)), 1);
        assert_eq!(check(&"g();\n".repeat(40)), 0);
        let table = format!("match x {{ {} _ => 0 }}", "\n1 => 2,".repeat(80));
        assert_eq!(check(&table), 0);
    }
}
