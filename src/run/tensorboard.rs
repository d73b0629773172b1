//! TensorBoard's event file beside `metrics.jsonl`: the same figures, one event a record.
//!
//! The file is a sequence of TFRecords, each the length of an `Event` message, its masked CRC-32C, the message, and its
//! masked CRC-32C. Of TensorFlow's messages four fields are needed: `Event { wall_time = 1, step = 2, file_version = 3,
//! summary = 5 }`, `Summary { value = 1 }` and `Value { tag = 1, simple_value = 2 }`.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::fsx;

/// The name that TensorBoard looks for.
pub const FILE: &str = "events.out.tfevents.fedllava";

/// The open event file of a run.
pub struct Board {
    path: PathBuf,
    file: File,
}

impl Board {
    /// Begins the event file of a run that has none, so that its records are mirrored from now on.
    pub fn begin(dir: &Path) -> Result<()> {
        let path = dir.join(FILE);
        if path.exists() { Ok(()) } else { fsx::write_atomic(&path, &frame(&version(), b"")) }
    }

    /// The event file beside `metrics`, where there is one, holding exactly the `records` there are.
    pub fn beside(metrics: &Path, records: impl FnOnce() -> Result<Vec<Value>>) -> Result<Option<Self>> {
        let path = metrics.with_file_name(FILE);
        if !metrics.ends_with("metrics.jsonl") || !path.exists() {
            return Ok(None);
        }
        let records = records()?;
        if frames(&fsx::read(&path)?) != Some(records.len() + 1) {
            let start = frame(&version(), b"");
            let all = records.iter().fold(start, |all, record| frame(&event(record), &all));
            fsx::write_atomic(&path, &all)?;
        }
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io("open", &path, e))?;
        Ok(Some(Board { path, file }))
    }

    /// Appends a record's figures.
    pub fn add(&mut self, record: &Value) -> Result<()> {
        let bytes = frame(&event(record), b"");
        self.file.write_all(&bytes).map_err(|e| Error::io("append to", &self.path, e))
    }
}

/// `before` with one TFRecord more.
fn frame(message: &[u8], before: &[u8]) -> Vec<u8> {
    let length = (message.len() as u64).to_le_bytes();
    let parts = [before, &length, &masked(&length), message, &masked(message)];
    parts.concat()
}

/// TFRecord's masked CRC-32C.
fn masked(bytes: &[u8]) -> [u8; 4] {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

/// How many whole TFRecords the bytes are; none where they are torn.
fn frames(mut bytes: &[u8]) -> Option<usize> {
    let mut count = 0;
    while !bytes.is_empty() {
        let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let next = usize::try_from(length).ok()?.checked_add(16)?;
        bytes = bytes.get(next..)?;
        count += 1;
    }
    Some(count)
}

fn version() -> Vec<u8> {
    let mut message = wall_time();
    bytes_field(3, b"brain.Event:2", &mut message);
    message
}

/// A record's figures by `stage/split/name`, at its round.
fn event(record: &Value) -> Vec<u8> {
    let text = |key: &str| record[key].as_str().unwrap_or_default();
    let mut summary = Vec::new();
    for (name, value) in record.as_object().into_iter().flatten().filter(|(name, _)| *name != "round") {
        let Some(figure) = value.as_f64() else { continue };
        let mut one = Vec::new();
        bytes_field(1, format!("{}/{}/{name}", text("stage"), text("split")).as_bytes(), &mut one);
        one.push(2 << 3 | 5);
        one.extend((figure as f32).to_le_bytes());
        bytes_field(1, &one, &mut summary);
    }
    let mut message = wall_time();
    message.push(2 << 3);
    varint(record["round"].as_u64().unwrap_or(0), &mut message);
    bytes_field(5, &summary, &mut message);
    message
}

/// Field 1 of an event: seconds since 1970, now.
fn wall_time() -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64());
    let mut message = vec![1 << 3 | 1];
    message.extend(now.to_le_bytes());
    message
}

fn bytes_field(number: u8, value: &[u8], message: &mut Vec<u8>) {
    message.push(number << 3 | 2);
    varint(value.len() as u64, message);
    message.extend(value);
}

fn varint(mut value: u64, message: &mut Vec<u8>) {
    while value >= 0x80 {
        message.push(value as u8 | 0x80);
        value >>= 7;
    }
    message.push(value as u8);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::run::Records;

    #[test]
    fn the_checksum_is_masked() {
        assert_eq!(crc32c::crc32c(b"123456789"), 0xe306_9283, "RFC 3720");
        // 0xe3069283 rotated right by 15, plus 0xa282ead8.
        assert_eq!(u32::from_le_bytes(masked(b"123456789")), 0xc78a_b0e5);
    }

    #[test]
    fn an_event_has_a_value_for_every_figure() {
        let record = json!({ "stage": "s", "round": 300, "split": "t", "loss": 1.0, "none": null });
        let message = event(&record);
        let mut want = vec![0x10, 0xac, 0x02, 0x2a, 17, 0x0a, 15, 0x0a, 8];
        want.extend(b"s/t/loss");
        want.push(0x15);
        want.extend(1.0f32.to_le_bytes());
        assert_eq!(message[9..], want, "step 300, then one value");
    }

    #[test]
    fn the_events_follow_the_records_through_a_cut_and_a_torn_end() {
        let dir = tempfile::tempdir().unwrap();
        let (metrics, events) = (dir.path().join("metrics.jsonl"), dir.path().join(FILE));
        let count = || frames(&fsx::read(&events).unwrap());
        let mut plain = Records::open(&metrics).unwrap();
        plain.add("finetune", 1, "train", &[("loss", 2.0)]).unwrap();
        assert!(!events.exists(), "nobody asked for one");
        Board::begin(dir.path()).unwrap();
        let mut records = Records::open(&metrics).unwrap();
        records.add("finetune", 2, "train", &[("loss", 1.0)]).unwrap();
        records.add("finetune", 3, "train", &[("loss", 0.5)]).unwrap();
        assert_eq!(count(), Some(4), "the version and three records");
        records.cut("finetune", 2).unwrap();
        assert_eq!(count(), Some(2));
        records.add("finetune", 2, "train", &[("loss", 1.0)]).unwrap();
        assert_eq!(count(), Some(3));
        let mut torn = fsx::read(&events).unwrap();
        torn.pop();
        std::fs::write(&events, torn).unwrap();
        assert_eq!(count(), None);
        drop(Records::open(&metrics).unwrap());
        assert_eq!(count(), Some(3));
    }
}
