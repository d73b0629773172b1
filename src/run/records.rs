//! `metrics.jsonl`: one record a line, written as it happens, cut back exactly when a run resumes. TensorBoard's event
//! file beside it, where there is one, follows. `metrics.seal` holds the length and the digest of what was there at the
//! last checkpoint or finished stage: whoever reads the records asks it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::tensorboard::Board;
use crate::error::{Error, Result};
use crate::fsx::{self, bound};

/// What to do about records that are not whole.
const BACK: &str = "bring it back from a copy, or delete the run's directory to begin it anew";

/// The open record file.
pub struct Records {
    path: PathBuf,
    file: File,
    /// Of what the file holds.
    digest: fsx::Growing,
    bytes: usize,
    board: Option<Board>,
}

impl Records {
    /// Opens the file; a torn last line is cut off. Records that are not those that were sealed are refused.
    pub fn open(path: &Path) -> Result<Self> {
        prove(path)?;
        if path.exists() {
            rewrite(path, |_| true)?;
        }
        Self::opened(path)
    }

    fn opened(path: &Path) -> Result<Self> {
        let file = fsx::append(path)?;
        let text = fsx::read(path)?;
        let mut digest = fsx::Growing::default();
        digest.update(&text);
        Ok(Records { path: path.to_path_buf(), file, digest, bytes: text.len(), board: board(path)? })
    }

    /// Writes what is there to the disk and seals it: before anything that relies on it. Records that are gone from their
    /// place, or a run that was moved or removed while it went on, are an error: half of it would be there, and half here.
    pub fn seal(&mut self) -> Result<()> {
        if !fsx::is_at(&self.file, &self.path) {
            return Err(Error::data(format!("{} is not the file that this run writes", self.path.display()))
                .hint("was the run's folder moved or removed meanwhile? Where it is whole the same command goes on"));
        }
        self.file.sync_data().map_err(|e| Error::io("write", &self.path, e))?;
        let seal = json!({ "bytes": self.bytes, "sha256": self.digest.hex() });
        fsx::write_atomic(&seal_of(&self.path), format!("{seal}\n").as_bytes())
    }

    /// Refuses records with gaps: each of a stage's rounds up to `last` has one.
    pub fn require(&self, stage: &str, last: usize) -> Result<()> {
        let of = |r: &Value| r["round"].as_u64().filter(|_| r["stage"].as_str() == Some(stage));
        let found: BTreeSet<u64> = Self::read(&self.path)?.iter().filter_map(of).collect();
        let missing: Vec<String> = (1..=last as u64).filter(|r| !found.contains(r)).map(|r| r.to_string()).collect();
        let Some(first) = missing.first() else { return Ok(()) };
        let (path, n) = (self.path.display(), missing.len());
        let named =
            if n > 1 { format!("rounds {first} to {} ({n})", missing[n - 1]) } else { format!("round {first}") };
        Err(Error::data(format!("{path} has no record of {stage} {named}, and a checkpoint of round {last} is there"))
            .hint(BACK))
    }

    /// Drops the records of `stage` from round `from` on: what a stopped run wrote past its last checkpoint.
    pub fn cut(&mut self, stage: &str, from: usize) -> Result<()> {
        self.retain(|record| {
            record.get("stage").and_then(Value::as_str) != Some(stage)
                || record.get("round").and_then(Value::as_u64).is_none_or(|r| r < from as u64)
        })
    }

    /// Drops the records that `keep` does not want.
    pub fn retain(&mut self, keep: impl Fn(&Value) -> bool) -> Result<()> {
        rewrite(&self.path, keep)?;
        *self = Self::opened(&self.path)?;
        Ok(())
    }

    /// Appends a record: stage, round and split first, then the figures by name.
    pub fn add(&mut self, stage: &str, round: usize, split: &str, figures: &[(&str, f64)]) -> Result<()> {
        let mut record = Map::new();
        record.insert("stage".into(), stage.into());
        record.insert("round".into(), round.into());
        record.insert("split".into(), split.into());
        for (name, value) in figures {
            record.insert((*name).into(), serde_json::Number::from_f64(*value).map_or(Value::Null, Value::Number));
        }
        self.append(&Value::Object(record))
    }

    /// Appends a record as it is.
    pub fn append(&mut self, record: &Value) -> Result<()> {
        let line = record.to_string();
        fsx::append_line(&mut self.file, &self.path, &line)?;
        self.digest.update(line.as_bytes());
        self.digest.update(b"\n");
        self.bytes += line.len() + 1;
        self.board.as_mut().map_or(Ok(()), |board| board.add(record))
    }

    /// All records, in order; a last line that is being written is left out. Those that are not what was sealed are
    /// refused.
    pub fn read(path: &Path) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        Self::each(path, |record| {
            all.push(record);
            Ok(())
        })?;
        Ok(all)
    }

    /// Hands every record on, as [`Records::read`], one at a time: thousands of rounds are never all held.
    pub fn each(path: &Path, mut take: impl FnMut(Value) -> Result<()>) -> Result<()> {
        prove(path)?;
        let (mut file, mut line) = (BufReader::new(fsx::open(path)?), Vec::new());
        for n in 1.. {
            line.clear();
            let read = file.by_ref().take(bound::TEXT).read_until(b'\n', &mut line);
            if read.map_err(|e| Error::io("read", path, e))? == 0 {
                break;
            }
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(&line) {
                Ok(record) => take(record)?,
                Err(_) if !line.ends_with(b"\n") => break,
                Err(e) => return Err(Error::data(format!("{}:{n}: no record: {e}", path.display())).hint(BACK)),
            }
        }
        Ok(())
    }
}

