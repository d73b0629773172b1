//! A split as a file, so that other code can train on exactly these images, and this code on theirs.
//!
//! One JSON object, plain lists of integers, read in Python by `json.load`:
//!
//! ```json
//! {"schema": 1, "images": 50000, "classes": 10, "labels_digest": "…", "counts_sha1": "…", "digest": "…",
//!  "clients": [[17, 4, …], …], "server": […], "validation": […], "cohorts": [[1, 17, …], …]}
//! ```
//!
//! `clients[k]` are image indices into the whole training set, from 0. `cohorts[r]` are the clients of round `r`, or
//! null. Only `clients` must be there to import; whatever else is there is checked. `labels_digest` is the SHA-256 of
//! the labels as Python's `json.dumps` writes the list: it tells another order of the same images apart.
//!
//! Other tools' partitions are imported too (`foreign`).

mod foreign;

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::census::Census;
use super::split::Split;
use crate::error::{Error, Place, Result};
use crate::fsx;

/// The file as written.
#[derive(Default, Serialize, Deserialize)]
struct File {
    #[serde(default = "schema")]
    schema: u32,
    images: Option<usize>,
    classes: Option<usize>,
    labels_digest: Option<String>,
    counts_sha1: Option<String>,
    digest: Option<String>,
    clients: Vec<Vec<u32>>,
    #[serde(default)]
    server: Vec<u32>,
    #[serde(default)]
    validation: Vec<u32>,
    #[serde(default)]
    cohorts: Option<Vec<Vec<usize>>>,
}

fn schema() -> u32 {
    1
}

impl Split {
    /// Writes the split, whole or not at all, in the layout of this module's head.
    pub fn export(&self, path: &Path) -> Result<()> {
        let file = File {
            schema: schema(),
            images: Some(self.labels().len()),
            classes: Some(self.classes),
            labels_digest: Some(labels_digest(self.labels())),
            counts_sha1: Some(self.counts_sha1()),
            digest: Some(self.digest()),
            clients: self.clients.clone(),
            server: self.server.clone(),
            validation: self.validation.clone(),
            cohorts: self.cohorts.clone(),
        };
        let text = serde_json::to_string(&file).map_err(|e| Error::defect(format!("split: {e}")))?;
        fsx::write_atomic(path, text.as_bytes())
    }

    /// Reads a split of the training set with these `labels` and so many `classes`, and says what was seen of the file.
    /// Indices out of range, held twice or by two holders, unknown clients in a cohort, and digests that do not fit are
    /// refused.
    pub fn import(path: &Path, labels: &[u32], classes: usize) -> Result<(Split, Census)> {
        let place = || format!("split {}", path.display());
        let bytes = fsx::read(path)?;
        let mut census = Census::new(path.display().to_string(), "indices");
        let file = foreign::file(bytes, labels.len(), &mut census).at(place)?;
        if file.schema > schema() {
            return Err(Error::data(format!("schema {} is newer than this program's {}", file.schema, schema())))
                .at(place);
        }
        file.check_data_set(labels, classes).at(place)?;
        file.check_clients().at(place)?;
        let mut split = Split::from_lists(labels, classes, file.clients, file.server, file.validation).at(place)?;
        split.cohorts = file.cohorts;
        same("digest", file.digest, split.digest()).at(place)?;
        same("counts_sha1", file.counts_sha1, split.counts_sha1()).at(place)?;
        census.read = split.clients.iter().map(Vec::len).sum::<usize>() + split.server.len() + split.validation.len();
        Ok((split, census))
    }
}

impl File {
    fn check_data_set(&self, labels: &[u32], classes: usize) -> Result<()> {
        if self.images.is_some_and(|n| n != labels.len()) || self.classes.is_some_and(|n| n != classes) {
            return Err(Error::data(format!(
                "made for {} images of {} classes, the data set has {} of {classes}",
                self.images.unwrap_or(labels.len()),
                self.classes.unwrap_or(classes),
                labels.len()
            )));
        }
        same("labels_digest", self.labels_digest.clone(), labels_digest(labels))
            .map_err(|e| e.hint("the images stand in another order: use the copy that the split was made with"))
    }

