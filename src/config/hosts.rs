//! Names of hosts in Slurm's notation, `node[001-064,070],login1`: reading, matching and writing
//! them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::number_ranges::{parse_range, write_ranges};

/// The most brackets in one name; `rack[1-4]node[01-16]` has two.
const BRACKETS_MAX: usize = 4;
/// The most digits of a number in brackets.
const DIGITS_MAX: usize = 9;

/// A set of host names, read from Slurm's notation; `*` stands for all names. The names are not
/// listed in memory, so `node[1-999999999]` costs nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostRanges {
    text: String,
    names: Vec<Vec<Part>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Numbers(Vec<Range>),
}

/// Numbers, written with at least `width` digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    first: u32,
    last: u32,
    width: usize,
}

impl HostRanges {
    /// Whether a host's name is in the set. A name without a domain also stands for that host in
    /// any domain.
    pub fn contains(&self, host: &str) -> bool {
        let short = host.split('.').next().unwrap_or(host);
        self.text == "*"
            || self
                .names
                .iter()
                .any(|name| fits(name, host) || (short != host && fits(name, short)))
    }

    /// All names in order, if there are at most `most`; `None` if there are more, and for `*`.
    pub fn names(&self, most: usize) -> Option<Vec<String>> {
        let mut all = Vec::new();
        for parts in &self.names {
            let mut names = vec![String::new()];
            for part in parts {
                names = match part {
                    Part::Text(text) => names.into_iter().map(|name| name + text).collect(),
                    Part::Numbers(ranges) => {
                        let count: usize = ranges.iter().map(Range::count).sum();
                        names.len().checked_mul(count).filter(|count| *count <= most)?;
                        let numbers: Vec<String> = ranges.iter().flat_map(Range::numbers).collect();
                        let with = |name: String| numbers.iter().map(move |it| name.clone() + it);
                        names.into_iter().flat_map(with).collect()
                    }
                };
            }
            all.append(&mut names);
        }
        (self.text != "*" && all.len() <= most).then_some(all)
    }
}

fn fits(parts: &[Part], rest: &str) -> bool {
    match parts.split_first() {
        None => rest.is_empty(),
        Some((Part::Text(text), after)) => {
            rest.strip_prefix(text.as_str()).is_some_and(|rest| fits(after, rest))
        }
        Some((Part::Numbers(ranges), after)) => {
            let digits = rest.bytes().take(DIGITS_MAX).take_while(u8::is_ascii_digit).count();
            (1..=digits).any(|count| {
                let (number, rest) = rest.split_at(count);
                ranges.iter().any(|range| range.has(number)) && fits(after, rest)
            })
        }
    }
}

impl Range {
    fn has(&self, digits: &str) -> bool {
        let number = digits.parse::<u32>().unwrap_or(u32::MAX);
        let is_written_so = digits == format!("{number:0width$}", width = self.width);
        (self.first..=self.last).contains(&number) && is_written_so
    }

    fn count(&self) -> usize {
        (self.last - self.first) as usize + 1
    }

    fn numbers(&self) -> impl Iterator<Item = String> + use<> {
        let Self { first, last, width } = *self;
        (first..=last).map(move |number| format!("{number:0width$}"))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let Some(numbers) = parse_range(text) else {
            return Err(format!("`{text}` in brackets is neither a number nor a range"));
        };
        if numbers.is_empty() {
            return Err(format!("the range `{text}` ends before it begins"));
        }
        let width = text.find('-').unwrap_or(text.len());
        Ok(Self { first: *numbers.start(), last: *numbers.end(), width })
    }
}

impl FromStr for HostRanges {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let names = if text == "*" { Vec::new() } else { split(text)? };
        Ok(Self { text: text.to_owned(), names })
    }
}

/// Cuts a list at the commas outside of brackets.
fn split(text: &str) -> Result<Vec<Vec<Part>>, String> {
    let (mut names, mut rest) = (Vec::new(), text);
    loop {
        let (name, after) = name(rest)?;
        names.push(name);
        match after.strip_prefix(',') {
            Some(next) => rest = next,
            None => return Ok(names),
        }
    }
}

/// The parts of the first name, and what comes after it: nothing, or a comma.
fn name(text: &str) -> Result<(Vec<Part>, &str), String> {
    let (mut parts, mut rest) = (Vec::new(), text);
    loop {
        let length = rest.find([',', '[', ']']).unwrap_or(rest.len());
        let (plain, after) = rest.split_at(length);
        let is_allowed = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if let Some(wrong) = plain.chars().find(|c| !is_allowed(*c)) {
            return Err(format!("`{wrong}` cannot be in a host's name"));
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain.to_owned()));
        }
        let Some(inside) = after.strip_prefix('[') else {
            if after.starts_with(']') {
                return Err("a `]` without a `[`".to_owned());
            }
            if parts.is_empty() {
                return Err("a host's name is empty".to_owned());
            }
            return Ok((parts, after));
        };
        let (ranges, after) = inside.split_once(']').ok_or("a `[` without a `]`")?;
        parts.push(Part::Numbers(ranges.split(',').map(Range::parse).collect::<Result<_, _>>()?));
        if parts.iter().filter(|part| matches!(part, Part::Numbers(_))).count() > BRACKETS_MAX {
            return Err(format!("a name has more than {BRACKETS_MAX} brackets"));
        }
        rest = after;
    }
}

