//! A list file: `path label` a line, as ImageNet-LT, Places-LT and iNaturalist publish theirs.

use std::collections::HashSet;
use std::path::Path;

use crate::data::captions::spelled;
use crate::data::census::{Census, Why};
use crate::data::gzip::unpacked;
use crate::error::{Error, Place, Result};
use crate::fsx::{self, bound};

/// One line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    /// The image's path as the list has it: slashes, without `./` in front, in composed characters.
    pub path: String,
    /// Its class.
    pub label: u32,
}

impl Line {
    /// The folder that the image lies in, as the list has it.
    pub fn folder(&self) -> Option<&str> {
        self.path.rsplit('/').nth(1)
    }
}

/// The lines of a list, and what was passed over: lines without a label, labels of no class, paths that come again.
#[derive(Debug)]
pub(super) struct Lines {
    /// In the file's order.
    pub lines: Vec<Line>,
    /// What was seen; `read` is counted when the images are found.
    pub census: Census,
}

impl Lines {
    /// Reads a list of some classes (without `classes`: any), also a gzipped one.
    pub fn read(path: &Path, classes: Option<usize>) -> Result<Lines> {
        let text = fsx::text(bytes(path)?).at(|| path.display().to_string())?;
        let mut census = Census::new(path.display().to_string(), "lines");
        census.advice = "a line is an image's path and the number of its class".into();
        let (mut lines, mut seen): (Vec<Line>, HashSet<String>) = Default::default();
        for (n, line) in text.lines().enumerate().map(|(n, l)| (n + 1, l.trim())).filter(|(_, l)| !l.is_empty()) {
            match parsed(line, classes) {
                Err(why) => census.pass(Why::Label, format!("line {n}: {why}")),
                Ok(line) if !seen.insert(line.path.clone()) => {
                    census.pass(Why::Double, format!("line {n}: {}", line.path));
                }
                Ok(line) => lines.push(line),
            }
        }
        match lines.is_empty() {
            true => Err(Error::data(format!("{}: no line `path label`", path.display()))
                .hint("a list has one image a line: train/n01440764/n01440764_190.JPEG 0")),
            false => Ok(Lines { lines, census }),
        }
    }
}

fn parsed(line: &str, classes: Option<usize>) -> Result<Line, String> {
    let (path, label) = line.rsplit_once([' ', '\t', ',']).ok_or_else(|| format!("{line:?} has no label"))?;
    let label: u32 = label.parse().map_err(|_| format!("{label:?} is no class"))?;
    match classes {
        Some(n) if label as usize >= n => Err(format!("label {label} of {n} classes")),
        _ => Ok(Line { path: tidy(path), label }),
    }
}

/// A path with slashes, composed characters, and nothing before its first part.
pub(super) fn tidy(path: &str) -> String {
    let path = path.trim().trim_matches('"').replace('\\', "/");
    spelled(path.trim_start_matches("./").trim_start_matches('/')).into_owned()
}

/// The bytes of a text, unpacked where the file is gzipped.
pub(super) fn bytes(path: &Path) -> Result<Vec<u8>> {
    unpacked(path, fsx::read_most(path, bound::TEXT)?)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn read(bytes: &[u8], classes: Option<usize>) -> Result<Lines> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("list.txt");
        std::fs::write(&path, bytes).unwrap();
        Lines::read(&path, classes)
    }

    #[test]
    fn every_line_is_taken_or_counted() {
        let text = "\u{feff}train/a/1.JPEG 0\r\n./train/b c/2.jpg 1\n\ntrain\\b\\3.jpg\t1\n\
            train/a/1.JPEG 1\nalone.jpg\nx.jpg one\nx.jpg -1\nx.jpg 2\n";
        let read = read(text.as_bytes(), Some(2)).unwrap();
        let got: Vec<(&str, u32)> = read.lines.iter().map(|l| (l.path.as_str(), l.label)).collect();
        assert_eq!(got, [("train/a/1.JPEG", 0), ("train/b c/2.jpg", 1), ("train/b/3.jpg", 1)]);
        assert_eq!((read.census.passed(Why::Double), read.census.passed(Why::Label)), (1, 4));
        let line = read.census.line();
        assert!(line.contains("line 6: \"alone.jpg\" has no label") && line.contains("\"one\" is no class"), "{line}");
        assert_eq!(read.lines[1].folder(), Some("b c"));
    }

    #[test]
    fn a_gzipped_list_is_read_and_a_cut_one_refused() {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        packed.write_all(b"a/1.jpg 0\n").unwrap();
        let packed = packed.finish().unwrap();
        assert_eq!(read(&packed, None).unwrap().lines.len(), 1);
        assert!(read(&packed[..packed.len() - 9], None).unwrap_err().to_string().contains("cut off or damaged"));
        assert!(read(b"\n\n", None).unwrap_err().to_string().contains("one image a line"));
    }
}
