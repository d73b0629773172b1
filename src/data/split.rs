//! Who holds what: clients, server set, validation set, and the rest, as image indices.

use std::sync::Arc;

use sha1::Sha1;
use sha2::Digest;

use super::dataset::{Dataset, class_counts};
use super::longtail::{Draw, LongTailConfig};
use super::partition::PartitionConfig;
use super::reserve::{self, Origin, ServerSetConfig, ValidationConfig};
use crate::error::{Error, Result};
use crate::fsx;
use crate::key::{Key, Purpose};

/// No holder's number.
const NOBODY: u32 = u32::MAX;

/// Image indices of the training set, each in at most one place.
#[derive(Clone, Debug, PartialEq)]
pub struct Split {
    /// What each client holds, `(clients, its images)`, in the partition's order.
    pub clients: Vec<Vec<u32>>,
    /// The server's balanced set, class by class; empty when it comes from elsewhere.
    pub server: Vec<u32>,
    /// The validation set, class by class.
    pub validation: Vec<u32>,
    /// Images that nobody holds, ascending.
    pub discarded: Vec<u32>,
    /// Number of classes.
    pub classes: usize,
    /// Who takes part in each round, if the split came with that: `(rounds, cohort)`.
    pub cohorts: Option<Vec<Vec<usize>>>,
    labels: Arc<[u32]>,
}

impl Split {
    /// Draws a split: long tail, partition, then the reserves.
    ///
    /// `labels` are the whole training set's, in its order; `key` is the run's. Without an explicit `longtail.seed`
    /// the tail's images are chosen with the `creff` partition's seed and numpy's generator, or by key. Where the server's
    /// set comes from the benchmark's own validation set, so does the validation set: see [`reserve::from_val`].
    pub fn draw(
        labels: &[u32],
        classes: usize,
        longtail: &LongTailConfig,
        partition: &PartitionConfig,
        server_set: &ServerSetConfig,
        validation: &ValidationConfig,
        key: Key,
    ) -> Result<Split> {
        let server_each = server_set.from_train(classes)?;
        let draw = match (longtail.seed, partition) {
            (Some(seed), _) => Draw::Numpy(seed),
            (None, PartitionConfig::Creff(c)) => Draw::Numpy(c.seed),
            (None, _) => Draw::Key(partition.key(key)),
        };
        let mut tail = longtail.cut(labels, classes, draw)?;
        let mut clients = partition.deal(&tail.kept, key)?;
        if let Some(client) = clients.iter().position(Vec::is_empty) {
            return Err(partition.empty(client, clients.iter().filter(|c| c.is_empty()).count()));
        }
        let root = partition.key(key);
        let mut take = |name: &str, n: usize, purpose: Purpose| {
            reserve::take(name, n, labels, &mut tail.discarded, &mut clients, root.fold(purpose, 0))
        };
        let server = take("server_set", server_each, Purpose::ServerSet)?;
        let validation_each = if server_set.origin == Origin::Val { 0 } else { validation.per_class };
        let validation = take("validation", validation_each, Purpose::Validation)?;
        Self::from_lists(labels, classes, clients, server, validation)
    }

    /// A split from index lists; whatever they leave out is `discarded`. Ranges and overlaps are checked.
    pub fn from_lists(
        labels: &[u32],
        classes: usize,
        clients: Vec<Vec<u32>>,
        server: Vec<u32>,
        validation: Vec<u32>,
    ) -> Result<Split> {
        // Who holds an image, as a number: a client's own, then the server's and the validation set's.
        let mut holder: Vec<u32> = vec![NOBODY; labels.len()];
        let count = clients.len();
        let name = |code: usize| match code.checked_sub(count) {
            None => format!("client {code}"),
            Some(0) => "the server set".to_string(),
            Some(_) => "the validation set".to_string(),
        };
        let all = clients.iter().chain([&server, &validation]);
        for (code, list) in all.enumerate() {
            for &i in list {
                match holder.get_mut(i as usize) {
                    Some(place) if *place == NOBODY => *place = code as u32,
                    Some(&mut other) => {
                        let (other, name) = (name(other as usize), name(code));
                        return Err(Error::data(format!("image {i} is held twice: by {other} and by {name}")));
                    }
                    None => {
                        return Err(Error::data(format!(
                            "{} holds image {i}, but there are {}",
                            name(code),
                            labels.len()
                        ))
                        .hint("indices count from 0 and mean the whole training set"));
                    }
                }
            }
        }
        if let Some(y) = labels.iter().find(|&&y| y as usize >= classes) {
            return Err(Error::data(format!("label {y} with {classes} classes")));
        }
        let discarded = (0..labels.len() as u32).filter(|&i| holder[i as usize] == NOBODY).collect();
        Ok(Split { clients, server, validation, discarded, classes, cohorts: None, labels: labels.into() })
    }

