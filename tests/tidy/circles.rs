//! Which files of a package use each other in a circle.
//!
//! A file uses another by a path through `crate`, `super`, `self` or a module of its own: in a
//! private `use`, or in the code. What a `mod.rs` only passes on is followed to the file that has
//! it. Code for tests does not count.

use std::collections::{BTreeMap, BTreeSet};

use crate::imports::{Path, expand, without_tests, words};
use crate::source::Source;

/// What is known of one file, which is one module.
#[derive(Default)]
struct Module {
    file: String,
    defined: BTreeSet<String>,
    /// What names that it imports or passes on stand for.
    imported: BTreeMap<String, Path>,
    /// Modules of which everything is imported.
    globs: Vec<Path>,
    /// What it uses itself.
    used: Vec<Path>,
}

/// Files that use each other in a circle, of at least so many files.
pub fn circles(sources: &[Source], root: &str, least: usize) -> Vec<Vec<String>> {
    let modules: BTreeMap<Path, Module> = read_modules(sources, root);
    let mut uses: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (place, module) in &modules {
        let targets = module.used.iter().filter_map(|path| file_of(&modules, path, 0));
        // The root is where everything begins; it is used by name only for what it passes on.
        let targets = targets.filter(|file| *file != module.file && place.len() > 1);
        uses.entry(&module.file).or_default().extend(targets);
    }
    let mut found: Vec<Vec<String>> = components(&uses)
        .into_iter()
        .filter(|files| files.len() >= least)
        .map(|files| files.into_iter().map(str::to_owned).collect())
        .collect();
    found.sort();
    found
}

fn read_modules(sources: &[Source], root: &str) -> BTreeMap<Path, Module> {
    let places: BTreeMap<Path, String> = sources
        .iter()
        .map(|source| (place_of(&source.path, root), without_tests(source)))
        .collect();
    let mut modules = BTreeMap::new();
    for source in sources {
        let place = place_of(&source.path, root);
        if place.last().is_some_and(|name| name == "tests") {
            continue;
        }
        let module = read_module(&source.path, &places[&place], &place, &places);
        modules.insert(place, module);
    }
    modules
}

/// `crate`, then the names of modules down to this file.
fn place_of(file: &str, root: &str) -> Path {
    let inside = file.strip_prefix(root).unwrap_or(file).trim_start_matches('/');
    let inside = inside.trim_end_matches(".rs");
    let names = inside.split('/').filter(|name| !["mod", "lib", "main"].contains(name));
    std::iter::once("crate").chain(names).map(str::to_owned).collect()
}

fn read_module(file: &str, code: &str, place: &Path, places: &BTreeMap<Path, String>) -> Module {
    let mut module = Module { file: file.to_owned(), ..Module::default() };
    for kind in ["struct", "enum", "trait", "fn", "const", "static", "type", "union"] {
        for (at, _) in words(code, kind) {
            module.defined.extend(first_word(&code[at + kind.len()..]));
        }
    }
    let mut rest = String::new();
    let mut done = 0;
    for (at, _) in words(code, "use") {
        let Some(end) = code[at..].find(';').filter(|_| at >= done) else { continue };
        let is_public = {
            let line = code[..at].rsplit(['\n', ';', '}']).next().unwrap_or("");
            line.trim_start().starts_with("pub")
        };
        for (path, name) in expand(&code[at + 3..at + end]) {
            let Some(path) = absolute(path, place, places) else { continue };
            if name == "*" {
                module.globs.push(path.clone());
            } else {
                module.imported.insert(name, path.clone());
            }
            if !is_public {
                module.used.push(path);
            }
        }
        rest.push_str(&code[done..at]);
        done = at + end;
    }
    rest.push_str(&code[done..]);
    for start in ["crate", "super"] {
        for (at, after) in words(&rest, start) {
            // `pub(super)` uses nothing.
            if !after.starts_with("::") {
                continue;
            }
            let end = rest[at..].find(|c: char| !(c.is_alphanumeric() || "_:".contains(c)));
            let path = &rest[at..at + end.unwrap_or(rest.len() - at)];
            let path = path.split("::").filter(|name| !name.is_empty()).map(str::to_owned);
            module.used.extend(absolute(path.collect(), place, places));
        }
    }
    module
}