impl TryFrom<String> for HostRanges {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<HostRanges> for String {
    fn from(ranges: HostRanges) -> Self {
        ranges.text
    }
}

impl fmt::Display for HostRanges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The text before and after a name's last number, and its digits if numbers of such names are
/// padded with zeros; else 0.
type Frame<'a> = (&'a str, &'a str, usize);

/// Writes names in that notation: those that differ in their last number alone become one, in the
/// order of their first appearance.
pub fn compress_names<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<(&str, &str, &str)> = names.into_iter().map(cut_number).collect();
    let mut padded: BTreeSet<Frame> = BTreeSet::new();
    for (before, number, after) in &names {
        if number.len() > 1 && number.starts_with('0') {
            padded.insert((before, after, number.len()));
        }
    }
    let mut order: Vec<Frame> = Vec::new();
    let mut numbers: BTreeMap<Frame, BTreeSet<u64>> = BTreeMap::new();
    for (before, number, after) in names {
        let is_padded = padded.contains(&(before, after, number.len()));
        let frame = (before, after, if is_padded { number.len() } else { 0 });
        let known = numbers.entry(frame).or_insert_with(|| {
            order.push(frame);
            BTreeSet::new()
        });
        known.extend(number.parse::<u64>());
    }
    let compressed: Vec<String> =
        order.into_iter().map(|frame| compressed_name(frame, &numbers[&frame])).collect();
    compressed.join(",")
}

/// The names of one frame, as one.
fn compressed_name((before, after, digits): Frame<'_>, numbers: &BTreeSet<u64>) -> String {
    let ascending: Vec<u64> = numbers.iter().copied().collect();
    let list = write_ranges(&ascending, digits);
    if ascending.len() > 1 {
        format!("{before}[{list}]{after}")
    } else {
        format!("{before}{list}{after}")
    }
}

/// What is before a name's last number, that number's digits, and what is after them.
fn cut_number(name: &str) -> (&str, &str, &str) {
    let end = name.rfind(|c: char| c.is_ascii_digit()).map_or(0, |last| last + 1);
    let digits = name[..end].bytes().rev().take_while(u8::is_ascii_digit).count().min(DIGITS_MAX);
    let (before, number) = name[..end].split_at(end - digits);
    (before, number, &name[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(text: &str) -> HostRanges {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn ranges_are_written_out_unless_they_are_long() {
        let names = hosts("a[1-2,08-10],b,c[1-2]x[3-4]").names(10).unwrap();
        let all = ["a1", "a2", "a08", "a09", "a10", "b", "c1x3", "c1x4", "c2x3", "c2x4"];
        assert_eq!(names, all);
        assert_eq!(hosts("a[1-2,08-10],b,c[1-2]x[3-4]").names(9), None);
        assert_eq!(hosts("n[1-999999999]m[1-999999999]").names(1 << 20), None);
        assert_eq!(hosts("*").names(10), None);
    }

    #[test]
    fn ranges_contain_their_hosts_and_no_others() {
        for (text, inside, outside) in [
            ("node7", vec!["node7", "node7.site.org"], vec!["node70", "node", "xnode7"]),
            (
                "node[001-064,070]",
                vec!["node001", "node010", "node064", "node070", "node033.cluster"],
                vec!["node000", "node065", "node1", "node0010", "node0070", "node", "node064x"],
            ),
            ("n[9-11],login", vec!["n9", "n10", "n11", "login"], vec!["n09", "n12", "n", "logi"]),
            ("r[1-2]n[01-02]-ib", vec!["r1n02-ib", "r2n01-ib"], vec!["r1n1-ib", "r3n01-ib"]),
            ("x[1-2][0-9]", vec!["x10", "x29"], vec!["x30", "x1", "x100"]),
            ("*", vec!["anything"], vec![]),
            ("a.b", vec!["a.b"], vec!["a", "a.c"]),
            ("n[1-999999999]", vec!["n123456789"], vec!["n0", "n1234567890"]),
        ] {
            for host in inside {
                assert!(hosts(text).contains(host), "{text}: {host}");
            }
            for host in outside {
                assert!(!hosts(text).contains(host), "{text}: {host}");
            }
        }
    }

    #[test]
    fn what_is_no_list_of_hosts_says_why() {
        for (text, words) in [
            ("", "empty"),
            ("a,", "empty"),
            (",a", "empty"),
            ("n[1-", "without a `]`"),
            ("n1]", "without a `[`"),
            ("n[]", "neither a number nor a range"),
            ("n[1,]", "neither a number nor a range"),
            ("n[a-b]", "neither a number nor a range"),
            ("n[-3]", "neither a number nor a range"),
            ("n[1-2-3]", "neither a number nor a range"),
            ("n[+1]", "neither a number nor a range"),
            ("n[[1]]", "neither a number nor a range"),
            ("n[9999999999]", "neither a number nor a range"),
            ("n[5-3]", "ends before it begins"),
            ("n[1][1][1][1][1]", "more than 4 brackets"),
            ("node 1", "` ` cannot be"),
            ("nöde", "`ö` cannot be"),
            ("a*", "`*` cannot be"),
        ] {
            let error = text.parse::<HostRanges>().unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
    }

    #[test]
    fn names_are_written_short_and_read_back() {
        for (names, text) in [
            (vec!["node1", "node2", "node3", "node5"], "node[1-3,5]"),
            (vec!["n08", "n09", "n10", "n11"], "n[08-11]"),
            (vec!["node2", "head", "node1"], "node[1-2],head"),
            (vec!["vm"], "vm"),
            (vec!["r1n1", "r1n2", "r2n1"], "r1n[1-2],r2n1"),
            (vec!["a1", "a1"], "a1"),
            (vec!["n1-ib", "n2-ib"], "n[1-2]-ib"),
        ] {
            assert_eq!(compress_names(names.iter().copied()), text);
            let read = hosts(text);
            assert!(names.iter().all(|name| read.contains(name)), "{text}");
        }
        assert_eq!(compress_names(["/nvme0/me", "/nvme1/me", "/x"]), "/nvme[0-1]/me,/x");
        assert_eq!(compress_names([]), "");
    }
}
