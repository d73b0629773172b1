//! One table on another, section by section, as `--set`, arms and `base` lie on what is below them.

use toml::{Table, Value};

use super::tree::{Key, Kind, Node, defaults, defaults_of};

/// Lays `over` on `below`, which is resolved and stays so. Another `kind` replaces a section by that kind's defaults;
/// of the old keys those stay that mean the same in both: same name, same default.
pub fn lay(keys: &[Key], below: &mut Table, over: &Table) {
    for (name, value) in over {
        let node = keys.iter().find(|k| k.name == *name).map(|k| &k.node);
        let laid = match node {
            Some(node) => laid(node, below.remove(name), value),
            None => value.clone(),
        };
        below.insert(name.clone(), laid);
    }
}

fn laid(node: &Node, below: Option<Value>, over: &Value) -> Value {
    match (node, over) {
        (Node::Section(keys), Value::Table(over)) => {
            let mut table = into_table(below).unwrap_or_else(|| defaults(keys));
            lay(keys, &mut table, over);
            Value::Table(table)
        }
        (Node::Kinds(kinds), Value::Table(over)) => {
            let old = into_table(below);
            let Some(kind) = kind_of(kinds, Some(over)).or_else(|| kind_of(kinds, old.as_ref())) else {
                return Value::Table(over.clone());
            };
            let mut table = match (old, kind_of(kinds, Some(over))) {
                (Some(old), None) => old,
                (old, _) => changed(kinds, old.unwrap_or_default(), kind),
            };
            lay(&kind.keys, &mut table, over);
            Value::Table(table)
        }
        (Node::List(of, _), Value::Array(items)) => Value::Array(items.iter().map(|v| laid(of, None, v)).collect()),
        _ => over.clone(),
    }
}

fn into_table(value: Option<Value>) -> Option<Table> {
    match value {
        Some(Value::Table(table)) => Some(table),
        _ => None,
    }
}

/// The kind that a table names.
pub fn kind_of<'a>(kinds: &'a [Kind], table: Option<&Table>) -> Option<&'a Kind> {
    let name = table?.get("kind")?.as_str()?;
    kinds.iter().find(|k| k.name == name)
}

/// `old` as a section of `kind`.
fn changed(kinds: &[Kind], old: Table, kind: &Kind) -> Table {
    let before = kind_of(kinds, Some(&old));
    if before.is_some_and(|b| b.name == kind.name) {
        return old;
    }
    let mut table = defaults_of(kind);
    for key in &kind.keys {
        let same = before.and_then(|b| b.keys.iter().find(|k| k.name == key.name && k.default == key.default));
        if let (Some(_), Some(value)) = (same, old.get(&key.name)) {
            table.insert(key.name.clone(), value.clone());
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::super::tree::sections;
    use super::*;

    fn after(over: &[&str]) -> Table {
        let mut table = defaults(sections());
        for text in over {
            lay(sections(), &mut table, &toml::from_str(text).unwrap());
        }
        table
    }

    #[test]
    fn another_kind_has_its_own_defaults_and_keeps_the_keys_that_mean_the_same() {
        let table = after(&["partition = { clients = 9, alpha = 0.1 }", "partition.kind = \"iid\""]);
        assert_eq!(table["partition"].to_string(), "{ clients = 9, kind = \"iid\" }");
        let table = after(&["federated.optimiser.lr = 0.3", "federated.optimiser.kind = \"adam\""]);
        assert_eq!(table["federated"]["optimiser"]["lr"].as_float(), Some(0.001), "a rate of SGD is none of Adam");
        assert_eq!(
            after(&["data.path = \"x\"", "data.kind = \"cifar100\""])["data"]["path"].as_str(),
            Some("cifar100")
        );
    }

    #[test]
    fn the_same_kind_changes_nothing() {
        let table = after(&["align.optimiser.kind = \"sgd\""]);
        assert_eq!(table["align"]["optimiser"]["momentum"].as_float(), Some(0.9));
    }

    #[test]
    fn a_section_that_was_absent_begins_with_its_kind() {
        let table = after(&["unlabelled.data.kind = \"cifar100\""]);
        assert_eq!(table["unlabelled"]["data"]["path"].as_str(), Some("cifar100"));
    }
}