fn first_word(code: &str) -> Option<String> {
    let code = code.trim_start().trim_start_matches("mut ");
    let name: String = code.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

/// The path from the root; nothing for what is of another package.
fn absolute(path: Path, place: &Path, places: &BTreeMap<Path, String>) -> Option<Path> {
    let mut base = place.clone();
    let mut names = path.into_iter().peekable();
    match names.peek()?.as_str() {
        "crate" => base.clear(),
        "self" => drop(names.next()),
        "super" => {
            while names.next_if(|name| name == "super").is_some() {
                base.pop();
            }
        }
        own => {
            let child: Path = base.iter().cloned().chain([own.to_owned()]).collect();
            places.get(&child)?;
        }
    }
    base.extend(names);
    Some(base)
}

/// The file that has what a path names.
fn file_of<'m>(modules: &'m BTreeMap<Path, Module>, path: &Path, depth: usize) -> Option<&'m str> {
    let inner = (1..=path.len()).rev().find(|len| modules.contains_key(&path[..*len]))?;
    let module = &modules[&path[..inner]];
    let Some(name) = path.get(inner).filter(|name| !module.defined.contains(*name)) else {
        return Some(&module.file);
    };
    // Deeper than any chain of modules that pass something on.
    if depth == 8 {
        return Some(&module.file);
    }
    if let Some(other) = module.imported.get(name) {
        let path = other.iter().chain(&path[inner + 1..]).cloned().collect();
        return file_of(modules, &path, depth + 1);
    }
    for glob in &module.globs {
        let place = (1..=glob.len()).rev().find(|len| modules.contains_key(&glob[..*len]))?;
        if modules[&glob[..place]].defined.contains(name) {
            return Some(&modules[&glob[..place]].file);
        }
    }
    Some(&module.file)
}

/// Sets of files that reach each other, each at least one file.
fn components<'f>(uses: &BTreeMap<&'f str, BTreeSet<&'f str>>) -> Vec<BTreeSet<&'f str>> {
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        uses.keys().map(|file| (*file, reachable(uses, file))).collect();
    let mut found: Vec<BTreeSet<&str>> = Vec::new();
    for file in uses.keys() {
        if !found.iter().any(|component| component.contains(file)) {
            let mutual = reach[file].iter().filter(|other| reach[**other].contains(file));
            found.push(mutual.copied().chain([*file]).collect());
        }
    }
    found
}

fn reachable<'f>(uses: &BTreeMap<&'f str, BTreeSet<&'f str>>, from: &str) -> BTreeSet<&'f str> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&str> = uses[from].iter().copied().collect();
    while let Some(file) = open.pop() {
        if seen.insert(file) {
            open.extend(uses.get(file).into_iter().flatten());
        }
    }
    seen
}

#[test]
fn a_circle_is_found_through_what_a_module_passes_on() {
    let sources = [
        ("src/lib.rs", "mod a; mod b; pub use a::one::One;"),
        ("src/a/mod.rs", "mod one; mod two; pub use one::One; pub use two::{self, Two as Second};"),
        ("src/a/one.rs", "use super::{Second, two};\npub struct One(Second);"),
        ("src/a/two.rs", "use crate::b::*;\npub struct Two;"),
        ("src/b.rs", "pub fn b() { crate::One::new() }\n#[cfg(test)]\nmod tests { use super::b; }"),
        ("src/c.rs", "use crate::a::One; // crate::c is used by nobody"),
        ("src/d.rs", "use crate::e::E; pub struct D;"),
        ("src/e.rs", "#[cfg(test)]\nuse crate::d::D;\npub struct E;"),
    ];
    let sources = sources.map(|(path, text)| Source::new(path, text));
    let expected = ["src/a/one.rs", "src/a/two.rs", "src/b.rs"];
    assert_eq!(circles(&sources, "src", 2), [expected]);
    assert!(circles(&sources, "src", 4).is_empty());
}
