//! `--set section.key=value`: dotted keys over a table.

use crate::error::{Error, Result};

/// Lays one `key=value` on top. The value is TOML; what is not TOML is a string.
pub fn apply(table: &mut toml::Table, item: &str) -> Result<()> {
    let Some((key, value)) = item.split_once('=') else {
        return Err(
            Error::input(format!("--set {item}: expected key=value")).hint("for example --set federated.rounds=20")
        );
    };
    let (key, value) = (key.trim(), value.trim());
    let value = match toml::from_str::<toml::Table>(&format!("x = {value}")) {
        Ok(mut parsed) => parsed.remove("x").unwrap_or_else(|| toml::Value::String(value.into())),
        Err(_) => toml::Value::String(value.into()),
    };
    let mut nested = value;
    for part in key.rsplit('.') {
        if part.is_empty() {
            return Err(Error::input(format!("--set {item}: `{key}` has an empty part")));
        }
        nested = toml::Value::Table(toml::Table::from_iter([(part.to_string(), nested)]));
    }
    if let toml::Value::Table(nested) = nested {
        merge(table, &nested);
    }
    Ok(())
}

/// Lays `over` on `table`, section by section. Another `kind` drops the old kind's keys.
pub fn merge(table: &mut toml::Table, over: &toml::Table) {
    if let (Some(new), Some(old)) = (over.get("kind"), table.get("kind"))
        && new != old
    {
        table.clear();
    }
    for (key, value) in over {
        match (table.get_mut(key), value) {
            (Some(toml::Value::Table(section)), toml::Value::Table(over)) => merge(section, over),
            _ => {
                table.insert(key.clone(), value.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(text: &str, item: &str) -> toml::Table {
        let mut table = toml::from_str(text).unwrap();
        apply(&mut table, item).unwrap();
        table
    }

    #[test]
    fn numbers_lists_and_bare_words_are_understood() {
        assert_eq!(after("", "a.b=3")["a"]["b"].as_integer(), Some(3));
        assert_eq!(after("", "a=[1, 2]")["a"].as_array().unwrap().len(), 2);
        assert_eq!(after("", "run.dir=runs/x")["run"]["dir"].as_str(), Some("runs/x"));
    }

    #[test]
    fn another_kind_drops_the_keys_of_the_old_one() {
        let table = after("[algorithm]\nkind = \"fedprox\"\nmu = 0.1", "algorithm.kind=fedavg");
        assert_eq!(table["algorithm"].as_table().unwrap().len(), 1);
        let same = after("[algorithm]\nkind = \"fedprox\"\nmu = 0.1", "algorithm.kind=fedprox");
        assert_eq!(same["algorithm"]["mu"].as_float(), Some(0.1));
    }

    #[test]
    fn a_missing_value_is_an_error() {
        assert!(apply(&mut toml::Table::new(), "federated.rounds").is_err());
    }
}
