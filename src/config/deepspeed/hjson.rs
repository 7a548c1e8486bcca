//! HJSON as the Python package hjson reads it, with which DeepSpeed reads its configuration: JSON
//! with comments, without quotes and commas where one likes, and strings over several lines.
//!
//! No crate reads it alike: in the package a number such as `1e6` is whole, the braces around the
//! whole file may be missing, and DeepSpeed has it refuse a key that is there twice.

use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};

const DEPTH_MAX: usize = 128;

/// Reads a text. An empty one is an empty object.
///
/// # Errors
/// Usage, with line and column, if the package refuses the text too, or a key is there twice.
pub fn parse_hjson(text: &str) -> Result<Value> {
    // Python opens files with universal newlines.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let mut reader = Reader { text: text.chars().collect(), at: 0, depth: 0 };
    reader.whole_file().map_err(|(at, what)| reader.error(at, &what))
}

/// Where something is wrong, and what.
type Wrong = (usize, String);

struct Reader {
    text: Vec<char>,
    at: usize,
    depth: usize,
}

impl Reader {
    fn error(&self, at: usize, what: &str) -> Error {
        let before = &self.text[..at.min(self.text.len())];
        let line = before.iter().filter(|c| **c == '\n').count() + 1;
        let column = before.iter().rev().take_while(|c| **c != '\n').count() + 1;
        Error::usage(format!(
            "DeepSpeed's configuration cannot be read: {what} in line {line}, column {column}"
        ))
        .hint("it must be JSON; comments and a comma behind the last value are fine, as in HJSON")
    }

    fn wrong<T>(&self, what: impl Into<String>) -> Result<T, Wrong> {
        Err((self.at, what.into()))
    }

    fn peek(&self) -> Option<char> {
        self.text.get(self.at).copied()
    }

    fn has(&self, word: &str) -> bool {
        word.chars().enumerate().all(|(index, c)| self.text.get(self.at + index) == Some(&c))
    }

    /// The text from a place to here.
    fn since(&self, begin: usize) -> String {
        self.text[begin..self.at].iter().collect()
    }

    fn whole_file(&mut self) -> Result<Value, Wrong> {
        self.skip()?;
        let value = match self.peek() {
            None => return Ok(Value::Object(Map::new())),
            Some('{' | '[') => self.value()?,
            Some(_) => self.object(false)?,
        };
        self.skip()?;
        match self.peek() {
            None => Ok(value),
            Some(_) => self.wrong("something follows after the end"),
        }
    }

