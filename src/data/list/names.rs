//! What the classes of a list are called: a file of names, or the folders that the images lie in.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::lines::{Line, Lines, bytes};
use crate::data::census::Why;
use crate::error::{Error, Place, Result};
use crate::fsx;

/// At most one in so many lines may lie in another class's folder for folders to be classes.
const STRAYS: usize = 100;

/// The lines of a file of names, in label order.
pub(super) fn read(path: &Path) -> Result<Vec<String>> {
    let text = fsx::text(bytes(path)?).at(|| path.display().to_string())?;
    let names: Vec<String> = text.lines().map(str::trim).filter(|l| !l.is_empty()).map(str::to_string).collect();
    match names.is_empty() {
        true => Err(Error::data(format!("{}: no name of a class", path.display()))),
        false => Ok(names),
    }
}

/// The folder of each class, where folders are classes: by far most lines of a folder have one label.
pub(super) fn folders(lines: &[Line]) -> Option<BTreeMap<String, u32>> {
    let mut counts: BTreeMap<&str, BTreeMap<u32, usize>> = BTreeMap::new();
    for line in lines {
        *counts.entry(line.folder()?).or_default().entry(line.label).or_default() += 1;
    }
    let most = |of: &BTreeMap<u32, usize>| {
        of.iter().max_by_key(|(label, n)| (**n, std::cmp::Reverse(**label))).map(|(l, n)| (*l, *n))
    };
    let owners: BTreeMap<String, (u32, usize)> =
        counts.iter().filter_map(|(folder, of)| Some((folder.to_string(), most(of)?))).collect();
    let strays = lines.len() - owners.values().map(|(_, n)| n).sum::<usize>();
    let labels: BTreeSet<u32> = owners.values().map(|(label, _)| *label).collect();
    let classes = labels.len() == owners.len() && strays * STRAYS <= lines.len();
    classes.then(|| owners.into_iter().map(|(folder, (label, _))| (folder, label)).collect())
}

/// Takes out the lines whose label is not that of their folder, where folders are classes, and counts them.
pub(super) fn refuse_strays(list: &mut Lines, folders: &BTreeMap<String, u32>) {
    let Lines { lines, census } = list;
    lines.retain(|line| match line.folder().and_then(|f| folders.get(f)) {
        Some(label) if *label != line.label => {
            census.pass(Why::OtherClass, format!("{} {}", line.path, line.label));
            false
        }
        _ => true,
    });
}

/// Names of all classes: of the file's lines, which may begin with the class's folder (`n01440764 tench`); without a file
/// the folders, where each is a class; else the labels.
pub(super) fn names(
    written: Option<Vec<String>>,
    folders: Option<&BTreeMap<String, u32>>,
    classes: usize,
) -> Result<Vec<String>> {
    let mut own: Vec<Option<&str>> = vec![None; classes];
    for (folder, &label) in folders.into_iter().flatten() {
        own[label as usize] = Some(folder.as_str());
    }
    let Some(written) = written else {
        let named: Option<Vec<String>> = own.iter().map(|f| f.map(str::to_string)).collect();
        return Ok(named.unwrap_or_else(|| (0..classes).map(|c| c.to_string()).collect()));
    };
    let halves: Vec<(&str, &str)> = written.iter().map(|l| l.split_once([' ', '\t']).unwrap_or((l, ""))).collect();
    let by_folder: BTreeMap<&str, &str> = halves.iter().map(|(first, rest)| (*first, rest.trim())).collect();
    let called = |own: &Option<&str>| own.and_then(|folder| by_folder.get(folder)).copied();
    if own.iter().any(|folder| called(folder).is_some()) {
        // The folder in front says which class a line is about, whatever their order.
        let named = own.iter().map(|folder| match (called(folder), folder) {
            (Some(""), Some(folder)) => Ok(folder.to_string()),
            (Some(name), _) => Ok(name.to_string()),
            (None, folder) => {
                Err(Error::data(format!("no line of the names begins with {}", folder.unwrap_or("its folder")))
                    .hint("a line is a class's name in label order, or its folder and its name"))
            }
        });
        return named.collect();
    }
    let wnids = halves.iter().all(|(first, rest)| is_wnid(first) && !rest.is_empty());
    let name = |(line, (_, rest)): (&String, &(&str, &str))| if wnids { rest.trim().to_string() } else { line.clone() };
    Ok(written.iter().zip(&halves).map(name).collect())
}

/// A class's number in WordNet, as ImageNet's folders are called.
fn is_wnid(text: &str) -> bool {
    text.strip_prefix('n').is_some_and(|n| n.len() == 8 && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(of: &[(&str, u32)]) -> Vec<Line> {
        of.iter().map(|(path, label)| Line { path: path.to_string(), label: *label }).collect()
    }

    fn texts(names: &[&str]) -> Vec<String> {
        names.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn names_stand_behind_the_folder_or_alone_or_are_the_folders() {
        let list = lines(&[("train/n00000001/a.jpg", 0), ("train/n00000002/b.jpg", 1)]);
        let own = folders(&list);
        let named = |written: Option<&[&str]>| names(written.map(texts), own.as_ref(), 2);
        assert_eq!(
            named(Some(&["n00000001 great white shark", "n00000002 hen"])).unwrap(),
            ["great white shark", "hen"]
        );
        assert_eq!(named(Some(&["great white shark", "hen"])).unwrap(), ["great white shark", "hen"]);
        let swapped = ["n00000002 hen", "n00000001 great white shark"];
        assert_eq!(named(Some(&swapped)).unwrap(), ["great white shark", "hen"], "as in Places-LT's file");
        assert_eq!(named(None).unwrap(), ["n00000001", "n00000002"]);
        let e = named(Some(&["n00000001 hen", "n00000003 shark"])).unwrap_err().to_string();
        assert!(e.contains("no line of the names begins with n00000002"), "{e}");
        assert_eq!(names(None, None, 2).unwrap(), ["0", "1"]);
        assert_eq!(names(Some(texts(&["n00000001 a b", "n00000009 c"])), None, 2).unwrap(), ["a b", "c"]);
    }

    #[test]
    fn a_line_in_another_classs_folder_is_counted_where_folders_are_classes() {
        let mut all: Vec<(String, u32)> = (0..150).map(|i| (format!("{}/{i}.jpg", i % 2), i % 2)).collect();
        all.push(("0/stray.jpg".into(), 1));
        let list: Vec<Line> = all.iter().map(|(p, l)| Line { path: p.clone(), label: *l }).collect();
        let own = folders(&list).unwrap();
        let mut read = Lines { lines: list, census: Default::default() };
        refuse_strays(&mut read, &own);
        assert_eq!((read.lines.len(), read.census.passed(Why::OtherClass)), (150, 1));
        assert!(folders(&lines(&[("images/a.jpg", 0), ("images/b.jpg", 1)])).is_none());
        assert!(folders(&lines(&[("a.jpg", 0)])).is_none());
    }
}
