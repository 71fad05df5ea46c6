//! `docs/api.md` and `docs/openapi.json`, written from the table of calls.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use super::call::{Method, ROUTES};
use super::describe::{Definitions, Described as _};
use super::server::{Limits, QUEUE_LEN, STRANGERS_MAX};
use super::types::Error;

/// The OpenAPI 3.1 document.
pub fn openapi() -> String {
    let mut definitions = Definitions::default();
    let error = Error::describe(&mut definitions);
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let content = |schema: Value| json!({ "application/json": { "schema": schema } });
        let answer = (route.answer)(&mut definitions);
        let mut operation = json!({
            "operationId": route.name,
            "summary": route.description(),
            "x-weir-role": route.role,
            "responses": {
                "200": { "description": "The answer.", "content": content(answer) },
                "default": { "description": "Why there is none.", "content": content(error.clone()) },
            },
        });
        if let Some(describe) = route.arguments {
            let schema = describe(&mut definitions);
            match route.method {
                Method::Post => operation["requestBody"] = json!({ "required": true, "content": content(schema) }),
                Method::Get => operation["parameters"] = parameters(&definitions, &schema),
            }
        }
        let path = paths.entry(route.path).or_insert_with(|| json!({}));
        path[route.method.name().to_lowercase()] = operation;
    }
    let document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "weir",
            "version": "1",
            "description": "The local API of weir, on a unix socket. See api.md.",
            "license": { "name": "Apache-2.0 OR MIT" },
        },
        "servers": [{ "url": "http://weir", "description": "The unix socket /run/weir/api.sock" }],
        "paths": paths,
        "components": { "schemas": definitions.0 },
    });
    let text = serde_json::to_string_pretty(&document).expect("a JSON value is JSON");
    format!("{text}\n")
}

/// The named schema that a reference points to.
fn resolved<'a>(definitions: &'a Definitions, schema: &Value) -> Option<&'a Value> {
    let name = schema["$ref"].as_str()?.rsplit('/').next()?;
    definitions.0.get(name)
}

fn parameters(definitions: &Definitions, schema: &Value) -> Value {
    let Some(object) = resolved(definitions, schema) else { return json!([]) };
    let required = object["required"].as_array().cloned().unwrap_or_default();
    let properties = object["properties"].as_object().into_iter().flatten();
    let parameters = properties.map(|(name, schema)| {
        json!({
            "name": name,
            "in": "query",
            "required": required.contains(&Value::from(name.as_str())),
            "description": schema["description"],
            "schema": schema,
        })
    });
    parameters.collect()
}

const INTRODUCTION: &str = "\
# The local API

`weir run` listens on a unix socket, `/run/weir/api.sock` unless `api.socket` says otherwise, and speaks HTTP/1.1 and JSON there. The
command line uses nothing else, and neither need your own programs:

```sh
curl --unix-socket /run/weir/api.sock http://weir/v1/status
curl --unix-socket /run/weir/api.sock http://weir/v1/invites -d '{\"name\": \"site-2\", \"subnet\": \"auto\"}'
```

This page and [openapi.json](openapi.json) (OpenAPI 3.1) are written from the table in `controlplane/src/api/call.rs` by
`weir docs docs`; a test compares them.

**Who may.** The kernel tells who is at the other end of the socket. `api.read`, `api.operate` and `api.admin` in the configuration say
which users and groups have which role; each role includes those before it. root and the user that weir runs as have all.

**Arguments** of GET stand in the query, those of POST as JSON in the body. Fields that a call does not know are refused. Ids are texts
as `weir` prints them, moments are RFC 3339 in UTC. Answers may get new fields: let those be that you do not know.

**Failures** have a status and a body with a code, what is wrong, and what to do about it:

```json
{\"code\":\"forbidden\",\"message\":\"Invite needs the role operate; user 1000 has the role read\",\"remedy\":\"…\"}
```

";

const CALLS: &str = "\
## Calls

| call | role | takes | gives | |
|---|---|---|---|---|
";

