//! Types that say what they look like in JSON (JSON Schema 2020-12, as OpenAPI 3.1 has it).
//!
//! The macros write a type and its description from the same lines, so that the two cannot differ.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A type with a description.
pub trait Described {
    /// Whether an object must have a field of this type.
    const REQUIRED: bool = true;

    /// Its schema; named ones are put into `definitions` and referred to.
    fn describe(definitions: &mut Definitions) -> Value;
}

/// Named schemas.
#[derive(Debug, Default)]
pub struct Definitions(pub BTreeMap<&'static str, Value>);

/// A field's name, its description, its type's schema, and whether it must be there.
pub type Field = (&'static str, String, Value, bool);

impl Definitions {
    /// Refers to a schema by name; `describe` makes it the first time.
    pub fn named(&mut self, name: &'static str, describe: impl FnOnce(&mut Self) -> Value) -> Value {
        if !self.0.contains_key(name) {
            self.0.insert(name, Value::Null);
            let schema = describe(self);
            self.0.insert(name, schema);
        }
        json!({ "$ref": format!("#/components/schemas/{name}") })
    }

    /// The schema of an object.
    pub fn object(description: &str, fields: Vec<Field>) -> Value {
        let required: Vec<_> = fields.iter().filter(|(_, _, _, required)| *required).map(|field| field.0).collect();
        let properties: serde_json::Map<String, Value> = fields
            .into_iter()
            .map(|(name, description, mut schema, _)| {
                if let Some(schema) = schema.as_object_mut() {
                    schema.insert("description".into(), description.into());
                }
                (name.to_owned(), schema)
            })
            .collect();
        json!({ "type": "object", "description": description, "properties": properties, "required": required })
    }
}

/// Joins the lines of a doc comment.
pub fn text(lines: &[&str]) -> String {
    lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

macro_rules! plain {
    ($($type:ty: $schema:expr;)*) => {
        $(impl Described for $type {
            fn describe(_: &mut Definitions) -> Value {
                $schema
            }
        })*
    };
}

plain! {
    String: json!({ "type": "string" });
    u16: json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX });
    u32: json!({ "type": "integer", "minimum": 0, "maximum": u32::MAX });
    u64: json!({ "type": "integer", "minimum": 0 });
    f64: json!({ "type": "number" });
}

impl Described for bool {
    const REQUIRED: bool = false;

    fn describe(_: &mut Definitions) -> Value {
        json!({ "type": "boolean" })
    }
}

impl<T: Described> Described for Vec<T> {
    const REQUIRED: bool = false;

    fn describe(definitions: &mut Definitions) -> Value {
        json!({ "type": "array", "items": T::describe(definitions) })
    }
}

impl<T: Described> Described for Option<T> {
    const REQUIRED: bool = false;

    fn describe(definitions: &mut Definitions) -> Value {
        json!({ "anyOf": [T::describe(definitions), { "type": "null" }] })
    }
}

/// A struct with public fields that is an object in JSON.
macro_rules! object {
    ($(
        $(#[doc = $doc:literal])+
        $(#[serde($($outer:tt)*)])*
        pub struct $name:ident {
            $($(#[doc = $field_doc:literal])+ $(#[serde($($inner:tt)*)])* $field:ident: $type:ty,)*
        }
    )*) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
            $(#[serde($($outer)*)])*
            pub struct $name {
                $($(#[doc = $field_doc])+ $(#[serde($($inner)*)])* pub $field: $type,)*
            }

            impl $crate::api::describe::Described for $name {
                fn describe(definitions: &mut $crate::api::describe::Definitions) -> serde_json::Value {
                    use $crate::api::describe::{Described, text};
                    definitions.named(stringify!($name), |definitions| {
                        let fields = vec![$((
                            stringify!($field),
                            text(&[$($field_doc),+]),
                            <$type as Described>::describe(definitions),
                            <$type as Described>::REQUIRED,
                        ),)*];
                        $crate::api::describe::Definitions::object(&text(&[$($doc),+]), fields)
                    })
                }
            }
        )*
    };
}

/// An enum without content that is a word in JSON.
macro_rules! words {
    ($(
        $(#[doc = $doc:literal])+
        pub enum $name:ident {
            $($(#[doc = $word_doc:literal])+ $word:ident = $text:literal,)*
        }
    )*) => {
        $(
            $(#[doc = $doc])+
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
            pub enum $name {
                $($(#[doc = $word_doc])+ #[serde(rename = $text)] $word,)*
            }

            impl std::fmt::Display for $name {
                fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.pad(match self { $(Self::$word => $text,)* })
                }
            }

            impl $crate::api::describe::Described for $name {
                fn describe(definitions: &mut $crate::api::describe::Definitions) -> serde_json::Value {
                    use $crate::api::describe::text;
                    definitions.named(stringify!($name), |_| {
                        let words = [$(format!("`{}`: {}", $text, text(&[$($word_doc),+]))),*].join(" ");
                        let description = format!("{} {words}", text(&[$($doc),+]));
                        serde_json::json!({ "type": "string", "description": description, "enum": [$($text),*] })
                    })
                }
            }
        )*
    };
}

pub(super) use {object, words};
