//! What the readers of multimodal sets share: files that may be gzipped, pictures that may not be there, and what is
//! counted.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use unicode_normalization::UnicodeNormalization;

use super::{Sample, Subset};
use crate::data::captions::spelled;
use crate::data::census::{Census, Why};
use crate::data::decode;
use crate::data::gzip::unpacked;
use crate::data::pool::Source;
use crate::error::{Error, Place, Result};
use crate::fsx;

/// A UTF-8 text, unpacked where it is gzipped.
pub fn text(path: &Path) -> Result<String> {
    let bytes = unpacked(path, fsx::read_most(path, fsx::bound::TEXT)?)?;
    fsx::text(bytes).at(|| path.display().to_string())
}

/// A record, or why its text is none; with the place that errors name.
type Placed = (String, Result<Value>);

/// The records of a JSON list, or of a file with one a line. A line that is no JSON is an error; one that holds half a
/// character is none by itself.
pub fn records(path: &Path) -> Result<Vec<Placed>> {
    let text = text(path)?;
    if text.trim_start().starts_with('[') {
        let list: Vec<Value> = fsx::json(&text).at(|| path.display().to_string())?;
        return Ok(list.into_iter().enumerate().map(|(n, v)| (format!("record {}", n + 1), Ok(v))).collect());
    }
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(n, line)| match fsx::json_line(line, n + 1) {
            Err(e) if !e.message().contains("half a character") => Err(e),
            read => Ok((format!("line {}", n + 1), read)),
        })
        .collect::<Result<_>>()
        .at(|| path.display().to_string())
}

/// One record as `T`; the error speaks of JSON and names the place.
pub fn record<T: DeserializeOwned>(place: &str, value: &Value) -> Result<T> {
    fsx::json(&value.to_string()).map_err(|e| {
        let said = e.message().split_once(": ").map_or(e.message(), |(_, m)| m).to_string();
        Error::data(said).context(place)
    })
}

/// The file `name` of a set below `root`, or itself with `.gz`; none where neither is there.
pub fn file(root: &Path, name: &str) -> Option<PathBuf> {
    [root.join(name), root.join(format!("{name}.gz"))].into_iter().find(|p| !name.is_empty() && p.is_file())
}

/// As [`file`], refused where it is not there.
pub fn needed(root: &Path, name: &str, what: &str) -> Result<PathBuf> {
    file(root, name).ok_or_else(|| {
        Error::input(format!("no file {name} below {}", root.display())).hint(format!("{what}; fetch it by hand"))
    })
}

/// A text or a number, as a text: answers and ids come as both.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(untagged)]
pub enum Word {
    /// Nothing.
    #[default]
    None,
    /// A text.
    Text(String),
    /// A whole number.
    Whole(i64),
    /// Another number.
    Number(f64),
}

impl Word {
    /// As it is written; none of nothing.
    pub fn text(&self) -> Option<String> {
        match self {
            Word::None => None,
            Word::Text(text) => Some(text.clone()),
            Word::Whole(n) => Some(n.to_string()),
            Word::Number(n) => Some(n.to_string()),
        }
    }

    /// Whether it is a number.
    pub fn is_number(&self) -> bool {
        matches!(self, Word::Whole(_) | Word::Number(_))
    }
}

/// A part that is being read: its samples, and what is seen of its file.
pub struct Reading {
    census: Census,
    samples: Vec<Sample>,
    ids: BTreeSet<String>,
}

impl Reading {
    /// Of a file.
    pub fn new(path: &Path) -> Self {
        Reading {
            census: Census::new(path.display().to_string(), "samples"),
            samples: Vec::new(),
            ids: BTreeSet::new(),
        }
    }

    /// A record's value; one whose text is none is passed over.
    pub fn kept(&mut self, value: Result<Value>) -> Option<Value> {
        value.map_err(|e| self.pass(Why::NoText, e.message())).ok()
    }

    /// Counts a record that is passed over.
    pub fn pass(&mut self, why: Why, name: impl Into<String>) {
        self.census.pass(why, name);
    }

    /// Counts a record that is taken, but is not as it should be.
    pub fn note(&mut self, what: &str) {
        self.census.note(what, 1);
    }

    /// A text without the blanks around it, which are counted.
    pub fn trimmed(&mut self, text: &str, what: &str) -> String {
        if text.trim() != text {
            self.note(&format!("{what} with blanks around"));
        }
        text.trim().to_string()
    }

    /// The picture `name` below `folder`, its characters composed or, as macOS stores them, taken apart; none where it is
    /// not there, or would lie outside.
    pub fn picture(&self, folder: &Path, name: &str) -> Option<Source> {
        let name = spelled(name);
        let inside = Path::new(name.as_ref()).components().all(|part| matches!(part, Component::Normal(_)));
        let apart = || folder.join(name.nfd().collect::<String>());
        let path =
            Some(folder.join(name.as_ref())).filter(|p| p.is_file()).or_else(|| Some(apart()).filter(|p| p.is_file()));
        path.filter(|_| inside).map(Source::File)
    }

    /// Takes a sample; a second one under its id is passed over.
    pub fn take(&mut self, sample: Sample) {
        if self.ids.insert(sample.id.clone()) {
            self.samples.push(sample);
        } else {
            self.pass(Why::Double, sample.id);
        }
    }

    /// The part, and what was seen.
    pub fn close(mut self, name: impl Into<String>) -> (Subset, Census) {
        self.census.read = self.samples.len();
        (Subset { name: name.into(), samples: self.samples }, self.census)
    }
}

/// Says how many of the pictures below `folder` a part is about.
pub fn join(part: &Subset, folder: &Path, census: &mut Census) -> Result<()> {
    let about: BTreeSet<PathBuf> = part.samples.iter().filter_map(|s| path(s.picture.as_ref()?)).collect();
    if !about.is_empty() {
        census.joined = Some((about.len(), pictures_below(folder)?));
    }
    Ok(())
}

/// Files below a folder that have a picture's ending, to any depth; hidden ones do not count.
fn pictures_below(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for path in if folder.is_dir() { fsx::list(folder)? } else { Vec::new() } {
        let ending = path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default();
        let hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        count += match (hidden, path.is_dir()) {
            (true, _) => 0,
            (_, true) => pictures_below(&path)?,
            _ => usize::from(decode::is_read(&ending)),
        };
    }
    Ok(count)
}

/// Counts, of the pictures of `test`, those that train too.
pub fn note_shared(train: &Subset, test: &Subset, census: &mut Census) {
    let of =
        |part: &Subset| part.samples.iter().filter_map(|s| path(s.picture.as_ref()?)).collect::<BTreeSet<PathBuf>>();
    let (trained, tested) = (of(train), of(test));
    let shared = tested.intersection(&trained).count();
    census.note(&format!("of {} pictures that also train", tested.len()), shared);
}

fn path(source: &Source) -> Option<PathBuf> {
    match source {
        Source::File(path) => Some(path.clone()),
        _ => None,
    }
}

/// What was seen of every source, for people.
pub fn lines(sources: &[Census]) -> String {
    sources.iter().map(Census::line).collect::<Vec<_>>().join("; ")
}

/// The named values of a record that are there, as facets.
pub fn facets(pairs: &[(&'static str, &Word)]) -> BTreeMap<&'static str, String> {
    pairs.iter().filter_map(|(name, word)| Some((*name, word.text()?.trim().to_string()))).collect()
}
