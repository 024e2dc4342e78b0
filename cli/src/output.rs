//! Text for people: tables, sizes, keys.

use std::io::{self, BufWriter, StdoutLock, Write};

/// Stdout, buffered; flush it at the end.
pub(crate) fn stdout() -> BufWriter<StdoutLock<'static>> {
    BufWriter::with_capacity(1 << 16, io::stdout().lock())
}

/// A line for the person at the terminal.
pub(crate) fn note(line: &str) {
    // Where stderr is gone there is nobody to tell.
    let written = writeln!(io::stderr(), "{line}");
    drop(written);
}

/// Bytes as text where they are text without control characters, else quoted with escapes.
pub(crate) fn readable(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && !text.contains(|c: char| c.is_control() || c == ' ') => {
            text.to_owned()
        }
        _ => format!("\"{}\"", bytes.escape_ascii()),
    }
}

/// The beginning of a value.
pub(crate) fn shortened(bytes: &[u8]) -> String {
    const SHOWN: usize = 48;
    match bytes.get(..SHOWN) {
        Some(head) if bytes.len() > SHOWN => {
            format!("{}... ({} bytes)", readable(head), bytes.len())
        }
        _ => readable(bytes),
    }
}

/// `1.5 MiB`
pub(crate) fn human_bytes(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// Rows of columns, each as wide as its widest cell; numbers are right-aligned.
#[derive(Debug)]
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column| {
            let cells = self.rows.iter().filter_map(|row: &Vec<String>| row.get(column));
            cells.map(|cell: &String| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let numeric = |column: usize| {
            let mut cells = self.rows.iter().skip(1).filter_map(|row| row.get(column));
            cells.all(|cell| cell.starts_with(|first: char| first.is_ascii_digit() || first == '-'))
        };
        let numeric: Vec<bool> = (0..columns).map(numeric).collect();
        for row in &self.rows {
            let mut line = String::from("  ");
            for ((cell, width), numeric) in row.iter().zip(&widths).zip(&numeric) {
                let cell =
                    if *numeric { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                line.push_str(&cell);
                line.push_str("  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_shown_without_harm_to_a_terminal() {
        assert_eq!(readable(b"users/42"), "users/42");
        assert_eq!(readable(b"a b"), "\"a b\"");
        assert_eq!(readable(b"\x1b[31m"), "\"\\x1b[31m\"");
        assert_eq!(readable(b"\xff"), "\"\\xff\"");
        assert_eq!(readable(b""), "\"\"");
        assert!(shortened(&[b'x'; 100]).ends_with("(100 bytes)"));
    }

    #[test]
    fn columns_are_as_wide_as_their_cells() {
        let mut table = Table::new(&["id", "bytes"]);
        table.row(vec!["a".into(), "7".into()]);
        table.row(vec!["longer".into(), "1234".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "  id      bytes\n  a           7\n  longer   1234\n");
    }
}
