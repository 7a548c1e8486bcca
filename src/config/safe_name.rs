//! Names that become names of files: of jobs, and of checkpoints.

/// The most bytes of such a name.
const BYTES_MAX: usize = 100;

/// The nearest allowed name to a text; an allowed name is its own. Allowed are 1 to 100 letters,
/// digits, `.`, `_` and `-`, not beginning with `.`.
pub fn safe_name(text: &str) -> String {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    let (mut name, mut is_gap) = (String::new(), false);
    for c in text.trim_start_matches('.').chars() {
        if !is_allowed(c) {
            is_gap = true;
            continue;
        }
        // One `-` stands for everything between two allowed characters.
        if std::mem::take(&mut is_gap) && !name.is_empty() {
            name.push('-');
        }
        name.push(c);
    }
    let name = name.trim_start_matches('.');
    let name = &name[..name.len().min(BYTES_MAX)];
    if name.is_empty() { "unnamed".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_schedulers_give_becomes_a_name() {
        for (text, name) in [
            ("sweep/lr3", "sweep-lr3"),
            ("llama 7b", "llama-7b"),
            ("lr=1e-4", "lr-1e-4"),
            ("1234[5]", "1234-5"),
            ("../x", "x"),
            ("a // b", "a-b"),
            ("größe", "gr-e"),
            ("/.x", "x"),
            ("", "unnamed"),
            ("...", "unnamed"),
        ] {
            assert_eq!(safe_name(text), name, "{text}");
            assert_eq!(safe_name(name), name);
        }
        for name in ["a", "A--b_c.d-", "-x", &"n".repeat(100)] {
            assert_eq!(safe_name(name), name);
        }
        assert_eq!(safe_name(&"n".repeat(101)), "n".repeat(100));
    }
}
