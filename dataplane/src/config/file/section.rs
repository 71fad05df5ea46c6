//! Reading one table of a configuration, with the place of everything in it.
//!
//! This part knows TOML values and where they stand; what the keys mean is the business of whoever reads them.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::ops::{Range, RangeInclusive};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What is wrong with a configuration, apart from where.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("cannot be read ({0}): check the path given with --config and the file's permissions")]
    Unreadable(#[from] std::io::Error),
    /// The file is longer than [`super::FILE_LEN_MAX`].
    #[error("is longer than {limit} bytes: this is not a configuration of Weir")]
    TooLong {
        /// The limit in bytes.
        limit: u64,
    },
    /// Not TOML.
    #[error("not valid TOML: {0}")]
    Syntax(String),
    /// A key that means nothing here.
    #[error("unknown key `{key}`{}", Suggestion(nearest))]
    UnknownKey {
        /// The key with its section.
        key: String,
        /// The known key that it resembles.
        nearest: Option<String>,
    },
    /// A key without a default is not there.
    #[error("`{key}` is missing: add {remedy}")]
    Missing {
        /// The key with its section.
        key: String,
        /// What to write.
        remedy: &'static str,
    },
    /// A value of another type.
    #[error("`{key}` is {found}: write {expected}")]
    WrongType {
        /// The key with its section.
        key: String,
        /// What stands there.
        found: &'static str,
        /// What should.
        expected: &'static str,
    },
    /// A number outside its range.
    #[error("`{key}` is {found}: it must be between {min} and {max}")]
    Range {
        /// The key with its section.
        key: String,
        /// What stands there.
        found: String,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
    },
    /// A value that cannot be, alone or beside another one; the text ends with the remedy.
    #[error("`{key}`: {why}")]
    Value {
        /// The key with its section.
        key: String,
        /// What is wrong and what to do.
        why: String,
    },
}

struct Suggestion<'a>(&'a Option<String>);

impl fmt::Display for Suggestion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(nearest) => write!(f, ": did you mean `{nearest}`?"),
            None => f.write_str(": remove it"),
        }
    }
}

/// A problem and the bytes of the file that it is about.
#[derive(Debug)]
pub struct Located {
    /// Where in the file, when it is about a place.
    pub span: Option<Range<usize>>,
    /// What is wrong.
    pub problem: Problem,
}

type Read<T> = Result<T, Located>;

/// One table of the file; absent ones read as empty.
///
/// Whoever reads says which keys there may be when it opens a table, and every other one is refused there. Each `Read` fails with what does
/// not fit and the remedy; a key that is not in the file reads as `None`.
#[derive(Debug)]
pub struct Section<'a> {
    /// As it stands in brackets; empty for the top of the file.
    name: String,
    table: Option<&'a DeTable<'a>>,
    known: &'a [&'a str],
}

