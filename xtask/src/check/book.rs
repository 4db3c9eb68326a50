//! Code blocks in Rust that nothing compiles. `tests/src/book.rs` lists the pages whose blocks are documentation tests; any
//! other page may only quote sources with mdbook's `{{#include}}`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Every Rust block of the README and the book that is not compiled, as a sentence.
///
/// # Errors
/// A page cannot be read.
pub(super) fn uncompiled(root: &Path) -> Result<Vec<String>> {
    let listed = read(&root.join("tests/src/book.rs"))?;
    let mut pages = vec![PathBuf::from("README.md")];
    add_pages(root, Path::new("docs/src"), &mut pages)?;
    let mut found = Vec::new();
    for page in pages {
        let shown = page.display().to_string();
        let is_listed = listed.contains(&format!("/{shown}\""));
        let text = read(&root.join(&page))?;
        found.extend(blocks(&text).filter(|block| !block.is_compiled(is_listed)).map(|block| {
            let line = block.line;
            format!("{shown}:{line}: nothing compiles this block; list the page in tests/src/book.rs")
        }));
    }
    Ok(found)
}

struct Block<'a> {
    line: usize,
    info: &'a str,
    first: &'a str,
}

impl Block<'_> {
    fn is_compiled(&self, is_listed: bool) -> bool {
        let is_quoted = self.first.starts_with("{{#include");
        is_quoted || (is_listed && !self.info.contains("ignore"))
    }
}

/// The Rust blocks of a page.
fn blocks(text: &str) -> impl Iterator<Item = Block<'_>> {
    let mut is_open = false;
    let lines: Vec<&str> = text.lines().collect();
    let starts: Vec<usize> = (0..lines.len())
        .filter(|index| {
            let is_fence = lines[*index].starts_with("```");
            is_open ^= is_fence;
            is_fence && is_open
        })
        .collect();
    starts.into_iter().filter_map(move |index| {
        let info = &lines[index][3..];
        let first = lines.get(index + 1).copied().unwrap_or_default();
        info.starts_with("rust").then_some(Block { line: index + 1, info, first })
    })
}

fn add_pages(root: &Path, folder: &Path, pages: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            add_pages(root, &path, pages)?;
        } else if path.extension().is_some_and(|extension| extension == "md") {
            pages.push(path);
        }
    }
    pages.sort();
    Ok(())
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_counts_unless_it_is_quoted_or_listed() {
        let text = "```rust\nlet a = 1;\n```\n\n```rust\n{{#include a.rs}}\n```\n```json\n{}\n```\n```rust,ignore\nx\n```\n";
        let found: Vec<_> = blocks(text)
            .map(|block| (block.line, block.is_compiled(true), block.is_compiled(false)))
            .collect();
        assert_eq!(found, [(1, true, false), (5, true, true), (11, false, false)]);
    }
}
