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
//! Other tools' partitions are imported too: a list of lists, an object or a pickle of one list a client
//! (`{"0": […], "1": […]}`), and FL-bench's `partition.pkl`, whose training clients and their `train` images are taken.
//! Indices beyond the training set mean the test set there (FL-bench puts the two together): they are left out.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::census::{Census, Why};
use super::split::Split;
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::pickle::{Item, Pickle};

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
        let file = match bytes.first() {
            Some(0x80) => pickled(&bytes, labels.len(), &mut census).at(place)?,
            _ => written(&fsx::text(bytes).at(place)?).at(place)?,
        };
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

/// A split from JSON: this module's form, a list of lists, or an object of one list a client.
fn written(text: &str) -> Result<File> {
    let of = |clients: Value| -> Result<File> { Ok(File { clients: whole(clients)?, ..File::default() }) };
    match fsx::json(text)? {
        Value::Object(map) if map.contains_key("clients") => fsx::json(text),
        Value::Object(map) if !map.is_empty() && map.keys().all(|k| k.parse::<u32>().is_ok()) => {
            let mut lists: Vec<(u32, Value)> = map.into_iter().map(|(k, v)| (k.parse().unwrap_or(0), v)).collect();
            lists.sort_by_key(|(k, _)| *k);
            of(lists.into_iter().map(|(_, v)| v).collect())
        }
        list @ Value::Array(_) => of(list),
        _ => Err(Error::data("no `clients` in it").hint(FORMS)),
    }
}

const FORMS: &str = "expected {\"clients\": [[17, 4, …], …]}, a list of lists, {\"0\": [17, 4, …], …}, or FL-bench's partition.pkl; \
    `fedllava split export` writes one";

fn whole(clients: Value) -> Result<Vec<Vec<u32>>> {
    let text = clients.to_string();
    fsx::json(&text).map_err(|e| {
        let said = e.message().split_once(": ").map_or(e.message(), |(_, m)| m).to_string();
        Error::data(format!("the clients' lists: {said}")).hint(FORMS)
    })
}

/// A split from a pickle: a list or a dictionary of lists or arrays, or FL-bench's.
fn pickled(bytes: &[u8], images: usize, census: &mut Census) -> Result<File> {
    let (pickle, _) = Pickle::read(bytes)?;
    let root = pickle.root();
    let clients = match (root.get("data_indices"), root.list(), root.pairs()) {
        (Some(clients), ..) => fl_bench(root, clients, census)?,
        (_, Some(list), _) => list.into_iter().map(Item::integers).collect::<Result<_>>()?,
        (.., Some(pairs)) => {
            let number = |k: Item| k.int().or_else(|| k.text()?.parse().ok());
            let mut lists = pairs.into_iter().map(|(k, v)| Some((number(k)?, v))).collect::<Option<Vec<_>>>();
            let lists = lists.as_mut().ok_or_else(|| Error::data("its keys are not clients' numbers").hint(FORMS))?;
            lists.sort_by_key(|(k, _)| *k);
            lists.iter().map(|(_, v)| v.integers()).collect::<Result<_>>()?
        }
        _ => return Err(Error::data(format!("holds {}", root.what())).hint(FORMS)),
    };
    let mut file = File::default();
    for list in clients {
        let mut own = Vec::new();
        for i in list {
            match u32::try_from(i) {
                Ok(i) if (i as usize) < images => own.push(i),
                Ok(i) => census.pass(Why::Test, i.to_string()),
                Err(_) => return Err(Error::data(format!("{i} is no image's index"))),
            }
        }
        file.clients.push(own);
    }
    Ok(file)
}

/// The training images of FL-bench's training clients.
fn fl_bench(root: Item, clients: Item, census: &mut Census) -> Result<Vec<Vec<i64>>> {
    let clients = clients.list().ok_or_else(|| Error::data("data_indices is no list"))?;
    let train = root.get("separation").and_then(|s| s.get("train")).map(Item::integers).transpose()?;
    let mut lists = Vec::new();
    for (k, client) in clients.into_iter().enumerate() {
        let part =
            |name: &str| client.get(name).map_or(Ok(Vec::new()), Item::integers).at(|| format!("client {k}, {name}"));
        let own = part("train")?;
        let trains = train.as_ref().is_none_or(|t| t.contains(&(k as i64)));
        let rest = if trains { Vec::new() } else { own.clone() };
        for i in [part("val")?, part("test")?, rest].concat() {
            census.pass(Why::OwnTest, i.to_string());
        }
        if trains {
            lists.push(own);
        }
    }
    Ok(lists)
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
        if let Some(k) = self.clients.iter().position(Vec::is_empty) {
            return Err(Error::data(format!("client {k} holds no image")));
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

    const LABELS: [u32; 6] = [0, 1, 0, 1, 2, 2];

    fn import(text: &str) -> Result<Split> {
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
    fn other_tools_lists_are_imported() {
        let want = import(r#"{"clients": [[0, 1], [4]]}"#).unwrap();
        for text in ["[[0, 1], [4]]", "\u{feff}{\"1\": [4], \"0\": [0, 1]}"] {
            assert_eq!(import(text).unwrap(), want);
        }
        let e = import(r#"[[0.5], [1]]"#).unwrap_err().to_string();
        assert!(e.contains("the number 0.5, expected a whole number") && !e.contains("u32"), "{e}");
    }

    #[test]
    fn fl_benchs_pickle_gives_its_training_clients_their_training_images() {
        // {"separation": {"train": [0, 1]}, "data_indices": [{"train": [0, 1], "test": [2]}, {"train": [4, 7]}, {"train": [5]}]}
        let pickle = b"\x80\x04}(\x8c\x0aseparation}\x8c\x05train](K\x00K\x01es\x8c\x0cdata_indices](}(\x8c\x05train](K\x00K\x01e\x8c\x04test]K\x02au}\x8c\x05train](K\x04K\x07es}\x8c\x05train]K\x05aseu.";
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("partition.pkl");
        std::fs::write(&path, pickle).unwrap();
        let (split, census) = Split::import(&path, &LABELS, 3).unwrap();
        assert_eq!(split.clients, [vec![0, 1], vec![4]]);
        assert_eq!((census.read, census.passed(Why::Test), census.passed(Why::OwnTest)), (3, 1, 2));
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
        ];
        for (text, want) in cases {
            let e = import(text).unwrap_err().to_string();
            assert!(e.contains(want), "{text}: {e}");
        }
    }
}
