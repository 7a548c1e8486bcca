//! How long functions are.

use crate::source::Source;

/// Lines from `fn` to the closing brace, by the name of every function that has a body.
pub fn function_lines(source: &Source) -> Vec<(String, usize)> {
    let code = &source.code;
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let is_word = code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let name: String =
            code[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        if is_word || name.is_empty() {
            continue;
        }
        if let Some(end) = end_of_body(&code[at..]) {
            found.push((name, code[at..at + end].lines().count()));
        }
    }
    found
}

/// Where the braces close that a signature opens; nothing for a declaration without a body.
fn end_of_body(code: &str) -> Option<usize> {
    let (mut braces, mut brackets) = (0, 0);
    for (at, c) in code.char_indices() {
        match c {
            '(' | '[' => brackets += 1,
            ')' | ']' => brackets -= 1,
            // `[u8; 4]` in a signature ends nothing.
            ';' if braces == 0 && brackets == 0 => return None,
            '{' => braces += 1,
            '}' => {
                braces -= 1;
                if braces == 0 {
                    return Some(at + 1);
                }
            }
            _ => {}
        }
    }
    None
}

#[test]
fn lines_are_counted_from_fn_to_the_closing_brace() {
    let text = "/// fn no() {}\npub fn one(a: [u8; 2]) -> u8 { a[0] }\n\
                trait T {\n    fn declared(&self);\n    fn three<'a>(c: char) -> bool {\n        \
                c == '}' // }\n    }\n}\ntype F = fn (u8);\nlet often = \"fn no() {\";\n";
    let expected = [("one".to_owned(), 1), ("three".to_owned(), 3)];
    assert_eq!(function_lines(&Source::new("made-up.rs", text)), expected);
}
