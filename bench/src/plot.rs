//! Bars as SVG, for a page or a browser: the same figures give the same bytes.
//!
//! ```text
//!   title                                      panels side by side in two columns, as many rows as it takes
//!   ┌ panel, unit ─────┐ ┌ panel, unit ─────┐
//!   │ label ████ 1.2   │ │ label ██ 0.3     │
//!   └──────────────────┘ └──────────────────┘
//! ```

use std::fmt::Write as _;

const PANEL_WIDTH: u32 = 520;
const GAP: u32 = 24;
const MARGIN: u32 = 20;
const BAR: u32 = 18;
const LABEL_WIDTH: u32 = 130;
/// Room behind the longest bar for its value.
const VALUE_WIDTH: u32 = 80;
const HEAD: u32 = 64;
const PANEL_HEAD: u32 = 26;
const COLUMNS: usize = 2;

/// A group of bars with one unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Panel {
    /// What they show.
    pub title: String,
    /// In which unit.
    pub unit: String,
    /// Labels and values; negative ones and those that are no numbers have no length.
    pub bars: Vec<(String, f64)>,
}

/// Draws panels below a title and a line of small print.
pub fn bars(title: &str, subtitle: &str, panels: &[Panel]) -> String {
    let height =
        |row: &[Panel]| row.iter().map(|panel| panel.bars.len() as u32 * BAR).max().unwrap_or(0) + PANEL_HEAD + GAP;
    let rows: Vec<_> = panels.chunks(COLUMNS).collect();
    let total = HEAD + rows.iter().map(|row| height(row)).sum::<u32>() + MARGIN;
    let width = 2 * MARGIN + COLUMNS as u32 * PANEL_WIDTH + GAP;
    let mut svg = head(width, total, title);
    text(&mut svg, MARGIN, 28, "18", "#000", title);
    text(&mut svg, MARGIN, 48, "11", "#555", subtitle);
    let mut y = HEAD;
    for row in rows {
        for (column, panel) in (0..).zip(row) {
            draw(&mut svg, MARGIN + column * (PANEL_WIDTH + GAP), y, panel);
        }
        y += height(row);
    }
    svg + "</svg>\n"
}

fn draw(svg: &mut String, x: u32, y: u32, panel: &Panel) {
    text(svg, x, y + 14, "13", "#000", &format!("{}, {}", panel.title, panel.unit));
    let length = |value: f64| if value.is_finite() { value.max(0.0) } else { 0.0 };
    let longest = panel.bars.iter().map(|(_, value)| length(*value)).fold(0.0, f64::max);
    let room = f64::from(PANEL_WIDTH - LABEL_WIDTH - VALUE_WIDTH);
    for (n, (label, value)) in (0..).zip(&panel.bars) {
        let top = y + PANEL_HEAD + n * BAR;
        let wide = if longest > 0.0 { length(*value) / longest * room } else { 0.0 };
        let colour = if label.starts_with("weir") { "#1f6f8b" } else { "#b8b8b8" };
        text(svg, x, top + 12, "11", "#333", label);
        let left = x + LABEL_WIDTH;
        // Writing to a string does not fail, here and below.
        let _ = writeln!(
            svg,
            "<rect x=\"{left}\" y=\"{top}\" width=\"{wide:.1}\" height=\"{}\" fill=\"{colour}\"/>",
            BAR - 4
        );
        text(svg, left + wide as u32 + 6, top + 12, "11", "#333", &figure(*value));
    }
}

/// The start of a drawing with a white ground.
pub(crate) fn head(width: u32, height: u32, title: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
         font-family=\"sans-serif\">\n<title>{}</title>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n",
        escape(title)
    )
}

pub(crate) fn text(svg: &mut String, x: u32, y: u32, size: &str, colour: &str, words: &str) {
    let _ = writeln!(svg, "<text x=\"{x}\" y=\"{y}\" font-size=\"{size}\" fill=\"{colour}\">{}</text>", escape(words));
}

/// Three significant digits, as far as digits after the point go.
pub fn figure(value: f64) -> String {
    match value.abs() {
        v if !v.is_finite() => "-".to_owned(),
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 || v == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Text as XML wants it; control characters, which XML has no place for, become spaces.
pub(crate) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            c if c.is_control() => escaped.push(' '),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn panel(bars: &[(&str, f64)]) -> Panel {
        let bars = bars.iter().map(|(label, value)| ((*label).to_owned(), *value)).collect();
        Panel { title: "TCP".into(), unit: "Gbit/s".into(), bars }
    }

    #[test]
    fn the_longest_bar_fills_the_room_and_others_are_in_proportion() {
        let svg = bars("t", "s", &[panel(&[("plain", 10.0), ("weir-auto", 5.0), ("gone", f64::NAN), ("neg", -1.0)])]);
        for part in ["width=\"310.0\"", "width=\"155.0\"", "TCP, Gbit/s", ">10.0<", ">5.00<", ">-<", "#1f6f8b"] {
            assert!(svg.contains(part), "{part} in {svg}");
        }
        assert_eq!(svg.matches("width=\"0.0\"").count(), 2);
        assert_eq!(
            svg,
            bars("t", "s", &[panel(&[("plain", 10.0), ("weir-auto", 5.0), ("gone", f64::NAN), ("neg", -1.0)])])
        );
    }

    #[test]
    fn text_cannot_leave_its_element() {
        let svg = bars("<script>", "a & \"b\"\u{7}", &[panel(&[("</text>", 1.0)])]);
        assert!(
            svg.contains("&lt;script&gt;") && svg.contains("a &amp; &quot;b&quot; ") && svg.contains("&lt;/text&gt;")
        );
        assert!(!svg.contains("<script>"));
    }

    #[test]
    fn nothing_to_draw_is_still_a_drawing() {
        for panels in [vec![], vec![panel(&[])], vec![panel(&[("zero", 0.0)]); 3]] {
            let svg = bars("t", "s", &panels);
            assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        }
    }

    #[test]
    fn figures_have_three_digits() {
        let figures = [1234.5, 99.95, 12.34, 1.234, 0.1234, 0.0, -3.0, f64::INFINITY].map(figure);
        assert_eq!(figures, ["1234", "100.0", "12.3", "1.23", "0.123", "0.00", "-3.00", "-"].map(str::to_owned));
    }
}
