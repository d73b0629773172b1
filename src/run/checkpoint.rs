//! Checkpoints of named state after a round: whole or not at all, verified when read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::clients::{Clients, Index};
use super::{SCHEMA, directory, state};
use crate::error::{Error, Result};
use crate::fsx;
use crate::nn::Params;

/// `meta.json`: what the folder must hold.
#[derive(Debug, Serialize, Deserialize)]
struct Meta {
    schema: u32,
    round: usize,
    digests: BTreeMap<String, String>,
    /// Files of what clients keep.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    clients: Index,
}

/// The contents of a checkpoint: file stem → named vectors.
pub type Files = BTreeMap<String, BTreeMap<String, Params>>;

/// Writes `folder/round-000120` whole (temporary folder, `meta.json` last, rename), then keeps the newest `keep`.
pub fn save(folder: &Path, round: usize, files: &Files, keep: usize) -> Result<()> {
    save_with(folder, round, files, (&Clients::new(folder), Index::new()), keep)
}

/// As [`save`], with the files of what clients keep; those that no checkpoint needs any more go.
pub fn save_with(
    folder: &Path,
    round: usize,
    files: &Files,
    (clients, index): (&Clients, Index),
    keep: usize,
) -> Result<()> {
    let part = folder.join(format!(".part-round-{round:06}"));
    remove(&part)?;
    let mut meta = Meta { schema: SCHEMA, round, digests: BTreeMap::new(), clients: index };
    for (stem, named) in files {
        let bytes = state::to_bytes(named)?;
        let name = format!("{stem}.safetensors");
        meta.digests.insert(name.clone(), fsx::sha256(&bytes));
        fsx::write_atomic(&part.join(name), &bytes)?;
    }
    let text = serde_json::to_string_pretty(&meta).map_err(|e| Error::defect(format!("meta.json: {e}")))?;
    fsx::write_atomic(&part.join("meta.json"), text.as_bytes())?;
    let target = folder.join(format!("round-{round:06}"));
    remove(&target)?;
    std::fs::rename(&part, &target).map_err(|e| Error::io("rename to", &target, e))?;
    let all = rounds(folder)?;
    let (old, kept) = all.split_at(all.len().saturating_sub(keep.max(1)));
    let needed = kept.iter().map(|(_, path)| Ok(meta_of(path)?.clients)).collect::<Result<Vec<_>>>()?;
    for (_, path) in old {
        // One that cannot be read names no files; it goes all the same.
        let gone = meta_of(path).map(|meta| meta.clients).unwrap_or_default();
        remove(path)?;
        clients.forget(&gone, &needed.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The newest checkpoint, if there is one: its round and files.
pub fn latest(folder: &Path) -> Result<Option<(usize, Files)>> {
    Ok(latest_with(folder)?.map(|(round, files, _)| (round, files)))
}

/// As [`latest`], with the files of what clients keep.
pub fn latest_with(folder: &Path) -> Result<Option<(usize, Files, Index)>> {
    match rounds(folder)?.pop() {
        None => Ok(None),
        Some((_, path)) => load(&path).map(Some),
    }
}

fn meta_of(path: &Path) -> Result<Meta> {
    let file = path.join("meta.json");
    let value = directory::read_json(&file)?;
    directory::refuse_newer(value.get("schema").and_then(serde_json::Value::as_i64), &file)?;
    serde_json::from_value(value).map_err(|e| Error::data(format!("{}: {e}", file.display())))
}

fn load(path: &Path) -> Result<(usize, Files, Index)> {
    let meta = meta_of(path)?;
    let mut files = Files::new();
    for (name, digest) in &meta.digests {
        let file = path.join(name);
        if fsx::sha256_file(&file)? != *digest {
            return Err(Error::data(format!("{} does not have the digest that meta.json gives", file.display()))
                .hint(format!("delete {} to go on from the checkpoint before it", path.display())));
        }
        files.insert(name.trim_end_matches(".safetensors").to_string(), state::load(&file)?);
    }
    Ok((meta.round, files, meta.clients))
}

/// Finished checkpoints by round.
fn rounds(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let number = |path: &PathBuf| path.file_name()?.to_str()?.strip_prefix("round-")?.parse::<usize>().ok();
    let mut found: Vec<(usize, PathBuf)> =
        fsx::list(folder)?.into_iter().filter_map(|path| Some((number(&path)?, path))).collect();
    found.sort();
    Ok(found)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::nn::{Layout, Role};

    fn files(value: f32) -> Files {
        let mut layout = Layout::default();
        layout.push("w", &[2], Role::Weight).unwrap();
        let params = Params::new(Arc::new(layout), vec![value; 2]).unwrap();
        Files::from([("model".to_string(), BTreeMap::from([("model".to_string(), params)]))])
    }

    #[test]
    fn the_newest_is_read_old_ones_go_and_a_torn_one_is_never_seen() {
        let dir = tempfile::tempdir().unwrap();
        assert!(latest(dir.path()).unwrap().is_none());
        for round in [10, 20, 30] {
            save(dir.path(), round, &files(round as f32), 2).unwrap();
        }
        std::fs::create_dir(dir.path().join(".part-round-000040")).unwrap();
        let (round, found) = latest(dir.path()).unwrap().unwrap();
        assert_eq!((round, found["model"]["model"].data()[0]), (30, 30.0));
        assert_eq!(rounds(dir.path()).unwrap().len(), 2);
    }

    #[test]
    fn a_damaged_checkpoint_is_refused_with_the_way_out() {
        let dir = tempfile::tempdir().unwrap();
        save(dir.path(), 1, &files(1.0), 2).unwrap();
        std::fs::write(dir.path().join("round-000001/model.safetensors"), b"junk").unwrap();
        let e = latest(dir.path()).unwrap_err().to_string();
        assert!(e.contains("digest") && e.contains("round-000001"), "{e}");
    }
}
