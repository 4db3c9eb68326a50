//! Module cycles: files that use each other's items, directly or in a loop.
//!
//! A file depends on the file that defines a name, wherever the name was re-exported in between. A `pub use` is a
//! re-export and no dependency of its own. Names inside macro calls are not seen.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::PathBuf,
};

use syn::visit::Visit;

use super::sources::{Crate, Module, attributes, is_test};

/// What a module's names stand for.
#[derive(Default)]
struct Names {
    defined: BTreeSet<String>,
    /// Imported names and the paths that they stand for.
    imported: HashMap<String, Vec<String>>,
    globs: Vec<Vec<String>>,
    /// Private imports: the module itself uses them.
    used: Vec<Vec<String>>,
}

type ModulePath = Vec<String>;

/// The cycles of one crate, each as a sentence.
pub(super) fn cycles(krate: &Crate) -> Vec<String> {
    let graph = Graph::new(krate);
    let edges = graph.edges(krate);
    components(&edges).into_iter().map(|files| describe(&krate.name, &files, &edges)).collect()
}

type Edges = BTreeMap<PathBuf, BTreeMap<PathBuf, BTreeSet<String>>>;

struct Graph {
    names: BTreeMap<ModulePath, Names>,
    files: BTreeMap<ModulePath, PathBuf>,
}

impl Graph {
    fn new(krate: &Crate) -> Self {
        let names = krate.modules.iter().map(|(path, module)| (path.clone(), names_of(module))).collect();
        let files = krate.modules.iter().map(|(path, module)| (path.clone(), module.file.clone())).collect();
        Self { names, files }
    }

    fn edges(&self, krate: &Crate) -> Edges {
        let mut edges = Edges::new();
        for (path, module) in &krate.modules {
            let mut mentioned = Mentioned::default();
            module.items.iter().for_each(|item| mentioned.visit_item(item));
            for mention in mentioned.paths.iter().chain(&self.names[path].used) {
                let Some(file) = self.resolve(path, mention, 0) else { continue };
                if file != module.file {
                    let name = mention.last().cloned().unwrap_or_default();
                    edges.entry(module.file.clone()).or_default().entry(file).or_default().insert(name);
                }
            }
        }
        edges
    }

    /// The file that defines what this path names when it is written in this module; `None` for another crate's names and for
    /// whole modules, whose use shows where something of them is named.
    fn resolve(&self, from: &ModulePath, path: &[String], depth: usize) -> Option<PathBuf> {
        if depth > 16 {
            return None;
        }
        let (mut at, mut rest) = match path.first()?.as_str() {
            "crate" => (ModulePath::new(), &path[1..]),
            "self" => (from.clone(), &path[1..]),
            "super" => (from[..from.len().checked_sub(1)?].to_vec(), &path[1..]),
            _ => (from.clone(), path),
        };
        let is_relative = rest.len() == path.len();
        loop {
            let name = rest.first()?;
            if name == "super" {
                at.pop()?;
                rest = &rest[1..];
                continue;
            }
            let mut child = at.clone();
            child.push(name.clone());
            let names = self.names.get(&at)?;
            if self.names.contains_key(&child) {
                (at, rest) = (child, &rest[1..]);
                continue;
            }
            if names.defined.contains(name) {
                return self.files.get(&at).cloned();
            }
            if let Some(target) = names.imported.get(name) {
                let full: Vec<String> = target.iter().chain(&rest[1..]).cloned().collect();
                // `use name;` would stand for itself.
                return if full == path { None } else { self.resolve(&at, &full, depth + 1) };
            }
            let found = names.globs.iter().find_map(|glob| {
                let full: Vec<String> = glob.iter().chain(rest).cloned().collect();
                self.resolve(&at, &full, depth + 1)
            });
            return found.or_else(|| (!is_relative && !at.is_empty()).then(|| self.files[&at].clone()));
        }
    }
}

fn names_of(module: &Module) -> Names {
    let mut names = Names::default();
    for item in &module.items {
        let defined = match item {
            syn::Item::Const(item) => Some(&item.ident),
            syn::Item::Enum(item) => Some(&item.ident),
            syn::Item::Fn(item) => Some(&item.sig.ident),
            syn::Item::Macro(item) => item.ident.as_ref(),
            syn::Item::Static(item) => Some(&item.ident),
            syn::Item::Struct(item) => Some(&item.ident),
            syn::Item::Trait(item) => Some(&item.ident),
            syn::Item::Type(item) => Some(&item.ident),
            syn::Item::Use(item) => {
                let is_private = matches!(item.vis, syn::Visibility::Inherited);
                add_use(&mut names, &item.tree, Vec::new(), is_private);
                None
            }
            _ => None,
        };
        names.defined.extend(defined.map(ToString::to_string));
    }
    names
}

