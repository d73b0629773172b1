//! The balanced sets that no client trains on: the server's (alignment) and the validation set.
//!
//! The reference split is drawn first, exactly as without a reserve. Then each class's reserve is taken, by key, from
//! the images that the long tail discards; where a class has too few of them (class 0 keeps all of its images) the
//! rest is withdrawn from the clients that hold them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::dataset::Dataset;
use super::{folder, resolve};
use crate::error::{Error, Result};
use crate::exec::Context;
use crate::key::{Key, Purpose};

/// The `server_set` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSetConfig {
    /// Where the images come from.
    pub origin: Origin,
    /// Images of each class. Without it 500 over the number of classes: 50 for CIFAR-10, 5 for CIFAR-100. 0: no set.
    pub per_class: Option<usize>,
    /// With `origin = "folder"`: a folder with one subfolder per class.
    pub path: String,
}

impl Default for ServerSetConfig {
    fn default() -> Self {
        ServerSetConfig { origin: Origin::TrainReserve, per_class: None, path: String::new() }
    }
}

/// Where the server's balanced set comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// Training images that the long tail discards, as the module says.
    TrainReserve,
    /// A folder of labelled images.
    Folder,
    /// The pretraining pool.
    Pool,
    /// The data set's own validation set.
    Val,
    /// Refused: test images never train, select or align.
    Test,
}

impl ServerSetConfig {
    /// Images of each class that are cut from the training set (0 for another origin).
    pub fn from_train(&self, classes: usize) -> Result<usize> {
        match self.origin {
            Origin::TrainReserve => Ok(self.each(classes)),
            Origin::Folder if self.path.is_empty() => {
                Err(Error::input("server_set.origin = \"folder\" needs server_set.path"))
            }
            Origin::Folder | Origin::Val => Ok(0),
            Origin::Test => {
                Err(Error::input("server_set.origin = \"test\" is refused: test images never align a model")
                    .hint("use \"train-reserve\" (the default) or \"folder\""))
            }
            Origin::Pool => {
                Err(Error::input("server_set.origin = \"pool\": this benchmark has no labelled pool to draw from")
                    .hint("use \"train-reserve\" (the default), or \"folder\" with server_set.path"))
            }
        }
    }

    /// Images of each class, those that are there by default.
    fn each(&self, classes: usize) -> usize {
        self.per_class.unwrap_or((500 / classes.max(1)).max(1))
    }
}

/// The server's and the validation set from the benchmark's own validation set, `None` for another origin.
///
/// By key, `server_set.per_class` and then `validation.per_class` images of each class; an empty set is `None`.
pub fn from_val(
    config: &ServerSetConfig,
    validation: &ValidationConfig,
    val: Option<&Dataset>,
    key: Key,
) -> Result<Option<[Option<Dataset>; 2]>> {
    if config.origin != Origin::Val {
        return Ok(None);
    }
    let val = val.ok_or_else(|| {
        Error::input("server_set.origin = \"val\": this benchmark has no validation set of its own")
            .hint("use \"train-reserve\" (the default), or name data.val")
    })?;
    let mut left = vec![Vec::new(); val.classes.len()];
    val.labels.iter().enumerate().for_each(|(i, &y)| left[y as usize].push(i as u32));
    let sets = [
        ("server_set", "server set", config.each(val.classes.len()), Purpose::ServerSet),
        ("validation", "validation", validation.per_class, Purpose::Validation),
    ];
    let mut take = |(section, name, each, purpose): (&str, &str, usize, Purpose)| {
        let taken = self::take(section, each, &val.labels, &mut left, &mut [], key.fold(purpose, 0))
            .map_err(|e| e.context(format!("{} has too few images of a class", val.name)))?;
        (each > 0).then(|| val.select(format!("{} ({name})", val.name), &taken)).transpose()
    };
    let [server, validation] = sets;
    Ok(Some([take(server)?, take(validation)?]))
}

/// The server's set from a folder of class folders, `None` for another origin.
///
/// Its classes must be the benchmark's; images are scaled to the benchmark's size. `per_class` asks for so many of
/// each class, the first by name; without it every class must have equally many.
pub fn from_folder(config: &ServerSetConfig, train: &Dataset, cx: &Context) -> Result<Option<Dataset>> {
    if config.origin != Origin::Folder {
        return Ok(None);
    }
    config.from_train(train.classes.len())?;
    let found = folder::labelled("server set", &resolve(&config.path)?, train.images.shape()[1], true, cx)?;
    let missing: Vec<&str> = train.classes.iter().filter(|c| !found.classes.contains(c)).map(String::as_str).collect();
    if !missing.is_empty() {
        return Err(Error::data(format!("server set {}: no folder for {}", config.path, missing.join(", "))));
    }
    let counts = found.class_counts();
    let each = config.per_class.unwrap_or(counts.iter().copied().min().unwrap_or(0) as usize);
    let (mut indices, mut labels) = (Vec::new(), Vec::new());
    for (y, class) in train.classes.iter().enumerate() {
        let at = found.classes.iter().position(|c| c == class).unwrap_or(y) as u32;
        let mine: Vec<u32> = (0..found.len() as u32).filter(|&i| found.labels[i as usize] == at).collect();
        if mine.len() < each || (config.per_class.is_none() && mine.len() != each) {
            let have = mine.len();
            return Err(Error::data(format!("server set {}: {have} images of {class}, expected {each}", config.path))
                .hint("the set must be balanced: set server_set.per_class to what every class has"));
        }
        indices.extend_from_slice(&mine[..each]);
        labels.extend(std::iter::repeat_n(y as u32, each));
    }
    let images = found.images.select(&indices);
    let set = Dataset::new("server set", images, labels, train.classes.clone(), found.order)?;
    Ok(Some(set.counted(found.census)))
}