    /// Skips spaces and comments.
    fn skip(&mut self) -> Result<(), Wrong> {
        loop {
            while self.peek().is_some_and(is_space) {
                self.at += 1;
            }
            if self.peek() == Some('#') || self.has("//") {
                while self.peek().is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else if self.has("/*") {
                let begin = self.at;
                self.at += 2;
                while !self.has("*/") {
                    if self.peek().is_none() {
                        return Err((begin, "a comment without an end".to_owned()));
                    }
                    self.at += 1;
                }
                self.at += 2;
            } else {
                return Ok(());
            }
        }
    }

    fn value(&mut self) -> Result<Value, Wrong> {
        match self.peek() {
            None => self.wrong("a value is missing at the end"),
            Some('\'') if self.has("'''") => self.lines().map(Value::String),
            Some('"' | '\'') => self.string().map(Value::String),
            Some(bracket @ ('{' | '[')) => {
                if self.depth == DEPTH_MAX {
                    return self.wrong(format!("more than {DEPTH_MAX} brackets in each other"));
                }
                self.at += 1;
                self.depth += 1;
                let value = if bracket == '{' { self.object(true) } else { self.list() };
                self.depth -= 1;
                value
            }
            Some(_) => self.quoteless(),
        }
    }

    /// The keys and values of an object whose opening brace, if it has one, has been read.
    fn object(&mut self, has_braces: bool) -> Result<Value, Wrong> {
        let end = has_braces.then_some('}');
        let mut keys = Map::new();
        self.skip()?;
        if has_braces && self.peek() == end {
            self.at += 1;
            return Ok(Value::Object(keys));
        }
        loop {
            let begin = self.at;
            let key = self.key()?;
            self.skip()?;
            if self.peek() != Some(':') {
                return self.wrong(format!("a colon is missing after the key `{key}`"));
            }
            self.at += 1;
            self.skip()?;
            let value = self.value()?;
            if keys.contains_key(&key) {
                return Err((begin, format!("the key `{key}` is there a second time")));
            }
            keys.insert(key, value);
            self.comma()?;
            if self.peek() == end {
                self.at += usize::from(has_braces);
                return Ok(Value::Object(keys));
            }
        }
    }

    fn list(&mut self) -> Result<Value, Wrong> {
        let mut values = Vec::new();
        self.skip()?;
        while self.peek() != Some(']') {
            values.push(self.value()?);
            self.comma()?;
        }
        self.at += 1;
        Ok(Value::Array(values))
    }

    /// Skips what may stand between two values.
    fn comma(&mut self) -> Result<(), Wrong> {
        self.skip()?;
        if self.peek() == Some(',') {
            self.at += 1;
            self.skip()?;
        }
        Ok(())
    }

    fn key(&mut self) -> Result<String, Wrong> {
        if matches!(self.peek(), Some('"' | '\'')) {
            return self.string();
        }
        let begin = self.at;
        loop {
            match self.peek() {
                None => return self.wrong("the end comes where a key should be"),
                Some(':') => break,
                Some(c @ ('{' | '}' | '[' | ']' | ',')) => {
                    return self.wrong(format!("`{c}` where a key should be"));
                }
                Some(_) => self.at += 1,
            }
        }
        let key = self.since(begin);
        let key = key.trim_end_matches(is_space);
        if key.is_empty() || key.contains(is_space) {
            return Err((begin, format!("the key `{key}` needs quotes")));
        }
        Ok(key.to_owned())
    }

    /// A string in quotes of one kind.
    fn string(&mut self) -> Result<String, Wrong> {
        let begin = self.at;
        let quote = self.peek();
        let mut string = String::new();
        self.at += 1;
        loop {
            match self.peek() {
                None => return Err((begin, "a string without an end".to_owned())),
                Some(c) if Some(c) == quote => break,
                Some('\\') => string.push(self.escape()?),
                Some(c) if c < ' ' => return self.wrong("a line ends, or a tab is, in a string"),
                Some(c) => string.push(c),
            }
            self.at += 1;
        }
        self.at += 1;
        Ok(string)
    }

    /// The character that a backslash here stands for; then stands on the last one of it.
    fn escape(&mut self) -> Result<char, Wrong> {
        self.at += 1;
        Ok(match self.peek() {
            Some(c @ ('"' | '\'' | '\\' | '/')) => c,
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let first = self.hex(1)?;
                self.at += 4;
                if let Some(c) = char::from_u32(first) {
                    return Ok(c);
                }
                // Half of a character; the other half must follow.
                self.at += 1;
                if !(self.has("\\u") && first < 0xdc00) {
                    return self.wrong("half of a character");
                }
                let second = self.hex(2)?;
                self.at += 5;
                let low = second.checked_sub(0xdc00).filter(|low| *low < 0x400);
                let code = low.map(|low| 0x10000 + ((first - 0xd800) << 10) + low);
                return code
                    .and_then(char::from_u32)
                    .map_or_else(|| self.wrong("half of a character"), Ok);
            }
            _ => return self.wrong("an unknown character after a backslash"),
        })
    }

    /// The four hexadecimal digits that begin so many characters from here.
    fn hex(&self, offset: usize) -> Result<u32, Wrong> {
        let digits = self.text.iter().skip(self.at + offset).take(4);
        let digits: Vec<u32> = digits.map_while(|c| c.to_digit(16)).collect();
        match digits.len() {
            4 => Ok(digits.iter().fold(0, |sum, digit| sum * 16 + digit)),
            _ => self.wrong("\\u without four hexadecimal digits"),
        }
    }

    /// A string between `'''`, over several lines. Lines lose the indentation of the first quotes.
    fn lines(&mut self) -> Result<String, Wrong> {
        let begin = self.at;
        let line = self.text[..begin].iter().rposition(|c| *c == '\n').map_or(0, |end| end + 1);
        let indent = begin - line;
        let mut string = String::new();
        self.at += 3;
        self.skip_indent(usize::MAX);
        if self.peek() == Some('\n') {
            self.at += 1;
            self.skip_indent(indent);
        }
        while !self.has("'''") {
            let Some(c) = self.peek() else {
                return Err((begin, "a string of several lines without an end".to_owned()));
            };
            string.push(c);
            self.at += 1;
            if c == '\n' {
                self.skip_indent(indent);
            }
        }
        self.at += 3;
        if string.ends_with('\n') {
            string.pop();
        }
        Ok(string)
    }

    fn skip_indent(&mut self, most: usize) {
        let end = self.at.saturating_add(most);
        while self.at < end && matches!(self.peek(), Some(' ' | '\t')) {
            self.at += 1;
        }
    }

