//! Proof that what is read back is what was written: a digest in every JSON file of a run, `seal`, over the rest of it.
//!
//! A file without one, as earlier versions wrote them, is taken as it is.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::fsx;

/// The key.
pub const KEY: &str = "seal";

/// The value with its seal: SHA-256 of the other entries as compact JSON. Only objects have one.
pub fn seal(value: &Value) -> Value {
    let Value::Object(map) = value else { return value.clone() };
    let mut map = without(map);
    let digest = digest(&map);
    map.insert(KEY.into(), digest.into());
    Value::Object(map)
}

/// Refuses a value that is not what its seal was made of.
pub fn prove(value: &Value, path: &Path) -> Result<()> {
    let Some(found) = value.get(KEY) else { return Ok(()) };
    let whole = value.as_object().is_some_and(|map| found.as_str() == Some(&digest(&without(map))));
    if whole {
        return Ok(());
    }
    Err(Error::data(format!(
        "{}: not what was written there (its seal does not fit): damaged or edited",
        path.display()
    ))
    .hint("delete it, and the run's command writes it again"))
}

fn without(map: &Map<String, Value>) -> Map<String, Value> {
    map.iter().filter(|(key, _)| *key != KEY).map(|(k, v)| (k.clone(), v.clone())).collect()
}

fn digest(map: &Map<String, Value>) -> String {
    // Value prints as it was read: floats by their shortest form, keys in one order.
    fsx::sha256(Value::Object(map.clone()).to_string().as_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sealed_value_comes_back_and_any_other_number_is_refused() {
        let value = json!({ "a": 0.1f32, "b": [1, 2.5e-300, null], "c": { "d": "é", "e": -0.0 }, "big": u64::MAX });
        let text = serde_json::to_string_pretty(&seal(&value)).unwrap();
        let path = Path::new("eval.json");
        let back: Value = serde_json::from_str(&text).unwrap();
        prove(&back, path).unwrap();
        assert_eq!(seal(&back), back, "sealed twice is sealed once");
        let changed = text.replace("2.5e-300", "2.6e-300");
        let changed: Value = serde_json::from_str(&changed).unwrap();
        assert!(prove(&changed, path).unwrap_err().to_string().contains("eval.json: not what was written"));
        prove(&value, path).unwrap();
    }
}
