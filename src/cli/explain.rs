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
        return put(&ours);
    }
    let named: Vec<&str> = all.iter().map(|l| l.path.as_str()).filter(|p| p.rsplit('.').next() == Some(key)).collect();
    let near = if named.is_empty() {
        let tails = all.iter().map(|l| l.path.as_str());
        closest(key, tails).into_iter().collect()
    } else {
        named
    };
    let e = Error::input(format!("no key is called `{key}`"));
    let near: Vec<String> = near.iter().map(|n| format!("`{n}`")).collect();
    Err(match near.is_empty() {
        true => e.hint("`fedllava config list` names all"),
        false => e.hint(format!("did you mean {}?", near.join(" or "))),
    })
}

fn one(leaf: &Leaf<'_>) -> Result<()> {
    put(&format!("{}{}", leaf.path, default_in_words(leaf)))?;
    put(&wrapped(&format!("{}. {}", leaf.words(), leaf.doc()), "    "))?;
    for (name, doc) in names(leaf) {
        put(&wrapped(&format!("{name}: {doc}"), "      "))?;
    }
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
        [] => leaf.of.first().map(|(_, key)| of(key)).unwrap_or_default(),
        kinds => kinds.iter().map(|Kind { name, doc, .. }| (name.clone(), doc.clone())).collect(),
    }
}

/// A `--set` item that every config takes: the key with its default, and the kind that it needs.
fn example(leaf: &Leaf<'_>) -> String {
    let (kind, value) = leaf.defaults().into_iter().find(|(_, v)| v.is_some()).unwrap_or_default();
    let value = value.unwrap_or_else(|| sample(leaf));
    let text = match &value {
        Value::String(s) if !s.is_empty() && !s.contains(' ') => s.clone(),
        other => other.to_string(),
    };
    let item = format!("{}={text}", leaf.path);
    let item = if item.contains([' ', '"', '[', '{']) { format!("'{item}'") } else { item };
    let whose = if kind.is_empty() { leaf.of.first().map_or("", |(k, _)| k) } else { kind };
    let table = Value::Table(tree::defaults(tree::sections()));
    match leaf.path.rsplit_once('.') {
        Some((section, _)) if !whose.is_empty() && tree::at(&table, &leaf.path).is_none() && leaf.kinds.is_empty() => {
            let (owner, kind) = owner(section, whose);
            format!("{owner}.kind={kind} --set {item}")
        }
        _ => item,
    }
}

/// The section that has the kind, at `section` or above.
fn owner<'a>(section: &'a str, kind: &'a str) -> (&'a str, &'a str) {
    let has = |section: &str| {
        tree::leaves().iter().any(|l| l.path == format!("{section}.kind") && l.kinds.iter().any(|k| k.name == kind))
    };
    match section.rsplit_once('.') {
        Some((above, _)) if !has(section) => owner(above, kind),
        _ => (section, kind),
    }
}

/// A value where there is no default.
fn sample(leaf: &Leaf<'_>) -> Value {
    match leaf.of.first().map(|(_, key)| &key.node) {
        Some(Node::Value(Form::Whole(..))) => Value::Integer(1),
        Some(Node::Value(Form::Number(_))) => Value::Float(1.0),
        Some(Node::Value(Form::Switch)) => Value::Boolean(true),
        Some(Node::Value(Form::Names(names))) => Value::String(names.first().map_or_else(String::new, |n| n.0.clone())),
        Some(Node::List(..)) => Value::Array(Vec::new()),
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
