//! What the documents say is so: their programs are compiled, the tests that they name are there,
//! and the page about the configuration has every key with its default.

#![allow(clippy::unwrap_used, reason = "a test may end where it fails")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use optswap::config::Config;
use toml::{Table, Value};

fn home() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pages() -> Vec<PathBuf> {
    let docs = std::fs::read_dir(home().join("docs")).unwrap();
    let docs = docs.map(|entry| entry.unwrap().path());
    let pages = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.chain([home().join("README.md")]).collect()
}

/// What is between the fences of a page's blocks in a language, with the rest of the opening fence.
fn blocks<'t>(text: &'t str, language: &str) -> Vec<(&'t str, String)> {
    let mut blocks = Vec::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let Some(opened) = line.strip_prefix("```") else { continue };
        let inside: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
        if let Some(rest) = opened.strip_prefix(language) {
            blocks.push((rest, inside.join("\n")));
        }
    }
    blocks
}

#[test]
fn every_program_in_the_documents_is_compiled() {
    let library = std::fs::read_to_string(home().join("src/lib.rs")).unwrap();
    let mut count = 0;
    for page in pages() {
        let name = page.strip_prefix(home()).unwrap().display().to_string();
        let programs = blocks(&std::fs::read_to_string(&page).unwrap(), "rust").len();
        let is_compiled = library.contains(&format!("include_str!(\"../{name}\")"));
        assert_eq!(is_compiled, programs > 0, "{name}: {programs} programs, src/lib.rs");
        for (options, _) in blocks(&std::fs::read_to_string(&page).unwrap(), "rust") {
            assert!(["", ",no_run"].contains(&options), "{name}: `rust{options}`");
        }
        count += programs;
    }
    assert!(count > 0);
}

/// Tests that a page names: `FILE::TEST`, where there is such a file of tests.
fn tests_named_in(page: &str) -> Vec<(PathBuf, &str)> {
    // Between backquotes, within a line.
    let code = page.lines().flat_map(|line| line.split('`').skip(1).step_by(2));
    let named = code.filter_map(|name| {
        let (file, test) = name.split_once("::")?;
        let file = home().join(format!("tests/{file}.rs"));
        file.exists().then(|| (file, test.rsplit("::").next().unwrap_or(test)))
    });
    named.collect()
}

#[test]
fn every_test_that_the_documents_name_is_there() {
    let mut count = 0;
    for page in pages() {
        let text = std::fs::read_to_string(&page).unwrap();
        for (file, test) in tests_named_in(&text) {
            let code = std::fs::read_to_string(&file).unwrap();
            let is_there = code.contains(&format!("fn {test}("));
            assert!(is_there, "{}: {} has no test {test}", page.display(), file.display());
            count += 1;
        }
    }
    assert!(count > 0);
}

/// Paths of all keys, those of lists of tables included.
fn keys(section: &str, table: &Table) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (key, value) in table {
        let path = if section.is_empty() { key.clone() } else { format!("{section}.{key}") };
        match value {
            Value::Table(inner) => found.extend(keys(&path, inner)),
            Value::Array(entries) => {
                let tables = entries.iter().filter_map(Value::as_table);
                tables.for_each(|inner| found.extend(keys(&path, inner)));
            }
            _ => {}
        }
        found.insert(path);
    }
    found
}

/// The keys of a section that the library knows: it lists them when it meets one that it does not.
fn known_keys(header: &str) -> BTreeSet<String> {
    let error = Config::parse(&format!("{header}\nxyzzy = 1\n")).unwrap_err().to_string();
    let (_, known) = error.split_once("known here: ").unwrap_or_else(|| panic!("{error}"));
    let known = known.lines().next().unwrap().trim_end_matches(')');
    known.split(", ").map(str::to_owned).collect()
}

/// A block whose commented keys and sections count too.
fn uncommented(block: &str) -> String {
    let lines = block.lines().map(|line| {
        let inside = line.strip_prefix("# ").unwrap_or(line);
        let word = inside.split(' ').next().unwrap_or("");
        let is_key = inside[word.len()..].starts_with(" = ");
        if is_key || inside.starts_with('[') { inside } else { line }
    });
    lines.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_page_about_the_configuration_has_every_key_with_its_default() {
    let page = std::fs::read_to_string(home().join("docs/configuration.md")).unwrap();
    let [(_, block)] = &blocks(&page, "toml")[..] else { panic!("one block has every key") };

    let default = Table::try_from(Config::default()).unwrap();
    assert_eq!(Table::try_from(Config::parse(block).unwrap()).unwrap(), default);
    // A list that is empty by default has no keys, so its example is a comment.
    let written: Table = toml::from_str(block).unwrap();
    let with_default: BTreeSet<String> = keys("", &default);
    let missing = with_default.difference(&keys("", &written)).cloned().collect::<Vec<_>>();
    let lists = ["faults", "optimizer.groups"];
    assert!(missing.iter().all(|key| lists.contains(&key.as_str())), "missing: {missing:?}");

    // The library refuses keys that it does not know, in the examples too.
    let whole = uncommented(block);
    let error = Config::parse(&whole).err();
    assert!(error.is_none(), "{}", error.unwrap());
    let written = keys("", &toml::from_str(&whole).unwrap());
    let mut known = known_keys("");
    let sections = default.iter().filter(|(_, value)| value.is_table());
    let headers = sections.map(|(name, _)| (name.clone(), format!("[{name}]")));
    let lists = lists.map(|name| (name.to_owned(), format!("[[{name}]]")));
    for (section, header) in headers.chain(lists) {
        let inside = known_keys(&header);
        known.extend(inside.into_iter().map(|key| format!("{section}.{key}")));
    }
    let missing: Vec<_> = known.difference(&written).collect();
    assert!(missing.is_empty(), "the page does not name {missing:?}");
}

#[test]
fn fences_and_comments_are_read_as_meant() {
    let text = "```toml\na = 1\n```\n```rust,no_run\nx\n```\n```\nrust\n```\n";
    assert_eq!(blocks(text, "rust"), [(",no_run", "x".to_owned())]);
    let named =
        tests_named_in("| `documents::a_test`, `codecs` | `other::x` | `documents::b::c` |");
    assert_eq!(named.iter().map(|(_, test)| *test).collect::<Vec<_>>(), ["a_test", "c"]);
    let block = "# [a]  # words\n# b = 2\n# words and = more\nc = 3";
    assert_eq!(uncommented(block), "[a]  # words\nb = 2\n# words and = more\nc = 3");
}
