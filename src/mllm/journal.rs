//! A caption file that grows line by line and survives any kill: whole lines stay, a torn last one is cut off.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use crate::data::captions::Caption;
use crate::error::{Error, Result};
use crate::fsx;

/// An open caption file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    done: BTreeSet<(String, String)>,
    /// Bytes of a torn last line that were cut off.
    pub repaired: usize,
}

impl Journal {
    /// Opens or makes the file for one writer. `same` checks each record that is there: a file made otherwise is
    /// refused, not mixed with.
    pub fn open(path: &Path, same: impl Fn(&Caption) -> Result<()>) -> Result<Self> {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fsx::create_dir(parent)?;
        }
        let io = |doing: &'static str| move |e| Error::io(doing, path, e);
        let options = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut file = options.map_err(io("open"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::environment(format!("{} is in use by another process", path.display())));
            }
            Err(TryLockError::Error(e)) => return Err(io("lock")(e)),
        }
        let bytes = fsx::read(path)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let mut done = BTreeSet::new();
        for (n, record) in parse(&bytes[..whole], path)?.into_iter().enumerate() {
            let at = || format!("{} record {}", path.display(), n + 1);
            same(&record).map_err(|e| e.context(at()))?;
            if !done.insert((record.image, record.prompt.unwrap_or_default())) {
                return Err(Error::data("the same image and prompt as an earlier one").context(at()));
            }
        }
        file.set_len(whole as u64).map_err(io("shorten"))?;
        file.seek(SeekFrom::Start(whole as u64)).map_err(io("seek in"))?;
        Ok(Journal { path: path.to_path_buf(), file, done, repaired: bytes.len() - whole })
    }

    /// Whether this image has an answer to this prompt.
    pub fn has(&self, image: &str, prompt: &str) -> bool {
        self.done.contains(&(image.to_string(), prompt.to_string()))
    }

    /// Records in it.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.done.is_empty()
    }

    /// Appends records that are not there yet, in one write.
    pub fn append(&mut self, records: Vec<Caption>) -> Result<usize> {
        let mut text = String::new();
        let mut added = 0;
        for record in records {
            let name = (record.image.clone(), record.prompt.clone().unwrap_or_default());
            if self.done.contains(&name) {
                continue;
            }
            text += &serde_json::to_string(&record).map_err(|e| Error::defect(format!("caption: {e}")))?;
            text.push('\n');
            self.done.insert(name);
            added += 1;
        }
        self.file.write_all(text.as_bytes()).map_err(|e| Error::io("append to", &self.path, e))?;
        Ok(added)
    }

    /// Waits until the disk has everything.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io("write", &self.path, e))
    }
}

/// The records of a file, empty answers included, in the order in which they were written.
pub fn read(path: &Path) -> Result<Vec<Caption>> {
    parse(&fsx::read(path)?, path)
}

fn parse(bytes: &[u8], path: &Path) -> Result<Vec<Caption>> {
    let lines = bytes.split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty());
    let record = |(n, line): (usize, &[u8])| {
        let wrong = |e| Error::data(format!("{} line {}: not a caption record: {e}", path.display(), n + 1));
        serde_json::from_slice(line).map_err(wrong)
    };
    lines.map(record).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(image: &str) -> Caption {
        Caption { image: image.into(), caption: Some("a star".into()), prompt: Some("p".into()), ..Caption::default() }
    }

    fn open(path: &Path) -> Result<Journal> {
        Journal::open(path, |_| Ok(()))
    }

    #[test]
    fn cut_at_any_byte_the_file_opens_again_with_its_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("captions.jsonl");
        let mut journal = open(&path).unwrap();
        assert_eq!(journal.append(vec![record("a"), record("b"), record("ü")]).unwrap(), 3);
        drop(journal);
        let bytes = fsx::read(&path).unwrap();
        let ends: Vec<usize> = bytes.iter().enumerate().filter(|(_, b)| **b == b'\n').map(|(i, _)| i + 1).collect();
        for cut in 0..=bytes.len() {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let mut journal = open(&path).unwrap();
            assert_eq!(journal.len(), ends.iter().filter(|e| **e <= cut).count(), "cut at {cut}");
            journal.append(vec![record("a"), record("b"), record("ü")]).unwrap();
            drop(journal);
            assert_eq!(fsx::read(&path).unwrap(), bytes, "cut at {cut}");
        }
    }

    #[test]
    fn a_second_writer_a_double_and_a_foreign_record_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("captions.jsonl");
        let mut journal = open(&path).unwrap();
        journal.append(vec![record("a")]).unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("in use"));
        drop(journal);
        let other = Journal::open(&path, |_| Err(Error::data("made by another model")));
        let e = other.unwrap_err().to_string();
        assert!(e.contains("record 1") && e.contains("another model"), "{e}");
        let line = fsx::read_text(&path).unwrap();
        std::fs::write(&path, line.repeat(2)).unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("record 2"));
        std::fs::write(&path, format!("{{\"image\n{line}")).unwrap();
        assert!(open(&path).unwrap_err().to_string().contains("line 1: not a caption record"));
    }
}