fn add_use(names: &mut Names, tree: &syn::UseTree, mut path: Vec<String>, is_private: bool) {
    let mut import = |path: Vec<String>, alias: String| {
        if is_private {
            names.used.push(path.clone());
        }
        names.imported.insert(alias, path);
    };
    match tree {
        syn::UseTree::Path(tree) => {
            path.push(tree.ident.to_string());
            add_use(names, &tree.tree, path, is_private);
        }
        syn::UseTree::Name(tree) if tree.ident == "self" => {
            let alias = path.last().cloned().unwrap_or_default();
            import(path, alias);
        }
        syn::UseTree::Name(tree) => {
            path.push(tree.ident.to_string());
            import(path, tree.ident.to_string());
        }
        syn::UseTree::Rename(tree) => {
            path.push(tree.ident.to_string());
            import(path, tree.rename.to_string());
        }
        syn::UseTree::Glob(_) => names.globs.push(path),
        syn::UseTree::Group(tree) => {
            tree.items.iter().for_each(|item| add_use(names, item, path.clone(), is_private));
        }
    }
}

/// Every path that code outside tests mentions, imports aside.
#[derive(Default)]
struct Mentioned {
    paths: Vec<Vec<String>>,
}

impl<'ast> Visit<'ast> for Mentioned {
    fn visit_item(&mut self, item: &'ast syn::Item) {
        if !is_test(attributes(item)) {
            syn::visit::visit_item(self, item);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        self.paths.push(path.segments.iter().map(|segment| segment.ident.to_string()).collect());
        syn::visit::visit_path(self, path);
    }
}

/// The strongly connected components of more than one file: sets of files that reach each other.
fn components(edges: &Edges) -> Vec<Vec<PathBuf>> {
    let reachable = |from: &PathBuf| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(file) = next.pop() {
            for target in edges.get(&file).into_iter().flat_map(BTreeMap::keys) {
                if seen.insert(target.clone()) {
                    next.push(target.clone());
                }
            }
        }
        seen
    };
    let reach: BTreeMap<&PathBuf, BTreeSet<PathBuf>> =
        edges.keys().map(|file| (file, reachable(file))).collect();
    let mut found: Vec<Vec<PathBuf>> = Vec::new();
    for (file, targets) in &reach {
        if targets.contains(*file) && !found.iter().any(|cycle| cycle.contains(file)) {
            let reaches_back = |other: &&PathBuf| reach.get(other).is_some_and(|back| back.contains(*file));
            found.push(targets.iter().filter(reaches_back).cloned().collect());
        }
    }
    found
}

fn describe(krate: &str, files: &[PathBuf], edges: &Edges) -> String {
    let mut text = format!("{krate}: these files use each other in a cycle:");
    for file in files {
        for (target, names) in edges.get(file).into_iter().flatten() {
            if files.contains(target) {
                let names: Vec<&str> = names.iter().map(String::as_str).take(4).collect();
                text += &format!("\n  {} uses {} ({})", file.display(), target.display(), names.join(", "));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn krate(files: &[(&str, &str)]) -> Crate {
        let module = |(path, text): &(&str, &str)| {
            let parts: Vec<String> =
                path.split("::").filter(|part| !part.is_empty()).map(str::to_owned).collect();
            let file = PathBuf::from(format!("{path}.rs"));
            (parts, Module { file, items: syn::parse_file(text).unwrap().items })
        };
        Crate { name: "example".to_owned(), modules: files.iter().map(module).collect() }
    }

    #[test]
    fn two_files_that_use_each_other_are_a_cycle() {
        let found = cycles(&krate(&[
            ("", "mod a; mod b;"),
            ("a", "use crate::b::B; pub struct A(B);"),
            ("b", "pub struct B; fn f(a: &super::a::A) {}"),
        ]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].contains("a.rs uses b.rs (B)") && found[0].contains("b.rs uses a.rs (A)"),
            "{}",
            found[0]
        );
    }

    #[test]
    fn a_re_export_is_followed_to_the_definition_and_is_no_dependency() {
        let files = [
            ("", "mod nn;"),
            ("nn", "mod a; mod b; pub(crate) use a::A; pub(crate) use b::B;"),
            ("nn::a", "pub(crate) struct A;"),
            ("nn::b", "use super::A; pub(crate) struct B(A);"),
        ];
        assert_eq!(cycles(&krate(&files)), Vec::<String>::new());
    }

    #[test]
    fn a_child_that_uses_its_parent_which_uses_it_is_a_cycle() {
        let files = [
            ("", "mod a;"),
            ("a", "mod b; use b::help; pub struct A; fn f() { help() }"),
            ("a::b", "use super::A; pub fn help() {}"),
        ];
        assert_eq!(cycles(&krate(&files)).len(), 1);
    }

    #[test]
    fn tests_do_not_count() {
        let files = [
            ("", "mod a; mod b;"),
            ("a", "pub struct A; #[cfg(test)] mod tests { use crate::b::B; }"),
            ("b", "use crate::a::A; pub struct B(A);"),
        ];
        let mut krate = krate(&files);
        // The reader leaves test modules out; here the item is left out by the visitor.
        krate.modules.get_mut(&vec!["a".to_owned()]).unwrap().items.pop();
        assert!(cycles(&krate).is_empty());
    }
}