    fn check_clients(&self) -> Result<()> {
        if self.clients.is_empty() {
            return Err(Error::data("no client in it").hint(foreign::FORMS));
        }
        if let Some(k) = self.clients.iter().position(Vec::is_empty) {
            return Err(Error::data(format!("client {k} holds no image"))
                .hint("every client trains: take the empty ones out of the file"));
        }
        for (r, cohort) in self.cohorts.iter().flatten().enumerate() {
            let mut seen = vec![false; self.clients.len()];
            for &k in cohort {
                match seen.get_mut(k) {
                    Some(s @ false) => *s = true,
                    Some(_) => return Err(Error::data(format!("client {k} is twice in the cohort of round {r}"))),
                    None => return Err(Error::data(format!("round {r} names client {k} of {}", self.clients.len()))),
                }
            }
            if cohort.is_empty() {
                return Err(Error::data(format!("round {r} has no client")));
            }
        }
        Ok(())
    }
}

/// SHA-256 of the labels as Python's `json.dumps` writes them.
fn labels_digest(labels: &[u32]) -> String {
    let text: Vec<String> = labels.iter().map(u32::to_string).collect();
    fsx::sha256(format!("[{}]", text.join(", ")).as_bytes())
}

fn same(name: &str, written: Option<String>, found: String) -> Result<()> {
    match written {
        Some(written) if written != found => {
            Err(Error::data(format!("{name} is {written} in the file, but its contents give {found}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const LABELS: [u32; 6] = [0, 1, 0, 1, 2, 2];

    pub(super) fn import(text: &str) -> Result<Split> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.json");
        std::fs::write(&path, text).unwrap();
        Ok(Split::import(&path, &LABELS, 3)?.0)
    }

    #[test]
    fn an_exported_split_is_imported_unchanged_with_its_cohorts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("split.json");
        let mut split = Split::from_lists(&LABELS, 3, vec![vec![5, 0], vec![3]], vec![1], vec![2]).unwrap();
        split.cohorts = Some(vec![vec![1, 0], vec![0]]);
        split.export(&path).unwrap();
        assert_eq!(Split::import(&path, &LABELS, 3).unwrap().0, split);
        let e = Split::import(&path, &[1, 0, 0, 1, 2, 2], 3).unwrap_err().to_string();
        assert!(e.contains("another order"), "{e}");
    }

    #[test]
    fn clients_alone_are_enough() {
        let split = import(r#"{"clients": [[0, 1], [4]]}"#).unwrap();
        assert_eq!(split.counts(), [[1, 1, 0], [0, 0, 1]]);
        assert_eq!(split.discarded, [2, 3, 5]);
    }

    #[test]
    fn what_does_not_fit_is_refused_by_name() {
        let cases = [
            (r#"{"clients": [[0, 6]]}"#, "client 0 holds image 6"),
            (r#"{"clients": [[0], [0]]}"#, "image 0 is held twice: by client 0 and by client 1"),
            (r#"{"clients": [[0, 0]]}"#, "by client 0 and by client 0"),
            (r#"{"clients": [[0]], "server": [0]}"#, "client 0 and by the server set"),
            (r#"{"clients": [[0], []]}"#, "client 1 holds no image"),
            (r#"{"clients": [[0]], "cohorts": [[1]]}"#, "round 0 names client 1 of 1"),
            (r#"{"clients": [[0]], "cohorts": [[0, 0]]}"#, "twice in the cohort of round 0"),
            (r#"{"clients": [[0]], "digest": "00"}"#, "digest is 00"),
            (r#"{"clients": [[0]], "images": 7}"#, "made for 7 images"),
            (r#"{"clients": [[0]], "schema": 2}"#, "newer"),
            (r#"{"server": [0]}"#, "clients"),
            (r#"[]"#, "no client in it"),
            (r#"{"0": [0], "2": [1]}"#, "no client 1 between 0 and 2"),
        ];
        for (text, want) in cases {
            let e = import(text).unwrap_err().to_string();
            assert!(e.contains(want), "{text}: {e}");
        }
    }
}
