//! What a file imports and passes on.

use crate::source::Source;

/// A path of names. That of a module of this package begins with `crate`.
pub type Path = Vec<String>;

/// The code of a file without its modules for tests.
pub fn without_tests(source: &Source) -> String {
    let mut code = source.code.clone();
    while let Some(start) = code.find("#[cfg(test)]") {
        let rest = &code[start..];
        let opened = rest.find('{').unwrap_or(rest.len());
        let ended = rest.find(';').unwrap_or(rest.len());
        let len = if ended < opened { ended + 1 } else { opened + block_len(&rest[opened..]) };
        code.replace_range(start..start + len, "");
    }
    code
}

fn block_len(code: &str) -> usize {
    let mut depth = 0;
    for (at, c) in code.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth == 0 {
            return at + 1;
        }
    }
    code.len()
}

/// Where a word stands by itself, and what is after it.
pub fn words<'c>(code: &'c str, word: &'c str) -> impl Iterator<Item = (usize, &'c str)> {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    let places = code.match_indices(word).map(|(at, _)| (at, &code[at + word.len()..]));
    places.filter(move |(at, after)| {
        !code[..*at].ends_with(|c: char| is_part(c) || c == ':') && !after.starts_with(is_part)
    })
}

/// The paths of a tree of imports, each with the name that it gets.
pub fn expand(tree: &str) -> Vec<(Path, String)> {
    let tree = tree.trim();
    let Some((before, inside)) = tree.split_once('{') else {
        let (path, name) = tree.split_once(" as ").unwrap_or((tree, ""));
        let mut path: Path = path.trim().split("::").map(|name| name.trim().to_owned()).collect();
        let mut last = path.last().cloned().unwrap_or_default();
        if last == "*" || (last == "self" && path.len() > 1) {
            path.pop();
        }
        if last == "self" {
            last = path.last().cloned().unwrap_or_default();
        }
        let name = if name.is_empty() { last } else { name.trim().to_owned() };
        return vec![(path, name)];
    };
    let inside = inside.trim_end().strip_suffix('}').unwrap_or(inside);
    let branches = split_branches(inside).into_iter().filter(|it| !it.trim().is_empty());
    branches.flat_map(|branch| expand(&format!("{before}{}", branch.trim()))).collect()
}

/// Splits at the commas that are in no braces.
fn split_branches(inside: &str) -> Vec<&str> {
    let (mut depth, mut start) = (0, 0);
    let mut branches = Vec::new();
    for (at, c) in inside.char_indices() {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if c == ',' && depth == 0 {
            branches.push(&inside[start..at]);
            start = at + 1;
        }
    }
    branches.push(&inside[start..]);
    branches
}

/// What the root of a library offers to its users, but for what its documentation hides.
pub fn public_names(root: &Source) -> Vec<String> {
    let code = without_tests(root);
    let mut names = Vec::new();
    for item in ["\npub use ", "\npub mod "] {
        for (at, _) in code.match_indices(item) {
            let rest = &code[at + item.len()..];
            // A module ends at its brace; a tree of imports has braces of its own.
            let end = if item.ends_with("mod ") { rest.find(['{', ';']) } else { rest.find(';') };
            if !code[..at].trim_end().ends_with("#[doc(hidden)]") {
                names.extend(expand(&rest[..end.unwrap_or(0)]).into_iter().map(|(_, name)| name));
            }
        }
    }
    names
}

#[test]
fn names_are_counted_through_trees() {
    let text = "\npub mod config;\nmod own;\n#[doc(hidden)]\n/// Words.\npub mod internals {\n    \
                pub mod a;\n}\npub use own::{\n    A,\n    b::{C, D as E},\n};\npub use own::f;\n\
                #[cfg(test)]\npub mod tests {}\n";
    let mut names = public_names(&Source::new("src/lib.rs", text));
    names.sort();
    assert_eq!(names, ["A", "C", "E", "config", "f"]);
}