/// The `validation` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ValidationConfig {
    /// Images of each class, reserved as the server's set is. 0: no validation set.
    pub per_class: usize,
}

/// Takes `per_class` images of every class, first from `discarded`, then from `clients`; both lose them.
///
/// `labels` are the whole training set's. The clients' order is kept. The result is class by class, ascending.
pub(super) fn take(
    name: &str,
    per_class: usize,
    labels: &[u32],
    discarded: &mut [Vec<u32>],
    clients: &mut [Vec<u32>],
    key: Key,
) -> Result<Vec<u32>> {
    let mut taken = Vec::new();
    let mut withdrawn = Vec::new();
    for (class, spare) in discarded.iter_mut().enumerate() {
        let key = key.fold(Purpose::Item, class as u64);
        let mut mine = choose(spare, per_class, key);
        spare.retain(|i| mine.binary_search(i).is_err());
        if mine.len() < per_class {
            let held = held_of_class(clients, labels, class);
            let more = choose(&held, per_class - mine.len(), key.fold(Purpose::Item, 1));
            if mine.len() + more.len() < per_class || more.len() == held.len() {
                return Err(Error::input(format!(
                    "{name}.per_class = {per_class}: class {class} has {} unused images and {} at clients",
                    mine.len(),
                    held.len()
                ))
                .hint(format!("lower {name}.per_class; 0 is no such set")));
            }
            withdrawn.extend_from_slice(&more);
            mine.extend(more);
            mine.sort_unstable();
        }
        taken.extend(mine);
    }
    withdraw(name, clients, withdrawn)?;
    Ok(taken)
}

/// `n` of `from` (ascending), ascending.
fn choose(from: &[u32], n: usize, key: Key) -> Vec<u32> {
    let mut chosen: Vec<u32> = key.rng().choose(from.len(), n).into_iter().map(|i| from[i]).collect();
    chosen.sort_unstable();
    chosen
}

fn held_of_class(clients: &[Vec<u32>], labels: &[u32], class: usize) -> Vec<u32> {
    let is_class = |&i: &u32| labels.get(i as usize) == Some(&(class as u32));
    let mut held: Vec<u32> = clients.iter().flatten().copied().filter(is_class).collect();
    held.sort_unstable();
    held
}

fn withdraw(name: &str, clients: &mut [Vec<u32>], mut gone: Vec<u32>) -> Result<()> {
    gone.sort_unstable();
    for (k, client) in clients.iter_mut().enumerate() {
        let held = client.len();
        client.retain(|i| gone.binary_search(i).is_err());
        if client.is_empty() && held > 0 {
            return Err(Error::input(format!("{name}: client {k} would hold no image"))
                .hint(format!("lower {name}.per_class or partition.clients")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::dataset::{Images, Order};
    use super::super::decode::tests::png;
    use super::*;

    #[test]
    fn a_folder_is_put_into_the_benchmarks_class_order_and_must_be_balanced() {
        let dir = tempfile::tempdir().unwrap();
        for (path, v) in [("ape/1.png", 1), ("ape/2.png", 2), ("bee/1.png", 3), ("bee/2.png", 4), ("bee/3.png", 5)] {
            let path = dir.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, png(4, 4, |_, _| [v; 3])).unwrap();
        }
        let classes = vec!["bee".to_string(), "ape".to_string()];
        let images = Images::new([3, 2, 2], vec![0; 24]).unwrap();
        let train = Dataset::new("train", images, vec![0, 1], classes, Order::Original).unwrap();
        let path = dir.path().display().to_string();
        let config = |per_class| ServerSetConfig { origin: Origin::Folder, per_class, path: path.clone() };
        let cx = Context::cpu(1);
        let set = from_folder(&config(Some(2)), &train, &cx).unwrap().unwrap();
        assert_eq!((set.labels.as_slice(), set.images.shape()), ([0, 0, 1, 1].as_slice(), [3, 2, 2]));
        assert_eq!((0..4).map(|i| set.images.get(i)[0]).collect::<Vec<_>>(), [3, 4, 1, 2]);
        let refuse = |per_class| from_folder(&config(per_class), &train, &cx).unwrap_err().to_string();
        assert!(refuse(None).contains("3 images of bee, expected 2"));
        assert!(refuse(Some(3)).contains("2 images of ape, expected 3"));
        std::fs::remove_dir_all(dir.path().join("ape")).unwrap();
        assert!(refuse(Some(2)).contains("no folder for ape"));
        assert!(from_folder(&ServerSetConfig::default(), &train, &cx).unwrap().is_none());
    }
}
