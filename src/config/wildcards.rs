//! Wildcards in the paths of drives.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Replaces each pattern by the directories that it matches, sorted. As in a shell, `*` matches no
/// hidden names and no slash, and a character in brackets stands for itself: `[[]`. A path without
/// wildcards stays as it is. So does a part of a path that exists under just that name, since job
/// schedulers make names such as `pbs.1234[5]`.
///
/// # Errors
/// Usage if a pattern is malformed or matches no directory.
pub fn expand_wildcards(patterns: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for pattern in patterns {
        match pattern.to_str() {
            Some(text) if has_wildcards(pattern) && !pattern.exists() => {
                paths.extend(matches(text)?);
            }
            _ => paths.push(pattern.clone()),
        }
    }
    Ok(paths)
}

/// Whether a path is a pattern. One that is no valid text is taken to be none.
pub fn has_wildcards(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains(['*', '?', '[']))
}

/// A text as a pattern that matches this text alone.
pub fn escape_wildcards(text: &str) -> String {
    glob::Pattern::escape(text)
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    let malformed = |error: glob::PatternError| {
        Error::usage("a pattern of drives is malformed").with("pattern", pattern).because(error)
    };
    let mut found = vec![PathBuf::new()];
    for part in Path::new(pattern).components() {
        let part = part.as_os_str().to_str().unwrap_or_default();
        let mut below = Vec::new();
        for directory in found {
            let named = directory.join(part);
            if !has_wildcards(Path::new(part)) || named.exists() {
                below.push(named);
            } else {
                below.extend(names_in(&directory, part).map_err(malformed)?);
            }
        }
        found = below;
    }
    // A directory that cannot be read is no drive of this user, and a file is no drive.
    found.retain(|path| path.is_dir());
    found.sort();
    found.dedup();
    if found.is_empty() {
        glob::Pattern::new(pattern).map_err(malformed)?;
        return Err(Error::usage("a pattern of drives matches no directory")
            .with("pattern", pattern)
            .hint("name one directory on each drive with --drives DIR,DIR"));
    }
    Ok(found)
}

/// The paths in a directory whose names match a pattern.
fn names_in(directory: &Path, pattern: &str) -> Result<Vec<PathBuf>, glob::PatternError> {
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let pattern = glob::Pattern::new(pattern)?;
    let here = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let entries = std::fs::read_dir(here).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name());
    let names =
        names.filter(|name| name.to_str().is_some_and(|name| pattern.matches_with(name, options)));
    Ok(names.map(|name| directory.join(name)).collect())
}

/// How many names a pattern matches at most; `None` if that depends on which files exist.
pub(super) fn matches_at_most(pattern: &str) -> Option<u64> {
    let (mut count, mut rest) = (1u64, pattern);
    while let Some(at) = rest.find(['*', '?', '[']) {
        let (inside, after) = rest[at..].strip_prefix('[')?.split_once(']')?;
        count = count.checked_mul(characters(inside)?)?;
        rest = after;
    }
    Some(count)
}

/// How many characters a class such as `0-3` or `abx` has; `None` for an empty or a negated one.
fn characters(class: &str) -> Option<u64> {
    let all: Vec<char> = class.chars().collect();
    let (mut ranges, mut at) = (Vec::new(), 0);
    while at < all.len() {
        match all[at..] {
            ['!' | '^', ..] if at == 0 => return None,
            [first, '-', last, ..] => {
                ranges.push((number_of(first), number_of(last) + 1));
                at += 3;
            }
            [one, ..] => {
                ranges.push((number_of(one), number_of(one) + 1));
                at += 1;
            }
            [] => break,
        }
    }
    ranges.sort_unstable();
    let (mut count, mut counted_to) = (0, 0);
    for (start, end) in ranges {
        count += u64::from(end.saturating_sub(start.max(counted_to)));
        counted_to = counted_to.max(end);
    }
    (count > 0).then_some(count)
}

/// The number of a character among all of them; no character has a surrogate's code.
fn number_of(c: char) -> u32 {
    let code = u32::from(c);
    if code < 0xd800 { code } else { code - 0x800 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_without_stars_tell_how_many_they_name() {
        for (pattern, count) in [
            ("/nvme0/$USER", Some(1)),
            ("/nvme[0-3]/$USER", Some(4)),
            ("/x[0-1]/y[abx]", Some(6)),
            ("/x[0-3a-b1]", Some(6)),
            ("/nvme*/me", None),
            ("/nvme[!0]", None),
            ("/nvme[0-", None),
            ("/nvme?", None),
        ] {
            assert_eq!(matches_at_most(pattern), count, "{pattern}");
        }
    }

    #[test]
    fn wildcards_match_directories_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        for name in ["nvme1/me", "nvme0/me", "nvme2/you", ".nvme3/me", "odd[1]"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::create_dir(root.join("nvme4")).unwrap();
        std::fs::write(root.join("nvme4/me"), "a file").unwrap();
        let pattern = |name: &str| expand_wildcards(&[root.join(name)]);
        assert_eq!(pattern("*/me").unwrap(), [root.join("nvme0/me"), root.join("nvme1/me")]);
        assert_eq!(pattern("nvme[12]/*").unwrap(), [root.join("nvme1/me"), root.join("nvme2/you")]);
        // Parts that exist as they are written, beside wildcards, and quoted as in a shell.
        for job in ["a/pbs.1[5].x", "b/pbs.1[5].x"] {
            std::fs::create_dir_all(root.join(job)).unwrap();
        }
        let both = [root.join("a/pbs.1[5].x"), root.join("b/pbs.1[5].x")];
        for quoted in ["[ab]/pbs.1[5].x", "[ab]/pbs.1[[]5].x", "[ab]/pbs.1[[]5[]].x"] {
            assert_eq!(pattern(quoted).unwrap(), both, "{quoted}");
        }
        let escaped = escape_wildcards("pbs.1[5].x");
        assert_eq!(pattern(&format!("[ab]/{escaped}")).unwrap(), both);
        // Names without wildcards, and names that only look like patterns.
        assert_eq!(pattern("missing").unwrap(), [root.join("missing")]);
        assert_eq!(pattern("odd[1]").unwrap(), [root.join("odd[1]")]);
        for wrong in ["nvme9*/me", "nvme4/m*", "a[/me"] {
            let error = pattern(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 64);
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }
}
