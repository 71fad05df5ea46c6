//! Every version once, every dependency with its reason.
//!
//! Versions stand in the root manifest only, members inherit them, and `docs/dependencies.md` has one table row for each, which begins
//! with the name in backticks.

use super::Finding;
use super::manifest::Manifest;

/// The page with the reasons.
pub(crate) const PAGE: &str = "docs/dependencies.md";
const RULE: &str = "dependencies";

/// Compares manifests and page.
pub(crate) fn check(manifests: &[Manifest], page: &str, findings: &mut Vec<Finding>) {
    let Some(root) = manifests.iter().find(|manifest| manifest.path == "Cargo.toml") else { return };
    // A manifest that begins a workspace of its own, as that of the fuzz targets, has its own rules.
    let members = || manifests.iter().filter(|manifest| !manifest.is_workspace);
    for member in members() {
        for dependency in &member.dependencies {
            if !dependency.value.contains("workspace = true") {
                let remedy =
                    format!("name the version of {} once, in the root manifest, and inherit it", dependency.name);
                findings.push(Finding::new(&member.path, dependency.line, RULE, remedy));
            }
        }
    }
    let explained = explained(page);
    for dependency in &root.workspace_dependencies {
        let used = members().any(|member| member.dependencies.iter().any(|used| used.name == dependency.name));
        if !used {
            let remedy = format!("no crate uses {}: remove it", dependency.name);
            findings.push(Finding::new(&root.path, dependency.line, RULE, remedy));
        }
        let ours = dependency.value.contains("path =");
        if !ours && !explained.iter().any(|(name, _)| *name == dependency.name) {
            let remedy = format!("say in {PAGE} why {} and not another", dependency.name);
            findings.push(Finding::new(&root.path, dependency.line, RULE, remedy));
        }
    }
    for (name, line) in explained {
        if !root.workspace_dependencies.iter().any(|dependency| dependency.name == name) {
            findings.push(Finding::new(PAGE, line, RULE, format!("{name} is not a dependency: remove the row")));
        }
    }
}

/// The names in the first cells of the page's tables, with their lines.
fn explained(page: &str) -> Vec<(&str, usize)> {
    let mut names = Vec::new();
    for (i, line) in page.lines().enumerate() {
        let Some(cell) = line.strip_prefix('|').and_then(|rest| rest.split('|').next()) else { continue };
        // Between backticks stands every second piece.
        names.extend(cell.split('`').skip(1).step_by(2).map(|name| (name, i + 1)));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = "[workspace.dependencies]\nours = { path = \"ours\" }\nlibc = \"0.2\"\n";
    const MEMBER: &str =
        "[package]\nname = \"a\"\n[dependencies]\nours.workspace = true\nlibc = { workspace = true }\n";
    const EXPLAINED: &str = "| dependency | why |\n|---|---|\n| `libc` | syscalls, not `nix` |\n";

    fn found(root: &str, member: &str, page: &str) -> Vec<(String, usize)> {
        let mut findings = Vec::new();
        let manifests = [Manifest::parse("Cargo.toml", root), Manifest::parse("a/Cargo.toml", member)];
        check(&manifests, page, &mut findings);
        findings.into_iter().map(|finding| (finding.file, finding.line)).collect()
    }

    #[test]
    fn explained_and_inherited_dependencies_pass() {
        assert_eq!(found(ROOT, MEMBER, EXPLAINED), []);
    }

    #[test]
    fn dependency_without_reason_is_found_and_reason_without_dependency() {
        assert_eq!(found(ROOT, MEMBER, ""), [("Cargo.toml".into(), 3)]);
        let page = format!("{EXPLAINED}| `nix`, `rustix` | none |\n");
        assert_eq!(found(ROOT, MEMBER, &page), [(PAGE.into(), 4), (PAGE.into(), 4)]);
    }

    #[test]
    fn version_in_a_member_is_found_and_a_dependency_that_nobody_uses() {
        let member = MEMBER.replace("{ workspace = true }", "\"0.2\"");
        assert_eq!(found(ROOT, &member, EXPLAINED), [("a/Cargo.toml".into(), 5)]);
        let member = MEMBER.replace("ours.workspace = true", "");
        assert_eq!(found(ROOT, &member, EXPLAINED), [("Cargo.toml".into(), 2)]);
    }
}