    /// Labels of the whole training set that this split divides.
    pub fn labels(&self) -> &Arc<[u32]> {
        &self.labels
    }

    /// Images of each class at each client, `(clients, classes)`.
    pub fn counts(&self) -> Vec<Vec<u32>> {
        self.clients.iter().map(|held| self.count(held)).collect()
    }

    /// Images of each class at all clients together, `(classes,)`: what "many, medium, few" go by.
    pub fn global_counts(&self) -> Vec<u32> {
        let mut total = vec![0; self.classes];
        for row in self.counts() {
            total.iter_mut().zip(row).for_each(|(t, n)| *t += n);
        }
        total
    }

    /// Images of each class among some indices, `(classes,)`.
    pub fn count(&self, indices: &[u32]) -> Vec<u32> {
        let labels: Vec<u32> = indices.iter().map(|&i| self.labels[i as usize]).collect();
        class_counts(&labels, self.classes)
    }

    /// First 12 hexadecimal digits of the SHA-1 of [`counts`](Self::counts) as Python's `json.dumps` writes them:
    /// the digest by which the published splits are checked.
    pub fn counts_sha1(&self) -> String {
        let mut hex = fsx::hex(Sha1::digest(python_json(self.counts().iter())));
        hex.truncate(12);
        hex
    }

    /// SHA-256 over the image indices: of `json.dumps(clients + [server, validation])` in Python's spelling.
    pub fn digest(&self) -> String {
        let lists = self.clients.iter().chain([&self.server, &self.validation]);
        fsx::sha256(python_json(lists).as_bytes())
    }

    /// Whether `dataset` is what this split divides: same number of images, same labels in the same order.
    pub fn check(&self, dataset: &Dataset) -> Result<()> {
        if self.labels[..] == dataset.labels[..] {
            return Ok(());
        }
        Err(Error::data(format!("the split divides {} images, not those of {}", self.labels.len(), dataset.name))
            .hint("the labels or their order differ: is it another copy of the data set?"))
    }
}

