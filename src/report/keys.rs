//! A run's resolved config as keys and values.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::{Error, Result};
use crate::fsx;

/// Keys that reach no number of any row: the seed, which rows pool; places and the machine; what is written or measured
/// besides.
const FREE: [&str; 14] = [
    "run.seed",
    "run.dir",
    "run.tolerate",
    "run.threads",
    "run.device",
    "run.cache",
    "run.share",
    "run.tensorboard",
    "federated.checkpoint_every",
    "federated.keep_checkpoints",
    "evaluate.overlaps",
    "evaluate.logits",
    "evaluate.teacher",
    "evaluate.probe",
];

/// Lists of tables that have kinds, each with keys of its own: links.
const LISTS: [&str; 1] = ["federated.way"];

/// What sets how much privacy a run spends.
pub const NOISE: &str = "federated.way.noise.multiplier";

/// The list that a link's key belongs to: `federated.way` of `federated.way.noise.delta`. That such a key is not there is
/// said by the list, which names its links.
pub fn list_of(key: &str) -> Option<&'static str> {
    LISTS.into_iter().find(|list| key.strip_prefix(list).is_some_and(|rest| rest.starts_with('.')))
}

/// `section.key` → value of a run's resolved config.
pub type Keys = BTreeMap<String, toml::Value>;

/// The keys of a run's config that may reach a number, and its seed.
pub fn read(dir: &Path) -> Result<(Keys, Option<u64>)> {
    let path = dir.join("config.toml");
    let table: toml::Table = toml::from_str(&fsx::read_text(&path)?)
        .map_err(|e| Error::data(format!("{}: {}", path.display(), e.message())))?;
    let mut keys = Keys::new();
    flatten("", &toml::Value::Table(table), &mut keys);
    let seed = keys.get("run.seed").and_then(toml::Value::as_integer).and_then(|s| u64::try_from(s).ok());
    keys.retain(|key, _| !FREE.contains(&key.as_str()));
    Ok((keys, seed))
}

fn flatten(prefix: &str, value: &toml::Value, out: &mut Keys) {
    match value {
        toml::Value::Table(table) if !table.is_empty() || prefix.is_empty() => {
            for (key, value) in table {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                flatten(&path, value, out);
            }
        }
        toml::Value::Array(links) if LISTS.contains(&prefix) && !links.is_empty() => chain(prefix, links, out),
        other => {
            out.insert(prefix.into(), other.clone());
        }
    }
}

fn kind(link: &toml::Value) -> &str {
    link.get("kind").and_then(toml::Value::as_str).unwrap_or("?")
}

/// Links: the list of kinds, and each table's keys below its kind (`federated.way.noise.delta`;
/// the second of a kind is `noise-2`).
fn chain(prefix: &str, links: &[toml::Value], out: &mut Keys) {
    let kinds: Vec<&str> = links.iter().map(kind).collect();
    for (n, link) in links.iter().enumerate() {
        let place = match kinds[..n].iter().filter(|k| **k == kinds[n]).count() {
            0 => format!("{prefix}.{}", kinds[n]),
            before => format!("{prefix}.{}-{}", kinds[n], before + 1),
        };
        let rest = link.as_table().into_iter().flatten().filter(|(key, _)| *key != "kind");
        rest.for_each(|(key, value)| flatten(&format!("{place}.{key}"), value, out));
    }
    out.insert(prefix.into(), toml::Value::Array(kinds.into_iter().map(toml::Value::from).collect()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_its_kinds_and_the_keys_of_each_and_two_chains_never_give_the_same_keys() {
        let keys = |text: &str| {
            let mut out = Keys::new();
            flatten("", &toml::Value::Table(text.parse().unwrap()), &mut out);
            out
        };
        let two = keys(
            "[federated]\nway = [{ kind = 'clip', norm = 1.0 }, { kind = 'noise', d = { m = 2 } }, { kind = 'clip', norm = 3.0 }]",
        );
        let shown: Vec<String> = two.iter().map(|(k, v)| format!("{k} = {v}")).collect();
        let want = [
            "federated.way = [\"clip\", \"noise\", \"clip\"]",
            "federated.way.clip-2.norm = 3.0",
            "federated.way.clip.norm = 1.0",
            "federated.way.noise.d.m = 2",
        ];
        assert_eq!(shown, want);
        assert_ne!(
            two,
            keys(
                "[federated]\nway = [{ kind = 'clip', norm = 3.0 }, { kind = 'noise', d = { m = 2 } }, { kind = 'clip', norm = 1.0 }]"
            )
        );
        assert_eq!(keys("a = [1, 2]\nb = []").len(), 2);
    }
}