/// What there is of everything, as the server has it.
fn limits() -> String {
    let limits = Limits::default();
    let (connections, body_mib) = (limits.connections, limits.body_len >> 20);
    let (request_secs, answer_secs) = (limits.request.as_secs(), limits.answer.as_secs());
    format!(
        "**Limits.** One call a connection. {connections} connections at a time, others wait; a request has to come \
         within {request_secs} s and its body in {body_mib} MiB; an\nanswer comes within {answer_secs} s or is \
         `no_answer`. When {QUEUE_LEN} calls wait for the node, the next one is `busy`. Who has no role has none of these\n\
         connections: {STRANGERS_MAX} at a time are told so, more are closed.\n\n"
    )
}

/// The page.
pub fn page() -> String {
    let mut definitions = Definitions::default();
    Error::describe(&mut definitions);
    let mut page = [INTRODUCTION, &limits(), CALLS].concat();
    for route in ROUTES {
        let takes = route.arguments.map_or(String::new(), |describe| type_name(&describe(&mut definitions)));
        let gives = type_name(&(route.answer)(&mut definitions));
        let (method, path, role) = (route.method.name(), route.path, route.role);
        // Writing to a string does not fail.
        let _ = writeln!(page, "| `{method} {path}` | {role} | {takes} | {gives} | {} |", route.description());
    }
    page.push_str("\n## Types\n");
    for (name, schema) in &definitions.0 {
        let description = schema["description"].as_str().unwrap_or_default();
        let _ = write!(page, "\n### {name}\n\n{description}\n");
        let Some(properties) = schema["properties"].as_object() else { continue };
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        page.push_str("\n| field | type | |\n|---|---|---|\n");
        for (field, schema) in properties {
            let mark = if required.contains(&Value::from(field.as_str())) { "" } else { ", optional" };
            let description = schema["description"].as_str().unwrap_or_default();
            let _ = writeln!(page, "| `{field}` | {}{mark} | {description} |", type_name(schema));
        }
    }
    page
}

/// A schema in a few words.
fn type_name(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap_or(reference);
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(first) = schema["anyOf"].get(0) {
        return type_name(first);
    }
    match (schema["type"].as_str(), schema["format"].as_str()) {
        (Some("array"), _) => format!("list of {}", type_name(&schema["items"])),
        (Some("string"), Some("date-time")) => "moment".into(),
        (Some("string"), _) => "text".into(),
        (Some("integer"), _) => "whole number".into(),
        (Some(other), _) => other.into(),
        (None, _) => "anything".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REMEDY: &str = "is not what the table says: run `weir docs docs` at the root of the repository";

    #[test]
    fn the_page_is_the_table() {
        assert!(include_str!("../../../docs/api.md") == page(), "docs/api.md {REMEDY}");
    }

    #[test]
    fn the_openapi_document_is_the_table() {
        assert!(include_str!("../../../docs/openapi.json") == openapi(), "docs/openapi.json {REMEDY}");
    }

    #[test]
    fn every_reference_leads_to_a_schema() {
        let document: Value = serde_json::from_str(&openapi()).unwrap();
        let schemas = document["components"]["schemas"].as_object().unwrap();
        let mut waiting = vec![&document];
        let mut references = 0;
        while let Some(value) = waiting.pop() {
            match value {
                Value::Object(object) => {
                    if let Some(reference) = object.get("$ref").and_then(Value::as_str) {
                        let name = reference.strip_prefix("#/components/schemas/").unwrap();
                        assert!(schemas[name].is_object(), "{name}");
                        references += 1;
                    }
                    waiting.extend(object.values());
                }
                Value::Array(items) => waiting.extend(items),
                _ => {}
            }
        }
        assert!(references > 30);
        assert_eq!(document["paths"]["/v1/invites"]["post"]["x-weir-role"], "operate");
        let parameters = document["paths"]["/v1/policy/explain"]["get"]["parameters"].as_array().unwrap();
        let required: Vec<_> = parameters.iter().filter(|it| it["required"] == true).map(|it| &it["name"]).collect();
        assert_eq!(required, ["dst", "src"]);
    }
}
