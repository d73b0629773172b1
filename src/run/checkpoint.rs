//! Checkpoints of named state after a round: whole or not at all, verified when read. The newest *whole* one counts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::clients::{Clients, Index};
use super::{SCHEMA, directory, seal, state};
use crate::error::{Error, Result};
use crate::exec::{Event, Events};
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
    let value = serde_json::to_value(&meta).map_err(|e| Error::defect(format!("meta.json: {e}")))?;
    fsx::write_atomic(&part.join("meta.json"), format!("{:#}\n", seal::seal(&value)).as_bytes())?;
    let target = folder.join(format!("round-{round:06}"));
    remove(&target)?;
    std::fs::rename(&part, &target).map_err(|e| Error::io("rename to", &target, e))?;
    prune(folder, clients, keep)
}

/// Keeps the newest `keep` checkpoints, at least one; what clients keep for the others alone goes with them.
pub fn prune(folder: &Path, clients: &Clients, keep: usize) -> Result<()> {
    let all = rounds(folder)?;
    let (old, kept) = all.split_at(all.len().saturating_sub(keep.max(1)));
    // One that cannot be read names no files.
    let needed: Vec<Index> = kept.iter().filter_map(|(_, path)| Some(meta_of(path).ok()?.clients)).collect();
    for (_, path) in old {
        let gone = meta_of(path).map(|meta| meta.clients).unwrap_or_default();
        remove(path)?;
        clients.forget(&gone, &needed.iter().collect::<Vec<_>>())?;
    }
    Ok(())
}

/// The newest whole checkpoint, if there is one: its round and files. Damaged ones after it are said; where none is
/// whole, the newest's damage is the error.
pub fn latest(folder: &Path, events: &dyn Events) -> Result<Option<(usize, Files)>> {
    Ok(latest_with(folder, &Clients::new(folder), events)?.map(|(round, files, _)| (round, files)))
}

/// As [`latest`], with the files of what clients keep, which must be whole too.
pub fn latest_with(folder: &Path, clients: &Clients, events: &dyn Events) -> Result<Option<(usize, Files, Index)>> {
    let mut damage: Option<Error> = None;
    for (round, path) in rounds(folder)?.into_iter().rev() {
        match load(&path, round, clients) {
            Ok(found) => {
                if let Some(e) = damage {
                    events.on(Event::Warning(&format!("{}: going on from {}", e.message(), path.display())));
                }
                return Ok(Some(found));
            }
            Err(e) => _ = damage.get_or_insert(e.of_kept()),
        }
    }
    damage.map_or(Ok(None), |e| {
        Err(e.hint(format!("no whole checkpoint is left: delete {}, and the stage begins anew", folder.display())))
    })
}

fn meta_of(path: &Path) -> Result<Meta> {
    let file = path.join("meta.json");
    let value = directory::read_json(&file)?;
    directory::refuse_newer(value.get("schema").and_then(serde_json::Value::as_i64), &file)?;
    serde_json::from_value(value).map_err(|e| Error::data(format!("{}: {e}", file.display())))
}

pub(super) fn load(path: &Path, round: usize, clients: &Clients) -> Result<(usize, Files, Index)> {
    let meta = meta_of(path)?;
    if meta.round != round {
        return Err(Error::data(format!("{}: meta.json is of round {}", path.display(), meta.round)));
    }
    clients.prove(&meta.clients)?;
    let mut files = Files::new();
    for (name, digest) in &meta.digests {
        let file = path.join(name);
        if fsx::sha256_file(&file)? != *digest {
            return Err(Error::data(format!("{} does not have the digest that meta.json gives", file.display())));
        }
        files.insert(name.trim_end_matches(".safetensors").to_string(), state::load(&file)?);
    }
    Ok((meta.round, files, meta.clients))
}

/// Finished checkpoints by round.
pub fn rounds(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
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
        assert!(latest(dir.path(), &Heard::default()).unwrap().is_none());
        for round in [10, 20, 30] {
            save(dir.path(), round, &files(round as f32), 2).unwrap();
        }
        std::fs::create_dir(dir.path().join(".part-round-000040")).unwrap();
        let (round, found) = latest(dir.path(), &Heard::default()).unwrap().unwrap();
        assert_eq!((round, found["model"]["model"].data()[0]), (30, 30.0));
        assert_eq!(rounds(dir.path()).unwrap().len(), 2);
    }

    /// Hears warnings.
    #[derive(Default)]
    struct Heard(std::sync::Mutex<Vec<String>>);

    impl Events for Heard {
        fn on(&self, event: Event<'_>) {
            if let Event::Warning(text) = event {
                self.0.lock().unwrap().push(text.to_string());
            }
        }
    }

    #[test]
    fn over_a_damaged_checkpoint_the_whole_one_before_it_is_taken_and_said() {
        let dir = tempfile::tempdir().unwrap();
        let newest = dir.path().join("round-000002");
        let damages: [&dyn Fn(); 4] = [
            &|| std::fs::write(newest.join("model.safetensors"), b"junk").unwrap(),
            &|| std::fs::remove_file(newest.join("model.safetensors")).unwrap(),
            &|| std::fs::write(newest.join("meta.json"), b"{").unwrap(),
            &|| {
                let text = std::fs::read_to_string(newest.join("meta.json")).unwrap();
                std::fs::write(newest.join("meta.json"), text.replace("\"round\": 2", "\"round\": 3")).unwrap();
            },
        ];
        for damage in damages {
            for round in [1, 2] {
                save(dir.path(), round, &files(round as f32), 2).unwrap();
            }
            damage();
            let heard = Heard::default();
            let (round, found) = latest(dir.path(), &heard).unwrap().unwrap();
            assert_eq!((round, found["model"]["model"].data()[0]), (1, 1.0));
            let said = heard.0.into_inner().unwrap();
            assert!(
                said.len() == 1 && said[0].contains("round-000002") && said[0].ends_with("round-000001"),
                "{said:?}"
            );
        }
        // It is written anew over the damaged one.
        save(dir.path(), 2, &files(5.0), 2).unwrap();
        assert_eq!(latest(dir.path(), &Heard::default()).unwrap().unwrap().0, 2);
        std::fs::remove_dir_all(dir.path().join("round-000001")).unwrap();
        std::fs::write(newest.join("model.safetensors"), b"junk").unwrap();
        let e = latest(dir.path(), &Heard::default()).unwrap_err().to_string();
        assert!(e.contains("digest") && e.contains("delete"), "{e}");
    }
}
