//! A source file, and its code without what only talks about code.

use std::fs;
use std::path::{Path, PathBuf};

pub struct Source {
    pub path: String,
    pub text: String,
    /// The text with comments and the contents of strings and characters blanked; lines and columns
    /// stay.
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), code: code_of(text) }
    }

    /// Numbered lines of the code.
    pub fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    pub fn room(&self) -> Option<&str> {
        let inside = self.path.split_once("src/")?.1;
        let name = inside.split('/').next()?;
        Some(name.strip_suffix(".rs").unwrap_or(name))
    }
}

/// All sources below a folder of the workspace, by path.
pub fn sources(folder: &str) -> Vec<Source> {
    let home = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut open: Vec<PathBuf> = vec![home.join(folder)];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let path = path.strip_prefix(home).unwrap().to_string_lossy().into_owned();
            found.push(Source::new(&path, &text));
        }
    }
    assert!(!found.is_empty(), "{folder} has no sources");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

/// Blanks comments and the contents of strings and characters.
fn code_of(text: &str) -> String {
    let mut code = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let before = code.chars().next_back();
        let (kept, blanked) = next_piece(rest, before);
        code.push_str(&rest[..kept]);
        let blank = rest[kept..kept + blanked].chars();
        code.extend(blank.map(|c| if c == '\n' { '\n' } else { ' ' }));
        rest = &rest[kept + blanked..];
    }
    code
}

/// How many bytes of the rest are code, and how many after them are to be blanked.
fn next_piece(rest: &str, before: Option<char>) -> (usize, usize) {
    let is_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if rest.starts_with("//") {
        return (0, rest.find('\n').unwrap_or(rest.len()));
    }
    if rest.starts_with("/*") {
        return (0, comment_len(rest));
    }
    if rest.starts_with('"') {
        return (0, string_len(rest));
    }
    if let Some(prefix) = raw_prefix(rest).filter(|_| !is_word) {
        let end = format!("\"{}", "#".repeat(prefix - 2));
        let opened = rest.find('"').map_or(rest.len(), |at| at + 1);
        let closed = rest[opened..].find(&end).map_or(rest.len(), |at| opened + at + end.len());
        return (0, closed);
    }
    if let Some(len) = character_len(rest) {
        return (0, len);
    }
    (rest.chars().next().map_or(0, char::len_utf8), 0)
}

/// The length of a character in quotes; a lifetime has no second quote.
fn character_len(rest: &str) -> Option<usize> {
    let inside = rest.strip_prefix('\'')?;
    let end = if let Some(escaped) = inside.strip_prefix('\\') {
        // What is escaped may be a quote.
        let first = escaped.chars().next()?.len_utf8();
        1 + first + escaped[first..].find('\'')?
    } else {
        let first = inside.chars().next()?.len_utf8();
        inside[first..].starts_with('\'').then_some(first)?
    };
    Some(end + 2)
}

/// The length of `r"` or `r#"` and so on, were its `#` counted.
fn raw_prefix(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('r')?;
    let inside = hashes.trim_start_matches('#');
    inside.starts_with('"').then(|| 2 + hashes.len() - inside.len())
}

fn string_len(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        if c == '"' && !is_escaped {
            return at + 1;
        }
        is_escaped = c == '\\' && !is_escaped;
    }
    rest.len()
}

fn comment_len(rest: &str) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        let here = &rest.as_bytes()[at..];
        let step = if here.starts_with(b"/*") {
            depth += 1;
            2
        } else if here.starts_with(b"*/") {
            depth -= 1;
            2
        } else {
            1
        };
        at += step;
        if depth == 0 {
            return at;
        }
    }
    rest.len()
}

#[test]
fn comments_strings_and_characters_are_blanked() {
    let text = "a /* { /* } */ */ b // {\n\"{\\\"\" r#\"}\"}\"# '{' '\\'' '\\u{7f}' <'a> for\"x\"";
    let source = Source::new("made-up.rs", text);
    assert!(!source.code.contains(['{', '}', '"', 'x', 'u']), "{}", source.code);
    assert_eq!(source.code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "<'a>", "for"]);
    assert_eq!(source.code.lines().count(), 2);
}
