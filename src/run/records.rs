//! `metrics.jsonl`: one record a line, written as it happens, cut back exactly when a run resumes. TensorBoard's event
//! file beside it, where there is one, follows.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::tensorboard::Board;
use crate::error::{Error, Result};
use crate::fsx;

/// The open record file.
pub struct Records {
    path: PathBuf,
    file: File,
    board: Option<Board>,
}

impl Records {
    /// Opens the file; a torn last line is cut off.
    pub fn open(path: &Path) -> Result<Self> {
        if path.exists() {
            rewrite(path, |_| true)?;
        }
        let file = append(path)?;
        Ok(Records { path: path.to_path_buf(), file, board: board(path)? })
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
        self.file = append(&self.path)?;
        self.board = board(&self.path)?;
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
        fsx::append_line(&mut self.file, &self.path, &record.to_string())?;
        self.board.as_mut().map_or(Ok(()), |board| board.add(record))
    }

    /// All records, in order.
    pub fn read(path: &Path) -> Result<Vec<Value>> {
        let text = fsx::read_text(path)?;
        let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
        lines
            .map(|(i, line)| {
                serde_json::from_str(line).map_err(|e| Error::data(format!("{}:{}: {e}", path.display(), i + 1)))
            })
            .collect()
    }
}

/// The event file beside the records, holding what they hold.
fn board(path: &Path) -> Result<Option<Board>> {
    Board::beside(path, || Records::read(path))
}

fn append(path: &Path) -> Result<File> {
    OpenOptions::new().create(true).append(true).open(path).map_err(|e| Error::io("open", path, e))
}

fn rewrite(path: &Path, keep: impl Fn(&Value) -> bool) -> Result<()> {
    let text = fsx::read_text(path)?;
    let mut kept = String::new();
    for line in text.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let Ok(record) = serde_json::from_str::<Value>(line) else { continue };
        if keep(&record) {
            kept.push_str(line);
        }
    }
    if kept != text { fsx::write_atomic(path, kept.as_bytes()) } else { Ok(()) }
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
}
