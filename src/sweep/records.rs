//! Finished runs without their models: what a table reads, small enough for a repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{State, Sweep};
use crate::config::sweep::Planned;
use crate::config::{Config, RunConfig};
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::run::directory::{read_json, refuse_newer};
use crate::run::seal::seal;
use crate::run::{Records, SCHEMA};

/// The files of a record, copied as they are but for the manifest.
const FILES: [&str; 4] = ["config.toml", "eval.json", MANIFEST, "personal.json"];
/// What the run was made from.
const MANIFEST: &str = "manifest.json";
/// The judged rounds of the run's records: what curves and a choice by validation need.
const ROUNDS: &str = "metrics.jsonl";
/// What says that a record is whole.
const SEAL: &str = "record.json";

/// The digests of a record's files.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Seal {
    schema: u32,
    /// File → SHA-256.
    files: BTreeMap<String, String>,
}

/// The record of a run, if the sweep's folder of records has one of the very same config.
///
/// # Errors
/// A record that was changed since it was written.
pub fn find(sweep: &Sweep, run: &Planned) -> Result<Option<PathBuf>> {
    if sweep.config.records.is_empty() {
        return Ok(None);
    }
    let dir = Path::new(&sweep.config.records).join(sweep.name(run));
    if !dir.join("eval.json").exists() || !same(&dir, run)? {
        return Ok(None);
    }
    let path = dir.join(SEAL);
    let changed = |what: String| {
        Err(Error::data(format!("{}: {what}", dir.display())).hint(
            "write the record again with `fedllava sweep CONFIG --record DIR`, or delete it: the run is then done anew",
        ))
    };
    if !path.exists() {
        return changed(format!("no {SEAL}"));
    }
    let seal: Seal =
        serde_json::from_value(read_json(&path)?).map_err(|e| Error::data(format!("{}: {e}", path.display())))?;
    refuse_newer(Some(i64::from(seal.schema)), &path)?;
    for (name, digest) in &seal.files {
        match fsx::sha256_file(&dir.join(name)) {
            Ok(is) if is == *digest => {}
            Ok(_) => return changed(format!("{name} is not what {SEAL} says")),
            Err(_) => return changed(format!("{name} is missing")),
        }
    }
    Ok(Some(dir))
}

/// Whether the config in a directory is the run's, but for what does not reach a number.
pub fn same(dir: &Path, run: &Planned) -> Result<bool> {
    let file = dir.join("config.toml");
    if !file.exists() {
        return Ok(false);
    }
    let table = toml::from_str(&fsx::read_text(&file)?)
        .map_err(|e| Error::data(format!("{}: {}", file.display(), e.message())))?;
    let there = Config::from_table(table).at(|| file.display().to_string())?;
    Ok(essence(&there) == essence(&run.config))
}

/// A config without what does not reach a number.
fn essence(config: &Config) -> Config {
    let free = RunConfig::default();
    let run =
        RunConfig { dir: free.dir, threads: free.threads, cache: free.cache, share: free.share, ..config.run.clone() };
    Config { run, ..config.clone() }
}

/// Copies the finished runs' records to `folder`; gives how many, and how many runs are not finished.
pub fn write(sweep: &Sweep, folder: &Path) -> Result<(usize, usize)> {
    let (mut written, mut missing) = (0, 0);
    for run in &sweep.plan.runs {
        let State::Done(dir) = sweep.state(run)? else {
            missing += 1;
            continue;
        };
        record(&dir, &folder.join(sweep.name(run)))?;
        written += 1;
    }
    Ok((written, missing))
}

/// A manifest that says where data lay as configs do: a record goes to others, whose folders are elsewhere.
fn portable(path: &Path, root: &str) -> Result<Vec<u8>> {
    let mut manifest = read_json(path)?;
    for source in manifest["sources"].as_array_mut().into_iter().flatten() {
        if let Some(text) = source["source"].as_str().filter(|_| root.len() > 1) {
            source["source"] = text.replace(root.trim_end_matches('/'), "$FEDLLAVA_DATA").into();
        }
    }
    let text = serde_json::to_string_pretty(&seal(&manifest)).map_err(|e| Error::defect(e.to_string()))?;
    Ok((text + "\n").into_bytes())
}

/// Copies one run's record; the seal is written last.
fn record(dir: &Path, to: &Path) -> Result<()> {
    let mut seal = Seal { schema: SCHEMA, files: BTreeMap::new() };
    let mut put = |name: &str, bytes: &[u8]| {
        seal.files.insert(name.into(), fsx::sha256(bytes));
        fsx::write_atomic(&to.join(name), bytes)
    };
    let root = std::env::var("FEDLLAVA_DATA").unwrap_or_default();
    for name in FILES.iter().filter(|name| dir.join(name).exists()) {
        match *name {
            MANIFEST => put(name, &portable(&dir.join(name), &root)?)?,
            _ => put(name, &fsx::read(&dir.join(name))?)?,
        }
    }
    let rounds = dir.join(ROUNDS);
    if rounds.exists() {
        let judged = Records::read(&rounds)?.into_iter().filter(|r| r["split"] == "test" || r["split"] == "validation");
        put(ROUNDS, judged.map(|r| format!("{r}\n")).collect::<String>().as_bytes())?;
    }
    let text = serde_json::to_string_pretty(&seal).map_err(|e| Error::defect(format!("{SEAL}: {e}")))?;
    fsx::write_atomic(&to.join(SEAL), format!("{text}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_recorded_manifest_names_no_folder_of_this_machine_and_is_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(MANIFEST);
        let source = |text: &str| json!({ "state": "done", "sources": [{ "source": text, "read": 3 }] });
        let before = seal(&source("cifar10 test (1 Parquet files in /home/me/data/cifar10)"));
        std::fs::write(&path, before.to_string()).unwrap();
        let write = |root: &str| std::fs::write(&path, portable(&path, root).unwrap()).unwrap();
        write("");
        assert_eq!(read_json(&path).unwrap(), before);
        write("/home/me/data/");
        assert_eq!(
            read_json(&path).unwrap(),
            seal(&source("cifar10 test (1 Parquet files in $FEDLLAVA_DATA/cifar10)"))
        );
    }
}
