//! A table in plain text, in the form that Markdown has for tables.

use std::fmt;

use crate::units::printable;

/// Where a column's cells stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Align {
    Left,
    Right,
}

/// Rows of cells under a header, each column as wide as its widest cell.
#[derive(Clone, Debug)]
pub struct TextTable {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl TextTable {
    /// A table in which all columns but the first are numbers, and so end at the right.
    pub fn of_numbers<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self::with_names(1, header)
    }

    /// A table in which all columns are words.
    pub fn of_words<S: Into<String>>(header: impl IntoIterator<Item = S>) -> Self {
        Self::with_names(usize::MAX, header)
    }

    /// A table in which the first `names` columns are words, and the others numbers.
    pub fn with_names<S: Into<String>>(names: usize, header: impl IntoIterator<Item = S>) -> Self {
        let header: Vec<String> = header.into_iter().map(Into::into).collect();
        let align = |column| if column < names { Align::Left } else { Align::Right };
        Self { columns: (0..header.len()).map(align).collect(), rows: vec![header] }
    }

    /// Adds a row: a cell for each column. Names from outside stay in their cell.
    pub fn add_row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        let cells = cells.into_iter().map(|cell| printable(&cell.into()).into_owned());
        self.rows.push(cells.collect());
    }

    /// How many rows it has, the header not counted.
    pub fn row_count(&self) -> usize {
        self.rows.len() - 1
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    }
}

impl fmt::Display for TextTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths: Vec<usize> = (0..self.columns.len()).map(|column| self.width(column)).collect();
        for (number, row) in self.rows.iter().enumerate() {
            if number > 0 {
                writeln!(f)?;
            }
            write!(f, "|")?;
            for ((width, align), cell) in widths.iter().zip(&self.columns).zip(row) {
                match align {
                    Align::Left => write!(f, " {cell:<width$} |")?,
                    Align::Right => write!(f, " {cell:>width$} |")?,
                }
            }
            if number == 0 {
                write!(f, "\n|")?;
                widths.iter().try_for_each(|width| write!(f, "{}|", "-".repeat(width + 2)))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = TextTable::of_numbers(["drive", "GB/s"]);
        table.add_row(["/nvme0", "1.5"]);
        table.add_row(["ä", "12.25"]);
        let lines = [
            "| drive  |  GB/s |",
            "|--------|-------|",
            "| /nvme0 |   1.5 |",
            "| ä      | 12.25 |",
        ];
        assert_eq!(table.to_string(), lines.join("\n"));
        table.add_row(["a\n| b", "\t"]);
        assert!(table.to_string().ends_with(r"| a\n| b |    \t |"), "{table}");
    }
}
