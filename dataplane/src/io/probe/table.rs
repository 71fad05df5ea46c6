//! The answers of a probe, for people and for programs.

use std::fmt;

use serde::Serialize;

/// How well something is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// All there.
    Ok,
    /// Something else does the work.
    Degraded,
    /// The plane cannot start.
    Missing,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Degraded => "degraded",
            Self::Missing => "missing",
        }
    }
}

/// One thing that was asked about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// How well it is there.
    pub state: State,
    /// What was found.
    pub found: String,
    /// What to do about it, where something can be done.
    pub remedy: Option<String>,
}

impl Row {
    /// Something that is all there.
    pub fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self { name: name.into(), state: State::Ok, found: found.into(), remedy: None }
    }

    /// Something that is not, and what to do.
    pub fn lacking(state: State, name: impl Into<String>, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { name: name.into(), state, found: found.into(), remedy: Some(remedy.into()) }
    }
}

/// The answers. Other parts append rows of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    /// In the order in which an operator should read them.
    pub rows: Vec<Row>,
}

impl Table {
    /// The first thing that makes a start impossible: one line, `NAME: FOUND: REMEDY`.
    pub fn first_blocker(&self) -> Option<String> {
        let row = self.rows.iter().find(|row| row.state == State::Missing)?;
        Some(match &row.remedy {
            Some(remedy) => format!("{}: {}: {remedy}", row.name, row.found),
            None => format!("{}: {}", row.name, row.found),
        })
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
        for row in &self.rows {
            writeln!(f, "{:width$}  {:8}  {}", row.name, row.state.name(), row.found)?;
            if let Some(remedy) = &row.remedy {
                writeln!(f, "{:width$}  {:8}  remedy: {remedy}", "", "")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_blocker_is_one_line_with_its_remedy() {
        let mut table = Table { rows: vec![Row::ok("a", "1"), Row::lacking(State::Degraded, "b", "2", "three")] };
        assert_eq!(table.first_blocker(), None);
        table.rows.push(Row::lacking(State::Missing, "c", "four", "five"));
        table.rows.push(Row::lacking(State::Missing, "d", "six", "seven"));
        assert_eq!(table.first_blocker().unwrap(), "c: four: five");
    }

    #[test]
    fn the_table_is_aligned_and_the_same_in_json() {
        let table = Table { rows: vec![Row::ok("a", "1"), Row::lacking(State::Degraded, "long name", "2", "three")] };
        let text = "a          ok        1\nlong name  degraded  2\n                     remedy: three\n";
        assert_eq!(table.to_string(), text);
        let json = serde_json::to_value(&table).unwrap();
        assert_eq!(json["rows"][1]["state"], "degraded");
        assert_eq!(json["rows"][0]["remedy"], serde_json::Value::Null);
    }
}
