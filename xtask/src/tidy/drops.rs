//! The page of drop reasons, made from the registry.
//!
//! ```text
//!  ebpf/abi/src/drop.rs                                          docs/drop-reasons.md
//!    // 16..=31: the engine, outside the AEAD.                     ## 16..=31: the engine, outside the AEAD
//!    24 Replayed "replayed" Network "The counter was …";    ──►   | 24 | `replayed` | network | The counter was … |
//! ```

use super::Finding;

/// The registry.
pub(crate) const REGISTRY: &str = "ebpf/abi/src/drop.rs";
/// The page made from it.
pub(crate) const PAGE: &str = "docs/drop-reasons.md";

const RULE: &str = "drop reasons";
const HEAD: &str = "\
# Drop reasons

Every packet or datagram that Weir drops is counted under one of these. The list is made from `ebpf/abi/src/drop.rs` by
`cargo xtask tidy --write`; numbers are append-only and never change their meaning. The fault says where to look: *network* is somebody
outside (an attacker, a broken peer, a late packet), *peer* is one that proved who it is and sent what it may not, *local* is a host or
router on our own side, *machine* is this computer.
";
const TABLE: &str = "| number | name | fault | what happened |\n|---:|---|---|---|\n";

/// Checks that the page is what the registry gives.
pub(crate) fn check(registry: &str, page_found: &str, findings: &mut Vec<Finding>) {
    match page(registry) {
        Err(finding) => findings.push(finding),
        Ok(page) if page == page_found => {}
        Ok(page) => {
            let same = page.lines().zip(page_found.lines()).take_while(|(a, b)| a == b).count();
            let remedy = "not what the registry says: run `cargo xtask tidy --write`";
            findings.push(Finding::new(PAGE, same + 1, RULE, remedy));
        }
    }
}

/// The page that the registry gives; a line that is neither reason nor group heading is an error, never left out.
pub(crate) fn page(registry: &str) -> Result<String, Finding> {
    let mut page = HEAD.to_owned();
    let mut table_open = false;
    let mut lines = registry.lines().enumerate().skip_while(|(_, line)| *line != "drop_reasons! {");
    let Some(_) = lines.next() else {
        return Err(Finding::new(
            REGISTRY,
            1,
            RULE,
            "no line `drop_reasons! {` here: tell xtask's tidy/drops.rs the new form",
        ));
    };
    for (i, line) in lines {
        let line = line.trim();
        if line == "}" {
            return Ok(page);
        } else if let Some(heading) = line.strip_prefix("//") {
            page.push_str(&format!("\n## {}\n\n", heading.trim().trim_end_matches('.')));
            table_open = false;
        } else if !line.is_empty() {
            let row = row(line).ok_or_else(|| {
                Finding::new(REGISTRY, i + 1, RULE, "write it as: number Variant \"name\" Fault \"Sentence.\";")
            })?;
            if !table_open {
                if page.len() == HEAD.len() {
                    page.push('\n');
                }
                page.push_str(TABLE);
                table_open = true;
            }
            page.push_str(&row);
        }
    }
    Err(Finding::new(REGISTRY, registry.lines().count(), RULE, "`drop_reasons! {` has no end"))
}

/// One table row from one line of the registry.
fn row(line: &str) -> Option<String> {
    let (head, rest) = line.split_once('"')?;
    let (name, rest) = rest.split_once('"')?;
    let (fault, rest) = rest.split_once('"')?;
    let sentence = rest.strip_suffix("\";")?;
    let number: u8 = head.split_whitespace().next()?.parse().ok()?;
    let escaped = sentence.replace('|', "\\|");
    Some(format!("| {number} | `{name}` | {} | {escaped} |\n", fault.trim().to_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: &str = "x\ndrop_reasons! {\n    // 1..=2: first.\n    1 OneA \"one_a\" Network \"The first.\";\n\n    2 TwoB \"two_b\" Peer \"A | B.\";\n}\n";

    #[test]
    fn page_has_every_reason_under_its_heading() {
        let page = page(SOURCE).unwrap();
        let made = page.strip_prefix(HEAD).unwrap();
        assert_eq!(
            made,
            format!(
                "\n## 1..=2: first\n\n{TABLE}| 1 | `one_a` | network | The first. |\n| 2 | `two_b` | peer | A \\| B. |\n"
            )
        );
    }

    #[test]
    fn page_that_drifted_is_found_at_its_first_difference() {
        let page = page(SOURCE).unwrap();
        let mut findings = Vec::new();
        check(SOURCE, &page, &mut findings);
        assert_eq!(findings, []);
        check(SOURCE, &page.replace("The first", "The 1st"), &mut findings);
        assert_eq!(findings[0].line, page.lines().position(|line| line.contains("The first")).unwrap() + 1);
    }

    #[test]
    fn line_that_is_not_understood_is_an_error() {
        assert_eq!(page("drop_reasons! {\n    1 OneA \"one_a\" Network;\n}\n").unwrap_err().line, 2);
        assert_eq!(page("nothing").unwrap_err().line, 1);
        assert!(page("drop_reasons! {\n").is_err());
    }
}
