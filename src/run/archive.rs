//! A finished run in one file: all that it was made from and all that it gave, but neither data nor models.
//!
//! A `tar` packed by zstd. `archive.json` comes first: SHA-256 of every other file, and the program that wrote the run. The
//! same run gives the same bytes.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::SCHEMA;
use super::directory::{prove, read_json, refuse_newer};
use crate::error::{Error, Result};
use crate::fsx;

/// What an archive may hold, in the order in which a run makes it.
pub const CONTENTS: [&str; 10] = [
    "config.toml",
    "manifest.json",
    "split.json",
    "overlaps.json",
    "pretrain/done.json",
    "finetune/done.json",
    "align/done.json",
    "metrics.jsonl",
    "personal.json",
    "eval.json",
];
/// The table of contents.
const INDEX: &str = "archive.json";
/// Most bytes of one file in an archive: more is no run of ours.
const MOST: u64 = 1 << 30;
/// How hard zstd tries.
const LEVEL: i32 = 19;

/// What `archive.json` says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Index {
    schema: u32,
    /// The run's directory, as it was.
    run: String,
    /// File → SHA-256.
    files: BTreeMap<String, String>,
}

/// An archive that was read: every file has its digest.
pub struct Archive {
    /// The run's directory, as it was.
    pub run: String,
    /// Name → contents.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// Writes the archive of a finished run that is as it finished; gives the names of what is in it.
pub fn write(run: &Path, out: &Path) -> Result<Vec<&'static str>> {
    let manifest = run.join("manifest.json");
    if !manifest.exists() || read_json(&manifest)?["complete"].as_bool() != Some(true) {
        return Err(Error::input(format!("{} holds no finished run", run.display()))
            .hint("name a run's directory; `fedllava resume` finishes a stopped one"));
    }
    prove(run)?;
    let mut files = Vec::new();
    for name in CONTENTS.into_iter().filter(|name| run.join(name).exists()) {
        files.push((name, fsx::read(&run.join(name))?));
    }
    let digests = files.iter().map(|(name, bytes)| ((*name).to_string(), fsx::sha256(bytes))).collect();
    let index = Index { schema: SCHEMA, run: run.display().to_string(), files: digests };
    let index = serde_json::to_vec_pretty(&index).map_err(|e| Error::defect(format!("{INDEX}: {e}")))?;
    let failed = |e: std::io::Error| Error::io("pack", out, e);
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, INDEX, &index).map_err(failed)?;
    files.iter().try_for_each(|(name, bytes)| append(&mut tar, name, bytes)).map_err(failed)?;
    let packed = zstd::encode_all(&tar.into_inner().map_err(failed)?[..], LEVEL).map_err(failed)?;
    fsx::write_atomic(out, &packed)?;
    Ok(files.into_iter().map(|(name, _)| name).collect())
}

fn append(tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, name, bytes)
}

impl Archive {
    /// Reads an archive; what is not in its table of contents, or not as it says, is refused.
    pub fn read(path: &Path) -> Result<Archive> {
        let broken = |e: &dyn std::fmt::Display| {
            Error::data(format!("{}: {e}", path.display())).hint("an archive is what `fedllava archive` wrote")
        };
        let packed = fsx::read(path)?;
        let unpacked = zstd::Decoder::new(&packed[..]).map_err(|e| broken(&e))?;
        let mut files = BTreeMap::new();
        for entry in tar::Archive::new(unpacked).entries().map_err(|e| broken(&e))? {
            let mut entry = entry.map_err(|e| broken(&e))?;
            let name = entry.path().map_err(|e| broken(&e))?.to_string_lossy().into_owned();
            if name != INDEX && !CONTENTS.contains(&name.as_str()) {
                return Err(broken(&format!("{name} is no part of a run's archive")));
            }
            if entry.size() > MOST {
                return Err(broken(&format!("{name} has {} bytes", entry.size())));
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).map_err(|e| broken(&e))?;
            if files.insert(name.clone(), bytes).is_some() {
                return Err(broken(&format!("{name} is in it twice")));
            }
        }
        let index = files.remove(INDEX).ok_or_else(|| broken(&format!("no {INDEX} in it")))?;
        let value: Value = serde_json::from_slice(&index).map_err(|e| broken(&format!("{INDEX}: {e}")))?;
        refuse_newer(value["schema"].as_i64(), path)?;
        let index: Index = serde_json::from_value(value).map_err(|e| broken(&format!("{INDEX}: {e}")))?;
        let is: BTreeMap<String, String> = files.iter().map(|(n, b)| (n.clone(), fsx::sha256(b))).collect();
        for name in index.files.keys().chain(is.keys()) {
            match (index.files.get(name), is.get(name)) {
                (Some(said), Some(is)) if said == is => {}
                (Some(_), Some(_)) => return Err(broken(&format!("{name} was changed since it was packed"))),
                (Some(_), None) => return Err(broken(&format!("{name} is missing"))),
                _ => return Err(broken(&format!("{name} is not in its table of contents"))),
            }
        }
        Ok(Archive { run: index.run, files })
    }

