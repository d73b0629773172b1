//! Which picture a line of a list means: its path, compared by its last parts.
//!
//! Lists are made on somebody's disk, pictures lie on another: below another root, without the class folders, in shards.
//! So the longest tail of the paths by which a good part of the list is found decides, for the whole list: never a line by
//! its own rule, since `train/cat/1.jpg` must not be found as `test/cat/1.jpg` where others lie in `train`.

use std::collections::HashMap;

use crate::data::source::without_ending;

/// The picture of every line.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Joined {
    /// Its number; none where it is not there, or where two may be meant.
    pub at: Vec<Option<u32>>,
    /// How many parts of the paths were compared, from the last.
    pub parts: usize,
    /// Parts of the longest path in the list.
    pub of: usize,
}

/// One in so many lines must be found by a tail for it to decide.
const GOOD_PART: usize = 10;

/// Finds the pictures called `names` by `paths`; both with slashes. A name that differs in its ending alone is found too.
pub(super) fn join(paths: &[&str], names: &[String]) -> Joined {
    let of = paths.iter().map(|p| p.split('/').count()).max().unwrap_or(1);
    let mut best: Option<(usize, Joined)> = None;
    for parts in (1..=of).rev() {
        let at = by_tail(paths, names, parts, of);
        let met = at.iter().flatten().count();
        if best.as_ref().is_none_or(|(most, _)| met > *most) {
            best = Some((met, Joined { at, parts, of }));
        }
        if met * GOOD_PART >= paths.len() {
            break;
        }
    }
    best.map_or(Joined { at: Vec::new(), parts: of, of }, |(_, joined)| joined)
}

fn by_tail(paths: &[&str], names: &[String], parts: usize, of: usize) -> Vec<Option<u32>> {
    let (mut whole, mut stems) = (Index::default(), Index::default());
    for (i, name) in names.iter().enumerate() {
        if let Some(tail) = tail(name, parts) {
            whole.add(tail, i as u32);
            stems.add(without_ending(tail), i as u32);
        }
    }
    // Without any folder a file name must be the only one of its kind in the list too.
    let mut own = Index::default();
    if parts == 1 && of > 1 {
        paths.iter().filter_map(|p| tail(p, 1)).for_each(|t| own.add(without_ending(t), 0));
    }
    let find = |path: &&str| {
        let tail = tail(path, parts)?;
        let stem = without_ending(tail);
        if own.0.get(stem).is_some_and(Option::is_none) {
            return None;
        }
        whole.one(tail).or_else(|| stems.one(stem))
    };
    paths.iter().map(find).collect()
}

/// The last `parts` parts of a path; none where it has fewer.
fn tail(path: &str, parts: usize) -> Option<&str> {
    match path.rmatch_indices('/').nth(parts - 1) {
        Some((slash, _)) => Some(&path[slash + 1..]),
        None => (path.split('/').count() == parts).then_some(path),
    }
}

/// Names and whose they are; none where they are several pictures'.
#[derive(Default)]
struct Index<'a>(HashMap<&'a str, Option<u32>>);

impl<'a> Index<'a> {
    fn add(&mut self, name: &'a str, at: u32) {
        self.0.entry(name).and_modify(|known| *known = None).or_insert(Some(at));
    }

    fn one(&self, name: &str) -> Option<u32> {
        self.0.get(name).copied().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(paths: &[&str], names: &[&str]) -> (Vec<Option<u32>>, usize) {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let joined = join(paths, &names);
        (joined.at, joined.parts)
    }

    #[test]
    fn paths_are_found_as_they_are_below_another_root_and_without_class_folders() {
        let paths = ["train/cat/1.JPEG", "train/dog/1.JPEG"];
        assert_eq!(found(&paths, &["train/dog/1.JPEG", "train/cat/1.JPEG"]), (vec![Some(1), Some(0)], 3));
        let deeper = ["Data/CLS-LOC/train/cat/1.JPEG", "Data/CLS-LOC/train/dog/1.JPEG"];
        assert_eq!(found(&paths, &deeper), (vec![Some(0), Some(1)], 3));
        assert_eq!(found(&paths, &["a/cat/1.JPEG", "b/dog/1.JPEG"]), (vec![Some(0), Some(1)], 2));
        let flat = ["val/n01/v_1.JPEG", "val/n02/v_2.JPEG"];
        assert_eq!(found(&flat, &["val/v_1.JPEG", "val/v_2.JPEG"]), (vec![Some(0), Some(1)], 1));
        assert_eq!(found(&["1.jpg", "2.jpg"], &["cat/1.jpg", "dog/2.jpg"]), (vec![Some(0), Some(1)], 1));
    }

    #[test]
    fn another_ending_is_found_unless_two_have_it() {
        assert_eq!(found(&["a/1.JPEG"], &["a/1.jpg"]), (vec![Some(0)], 2));
        assert_eq!(found(&["a/1.png", "a/2.JPEG"], &["a/1.jpg", "a/1.png", "a/2.jpg"]).0, [Some(1), Some(2)]);
        assert_eq!(found(&["a/1.bmp"], &["a/1.jpg", "a/1.png"]).0, [None]);
    }

    #[test]
    fn a_missing_picture_is_never_another_one_of_the_same_name() {
        // Where some lie in train, the rest is not looked for in test.
        let paths = ["train/cat/1.jpg", "train/cat/2.jpg"];
        assert_eq!(found(&paths, &["train/cat/1.jpg", "test/cat/2.jpg"]), (vec![Some(0), None], 3));
        // Places' file names come again in every class: without folders they say nothing.
        let places = ["train/airfield/0001.jpg", "train/alley/0001.jpg"];
        assert_eq!(found(&places, &["x/0001.jpg"]).0, [None, None]);
        assert_eq!(found(&places, &["u/alley/0001.jpg"]).0, [None, Some(0)]);
    }
}
