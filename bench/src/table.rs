//! Columns for people. Machines read JSON.

/// Lays rows out in columns as wide as their longest cell, with a line of headings above.
pub fn render<R: AsRef<[String]>>(headings: &[&str], rows: &[R]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.as_ref().get(column)).map(|cell| cell.chars().count());
        cells.chain([headings[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<_> = (0..headings.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells: Vec<_> = cells.zip(&widths).map(|(cell, &width)| format!("{cell:<width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut headings.iter().copied());
    for row in rows {
        text += &line(&mut row.as_ref().iter().map(String::as_str));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_longest_cell_in_characters() {
        let rows = [["a".to_owned(), "µs".to_owned()], ["longer".to_owned(), "1".to_owned()]];
        assert_eq!(render(&["x", "unit"], &rows), "x       unit\na       µs\nlonger  1\n");
        assert_eq!(render::<[String; 1]>(&["x"], &[]), "x\n");
    }
}