    /// A file's text.
    pub fn text(&self, name: &str) -> Result<String> {
        let bytes = self.files.get(name).ok_or_else(|| Error::data(format!("the archive has no {name}")))?;
        String::from_utf8(bytes.clone()).map_err(|_| Error::data(format!("the archive's {name} is no text")))
    }

    /// A JSON file.
    pub fn json(&self, name: &str) -> Result<Value> {
        serde_json::from_str(&self.text(name)?).map_err(|e| Error::data(format!("the archive's {name}: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(dir: &Path) {
        std::fs::create_dir_all(dir.join("finetune")).unwrap();
        for (name, text) in [
            ("config.toml", "schema = 1\n"),
            ("manifest.json", "{\"complete\": true}"),
            ("eval.json", "{}"),
            ("finetune/done.json", "{\"digest\": \"d\"}"),
            ("finetune/model.safetensors", "no model goes into it"),
        ] {
            std::fs::write(dir.join(name), text).unwrap();
        }
    }

    #[test]
    fn an_archive_comes_back_whole_and_twice_the_same_bytes() {
        let dir = tempfile::tempdir().unwrap();
        run(&dir.path().join("r"));
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let names = write(&dir.path().join("r"), &a).unwrap();
        assert_eq!(names, ["config.toml", "manifest.json", "finetune/done.json", "eval.json"]);
        write(&dir.path().join("r"), &b).unwrap();
        assert_eq!(fsx::read(&a).unwrap(), fsx::read(&b).unwrap());
        let archive = Archive::read(&a).unwrap();
        assert_eq!(archive.text("config.toml").unwrap(), "schema = 1\n");
        assert_eq!(archive.json("manifest.json").unwrap()["complete"], true);
    }

    #[test]
    fn what_is_no_archive_or_was_changed_or_is_not_finished_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, "text").unwrap();
        assert!(Archive::read(&path).is_err());
        let pack = |files: &[(&str, &[u8])]| {
            let mut tar = tar::Builder::new(Vec::new());
            files.iter().for_each(|(name, bytes)| append(&mut tar, name, bytes).unwrap());
            std::fs::write(&path, zstd::encode_all(&tar.into_inner().unwrap()[..], 1).unwrap()).unwrap();
            Archive::read(&path).err().unwrap().to_string()
        };
        let index =
            |digest: &str| format!("{{\"schema\": 1, \"run\": \"r\", \"files\": {{\"eval.json\": \"{digest}\"}}}}");
        let other = index(&fsx::sha256(b"{}"));
        assert!(pack(&[("archive.json", other.as_bytes()), ("eval.json", b"{ }")]).contains("was changed"));
        assert!(pack(&[("archive.json", other.as_bytes())]).contains("missing"));
        assert!(pack(&[("eval.json", b"{}")]).contains("no archive.json"));
        assert!(pack(&[("archive.json", other.as_bytes()), ("bin/sh", b"")]).contains("no part of a run"));
        let twice: [(&str, &[u8]); 2] = [("eval.json", b"{}"), ("eval.json", b"{}")];
        assert!(pack(&twice).contains("twice"));
        let newer = other.replace("\"schema\": 1", "\"schema\": 99");
        assert!(pack(&[("archive.json", newer.as_bytes())]).contains("schema 99"));
        run(&dir.path().join("r"));
        std::fs::write(dir.path().join("r/manifest.json"), "{\"complete\": false}").unwrap();
        assert!(write(&dir.path().join("r"), &path).unwrap_err().to_string().contains("no finished run"));
    }
}
