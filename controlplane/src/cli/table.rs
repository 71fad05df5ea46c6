//! Tables for people: columns as wide as their widest cell.

/// Which end of the column a cell stands at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Words.
    Left,
    /// Numbers.
    Right,
}

/// Lines of cells below a heading.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<const N: usize>(columns: [(&'static str, Side); N]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a line. What a stranger chose, as a name, cannot break the table or the terminal.
    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len());
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// The table with a line break at the end; `nothing` when it has no lines.
    pub(super) fn text(&self, nothing: &str) -> String {
        if self.rows.is_empty() {
            return format!("{nothing}\n");
        }
        let heading: Vec<String> = self.columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        let lines: Vec<&Vec<String>> = std::iter::once(&heading).chain(&self.rows).collect();
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let mut text = String::new();
        for line in lines {
            let cells = line.iter().zip(&widths).zip(&self.columns).map(|((cell, &width), (_, side))| match side {
                Side::Left => format!("{cell:<width$}"),
                Side::Right => format!("{cell:>width$}"),
            });
            let joined = cells.collect::<Vec<_>>().join("  ");
            text.push_str(joined.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The text without characters that move the cursor or change the terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_to_their_widest_cell() {
        let mut table = Table::new([("NAME", Side::Left), ("RTT", Side::Right), ("STATE", Side::Left)]);
        assert_eq!(table.text("nobody"), "nobody\n");
        table.row(["a".into(), "1.5".into(), "ok".into()]);
        table.row(["long-näme".into(), "120.25".into(), "connected".into()]);
        let expected = "NAME          RTT  STATE\n\
                        a             1.5  ok\n\
                        long-näme  120.25  connected\n";
        assert_eq!(table.text("nobody"), expected);
    }

    #[test]
    fn a_cell_cannot_reach_the_terminal() {
        let mut table = Table::new([("NAME", Side::Left)]);
        table.row(["a\u{1b}[2J\nb".into()]);
        assert_eq!(table.text(""), "NAME\na\u{fffd}[2J\u{fffd}b\n");
    }
}
