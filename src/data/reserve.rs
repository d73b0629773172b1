//! The balanced sets that no client trains on: the server's (alignment) and the validation set.
//!
//! The reference split is drawn first, exactly as without a reserve. Then each class's reserve is taken, by key, from
//! the images that the long tail discards; where a class has too few of them (class 0 keeps all of its images) the
//! rest is withdrawn from the clients that hold them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::key::{Key, Purpose};

/// The `server_set` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
            Origin::TrainReserve => Ok(self.per_class.unwrap_or((500 / classes.max(1)).max(1))),
            Origin::Folder if self.path.is_empty() => {
                Err(Error::input("server_set.origin = \"folder\" needs server_set.path"))
            }
            Origin::Folder => Ok(0),
            Origin::Test => {
                Err(Error::input("server_set.origin = \"test\" is refused: test images never align a model")
                    .hint("use \"train-reserve\" (the default) or \"folder\""))
            }
            Origin::Pool | Origin::Val => Err(Error::input(format!(
                "server_set.origin = \"{}\": this benchmark has no labelled {} to draw from",
                if self.origin == Origin::Pool { "pool" } else { "val" },
                if self.origin == Origin::Pool { "pool" } else { "validation set" }
            ))
            .hint("use \"train-reserve\" (the default), or \"folder\" with server_set.path")),
        }
    }
}

/// The `validation` section.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
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
    let mut taken = Vec::with_capacity(per_class * discarded.len());
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
                .hint(format!("lower {name}.per_class")));
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
        client.retain(|i| gone.binary_search(i).is_err());
        if client.is_empty() {
            return Err(Error::input(format!("{name}: client {k} would hold no image"))
                .hint(format!("lower {name}.per_class or partition.clients")));
        }
    }
    Ok(())
}