    /// A number, true, false or null up to a comma, a closing bracket or a comment; any other text
    /// goes to the end of its line.
    fn quoteless(&mut self) -> Result<Value, Wrong> {
        let begin = self.at;
        if let Some(c @ ('{' | '}' | '[' | ']' | ',' | ':')) = self.peek() {
            return self.wrong(format!("`{c}` where a value should be"));
        }
        // What goes on behind the first of these is a text, whatever else follows.
        let mut is_text = false;
        loop {
            let next = self.peek().filter(|c| *c != '\n');
            let ends = matches!(next, None | Some(',' | '}' | ']' | '#'));
            let ends = ends || self.has("//") || self.has("/*");
            if next.is_none() || (ends && !is_text) {
                is_text = true;
                let text = self.since(begin);
                match text.trim_end_matches(is_python_space) {
                    "null" => return Ok(Value::Null),
                    "true" => return Ok(Value::Bool(true)),
                    "false" => return Ok(Value::Bool(false)),
                    _ => {}
                }
                if let Some(number) = self.number(text.trim_end_matches([' ', '\t']))? {
                    return Ok(number);
                }
                if next.is_none() {
                    return Ok(Value::String(text.trim_matches(is_python_space).to_owned()));
                }
            }
            self.at += 1;
        }
    }

    /// A number of JSON. One with a point or an exponent is whole nevertheless, if it can be and is
    /// below 1e10.
    fn number(&self, text: &str) -> Result<Option<Value>, Wrong> {
        let Some(is_whole) = number_of_json(text) else { return Ok(None) };
        if is_whole && let Ok(number) = text.parse::<i64>() {
            return Ok(Some(number.into()));
        }
        if is_whole && let Ok(number) = text.parse::<u64>() {
            return Ok(Some(number.into()));
        }
        let number: f64 = text.parse().unwrap_or(f64::INFINITY);
        if number.fract() == 0.0 && number.abs() < 1e10 {
            return Ok(Some((number as i64).into()));
        }
        match Number::from_f64(number) {
            Some(number) => Ok(Some(Value::Number(number))),
            None => self.wrong(format!("the number {text} is too large")),
        }
    }
}

/// Whether a text is a number of JSON, and if so, whether it has neither point nor exponent.
fn number_of_json(text: &str) -> Option<bool> {
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let rest = text.strip_prefix('-').unwrap_or(text);
    let whole = digits(rest);
    if whole == 0 || (whole > 1 && rest.starts_with('0')) {
        return None;
    }
    let mut rest = &rest[whole..];
    let is_whole = rest.is_empty();
    if let Some(fraction) = rest.strip_prefix('.') {
        let count = digits(fraction);
        rest = (count > 0).then(|| &fraction[count..])?;
    }
    if let Some(exponent) = rest.strip_prefix(['e', 'E']) {
        let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
        let count = digits(exponent);
        rest = (count > 0).then(|| &exponent[count..])?;
    }
    rest.is_empty().then_some(is_whole)
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// What `str.strip` removes in Python.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// `tests/deepspeed_python.rs` compares more of them with the Python package.
    #[test]
    fn what_hjson_allows_is_read() {
        let text = "# one\n{ // two\n a: 1 /* three */, 'b': \"x\\u00e9\\ud83d\\ude00\"\n\
                    \"c d\": [1\n 2,\n 3,],\n\
                    e: nvme # not a comment\n f: 1e6, g: 1e16, h: true}";
        let expected = json!({
            "a": 1, "b": "xé😀", "c d": [1, 2, 3], "e": "nvme # not a comment", "f": 1_000_000,
            "g": 1e16, "h": true,
        });
        assert_eq!(parse_hjson(text).unwrap(), expected);
        assert_eq!(parse_hjson("a: b c, d\r\ne: null").unwrap(), json!({"a": "b c, d", "e": null}));
        let lines = "{\n  a: '''\n     one\n      'two'\n     '''\n}";
        assert_eq!(parse_hjson(lines).unwrap(), json!({"a": "one\n 'two'"}));
        assert_eq!(parse_hjson(" // nothing").unwrap(), json!({}));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        let deep = "[".repeat(1000);
        for (text, words) in [
            ("{\"a\": 1, \"a\": 2}", "`a` is there a second time in line 1, column 10"),
            ("{\"a\": {\"b\": 1,\n \"b\": 1}}", "line 2, column 2"),
            ("{\"a\" 1}", "a colon is missing after the key `a`"),
            ("{\"a\": ", "a value is missing"),
            ("{\"a\": \"x\n\"}", "a line ends"),
            ("{\"a\": \"\\ud800\"}", "half of a character"),
            ("{a b: 1}", "needs quotes"),
            ("{a: ,}", "`,` where a value should be"),
            ("{a: 1e999}", "too large"),
            ("{a: 1} b", "something follows"),
            ("{a: 1 /* }", "a comment without an end"),
            ("{a: foo}", "the end comes where a key should be"),
            (&deep, "more than 128 brackets"),
        ] {
            let error = parse_hjson(text).unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
