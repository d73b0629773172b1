//! What a judge said, kept line by line: a run that is repeated asks nothing twice.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fsx;

/// One verdict.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// SHA-256 of the model's name and of what it was asked.
    pub asked: String,
    /// Of the sample.
    pub id: String,
    /// Who judged.
    pub model: String,
    /// What it said, whole.
    pub said: String,
}

/// An open file of verdicts; a torn last line is cut off when it is opened.
#[derive(Debug)]
pub struct Verdicts {
    path: PathBuf,
    file: File,
    known: BTreeMap<String, Verdict>,
}

impl Verdicts {
    /// Opens or makes the file for one writer.
    pub fn open(path: &Path) -> Result<Verdicts> {
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            fsx::create_dir(parent)?;
        }
        let file = fsx::append(path)?;
        file.try_lock().map_err(|_| Error::environment(format!("{} is in use by another process", path.display())))?;
        let bytes = fsx::read(path)?;
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        let mut known = BTreeMap::new();
        for (n, line) in bytes[..whole].split(|b| *b == b'\n').enumerate().filter(|(_, line)| !line.is_empty()) {
            let wrong = |e| Error::data(format!("{} line {}: not a verdict: {e}", path.display(), n + 1));
            let said: Verdict = serde_json::from_slice(line).map_err(wrong)?;
            known.insert(said.asked.clone(), said);
        }
        file.set_len(whole as u64).map_err(|e| Error::io("shorten", path, e))?;
        Ok(Verdicts { path: path.to_path_buf(), file, known })
    }

    /// What was said when this was asked.
    pub fn get(&self, asked: &str) -> Option<&str> {
        self.known.get(asked).map(|s| s.said.as_str())
    }

    /// Keeps a verdict.
    pub fn keep(&mut self, said: Verdict) -> Result<()> {
        let line = serde_json::to_string(&said).map_err(|e| Error::defect(format!("verdict: {e}")))?;
        self.file.write_all(format!("{line}\n").as_bytes()).map_err(|e| Error::io("append to", &self.path, e))?;
        self.known.insert(said.asked.clone(), said);
        Ok(())
    }
}
