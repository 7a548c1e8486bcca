//! Lists of numbers as people and kernels write them, `0,3-5`: reading and writing them.

use std::ops::RangeInclusive;

/// Digits of a number in a list.
const DIGITS_MAX: usize = 9;

/// The numbers of one item of a list: of `8` that number alone, of `3-5` those from 3 to 5. The
/// range is empty if its end is below its beginning. `None` if the text is neither.
pub fn parse_range(item: &str) -> Option<RangeInclusive<u32>> {
    let (first, last) = item.split_once('-').unwrap_or((item, item));
    Some(parse_number(first)?..=parse_number(last)?)
}

/// At most nine digits and nothing else: no sign, no space.
fn parse_number(digits: &str) -> Option<u32> {
    let is_number = digits.len() <= DIGITS_MAX && digits.bytes().all(|it| it.is_ascii_digit());
    digits.parse().ok().filter(|_| is_number)
}

/// The ranges of a list, in its order. `None` if an item is neither a number nor a range.
pub fn parse_ranges(list: &str) -> Option<Vec<RangeInclusive<u32>>> {
    list.split(',').map(parse_range).collect()
}

/// The processors, or other numbers, of one of the kernel's lists such as `0-3,8`. Items that are
/// no numbers are left out.
pub fn cpu_list(list: &str) -> Vec<u32> {
    list.trim().split(',').filter_map(parse_range).flatten().collect()
}

/// Numbers as a list, the opposite of [`cpu_list`]: sorted, each once; `-` if there are none.
pub fn number_ranges(numbers: &[u32]) -> String {
    if numbers.is_empty() {
        return "-".to_owned();
    }
    let mut sorted: Vec<u64> = numbers.iter().map(|number| u64::from(*number)).collect();
    sorted.sort_unstable();
    sorted.dedup();
    write_ranges(&sorted, 0)
}

/// Ascending numbers as a list, each number padded with zeros to `digits` digits.
pub(super) fn write_ranges(ascending: &[u64], digits: usize) -> String {
    let mut items = Vec::new();
    for run in ascending.chunk_by(|a, b| a + 1 == *b) {
        let (first, last) = (run[0], run[run.len() - 1]);
        items.push(if first == last {
            format!("{first:0digits$}")
        } else {
            format!("{first:0digits$}-{last:0digits$}")
        });
    }
    items.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written_back() {
        assert_eq!(parse_ranges("0,3-5"), Some(vec![0..=0, 3..=5]));
        for wrong in ["", "0,", "x", "1-2-3", "-3", "3-", "+1", " 1", "9999999999"] {
            assert_eq!(parse_ranges(wrong), None, "{wrong}");
        }
        assert!(cpu_list("\n").is_empty());
        assert_eq!(cpu_list("0-1,x,7\n"), [0, 1, 7]);
        assert_eq!(number_ranges(&[3, 0, 1, 7]), "0-1,3,7");
        assert_eq!(number_ranges(&[]), "-");
        assert_eq!(write_ranges(&[8, 9, 10, 12], 2), "08-10,12");
    }
}
