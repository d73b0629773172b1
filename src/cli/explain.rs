//! `explain`: what a key means, what it may be, what others call it.

use clap::Args;
use toml::Value;

use super::config::{default_in_words, list, wrapped};
use super::{completions, put};
use crate::config::foreign;
use crate::config::tree::{self, Form, Key, Kind, Leaf, Node};
use crate::error::{Error, Result, closest};

/// `explain`.
#[derive(Args)]
pub struct Explain {
    /// A key, such as federated.cohort; a section; or another tool's name.
    #[arg(add = completions::keys())]
    key: String,
}

/// Says what a key means.
pub fn explain(e: &Explain) -> Result<()> {
    let key = e.key.trim();
    if let Some(leaf) = tree::leaves().iter().find(|l| l.path == key) {
        return one(leaf);
    }
    let all = tree::leaves();
    let is_section = all.iter().any(|l| l.path.starts_with(&format!("{key}.")));
    if is_section {
        return list(key, false);
    }
    if let Some(ours) = foreign::translate(key) {
        put(&ours)?;
        let ours = ours.rsplit_once("is here ").map_or("", |(_, key)| key.split([',', ' ']).next().unwrap_or_default());
        return all.iter().find(|l| l.path == ours).map_or(Ok(()), one);
    }
    let of_kind: Vec<(&Leaf<'_>, &Kind)> =
        all.iter().filter_map(|l| Some((l, l.kinds.iter().find(|k| k.name == key)?))).collect();
    let item = |l: &Leaf<'_>| l.items.iter().find(|k| k.name == key).map(|kind| kind_of_item(l, kind));
    let of_items: Vec<String> = all.iter().filter_map(item).collect();
    of_items.iter().try_for_each(|text| put(text))?;
    if of_kind.is_empty() && !of_items.is_empty() {
        return Ok(());
    }
    if !of_kind.is_empty() {
        return of_kind.iter().try_for_each(|(leaf, kind)| one_kind(leaf, kind));
    }
    let e = Error::input(format!("no key is called `{key}`"));
    let near: Vec<String> = near(key, all).iter().map(|n| format!("`{n}`")).collect();
    Err(match near.is_empty() {
        true => e.hint("`fedllava config list` names all"),
        false => e.hint(format!("did you mean {}?", near.join(" or "))),
    })
}

/// Keys and sections whose last word it is; else the one that looks like it.
fn near(key: &str, all: &[Leaf<'_>]) -> Vec<String> {
    let mut found = Vec::new();
    for leaf in all {
        let words: Vec<&str> = leaf.path.split('.').collect();
        if let Some(i) = words.iter().position(|w| *w == key) {
            found.push(words[..=i].join("."));
        }
    }
    found.dedup();
    if found.is_empty() {
        found.extend(closest(key, all.iter().map(|l| l.path.as_str())).map(String::from));
    }
    found
}

/// A kind, and the keys that come with it.
fn one_kind(leaf: &Leaf<'_>, kind: &Kind) -> Result<()> {
    put(&format!("{}={}", leaf.path, kind.name))?;
    put(&wrapped(&kind.doc, "    "))?;
    let section = leaf.path.trim_end_matches("kind");
    for key in &kind.keys {
        let default = key.default.as_ref().map_or_else(|| "unset".into(), Value::to_string);
        put(&wrapped(&format!("{section}{} = {default}: {}", key.name, key.doc), "      "))?;
    }
    Ok(())
}

/// A kind of a list's items, and its keys.
pub fn kind_of_item(leaf: &Leaf<'_>, kind: &Kind) -> String {
    let mut text = format!("{}: {{ kind = \"{}\" }}\n{}", leaf.path, kind.name, wrapped(&kind.doc, "    "));
    for key in &kind.keys {
        let default = key.default.as_ref().map_or_else(|| "unset".into(), Value::to_string);
        text += &format!(
            "\n{}",
            wrapped(&format!("{} = {default}: {}. {}", key.name, key.node.words(), key.doc), "      ")
        );
    }
    text
}

fn one(leaf: &Leaf<'_>) -> Result<()> {
    put(&format!("{}{}", leaf.path, default_in_words(leaf)))?;
    put(&wrapped(&format!("{}. {}", leaf.words(), leaf.doc()), "    "))?;
    for (name, doc) in names(leaf) {
        put(&wrapped(&format!("{name}: {doc}"), "      "))?;
    }
    leaf.items.iter().try_for_each(|kind| put(&kind_of_item(leaf, kind)))?;
    let others: Vec<String> = foreign::others(&leaf.path).iter().map(|(n, tool)| format!("{n} ({tool})")).collect();
    if !others.is_empty() {
        put(&format!("    elsewhere called {}", others.join(", ")))?;
    }
    put(&format!("    example: --set {}", example(leaf)))
}

/// The valid names, each with what it means.
fn names(leaf: &Leaf<'_>) -> Vec<(String, String)> {
    let of = |key: &Key| match &key.node {
        Node::Value(Form::Names(names)) => names.clone(),
        _ => Vec::new(),
    };
    match leaf.kinds {
        [] => leaf.of.first().map(|o| of(o.key)).unwrap_or_default(),
        kinds => kinds.iter().map(|Kind { name, doc, .. }| (name.clone(), doc.clone())).collect(),
    }
}

/// `--set` items that every config takes: the key with its default, after the kinds that it needs.
fn example(leaf: &Leaf<'_>) -> String {
    let table = Value::Table(tree::defaults(tree::sections()));
    // The way with the fewest kinds that are not in force.
    let Some(owner) = leaf.of.iter().min_by_key(|o| o.missing(&table).len()) else { return String::new() };
    let own = owner.key.default.clone().filter(|_| leaf.kinds.is_empty());
    let value = tree::at(&table, &leaf.path).cloned().or(own).unwrap_or_else(|| sample(leaf));
    let text = match &value {
        Value::String(s) if !s.is_empty() => s.clone(),
        other => other.to_string(),
    };
    let mut items = owner.missing(&table);
    items.push(format!("{}={text}", leaf.path));
    let quoted = |i: &String| if i.contains([' ', '"', '[', '{']) { format!("'{i}'") } else { i.clone() };
    items.iter().map(quoted).collect::<Vec<_>>().join(" --set ")
}

/// A value where there is no default.
fn sample(leaf: &Leaf<'_>) -> Value {
    match leaf.of.first().map(|o| &o.key.node) {
        Some(Node::Value(Form::Whole(..))) => Value::Integer(1),
        Some(Node::Value(Form::Number(_))) => Value::Float(1.0),
        Some(Node::Value(Form::Switch)) => Value::Boolean(true),
        Some(Node::Value(Form::Names(names))) => Value::String(names.first().map_or_else(String::new, |n| n.0.clone())),
        Some(Node::List(..)) => Value::Array(Vec::new()),
        Some(Node::Changes) => Value::Table(toml::toml! { federated = { rounds = [10, 20] } }),
        Some(Node::Kinds(kinds)) => Value::String(kinds.first().map_or_else(String::new, |k| k.name.clone())),
        _ => Value::String("…".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn every_keys_example_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        std::fs::write(&path, "").unwrap();
        for leaf in tree::leaves().iter().filter(|l| !["arms", "contrasts"].contains(&l.path.as_str())) {
            let text = example(leaf);
            let items: Vec<String> = text.split(" --set ").map(|i| i.trim_matches('\'').to_string()).collect();
            // A method may need more than its kind: what is checked is that the key and the value are taken.
            if let Err(e) = Config::read(&path, &items) {
                let text = e.to_string();
                assert!(
                    !["unknown", "belongs", "needs a", "no key"].iter().any(|w| text.contains(w)),
                    "{items:?}: {e}"
                );
            }
        }
    }
}
