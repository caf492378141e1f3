//! The one serialisation of a JSON object that its digests are made of: sorted names, no white space, UTF-8, nothing escaped that JSON does
//! not demand (Python: `json.dumps(obj, sort_keys=True, separators=(",", ":"), ensure_ascii=False)`).

use serde_json::{Map, Value};

/// The text of an object without some of its members.
pub(super) fn text_without(members: &Map<String, Value>, without: &[&str]) -> String {
    let mut text = String::new();
    write_object(&mut text, members, without);
    text
}

/// Serialises compactly and with sorted keys, also where the JSON library was built to keep keys in their order of insertion.
fn write_sorted(text: &mut String, value: &Value) {
    match value {
        Value::Object(members) => write_object(text, members, &[]),
        Value::Array(items) => {
            text.push('[');
            for (place, item) in items.iter().enumerate() {
                if place > 0 {
                    text.push(',');
                }
                write_sorted(text, item);
            }
            text.push(']');
        }
        scalar => text.push_str(&scalar.to_string()),
    }
}

/// [`write_sorted`] for an object.
fn write_object(text: &mut String, members: &Map<String, Value>, without: &[&str]) {
    let mut sorted: Vec<_> = members
        .iter()
        .filter(|(name, _)| !without.contains(&name.as_str()))
        .collect();
    sorted.sort_unstable_by_key(|(name, _)| *name);
    text.push('{');
    for (place, (name, value)) in sorted.into_iter().enumerate() {
        if place > 0 {
            text.push(',');
        }
        text.push_str(&Value::from(name.as_str()).to_string());
        text.push(':');
        write_sorted(text, value);
    }
    text.push('}');
}