/// Nested lists as Python's `json.dumps` writes them: `[[1, 2], [3]]`.
fn python_json<'a>(lists: impl Iterator<Item = &'a Vec<u32>>) -> String {
    let mut text = String::from("[");
    for (k, list) in lists.enumerate() {
        text.push_str(if k > 0 { ", [" } else { "[" });
        for (i, value) in list.iter().enumerate() {
            text.push_str(if i > 0 { ", " } else { "" });
            text.push_str(&value.to_string());
        }
        text.push(']');
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests {
    use super::super::partition::{CreffConfig, DirichletConfig, IidConfig};
    use super::super::reserve::Origin;
    use super::*;

    fn cifar(classes: u32) -> Vec<u32> {
        // Any order gives the published counts, which depend only on how many images a class has.
        (0..50_000).map(|i| (i * 7) % classes).collect()
    }

    fn none() -> ServerSetConfig {
        ServerSetConfig { per_class: Some(0), ..Default::default() }
    }

    fn creff(classes: u32, imbalance: f64, server: &ServerSetConfig, validation: usize) -> Split {
        let tail = LongTailConfig { imbalance, ..Default::default() };
        let validation = ValidationConfig { per_class: validation };
        let key = Key::from_seed(1);
        Split::draw(&cifar(classes), classes as usize, &tail, &PartitionConfig::default(), server, &validation, key)
            .unwrap()
    }

    /// Digests of the reference code's own splits: alpha 0.5, seed 7, 20 clients.
    #[test]
    fn the_six_published_splits_come_out() {
        let want = [
            (10, 100.0, "ce7ee12f9ac7"),
            (10, 50.0, "9b6788545896"),
            (10, 10.0, "bfb487d097d1"),
            (100, 100.0, "4e2f99681080"),
            (100, 50.0, "90c8d5ffef6f"),
            (100, 10.0, "17e60a973bef"),
        ];
        for (classes, imbalance, sha1) in want {
            assert_eq!(creff(classes, imbalance, &none(), 0).counts_sha1(), sha1, "{classes} classes, {imbalance}");
        }
    }

    /// `tests/golden/numpy/creff.json`: lists and digests computed in Python.
    #[test]
    fn digests_are_those_that_python_computes_from_its_own_lists() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/golden/numpy/creff.json")).unwrap();
        for case in cases.as_array().unwrap() {
            let number = |name: &str| case[name].as_u64().unwrap() as usize;
            let (classes, each) = (number("classes"), number("each"));
            let total = classes * each;
            let labels: Vec<u32> = (0..total).map(|i| (i * 7919 % total / each) as u32).collect();
            let tail = LongTailConfig { imbalance: case["factor"].as_f64().unwrap(), ..Default::default() };
            let partition = PartitionConfig::Creff(CreffConfig {
                clients: number("clients"),
                alpha: case["alpha"].as_f64().unwrap(),
                seed: number("seed") as u32,
                ..Default::default()
            });
            let (key, validation) = (Key::from_seed(1), ValidationConfig::default());
            let split = Split::draw(&labels, classes, &tail, &partition, &none(), &validation, key).unwrap();
            assert_eq!(split.counts_sha1(), case["counts_sha1"]);
            assert_eq!(split.digest(), case["digest"]);
        }
    }

    #[test]
    fn the_published_matrix_comes_out() {
        let counts = creff(10, 100.0, &none(), 0).counts();
        assert_eq!(counts[0], [37, 11, 321, 32, 103, 113, 4, 0, 0, 0]);
        assert_eq!(counts[5], [89, 195, 3, 161, 64, 19, 24, 46, 6, 14]);
        assert_eq!(counts[7], [620, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(counts[19], [140, 134, 132, 38, 94, 1, 45, 21, 9, 6]);
    }

    #[test]
    fn the_reserve_leaves_the_reference_partition_but_for_class_0() {
        let plain = creff(10, 100.0, &none(), 0);
        let reserved = creff(10, 100.0, &ServerSetConfig::default(), 50);
        assert_eq!(reserved.count(&reserved.server), [50; 10]);
        assert_eq!(reserved.count(&reserved.validation), [50; 10]);
        for (with, without) in reserved.clients.iter().zip(&plain.clients) {
            let rest: Vec<u32> = without.iter().copied().filter(|i| with.contains(i)).collect();
            assert_eq!(&rest, with, "the order is kept");
            let gone: Vec<u32> = without.iter().copied().filter(|i| !with.contains(i)).collect();
            assert!(gone.iter().all(|&i| plain.labels()[i as usize] == 0));
        }
        let mut want = plain.global_counts();
        want[0] -= 100;
        assert_eq!(reserved.global_counts(), want);
    }

    #[test]
    fn adding_a_validation_set_leaves_the_server_set_alone_and_the_key_moves_both() {
        let server = ServerSetConfig::default();
        assert_eq!(creff(10, 50.0, &server, 0).server, creff(10, 50.0, &server, 20).server);
        let draw = |seed| {
            let (tail, cut) = (LongTailConfig::default(), PartitionConfig::Iid(IidConfig::default()));
            Split::draw(&cifar(10), 10, &tail, &cut, &server, &ValidationConfig::default(), Key::from_seed(seed))
                .unwrap()
        };
        assert_ne!(draw(1).server, draw(2).server);
        assert_eq!(draw(1), draw(1));
    }

    #[test]
    fn every_image_is_in_exactly_one_place() {
        let split = creff(100, 100.0, &ServerSetConfig::default(), 5);
        let mut all = [split.clients.concat(), split.server, split.validation, split.discarded].concat();
        all.sort_unstable();
        assert_eq!(all, (0..50_000).collect::<Vec<u32>>());
    }

    #[test]
    fn the_test_set_as_origin_is_refused() {
        let test = ServerSetConfig { origin: Origin::Test, ..Default::default() };
        let e = test.from_train(10).unwrap_err().to_string();
        assert!(e.contains("test images never align"), "{e}");
    }

    #[test]
    fn a_reserve_that_is_not_there_is_refused() {
        let labels: Vec<u32> = (0..200).map(|i| i % 10).collect();
        let dirichlet = PartitionConfig::Dirichlet(DirichletConfig { clients: 2, min_size: 1, ..Default::default() });
        let draw = |per_class| {
            let server = ServerSetConfig { per_class: Some(per_class), ..Default::default() };
            let tail = LongTailConfig { imbalance: 10.0, ..Default::default() };
            Split::draw(&labels, 10, &tail, &dirichlet, &server, &ValidationConfig::default(), Key::from_seed(1))
        };
        assert!(draw(10).is_ok());
        let e = draw(20).unwrap_err().to_string();
        assert!(e.contains("class 0") && e.contains("lower server_set.per_class"), "{e}");
    }
}
