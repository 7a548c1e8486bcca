//! The keys that DeepSpeed knows, with the types that its own classes give them.

use std::sync::LazyLock;

use serde_json::Value;

use super::coerce::Kind;
use super::fates::{Fate, fate};

/// What `tests/data/deepspeed_keys.py` prints.
const TABLE: &str = include_str!("keys.tsv");

/// A key of DeepSpeed.
#[derive(Debug)]
pub(super) struct Key {
    /// Its place, such as `aio.block_size`.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) is_nullable: bool,
    /// Limits such as `ge=0`, with spaces between them.
    pub(super) bounds: &'static str,
    /// What is taken if the key is absent, where that is a plain value.
    pub(super) default: Option<Value>,
    /// What this old name has become.
    pub(super) replaced_by: Option<&'static str>,
}

impl Key {
    /// The section, and the name in it.
    pub(super) fn place(&self) -> (&'static str, &'static str) {
        split(self.path)
    }

    fn parse(line: &'static str) -> Self {
        let mut columns = line.split('\t').chain(std::iter::repeat(""));
        let mut next = || columns.next().unwrap_or_default();
        let (path, kind, bounds, default, replaced_by) = (next(), next(), next(), next(), next());
        let name = kind.trim_end_matches('?');
        Self {
            path,
            kind: Kind::named(name),
            is_nullable: name != kind,
            bounds,
            default: serde_json::from_str(default).ok(),
            replaced_by: Some(replaced_by).filter(|name| !name.is_empty()),
        }
    }
}

static ROWS: LazyLock<Vec<Key>> =
    LazyLock::new(|| TABLE.lines().filter(|line| !line.starts_with('#')).map(Key::parse).collect());

/// The release of DeepSpeed that the keys are those of.
pub(super) fn version() -> &'static str {
    TABLE.split(' ').nth(5).unwrap_or_default().trim_end_matches(',')
}

/// All keys of the file, sections among them.
pub(super) fn all() -> impl Iterator<Item = &'static Key> {
    ROWS.iter().filter(|key| key.kind != Kind::Argument)
}

pub(super) fn find(path: &str) -> Option<&'static Key> {
    all().find(|key| key.path == path)
}

/// The arguments of an optimizer class, such as `DeepSpeedCPUAdam`.
pub(super) fn arguments(class: &str) -> impl Iterator<Item = &'static Key> {
    ROWS.iter().filter(move |key| key.kind == Kind::Argument && key.place().0 == class)
}

/// The value that DeepSpeed takes for an absent key.
pub(super) fn default_of(path: &str) -> Option<&'static Value> {
    find(path).and_then(|key| key.default.as_ref())
}

/// The section of a path, and the name in it; the whole file is the empty section.
pub(super) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('.').unwrap_or(("", path))
}

pub(super) fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") }
}

/// What the writer of an unknown key may have meant: the same name in another section, a similar
/// one in this section, or one elsewhere that is all but the same.
pub(super) fn meant(section: &str, name: &str) -> Option<String> {
    let similarity = |key: &Key| strsim::jaro_winkler(key.place().1, name);
    let nearest = |keys: &mut dyn Iterator<Item = &'static Key>, least: f64| {
        let close = keys.filter(|key| similarity(key) > least);
        close.max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
    };
    let is_mapped = |key: &&Key| matches!(fate(key.path), Some(Fate::Mapped(_)));
    let elsewhere = |key: &&Key| key.place().0 != section && fate(key.path) != Some(Fate::NotOurs);
    let same: Vec<&Key> = all().filter(elsewhere).filter(|key| key.place().1 == name).collect();
    let mapped: Vec<&Key> = same.iter().copied().filter(is_mapped).collect();
    if let [key] = if mapped.is_empty() { &same[..] } else { &mapped } {
        return Some(match key.place().0 {
            "" => format!("it belongs at the top level: `{name}`"),
            place => format!("it belongs into `{place}`"),
        });
    }
    if ROWS.iter().any(|key| key.kind == Kind::Argument && key.place().1 == name) {
        return Some("it belongs into `optimizer.params`".to_owned());
    }
    let mut here = all().filter(|key| key.place().0 == section);
    let near = nearest(&mut here, 0.9).or_else(|| nearest(&mut all().filter(elsewhere), 0.95));
    near.map(|key| format!("did you mean `{}`?", key.path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_read() {
        assert!(version().split('.').count() == 3, "{}", version());
        let key = find("zero_optimization.offload_optimizer.ratio").unwrap();
        assert_eq!((&key.kind, key.bounds), (&Kind::Float, "ge=0 le=1"));
        assert!(find("zero_optimization.zenflow").unwrap().is_nullable);
        assert_eq!(default_of("fp16.loss_scale_window"), Some(&1000.into()));
        let old = find("zero_optimization.cpu_offload").unwrap();
        assert_eq!(old.replaced_by, Some("offload_optimizer"));
        assert!(arguments("DeepSpeedCPUAdam").any(|key| key.place().1 == "betas"));
        assert!(find("DeepSpeedCPUAdam.betas").is_none());
    }
}
