//! Values as pydantic converts them for DeepSpeed's classes: a number in quotes is a number, and
//! `"yes"` is true.

use serde_json::{Number, Value};

/// The type of a key.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Kind {
    /// A section whose unknown keys are refused.
    Strict,
    /// A section whose unknown keys are ignored.
    Open,
    /// A value that DeepSpeed takes as it is.
    Plain,
    /// An argument of an optimizer class, which is no key of the file.
    Argument,
    Bool,
    Int,
    Float,
    Text,
    /// A list of any values, of strings (`str`), or of these words.
    List(Vec<&'static str>),
    Dict,
    /// One of these words.
    Word(Vec<&'static str>),
    /// One of these numbers.
    Stage(Vec<&'static str>),
    /// Several types.
    Any,
}

impl Kind {
    pub(super) fn named(name: &'static str) -> Self {
        let words = |list: &'static str| list.split(',').collect();
        match name.split_once(':').unwrap_or((name, "")) {
            ("strict", _) => Self::Strict,
            ("open", _) => Self::Open,
            ("plain", _) => Self::Plain,
            ("argument", _) => Self::Argument,
            ("bool", _) => Self::Bool,
            ("int", _) => Self::Int,
            ("float", _) => Self::Float,
            ("str", _) => Self::Text,
            ("list", "") => Self::List(Vec::new()),
            ("list", list) => Self::List(words(list)),
            ("dict", _) => Self::Dict,
            ("enum", list) => Self::Word(words(list)),
            ("stage", list) => Self::Stage(words(list)),
            _ => Self::Any,
        }
    }

    pub(super) fn is_section(&self) -> bool {
        matches!(self, Self::Strict | Self::Open)
    }

    /// What a value of this type is, in an error.
    pub(super) fn wanted(&self) -> String {
        match self {
            Self::Strict | Self::Open | Self::Dict => "an object with keys".to_owned(),
            Self::Bool => "true or false".to_owned(),
            Self::Int => "a whole number".to_owned(),
            Self::Float => "a number".to_owned(),
            Self::Text => "a string".to_owned(),
            Self::List(words) if words.is_empty() => "a list".to_owned(),
            Self::List(words) if words == &["str"] => "a list of strings".to_owned(),
            Self::List(words) => format!("a list of {}", words.join(", ")),
            Self::Word(list) | Self::Stage(list) => format!("one of {}", list.join(", ")),
            Self::Plain | Self::Argument | Self::Any => "a value".to_owned(),
        }
    }

    /// The value as this type, if it can be one.
    pub(super) fn convert(&self, value: &Value) -> Option<Value> {
        match self {
            Self::Bool => to_bool(value).map(Value::Bool),
            Self::Int => to_int(value).map(Value::Number),
            Self::Float => to_float(value).and_then(Number::from_f64).map(Value::Number),
            Self::Text => value.as_str().map(Value::from),
            Self::List(words) => {
                let is_known = |it: &Value| match &words[..] {
                    [] => true,
                    ["str"] => it.is_string(),
                    words => it.as_str().is_some_and(|it| words.contains(&it)),
                };
                value.as_array()?.iter().all(is_known).then(|| value.clone())
            }
            Self::Dict => value.is_object().then(|| value.clone()),
            Self::Word(list) => list.contains(&value.as_str()?).then(|| value.clone()),
            Self::Stage(list) => {
                let number = to_int(value)?;
                list.contains(&&*number.to_string()).then_some(Value::Number(number))
            }
            _ => Some(value.clone()),
        }
    }
}

fn to_bool(value: &Value) -> Option<bool> {
    match value {
        Value::Bool(flag) => Some(*flag),
        Value::Number(number) => match number.as_f64()? {
            0.0 => Some(false),
            1.0 => Some(true),
            _ => None,
        },
        Value::String(text) => match &*text.to_ascii_lowercase() {
            "1" | "on" | "t" | "true" | "y" | "yes" => Some(true),
            "0" | "off" | "f" | "false" | "n" | "no" => Some(false),
            _ => None,
        },
        _ => None,
    }
}

/// Whole numbers have no limit in Python; one that `i64` cannot hold is a float here.
fn to_int(value: &Value) -> Option<Number> {
    match value {
        Value::Bool(flag) => Some(Number::from(u8::from(*flag))),
        Value::Number(number) if number.is_f64() => whole(number.as_f64()?),
        Value::Number(number) => Some(number.clone()),
        Value::String(text) => {
            let text = text.trim();
            // Zeros behind a point are allowed.
            let digits = match text.split_once('.') {
                Some((whole, zeros)) if !zeros.is_empty() && zeros.bytes().all(|c| c == b'0') => {
                    whole
                }
                Some(_) => return None,
                None => text,
            };
            let digits = without_underscores(digits)?;
            let unsigned = digits.strip_prefix(['+', '-']).unwrap_or(&digits);
            if unsigned.is_empty() || !unsigned.bytes().all(|c| c.is_ascii_digit()) {
                return None;
            }
            match digits.parse::<i64>() {
                Ok(number) => Some(number.into()),
                Err(_) => whole(digits.parse().ok()?),
            }
        }
        _ => None,
    }
}

fn whole(number: f64) -> Option<Number> {
    if number.fract() != 0.0 {
        return None;
    }
    // Exact below 2^63.
    if number.abs() < 9.2e18 { Some((number as i64).into()) } else { Number::from_f64(number) }
}

fn to_float(value: &Value) -> Option<f64> {
    match value {
        Value::Bool(flag) => Some(f64::from(u8::from(*flag))),
        Value::Number(number) => number.as_f64(),
        Value::String(text) => {
            let text = without_underscores(text.trim())?;
            text.parse().ok().filter(|number: &f64| number.is_finite())
        }
        _ => None,
    }
}

/// A number as Python writes it, with single underscores between digits.
fn without_underscores(text: &str) -> Option<String> {
    let is_digit = |part: Option<char>| part.is_some_and(|c| c.is_ascii_digit());
    let parts: Vec<&str> = text.split('_').collect();
    let joints = parts.windows(2);
    let is_number =
        |pair: &[&str]| is_digit(pair[0].chars().next_back()) && is_digit(pair[1].chars().next());
    joints.into_iter().all(is_number).then(|| parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Each was seen so in pydantic itself; `tests/deepspeed_python.rs` asks it.
    #[test]
    fn values_are_converted_as_pydantic_does() {
        for (kind, given, converted) in [
            (Kind::Bool, json!("Yes"), json!(true)),
            (Kind::Bool, json!(0), json!(false)),
            (Kind::Int, json!(1e16), json!(10_000_000_000_000_000_i64)),
            (Kind::Int, json!(" 1_000.00 "), json!(1000)),
            (Kind::Int, json!(true), json!(1)),
            (Kind::Int, json!("12345678901234567890123"), json!(1.2345678901234568e22)),
            (Kind::Float, json!("1_0e-1"), json!(1.0)),
            (Kind::Float, json!(3), json!(3.0)),
            (Kind::Stage(vec!["0", "3"]), json!("3.0"), json!(3)),
        ] {
            assert_eq!(kind.convert(&given), Some(converted), "{kind:?} {given}");
        }
        for (kind, given) in [
            (Kind::Bool, json!(" true")),
            (Kind::Bool, json!(2)),
            (Kind::Int, json!(1.5)),
            (Kind::Int, json!("1e3")),
            (Kind::Int, json!("5.")),
            (Kind::Int, json!("1__0")),
            (Kind::Int, json!(null)),
            (Kind::Float, json!("0x1")),
            (Kind::Float, json!("_1")),
            (Kind::Text, json!(1)),
            (Kind::Word(vec!["nvme"]), json!("NVME")),
            (Kind::Stage(vec!["0", "3"]), json!(4)),
        ] {
            assert_eq!(kind.convert(&given), None, "{kind:?} {given}");
        }
    }
}
