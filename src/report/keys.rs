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
        other => {
            out.insert(prefix.into(), other.clone());
        }
    }
}
