//! JSON files, and what is wrong with one in the format's words.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::{bound, read_text};
use crate::error::{Error, Place, Result};

/// Reads a JSON file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    json(&read_text(path)?).at(|| path.display().to_string())
}

/// The value that a JSON text is.
pub fn json<T: DeserializeOwned>(text: &str) -> Result<T> {
    refuse_many(text)?;
    serde_json::from_str(text).map_err(|e| {
        let place = if e.line() == 0 { String::new() } else { format!("line {}, column {}: ", e.line(), e.column()) };
        Error::data(format!("{place}{}", explained(&e)))
    })
}

/// Refuses a text of more values than memory holds: an object of a few letters takes hundreds of bytes. Signs within
/// texts count too; nobody comes near.
fn refuse_many(text: &str) -> Result<()> {
    if text.len() < bound::OBJECTS {
        return Ok(());
    }
    let count = |sign: u8| text.as_bytes().chunks(1 << 12).map(|c| c.iter().filter(|b| **b == sign).count()).sum();
    let (objects, values): (usize, usize) = (count(b'{'), count(b','));
    match objects > bound::OBJECTS || values > bound::VALUES {
        true => Err(Error::data(format!(
            "JSON of {objects} objects and {values} values or more, the most that is read are {} and {}",
            bound::OBJECTS,
            bound::VALUES
        ))
        .hint("write one record a line (JSONL), which is read line by line")),
        false => Ok(()),
    }
}

/// The value that one line of a JSONL file is; `line` counts from 1.
pub fn json_line<T: DeserializeOwned>(text: &str, line: usize) -> Result<T> {
    serde_json::from_str(text).map_err(|e| Error::data(format!("line {line}: {}", explained(&e))))
}

/// serde_json's message without its place and without Rust's names.
fn explained(e: &serde_json::Error) -> String {
    let message = e.to_string();
    let message = message.rsplit_once(" at line ").map_or(message.as_str(), |(m, _)| m);
    let half = message.contains("surrogate") || message.contains("unexpected end of hex escape");
    match e.classify() {
        _ if half => "half a character (a \\ud8… escape without its other half)".into(),
        serde_json::error::Category::Eof => "not JSON: it ends too early".into(),
        serde_json::error::Category::Syntax => format!("not JSON: {message}"),
        _ => in_words(message),
    }
}

/// `invalid type: sequence, expected u32` as `a list, expected a whole number`.
fn in_words(message: &str) -> String {
    if message.starts_with("data did not match any variant") {
        return "a value of another form than expected".into();
    }
    let Some((found, wanted)) = message.split_once(": ").and_then(|(_, rest)| rest.split_once(", expected ")) else {
        return message.to_string();
    };
    let (kind, value) = found.split_once(' ').unwrap_or((found, ""));
    let found = match kind {
        "sequence" => "a list".into(),
        "map" => "an object".into(),
        "null" | "unit" => "null".into(),
        "string" => format!("the text {value}"),
        "integer" => format!("the number {}", value.trim_matches('`')),
        "floating" => format!("the number {}", value.trim_start_matches("point ").trim_matches('`')),
        "boolean" => value.trim_matches('`').into(),
        _ => found.to_string(),
    };
    let wanted = match wanted {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number from 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a sequence" => "a list",
        "a map" => "an object",
        "a string" | "a borrowed string" => "a text",
        "a boolean" => "true or false",
        other if other.starts_with("struct ") || other.starts_with("internally tagged enum") => "an object",
        other if other.starts_with("a tuple") || other.starts_with("tuple ") => "a list",
        other => other,
    };
    format!("{found}, expected {wanted}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_text_of_too_many_objects_is_refused_before_it_is_read() {
        let many = format!("[{}{{}}]", "{},".repeat(bound::OBJECTS));
        let e = json::<serde_json::Value>(&many).unwrap_err().to_string();
        assert!(e.contains("JSON of 4194305 objects") && e.contains("one record a line"), "{e}");
    }

    #[test]
    fn errors_speak_of_json_and_not_of_this_programs_types() {
        let e = |text: &str| json::<BTreeMap<String, Vec<u32>>>(text).unwrap_err().to_string();
        assert_eq!(e("{\"a\": [1, 2.5]}"), "line 1, column 13: the number 2.5, expected a whole number from 0");
        assert_eq!(e("{\n\"a\": {}}"), "line 2, column 5: an object, expected a list");
        assert_eq!(e("[1]"), "line 1, column 0: a list, expected an object");
        assert!(e("{\"a\": [1").contains("it ends too early") && e("nope").contains("not JSON"));
        let half = json_line::<String>("\"x \\ud83d\"", 7).unwrap_err().to_string();
        assert!(half.starts_with("line 7: half a character"), "{half}");
    }
}
