//! What is said about images: caption records, one JSON object a line.
//!
//! ```json
//! {"image": "0000000017", "digest": "sha256 of the image file", "captions": ["a brown dog on grass"],
//!  "prompt": "…", "model": "…", "revision": "…", "decoding": {"temperature": 0.2}}
//! ```
//!
//! Only `image` (an item's id, or its path in the pool) and `caption` or `captions` must be there. Where a digest is
//! there, the image must have it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fsx;

/// One line of a caption file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Caption {
    /// Id or relative path of the image in its pool.
    pub image: String,
    /// SHA-256 of the image file's bytes, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// What is said about the image.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captions: Vec<String>,
    /// The same where there is only one; read into `captions`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption: Option<String>,
    /// What the captioner was asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prompt: Option<String>,
    /// Who answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Which revision of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// How it was decoded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decoding: Option<serde_json::Value>,
    /// Whatever else the line says, kept.
    #[serde(flatten)]
    pub more: BTreeMap<String, serde_json::Value>,
}

/// A caption file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Captions {
    /// The records in file order.
    pub records: Vec<Caption>,
    /// SHA-256 of the file.
    pub digest: String,
}

impl Captions {
    /// Reads a JSONL file; a line that is no record is named by its number.
    pub fn read(path: &Path) -> Result<Captions> {
        let text = fsx::read_text(path)?;
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let record = |(n, line): (usize, &str)| {
            let wrong = |what: String| Error::data(format!("{} line {}: {what}", path.display(), n + 1));
            let mut record: Caption = serde_json::from_str(line).map_err(|e| wrong(e.to_string()))?;
            record.captions.extend(record.caption.take());
            record.captions.retain(|c| !c.trim().is_empty());
            match record.captions.is_empty() {
                true => Err(wrong(format!("image {} has no caption", record.image))),
                false => Ok(record),
            }
        };
        Ok(Captions { records: lines.map(record).collect::<Result<_>>()?, digest: fsx::sha256(text.as_bytes()) })
    }

    /// Writes the records, whole or not at all.
    pub fn save(records: &[Caption], path: &Path) -> Result<()> {
        let mut text = String::new();
        for record in records {
            text += &serde_json::to_string(record).map_err(|e| Error::defect(format!("caption: {e}")))?;
            text.push('\n');
        }
        fsx::write_atomic(path, text.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Captions> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("captions.jsonl");
        std::fs::write(&path, text).unwrap();
        Captions::read(&path)
    }

    #[test]
    fn one_caption_or_several_are_read_and_written_back() {
        let got = read("{\"image\": \"a\", \"caption\": \"x\", \"model\": \"m\", \"score\": 1}\n\n{\"image\": \"b\", \"captions\": [\"y\", \"z\"]}\n")
            .unwrap();
        assert_eq!(got.records[0].captions, ["x"]);
        assert_eq!(got.records[1].captions, ["y", "z"]);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("again.jsonl");
        Captions::save(&got.records, &path).unwrap();
        let again = Captions::read(&path).unwrap();
        assert_eq!(again.records, got.records);
        assert_eq!(again.digest, fsx::sha256_file(&path).unwrap());
    }

    #[test]
    fn a_broken_or_empty_record_is_named_by_its_line() {
        let e = read("{\"image\": \"a\", \"caption\": \"x\"}\n{\"image\": \"b\"}\n").unwrap_err().to_string();
        assert!(e.contains("line 2: image b has no caption"), "{e}");
        assert!(read("{\"caption\": \"x\"}").unwrap_err().to_string().contains("line 1: missing field `image`"));
    }
}
