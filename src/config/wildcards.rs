//! Wildcards in the paths of drives.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Replaces each pattern by the directories that it matches, sorted. A path without wildcards, or
/// one that exists under just that name, stays as it is.
///
/// # Errors
/// Usage if a pattern is malformed or matches no directory.
pub fn expand_wildcards(patterns: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for pattern in patterns {
        // glob takes text. A path that is no valid text is taken to have no wildcards.
        let text = pattern.to_str().filter(|text| text.contains(['*', '?', '[']));
        match text {
            Some(text) if !pattern.exists() => paths.extend(matches(text)?),
            _ => paths.push(pattern.clone()),
        }
    }
    Ok(paths)
}

fn matches(pattern: &str) -> Result<Vec<PathBuf>> {
    // As in a shell: `*` matches no hidden names and no slash.
    let options = glob::MatchOptions {
        case_sensitive: true,
        require_literal_separator: true,
        require_literal_leading_dot: true,
    };
    let found = glob::glob_with(pattern, options).map_err(|error| {
        Error::usage("a pattern of drives is malformed").with("pattern", pattern).because(error)
    })?;
    // A directory that cannot be read is no drive of this user, and a file is no drive.
    let mut paths: Vec<PathBuf> = found.flatten().filter(|path| path.is_dir()).collect();
    paths.sort();
    if paths.is_empty() {
        return Err(Error::usage("a pattern of drives matches no directory")
            .with("pattern", pattern)
            .hint("name one directory on each drive with --drives DIR,DIR"));
    }
    Ok(paths)
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
    let (mut set, mut at) = (BTreeSet::new(), 0);
    while at < all.len() {
        match all[at..] {
            ['!' | '^', ..] if at == 0 => return None,
            [first, '-', last, ..] => {
                set.extend(first..=last);
                at += 3;
            }
            [one, ..] => {
                set.insert(one);
                at += 1;
            }
            [] => break,
        }
    }
    (!set.is_empty()).then_some(set.len() as u64)
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