/// The event file beside the records, holding what they hold.
fn board(path: &Path) -> Result<Option<Board>> {
    Board::beside(path, || Records::read(path))
}

fn seal_of(path: &Path) -> PathBuf {
    path.with_extension("seal")
}

/// Refuses a record file whose sealed part is not what was sealed.
pub fn prove(path: &Path) -> Result<()> {
    let seal = seal_of(path);
    if !seal.exists() {
        return Ok(());
    }
    let said = super::directory::read_json(&seal)?;
    let (bytes, sha256) = (said["bytes"].as_u64().unwrap_or(u64::MAX), said["sha256"].as_str());
    let whole = bytes <= std::fs::metadata(path).map_or(0, |facts| facts.len());
    if whole && Some(fsx::sha256_first(path, bytes)?.as_str()) == sha256 {
        return Ok(());
    }
    let state = match whole {
        _ if !path.exists() => "is gone",
        false => "is shorter than it was",
        true => "is not what was written",
    };
    Err(Error::data(format!("{} {state}: {} knows it with {bytes} bytes", path.display(), seal.display())).hint(BACK))
}

/// Keeps the lines that `keep` wants; a torn last one goes.
fn rewrite(path: &Path, keep: impl Fn(&Value) -> bool) -> Result<()> {
    let text = fsx::read_text(path)?;
    let mut kept = String::new();
    for (i, line) in text.split_inclusive('\n').filter(|line| line.ends_with('\n')).enumerate() {
        let record: Value = serde_json::from_str(line)
            .map_err(|e| Error::data(format!("{}:{}: no record: {e}", path.display(), i + 1)).hint(BACK))?;
        if keep(&record) {
            kept.push_str(line);
        }
    }
    if kept == text {
        return Ok(());
    }
    // A seal of what is rewritten would say that it is damaged, should this be the last that the process does.
    match std::fs::remove_file(seal_of(path)) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &seal_of(path), e)),
        _ => fsx::write_atomic(path, kept.as_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_line_and_records_past_the_checkpoint_are_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut records = Records::open(&path).unwrap();
        for round in 1..=3 {
            records.add("finetune", round, "test", &[("accuracy", 0.5)]).unwrap();
        }
        records.add("pretrain", 9, "pool", &[("loss", f64::NAN)]).unwrap();
        drop(records);
        let mut text = std::fs::read_to_string(&path).unwrap();
        text.push_str("{\"stage\":\"finetune\",\"rou");
        std::fs::write(&path, text).unwrap();
        let mut records = Records::open(&path).unwrap();
        records.cut("finetune", 3).unwrap();
        let lines = Records::read(&path).unwrap();
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[1]["round"], 2);
        assert!(lines[2]["loss"].is_null());
    }

    #[test]
    fn sealed_records_that_changed_shrank_or_went_are_refused_and_later_lines_are_free() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut records = Records::open(&path).unwrap();
        for round in 1..=2 {
            records.add("finetune", round, "train", &[("loss", 0.5)]).unwrap();
        }
        records.seal().unwrap();
        records.add("finetune", 3, "train", &[("loss", 0.25)]).unwrap();
        let whole = std::fs::read_to_string(&path).unwrap();
        assert_eq!(Records::read(&path).unwrap().len(), 3);
        let refused = |text: &str| {
            std::fs::write(&path, text).unwrap();
            let e = Records::read(&path).unwrap_err().to_string();
            assert_eq!(Records::open(&path).err().unwrap().to_string(), e);
            e
        };
        assert!(refused(&whole.replacen("0.5", "0.6", 1)).contains("is not what was written"));
        assert!(refused(&whole[..20]).contains("is shorter"));
        std::fs::remove_file(&path).unwrap();
        assert!(Records::read(&path).unwrap_err().to_string().contains("is gone"));
        std::fs::write(&path, whole.replace("0.25", "0.75")).unwrap();
        let mut records = Records::open(&path).unwrap();
        records.cut("finetune", 2).unwrap();
        assert!(!seal_of(&path).exists(), "no seal of what is no more");
        records.seal().unwrap();
        assert_eq!(Records::read(&path).unwrap().len(), 1);
    }

    #[test]
    fn a_gap_and_a_broken_line_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut records = Records::open(&path).unwrap();
        for round in [1, 2, 4] {
            records.add("finetune", round, "train", &[]).unwrap();
        }
        records.require("finetune", 2).unwrap();
        let e = records.require("finetune", 6).unwrap_err().to_string();
        assert!(e.contains("no record of finetune rounds 3 to 6 (3)"), "{e}");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replacen("\"round\":2", "\"round\"2", 1)).unwrap();
        let e = Records::open(&path).err().unwrap().to_string();
        assert!(e.contains("metrics.jsonl:2: no record"), "{e}");
    }
}
