//! The Rust sources of the workspace, parsed once for all rules.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};

/// One library or program: its modules by path, the root's path being empty.
pub(super) struct Crate {
    pub(super) name: String,
    pub(super) modules: BTreeMap<Vec<String>, Module>,
}

/// One module and the file that holds it. Several inline modules may share a file. Test modules are left out.
pub(super) struct Module {
    pub(super) file: PathBuf,
    pub(super) items: Vec<syn::Item>,
}

/// Parses every crate under `crates/` and `xtask/`.
///
/// # Errors
/// A file cannot be read or parsed, or a `mod` names a file that does not exist.
pub(super) fn read(root: &Path) -> Result<Vec<Crate>> {
    let mut folders: Vec<PathBuf> = vec![root.join("xtask")];
    for entry in fs::read_dir(root.join("crates"))? {
        folders.push(entry?.path());
    }
    folders.sort();
    let mut crates = Vec::new();
    for folder in folders {
        for main in ["src/lib.rs", "src/main.rs"] {
            let file = folder.join(main);
            if file.is_file() {
                let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
                let mut modules = BTreeMap::new();
                add_file(&mut modules, Vec::new(), &file, root)?;
                crates.push(Crate { name, modules });
            }
        }
    }
    Ok(crates)
}

fn add_file(
    modules: &mut BTreeMap<Vec<String>, Module>,
    path: Vec<String>,
    file: &Path,
    root: &Path,
) -> Result<()> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let parsed = syn::parse_file(&text).with_context(|| format!("cannot parse {}", file.display()))?;
    let is_root =
        matches!(file.file_name().and_then(|name| name.to_str()), Some("lib.rs" | "main.rs" | "mod.rs"));
    let children = if is_root { file.with_file_name("") } else { file.with_extension("") };
    let shown = file.strip_prefix(root).unwrap_or(file).to_owned();
    add_items(modules, path, &shown, parsed.items, &children, root)
}

fn add_items(
    modules: &mut BTreeMap<Vec<String>, Module>,
    path: Vec<String>,
    file: &Path,
    items: Vec<syn::Item>,
    children: &Path,
    root: &Path,
) -> Result<()> {
    let mut own = Vec::new();
    for item in items {
        if is_test(attributes(&item)) {
            continue;
        }
        let syn::Item::Mod(module) = item else {
            own.push(item);
            continue;
        };
        let name = module.ident.to_string();
        let child: Vec<String> = path.iter().cloned().chain([name.clone()]).collect();
        match module.content {
            Some((_, items)) => add_items(modules, child, file, items, &children.join(&name), root)?,
            None => {
                let candidates = [children.join(format!("{name}.rs")), children.join(&name).join("mod.rs")];
                let Some(found) = candidates.iter().find(|path| path.is_file()) else {
                    bail!("{}: no file for `mod {name}`", file.display());
                };
                add_file(modules, child, found, root)?;
            }
        }
    }
    modules.insert(path, Module { file: file.to_owned(), items: own });
    Ok(())
}

/// Whether an item is compiled for tests alone.
pub(super) fn is_test(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else { return attribute.path().is_ident("test") };
        list.path.is_ident("cfg") && list.tokens.to_string() == "test"
    })
}

/// The attributes of an item.
pub(super) fn attributes(item: &syn::Item) -> &[syn::Attribute] {
    match item {
        syn::Item::Const(item) => &item.attrs,
        syn::Item::Enum(item) => &item.attrs,
        syn::Item::Fn(item) => &item.attrs,
        syn::Item::ForeignMod(item) => &item.attrs,
        syn::Item::Impl(item) => &item.attrs,
        syn::Item::Macro(item) => &item.attrs,
        syn::Item::Mod(item) => &item.attrs,
        syn::Item::Static(item) => &item.attrs,
        syn::Item::Struct(item) => &item.attrs,
        syn::Item::Trait(item) => &item.attrs,
        syn::Item::Type(item) => &item.attrs,
        syn::Item::Use(item) => &item.attrs,
        _ => &[],
    }
}
