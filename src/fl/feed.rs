//! Where batches come from: a feed's order of images, and its rows in a step.

use std::collections::BTreeMap;

use super::brief::{Feed, Name, Order, Rows};
use super::objective::Column;
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};
use crate::nn::{Batch, Params, Samples};

/// Numbered images and which of them.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    /// The images.
    pub samples: &'a dyn Samples,
    /// Which ones, in stored order.
    pub ids: &'a [u32],
}

/// Everything that a client's, or the server's, local work may look at.
#[derive(Clone, Copy)]
pub struct Data<'a> {
    /// The client's own images.
    pub own: Source<'a>,
    /// The server's labelled set.
    pub server: Option<Source<'a>>,
    /// The server's images without labels.
    pub unlabelled: Option<Source<'a>>,
    /// Numbers by image.
    pub columns: &'a BTreeMap<Name, Column>,
}

impl Data<'_> {
    /// The client's images by class, `(classes,)`; empty where they have no labels.
    pub fn counts(&self, classes: usize) -> Vec<u32> {
        let labels = self.own.samples.labels();
        if labels.is_empty() {
            return Vec::new();
        }
        let mut counts = vec![0; classes];
        for &id in self.own.ids {
            if let Some(n) = labels.get(id as usize).and_then(|&y| counts.get_mut(y as usize)) {
                *n += 1;
            }
        }
        counts
    }
}

/// A feed at work: its images in the order of the epoch at hand.
pub(super) struct Stream<'a> {
    feed: &'a Feed,
    source: Rowed<'a>,
    ids: Vec<u32>,
    order: Vec<u32>,
    /// Batches of [`Order::ByClass`], as ranges of `order`.
    by_class: Vec<std::ops::Range<usize>>,
    epoch: Option<usize>,
    size: usize,
}

/// Images, or rows of a slot.
enum Rowed<'a> {
    Images(Source<'a>),
    Features { values: &'a [f32], dim: usize, labels: Option<&'a [f32]> },
}

impl<'a> Stream<'a> {
    pub fn new(feed: &'a Feed, data: &Data<'a>, slots: &'a [Params], features: usize) -> Result<Self> {
        let absent = |what: &str| Error::defect(format!("feed: this run has no {what}"));
        let slot = |id: usize| slots.get(id).ok_or_else(|| Error::defect(format!("feed: no slot {id}")));
        let source = match feed.rows {
            Rows::Own => Rowed::Images(data.own),
            Rows::Server => Rowed::Images(data.server.ok_or_else(|| absent("server set"))?),
            Rows::Unlabelled => Rowed::Images(data.unlabelled.ok_or_else(|| absent("unlabelled images"))?),
            Rows::Features(id) => {
                let labels = feed.labels.map(slot).transpose()?.map(Params::data);
                Rowed::Features { values: slot(id)?.data(), dim: features, labels }
            }
        };
        let ids: Vec<u32> = match &source {
            Rowed::Images(source) => source.ids.to_vec(),
            Rowed::Features { values, dim, .. } => (0..(values.len() / (*dim).max(1)) as u32).collect(),
        };
        let size = if feed.batch_size == 0 { ids.len().max(1) } else { feed.batch_size };
        let mut stream = Stream { feed, source, ids, order: Vec::new(), by_class: Vec::new(), epoch: None, size };
        if let Some(class) = feed.class {
            let own = stream.ids.iter().copied().filter(|&id| stream.label(id) == class).collect();
            stream.ids = own;
        }
        Ok(stream)
    }

    /// Whether it gives stored features.
    pub fn stored(&self) -> bool {
        matches!(self.source, Rowed::Features { .. })
    }

    /// Batches of an epoch.
    pub fn batches(&self) -> usize {
        match self.feed.order {
            Order::ByClass { .. } => self.classes().values().filter(|of| !of.is_empty()).count(),
            _ if self.feed.drop_last => (self.ids.len() / self.size).max(usize::from(!self.ids.is_empty())),
            _ => self.ids.len().div_ceil(self.size),
        }
    }

    /// Images of each class, in stored order.
    fn classes(&self) -> BTreeMap<u32, Vec<u32>> {
        let mut classes: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        self.ids.iter().for_each(|&id| classes.entry(self.label(id)).or_default().push(id));
        classes
    }

    fn label(&self, id: u32) -> u32 {
        match &self.source {
            Rowed::Images(source) => source.samples.labels().get(id as usize).copied().unwrap_or(0),
            Rowed::Features { labels, .. } => labels.and_then(|l| l.get(id as usize)).map_or(0, |&y| y as u32),
        }
    }

