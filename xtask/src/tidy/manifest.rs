//! The little of `Cargo.toml` that the rules need: the package name and the dependency lines, one a line as this repository writes them.

/// One dependency line.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Dependency {
    /// The name before the `=` or the first `.`.
    pub(crate) name: String,
    /// What follows the name.
    pub(crate) value: String,
    /// Counted from 1.
    pub(crate) line: usize,
}

/// One `Cargo.toml`.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    /// Its path from the root of the checkout.
    pub(crate) path: String,
    /// `package.name`; empty in the root manifest.
    pub(crate) package: String,
    /// Of every kind: normal, dev, build, per target.
    pub(crate) dependencies: Vec<Dependency>,
    /// Of `[workspace.dependencies]`.
    pub(crate) workspace_dependencies: Vec<Dependency>,
    /// Whether it begins a workspace.
    pub(crate) is_workspace: bool,
}

impl Manifest {
    /// Reads the lines.
    pub(crate) fn parse(path: &str, text: &str) -> Self {
        let mut manifest = Self { path: path.to_owned(), ..Self::default() };
        let mut section = "";
        for (i, line) in text.lines().enumerate() {
            let line = line.trim();
            if let Some(header) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
                section = header;
                manifest.is_workspace |= header == "workspace" || header.starts_with("workspace.");
                continue;
            }
            let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('#')) else { continue };
            let (key, value) = (key.trim(), value.trim());
            if section == "package" && key == "name" {
                manifest.package = value.trim_matches('"').to_owned();
            } else if section.ends_with("dependencies") {
                let (name, dotted) = key.split_once('.').unwrap_or((key, ""));
                let value = if dotted.is_empty() { value.to_owned() } else { format!("{dotted} = {value}") };
                let dependency = Dependency { name: name.trim_matches('"').to_owned(), value, line: i + 1 };
                if section == "workspace.dependencies" {
                    manifest.workspace_dependencies.push(dependency);
                } else {
                    manifest.dependencies.push(dependency);
                }
            }
        }
        manifest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_every_kind_are_read() {
        let manifest = Manifest::parse(
            "a/Cargo.toml",
            "[package]\nname = \"a\"\n[dependencies]\n# b = 1\nb.workspace = true\n[target.'cfg(x)'.dependencies]\nc = { workspace = true }\n\
             [dev-dependencies]\nd = \"1\"\n[features]\ne = []\n",
        );
        let found: Vec<_> = manifest.dependencies.iter().map(|d| (d.name.as_str(), d.value.as_str(), d.line)).collect();
        assert_eq!(manifest.package, "a");
        assert_eq!(found, [("b", "workspace = true", 5), ("c", "{ workspace = true }", 7), ("d", "\"1\"", 9)]);
        assert!(!manifest.is_workspace);
    }
}
