//! `times.jsonl`: what may differ between equal runs: seconds, time of day, memory.

use std::path::Path;
use std::time::SystemTime;

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};

use super::Records;
use crate::error::Result;
use crate::exec;

/// The open file.
pub struct Times(Records);

impl Times {
    /// Opens the file of the run in `dir`, without what `stage` wrote from round `from` on.
    pub fn open(dir: &Path, stage: &str, from: usize) -> Result<Self> {
        let mut records = Records::open(&dir.join("times.jsonl"))?;
        records.cut(stage, from)?;
        Ok(Times(records))
    }

    /// Appends a record of a round (an epoch in stage 1): `figures` in seconds, when it ended (`at`, RFC 3339 in UTC),
    /// and the most memory that the process has held until then (`peak_memory`, bytes, where the system tells).
    pub fn add(&mut self, stage: &str, round: usize, figures: &[(&str, f64)]) -> Result<()> {
        let mut record = Map::new();
        record.insert("stage".into(), stage.into());
        record.insert("round".into(), round.into());
        record.insert("split".into(), "time".into());
        record.extend(figures.iter().map(|(name, seconds)| ((*name).to_string(), json!(seconds))));
        record.insert("at".into(), now().into());
        record.insert("peak_memory".into(), json!(exec::peak_memory()));
        self.0.append(&Value::Object(record))
    }
}

/// The time of day, as `2026-11-27T10:45:59Z`.
pub fn now() -> String {
    DateTime::<Utc>::from(SystemTime::now()).to_rfc3339_opts(SecondsFormat::Secs, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_says_when_how_long_and_how_much_memory() {
        let dir = tempfile::tempdir().unwrap();
        let mut times = Times::open(dir.path(), "finetune", 1).unwrap();
        times.add("finetune", 1, &[("seconds", 0.5), ("evaluation", 0.25)]).unwrap();
        times.add("finetune", 2, &[("seconds", 0.75)]).unwrap();
        drop(times);
        drop(Times::open(dir.path(), "finetune", 2).unwrap());
        let records = Records::read(&dir.path().join("times.jsonl")).unwrap();
        assert_eq!(records.len(), 1, "what a stopped run wrote past its checkpoint is cut");
        assert_eq!((&records[0]["seconds"], &records[0]["evaluation"]), (&json!(0.5), &json!(0.25)));
        let at = DateTime::parse_from_rfc3339(records[0]["at"].as_str().unwrap()).unwrap();
        assert!(at <= Utc::now() && Utc::now() - at.to_utc() < chrono::TimeDelta::minutes(5), "{at}");
        if cfg!(target_os = "linux") {
            assert!(records[0]["peak_memory"].as_u64().unwrap() > 1 << 20);
        }
    }
}