    /// Orders the images for an epoch; `key` is the epoch's own and `number` the feed's.
    fn arrange(&mut self, epoch: usize, key: Key, number: u64) {
        if self.epoch == Some(epoch) {
            return;
        }
        self.epoch = Some(epoch);
        let shuffle = key.fold(Purpose::Shuffle, number);
        match self.feed.order {
            Order::Stored | Order::Paired => self.order.clone_from(&self.ids),
            Order::Shuffled => {
                self.order.clone_from(&self.ids);
                shuffle.rng().shuffle(&mut self.order);
            }
            Order::Balanced => self.order = balanced(self.classes(), self.ids.len(), shuffle),
            Order::ByClass { per_class } => {
                self.order.clear();
                self.by_class.clear();
                for (class, of) in self.classes() {
                    let drawn = shuffle.fold(Purpose::Item, u64::from(class)).rng().choose(of.len(), per_class);
                    let first = self.order.len();
                    self.order.extend(drawn.into_iter().map(|i| of[i]));
                    self.by_class.push(first..self.order.len());
                }
            }
        }
    }

    /// The images of batch `step`, counted over all epochs from 0.
    pub fn ids(&mut self, step: usize, key: Key, number: u64) -> &[u32] {
        let batches = self.batches().max(1);
        let (epoch, batch) = (step / batches, step % batches);
        self.arrange(epoch, key.fold(Purpose::Epoch, epoch as u64), number);
        match self.feed.order {
            Order::ByClass { .. } => self.by_class.get(batch).map_or(&[], |r| &self.order[r.clone()]),
            _ => {
                let (from, to) = (batch * self.size, ((batch + 1) * self.size).min(self.order.len()));
                &self.order[from.min(to)..to]
            }
        }
    }

    /// Says that these images come next; `key` is the batch's.
    pub fn ahead(&self, ids: &[u32], key: Key) {
        if let Rowed::Images(source) = &self.source {
            source.samples.ahead(ids, self.feed.view, key);
        }
    }

    /// Fills a batch with these images, or rows.
    pub fn fill(&self, ids: &[u32], key: Key, batch: &mut Batch) -> Result<()> {
        match &self.source {
            Rowed::Images(source) => source.samples.fill(ids, self.feed.view, key, batch),
            Rowed::Features { values, dim, .. } => {
                batch.x.clear();
                for &id in ids {
                    batch.x.extend_from_slice(&values[id as usize * dim..(id as usize + 1) * dim]);
                }
                batch.y = ids.iter().map(|&id| self.label(id)).collect();
                batch.ids = ids.to_vec();
                batch.rows = vec![ids.len()];
                Ok(())
            }
        }
    }

    /// Joins the feed's columns for these images.
    pub fn join(&self, ids: &[u32], all: &BTreeMap<Name, Column>, out: &mut BTreeMap<Name, Vec<f32>>) -> Result<()> {
        for name in &self.feed.columns {
            let column = all.get(name).ok_or_else(|| Error::defect(format!("feed: no column is called {name}")))?;
            let to = out.entry(name.clone()).or_default();
            for &id in ids {
                let row = column.row(id);
                to.extend_from_slice(row.ok_or_else(|| Error::data(format!("column {name}: no row for image {id}")))?);
            }
        }
        Ok(())
    }
}

/// `n` images, classes in turn; each class's own in shuffled order, and again when they are used up.
fn balanced(classes: BTreeMap<u32, Vec<u32>>, n: usize, key: Key) -> Vec<u32> {
    let mut decks: Vec<(Key, Vec<u32>, usize, u64)> =
        classes.into_iter().map(|(class, of)| (key.fold(Purpose::Item, u64::from(class)), of, usize::MAX, 0)).collect();
    let mut out = Vec::with_capacity(n);
    while out.len() < n && !decks.is_empty() {
        let turn = out.len() % decks.len();
        let (key, of, at, times) = &mut decks[turn];
        if *at >= of.len() {
            key.fold(Purpose::Shuffle, *times).rng().shuffle(of);
            (*at, *times) = (0, *times + 1);
        }
        out.push(of[*at]);
        *at += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_balanced_epoch_shows_every_class_equally_often_and_every_image_of_a_rare_one() {
        let classes = BTreeMap::from([(0, (0..20).collect::<Vec<u32>>()), (2, vec![30, 31])]);
        let order = balanced(classes, 22, Key::from_seed(1));
        assert_eq!(order.iter().filter(|&&i| i >= 30).count(), 11);
        assert_eq!(order[1..4].iter().filter(|&&i| i >= 30).count(), 2);
        let mut common: Vec<u32> = order.iter().copied().filter(|&i| i < 30).collect();
        common.sort_unstable();
        common.dedup();
        assert_eq!(common.len(), 11, "no image twice before all were shown");
    }
}
