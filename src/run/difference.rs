//! How an asked config differs from the one that a run was begun with: what may change, and what is another run.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use toml::Table;

use crate::error::{Error, Result};

/// Keys that may differ between a run and its resumption: they do not reach a number.
const FREE_KEYS: [&str; 9] = [
    "run.dir",
    "run.threads",
    // What it comes to is held against the manifest.
    "run.device",
    "run.cache",
    "run.share",
    "run.tensorboard",
    "run.tolerate",
    "federated.checkpoint_every",
    "federated.keep_checkpoints",
];
/// The key that may grow: a run goes on with more rounds.
const ROUNDS: &str = "federated.rounds";
/// Why a key cannot change, where that is not plain.
const WHY: [(&str, &str); 2] = [
    (ROUNDS, "rounds can be added, not taken back"),
    ("federated.eval_every", "rounds are done that one of them judges and the other does not"),
];
/// Keys that may change before the rounds are over, where no client could be left out so far: every round that is done is
/// the same with them.
const FAILURES: [&str; 2] = ["federated.on_failure", "federated.max_failures"];

/// How an asked config differs from the one of a directory, where a run goes on all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Difference {
    /// In nothing that reaches a number.
    None,
    /// In more rounds alone.
    Longer,
    /// In what has reached no number so far: keys that are `idle`, or what becomes of clients that fail, before one could
    /// be left out.
    Idle,
}

/// Refuses another configuration.
pub(super) fn refuse_difference(old: &Table, new: &Table, idle: &[&str], path: &Path) -> Result<Difference> {
    let (old, new) = (flat(old), flat(new));
    let mut lines = Vec::new();
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys.into_iter().filter(|k| !FREE_KEYS.contains(&k.as_str())) {
        let (was, is) = (old.get(key), new.get(key));
        if was != is {
            let show = |v: Option<&String>| v.cloned().unwrap_or_else(|| "absent".to_string());
            let why = WHY.iter().find(|(k, _)| k == key).map_or(String::new(), |(_, why)| format!(" ({why})"));
            lines.push((key, format!("  {key}: {} there, {} asked{why}", show(was), show(is))));
        }
    }
    let number = |all: &BTreeMap<String, String>| all.get(ROUNDS).and_then(|n| n.parse::<u64>().ok());
    if lines.is_empty() {
        return Ok(Difference::None);
    }
    if lines.iter().all(|(key, _)| *key == ROUNDS) && number(&new) > number(&old) {
        return Ok(Difference::Longer);
    }
    let none_left_out =
        old.get(FAILURES[0]).is_some_and(|on| on.contains("stop")) && !path.join("finetune/done.json").exists();
    let free = |key: &str| idle.contains(&key) || none_left_out && FAILURES.contains(&key);
    if lines.iter().all(|(key, _)| free(key)) {
        return Ok(Difference::Idle);
    }
    let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    Err(Error::input(format!("{} holds a run of another configuration:\n{}", path.display(), lines.join("\n")))
        .hint("choose another directory, as in --set run.dir=runs/another, or delete this one"))
}

/// `section.key` → value as text.
fn flat(table: &Table) -> BTreeMap<String, String> {
    fn walk(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    walk(&path, value, out);
                }
            }
            other => {
                out.insert(prefix.to_string(), other.to_string());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", &toml::Value::Table(table.clone()), &mut out);
    out
}