impl<'a> Section<'a> {
    /// The top of the file.
    ///
    /// # Errors
    /// A key that is not among `known`.
    pub fn top(table: &'a DeTable<'a>, known: &'a [&'a str]) -> Read<Self> {
        Self { name: String::new(), table: Some(table), known }.checked()
    }

    /// A table directly below this one.
    ///
    /// # Errors
    /// Something else than a table, or a key in it that is not among `known`.
    pub fn section<'b>(&self, name: &str, known: &'b [&'b str]) -> Read<Section<'b>>
    where
        'a: 'b,
    {
        let table = match self.value(name) {
            None => None,
            Some(value) => match value.get_ref() {
                DeValue::Table(table) => Some(table),
                other => {
                    let (found, expected) = (type_name(other), "a [section] of its own");
                    return Err(located(value, Problem::WrongType { key: self.path(name), found, expected }));
                }
            },
        };
        Section { name: self.path(name), table, known }.checked()
    }

    /// The tables of a list, as in `[[list]]`: at most `len_max`.
    ///
    /// # Errors
    /// Something else than tables, too many, or a key in one that is not among `known`.
    pub fn tables<'b>(&self, name: &str, len_max: usize, known: &'b [&'b str]) -> Read<Vec<Section<'b>>>
    where
        'a: 'b,
    {
        let Some(value) = self.value(name) else { return Ok(vec![]) };
        let expected = "one [[section]] for each";
        let DeValue::Array(items) = value.get_ref() else { return Err(self.wrong_type(name, value, expected)) };
        if items.len() > len_max {
            return Err(self.refuse(name, format!("{} entries; at most {len_max} are allowed", items.len())));
        }
        let section = |item: &'a Spanned<DeValue<'a>>| match item.get_ref() {
            DeValue::Table(table) => Section { name: self.path(name), table: Some(table), known }.checked(),
            _ => Err(self.wrong_type(name, item, expected)),
        };
        items.iter().map(section).collect()
    }

    fn checked(self) -> Read<Self> {
        for (key, _) in self.table.into_iter().flatten() {
            let text = key.get_ref().as_ref();
            if !self.known.contains(&text) {
                let nearest = nearest(text, self.known).map(|known| self.path(known));
                let problem = Problem::UnknownKey { key: self.path(&text.escape_debug().to_string()), nearest };
                return Err(Located { span: Some(key.span()), problem });
            }
        }
        Ok(self)
    }

    /// The value of a key. Asking for a key that [`Self::checked`] would refuse is our own mistake.
    fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        debug_assert!(self.known.contains(&key), "{key} is read but not known");
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    /// The names of the keys that stand in the file.
    pub fn keys(&self) -> impl Iterator<Item = &'a str> {
        self.table.into_iter().flatten().map(|(key, _)| key.get_ref().as_ref())
    }

    /// The key as an operator would name it.
    fn path(&self, key: &str) -> String {
        if self.name.is_empty() { key.into() } else { format!("{}.{key}", self.name) }
    }

    /// An error about a key that stands in the file or whose default does not fit the rest.
    pub fn refuse(&self, key: &str, why: impl Into<String>) -> Located {
        let problem = Problem::Value { key: self.path(key), why: why.into() };
        Located { span: self.value(key).map(Spanned::span), problem }
    }

    /// An error about a key that must be there.
    pub fn missing(&self, key: &str, remedy: &'static str) -> Located {
        Located { span: None, problem: Problem::Missing { key: self.path(key), remedy } }
    }

    fn wrong_type(&self, key: &str, value: &Spanned<DeValue<'_>>, expected: &'static str) -> Located {
        let found = type_name(value.get_ref());
        located(value, Problem::WrongType { key: self.path(key), found, expected })
    }

    /// A number of the given range.
    ///
    /// # Errors
    /// Something else, or a number outside of it.
    pub fn number<T: TryFrom<u64>>(&self, key: &str, range: RangeInclusive<u64>) -> Read<Option<T>> {
        self.value(key).map(|value| self.number_of(key, value, &range)).transpose()
    }

    fn number_of<T: TryFrom<u64>>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        range: &RangeInclusive<u64>,
    ) -> Read<T> {
        let DeValue::Integer(integer) = value.get_ref() else {
            return Err(self.wrong_type(key, value, "a whole number"));
        };
        u64::from_str_radix(integer.as_str(), integer.radix())
            .ok()
            .filter(|number| range.contains(number))
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| {
                let (min, max) = (*range.start(), *range.end());
                located(value, Problem::Range { key: self.path(key), found: integer.to_string(), min, max })
            })
    }

    /// A list of numbers, each of the given range.
    ///
    /// # Errors
    /// Something else, or a number outside of it.
    pub fn numbers<T: TryFrom<u64>>(&self, key: &str, range: RangeInclusive<u64>) -> Read<Option<Vec<T>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.wrong_type(key, value, "a list of whole numbers, as in [1, 2]"));
        };
        items.iter().map(|item| self.number_of(key, item, &range)).collect::<Read<_>>().map(Some)
    }

    /// `true` or `false`.
    ///
    /// # Errors
    /// Something else.
    pub fn flag(&self, key: &str) -> Read<Option<bool>> {
        self.value(key)
            .map(|value| match value.get_ref() {
                DeValue::Boolean(flag) => Ok(*flag),
                _ => Err(self.wrong_type(key, value, "true or false")),
            })
            .transpose()
    }

    /// A string that `parse` accepts. Its error says what is wrong and what to do.
    ///
    /// # Errors
    /// Something else, or what `parse` says.
    pub fn text<T>(&self, key: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Read<Option<T>> {
        self.value(key).map(|value| self.text_of(key, value, parse)).transpose()
    }

    fn text_of<T>(
        &self,
        key: &str,
        value: &Spanned<DeValue<'_>>,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Read<T> {
        let DeValue::String(text) = value.get_ref() else {
            return Err(self.wrong_type(key, value, "a string in quotes"));
        };
        parse(text).map_err(|why| located(value, Problem::Value { key: self.path(key), why }))
    }

    /// At most `len_max` different strings that `parse` accepts.
    ///
    /// # Errors
    /// Something else, what `parse` says, too many, or the same one twice.
    pub fn texts<T: Clone + Eq + Hash>(
        &self,
        key: &str,
        len_max: usize,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Read<Option<Vec<T>>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let DeValue::Array(items) = value.get_ref() else {
            return Err(self.wrong_type(key, value, "a list of strings, as in [\"…\", \"…\"]"));
        };
        if items.len() > len_max {
            return Err(self.refuse(key, format!("{} entries; at most {len_max} are allowed", items.len())));
        }
        let (mut all, mut seen) = (Vec::with_capacity(items.len()), HashSet::new());
        for item in items.iter() {
            let parsed = self.text_of(key, item, &parse)?;
            if !seen.insert(parsed.clone()) {
                let why = "the same entry stands here twice: remove one".into();
                return Err(located(item, Problem::Value { key: self.path(key), why }));
            }
            all.push(parsed);
        }
        Ok(Some(all))
    }

    /// Whether the value is a string, where a key takes a word or a list.
    pub fn is_text(&self, key: &str) -> bool {
        self.value(key).is_some_and(|value| matches!(value.get_ref(), DeValue::String(_)))
    }

    /// Whether the key stands in the file.
    pub fn has(&self, key: &str) -> bool {
        self.value(key).is_some()
    }
}

fn located(value: &Spanned<DeValue<'_>>, problem: Problem) -> Located {
    Located { span: Some(value.span()), problem }
}

fn type_name(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The known key that `key` most likely is a slip of, if any is near enough: a letter too many, missing, wrong or in its neighbour's place
/// is one step of the distance.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    /// Longest key that is compared: the distance takes time with the product of the lengths.
    const LEN_MAX: usize = 64;
    if key.len() > LEN_MAX {
        return None;
    }
    let (distance, best) = known.iter().map(|known| (strsim::osa_distance(key, known), *known)).min()?;
    (distance <= 1 + best.len() / 3).then_some(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_pen_is_recognised_and_another_word_is_not() {
        let known = &["interface", "interfaces", "port", "attach", "advertise", "io"];
        assert_eq!(nearest("interace", known), Some("interface"));
        assert_eq!(nearest("Port", known), Some("port"));
        assert_eq!(nearest("prot", known), Some("port"));
        assert_eq!(nearest("attached", known), Some("attach"));
        assert_eq!(nearest("gateway_address", known), None);
        assert_eq!(nearest(&"x".repeat(10_000), known), None);
    }
}
