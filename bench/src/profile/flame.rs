//! A flame graph as SVG: width is time, height is depth, siblings stand in the order of their names.
//!
//! ```text
//!   ┌ leaf ┐
//!   ├──────┴────┬ other ┐
//!   ├ thread ───┴───────┤      frames that are too narrow to see are left out; the rest tell their share when pointed at
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::fold::{KERNEL, Profile};
use crate::plot::{escape, head, text};

const WIDTH: f64 = 1400.0;
const MARGIN: f64 = 10.0;
const HEAD: u32 = 60;
const ROW: u32 = 17;
/// Frames narrower than this are not drawn, pixels.
const WIDTH_MIN: f64 = 0.5;
/// Width of a letter at the size of the labels, pixels.
const LETTER: f64 = 6.6;

#[derive(Default)]
struct Node<'a> {
    count: u64,
    children: BTreeMap<&'a str, Node<'a>>,
}

impl Node<'_> {
    fn depth(&self) -> u32 {
        self.children.values().map(|child| 1 + child.depth()).max().unwrap_or(0)
    }
}

/// Draws all stacks below a title.
pub fn graph(title: &str, profile: &Profile) -> String {
    let mut root = Node::default();
    for (stack, count) in profile.stacks() {
        let mut node = &mut root;
        node.count += count;
        for frame in stack {
            node = node.children.entry(frame).or_default();
            node.count += count;
        }
    }
    let height = HEAD + root.depth() * ROW + MARGIN as u32;
    let mut svg = head(WIDTH as u32, height, title);
    text(&mut svg, MARGIN as u32, 24, "17", "#000", title);
    let subtitle = format!("{} busy samples; green: user space, blue: kernel, grey: threads", root.count);
    text(&mut svg, MARGIN as u32, 44, "11", "#555", &subtitle);
    if root.count > 0 {
        let scale = (WIDTH - 2.0 * MARGIN) / root.count as f64;
        let canvas = Canvas { scale, total: root.count, ground: height - MARGIN as u32 };
        canvas.draw(&mut svg, &root, MARGIN, 0);
    }
    svg + "</svg>\n"
}

struct Canvas {
    /// Pixels for each sample.
    scale: f64,
    total: u64,
    /// Where the lowest row stands.
    ground: u32,
}

impl Canvas {
    /// Draws the children of a node, each with its own on top.
    fn draw(&self, svg: &mut String, node: &Node<'_>, left: f64, level: u32) {
        let mut x = left;
        let top = self.ground - (level + 1) * ROW;
        for (name, child) in &node.children {
            let wide = child.count as f64 * self.scale;
            if wide >= WIDTH_MIN {
                let colour = colour(name, level);
                let share = child.count as f64 * 100.0 / self.total as f64;
                // Writing to a string does not fail.
                let _ = writeln!(
                    svg,
                    "<g><title>{} ({share:.2} %)</title><rect x=\"{x:.1}\" y=\"{top}\" width=\"{:.1}\" height=\"{}\" fill=\"{colour}\"/>",
                    escape(name),
                    wide - 0.3,
                    ROW - 1
                );
                let letters = (wide / LETTER) as usize;
                if letters >= 3 {
                    let label: String = name.trim_end_matches(KERNEL).chars().take(letters).collect();
                    text(svg, x as u32 + 2, top + 12, "11", "#000", &label);
                }
                svg.push_str("</g>\n");
                self.draw(svg, child, x, level + 1);
            }
            x += wide;
        }
    }
}

/// By what a frame is, in two shades so that neighbours can be told apart.
fn colour(name: &str, level: u32) -> &'static str {
    let shade = name.bytes().fold(0u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte)) % 2;
    match (level, name.ends_with(KERNEL), shade) {
        (0, ..) => "#c8c8c8",
        (_, true, 0) => "#8fb8de",
        (_, true, _) => "#a9cdef",
        (_, false, 0) => "#93c98f",
        (_, false, _) => "#b0dcab",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_as_wide_as_its_share_and_stands_on_its_caller() {
        let profile = Profile::read("t\n\t1 leaf\n\t2 root\n\nt\n\tffffffff80000000 k<v>\n\t2 root\n\n");
        let svg = graph("load", &profile);
        assert_eq!(svg, graph("load", &profile));
        let whole = format!("width=\"{:.1}\"", WIDTH - 2.0 * MARGIN - 0.3);
        assert_eq!(svg.matches(&whole).count(), 2, "{svg}");
        let half = format!("width=\"{:.1}\"", (WIDTH - 2.0 * MARGIN) / 2.0 - 0.3);
        assert_eq!(svg.matches(&half).count(), 2, "{svg}");
        assert!(svg.contains("<title>k&lt;v&gt;_[k] (50.00 %)</title>") && svg.contains("2 busy samples"));
        let row = |name: &str| {
            let line = svg.lines().find(|line| line.contains(&format!("<title>{name} "))).unwrap();
            line.split("y=\"").nth(1).and_then(|rest| rest.split('"').next()?.parse::<u32>().ok()).unwrap()
        };
        assert_eq!((row("t") - row("root"), row("root") - row("leaf")), (ROW, ROW));
    }

    #[test]
    fn frames_too_narrow_to_see_are_left_out() {
        let many = "t\n\t1 wide\n\n".repeat(5000) + "t\n\t1 narrow\n\n";
        let svg = graph("load", &Profile::read(&many));
        assert!(svg.contains("<title>wide ") && !svg.contains("<title>narrow "));
    }

    #[test]
    fn nothing_is_still_a_drawing() {
        assert!(graph("load", &Profile::default()).ends_with("</svg>\n"));
    }
}
