//! What a method looks at while a client trains: open losses and statistics on small arrays.
//!
//! An [`Objective`] lives in its method's own file and runs on every engine, because it sees values alone: logits,
//! feature, labels, counts. It adds its gradient to the `d_` arrays. A [`Statistic`] only looks. Both see one client's
//! rows.

use std::collections::BTreeMap;
use std::ops::Range;

use super::brief::Name;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::{Named, Params};

/// A place in the network that an objective reads, and whose gradient it may add to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tap {
    /// The output, `(rows, classes)`.
    Logits,
    /// What the classifier sees, `(rows, features)`.
    Feature,
    /// The classifier itself: W `(classes, features)` and b `(classes,)`.
    Head,
    /// The last spatial map, `(rows, C, h, w)`; the feature where a network has none.
    Map,
}

/// A loss of the classifier in closed form: returns its value (a mean over rows) and adds its gradient.
pub trait Objective: Send + Sync {
    /// What it reads.
    fn taps(&self) -> &[Tap] {
        &[Tap::Logits]
    }

    /// The value at this batch; gradients are added to `at.d_logits`, `at.d_feature`, `at.d_head`, `at.beside`.
    fn add(&self, at: &mut Here<'_>) -> Result<f64>;
}

/// Sums over a client's data, by name.
pub type Sums = BTreeMap<String, Vec<f64>>;

/// What a measuring step computes, without training.
pub trait Statistic: Send + Sync {
    /// What it reads.
    fn taps(&self) -> &[Tap] {
        &[Tap::Logits]
    }

    /// Adds a batch to the sums. With several networks measured, `at.network` says which one is at hand.
    fn add(&self, at: &Here<'_>, sums: &mut Sums) -> Result<()>;

    /// What is found, from the sums; by default the sums themselves, each a vector.
    fn close(&self, sums: Sums) -> Result<Named> {
        let vector = |(name, sum): (String, Vec<f64>)| {
            let data: Vec<f32> = sum.iter().map(|&v| v as f32).collect();
            Ok((name.clone(), Params::tensor(name, &[data.len()], data)?))
        };
        sums.into_iter().map(vector).collect()
    }
}

/// Values of a frozen network on the batch at hand.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// `(rows, classes)`.
    pub logits: Vec<f32>,
    /// `(rows, features)`; empty unless tapped.
    pub feature: Vec<f32>,
}

/// Numbers by image: `dim` for each image that it knows.
#[derive(Clone, Debug)]
pub struct Column {
    /// Numbers of an image.
    pub dim: usize,
    /// The row of each image by its number, [`Column::NONE`] where it has none.
    pub index: Vec<u32>,
    /// `(rows, dim)`.
    pub data: Vec<f32>,
}

impl Column {
    /// No row.
    pub const NONE: u32 = u32::MAX;

    /// Rows `data`, `(ids, dim)`, of the images `ids`.
    pub fn new(dim: usize, ids: &[u32], data: Vec<f32>) -> Result<Self> {
        if data.len() != ids.len() * dim {
            return Err(Error::defect(format!("column: {} values for ({}, {dim})", data.len(), ids.len())));
        }
        let mut index = vec![Self::NONE; ids.iter().max().map_or(0, |&m| m as usize + 1)];
        ids.iter().enumerate().for_each(|(row, &id)| index[id as usize] = row as u32);
        Ok(Column { dim, index, data })
    }

    /// The row of image `id`, `(dim,)`.
    pub fn row(&self, id: u32) -> Option<&[f32]> {
        let row = *self.index.get(id as usize).filter(|r| **r != Self::NONE)? as usize;
        Some(&self.data[row * self.dim..(row + 1) * self.dim])
    }
}

/// A small vector trained beside the network: a head of its own, a scale, a gate.
#[derive(Clone, Debug)]
pub struct Beside {
    /// Its values; an objective may write buffers, weights are the optimiser's.
    pub values: Params,
    /// Its gradient, zero before each step.
    pub gradient: Vec<f32>,
}

/// A batch of one client at one step.
pub struct Here<'a> {
    /// Labels `(rows,)`; 0 where a feed has none.
    pub y: &'a [u32],
    /// Numbers of the images, `(rows,)`.
    pub ids: &'a [u32],
    /// Rows of each feed.
    pub feeds: &'a [Range<usize>],
    /// Classes of the network.
    pub classes: usize,
    /// Width of the feature.
    pub features: usize,
    /// The client's own images by class, `(classes,)`; empty where its images have no labels.
    pub counts: &'a [u32],
    /// Optimiser step, from 0, over all epochs.
    pub step: usize,
    /// Optimiser steps in all.
    pub steps: usize,
    /// Batch of the epoch, from 0.
    pub batch: usize,
    /// Batches in an epoch.
    pub batches: usize,
    /// How far on its way, 0 at the first step and 1 at the last.
    pub progress: f32,
    /// Randomness of the step.
    pub key: Key,
    /// The network at hand in a measuring step: its place in `Measure::at`.
    pub network: usize,
    /// `(rows, classes)`.
    pub logits: &'a [f32],
    /// `(rows, features)`; empty unless tapped.
    pub feature: &'a [f32],
    /// `(rows, C·h·w)`; empty unless tapped.
    pub map: &'a [f32],
    /// W `(classes, features)` and b; empty unless tapped.
    pub head: (&'a [f32], &'a [f32]),
    /// Gradients to add to, shaped as the values.
    pub d_logits: &'a mut [f32],
    /// See `feature`.
    pub d_feature: &'a mut [f32],
    /// See `map`.
    pub d_map: &'a mut [f32],
    /// See `head`.
    pub d_head: (&'a mut [f32], &'a mut [f32]),
    /// Vectors trained beside the network.
    pub beside: &'a mut [Beside],
    pub(super) witnesses: &'a [Seen],
    pub(super) slots: &'a [Params],
    pub(super) columns: &'a BTreeMap<Name, Vec<f32>>,
}

impl<'a> Here<'a> {
    /// Rows of the batch.
    pub fn rows(&self) -> usize {
        self.y.len()
    }

    /// The `i`-th witness's values on this batch.
    pub fn witness(&self, i: usize) -> Result<&'a Seen> {
        self.witnesses.get(i).ok_or_else(|| Error::defect(format!("witness {i} of {}", self.witnesses.len())))
    }

    /// All witnesses' values on this batch.
    pub fn witnesses(&self) -> &'a [Seen] {
        self.witnesses
    }

    /// The parameters behind a slot of the brief.
    pub fn slot(&self, id: usize) -> Result<&'a Params> {
        self.slots.get(id).ok_or_else(|| Error::defect(format!("slot {id} of {}", self.slots.len())))
    }

    /// A column's rows for this batch, `(rows, dim)`.
    pub fn column(&self, name: &str) -> Result<&'a [f32]> {
        let all = || Error::defect(format!("the feed names no column {name}"));
        self.columns.get(name).map(Vec::as_slice).ok_or_else(all)
    }
}

/// Objectives against central differences, on batches made by hand.
#[cfg(test)]
pub(crate) mod check {
    use super::*;

    /// Everything that an objective can see, as values; `Default` is empty.
    #[derive(Clone)]
    pub struct Made {
        pub y: Vec<u32>,
        pub feeds: Vec<Range<usize>>,
        pub classes: usize,
        pub features: usize,
        pub counts: Vec<u32>,
        pub step: usize,
        pub steps: usize,
        pub key: Key,
        pub logits: Vec<f32>,
        pub feature: Vec<f32>,
        pub head: [Vec<f32>; 2],
        pub beside: Vec<Params>,
        pub witnesses: Vec<Seen>,
        pub slots: Vec<Params>,
        pub columns: BTreeMap<Name, Vec<f32>>,
    }

    /// Gradients in the order logits, feature, W, b, beside.
    pub type Gradients = Vec<Vec<f32>>;

    impl Made {
        /// A batch with these labels; logits, features and classifier are hashed waves.
        pub fn new(y: &[u32], classes: usize, features: usize) -> Self {
            let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step + 0.3).sin()).collect::<Vec<f32>>();
            let (y, rows) = (y.to_vec(), y.len());
            let mut counts = vec![0; classes];
            y.iter().for_each(|&c| counts[c as usize] += 1);
            Made {
                feeds: std::iter::once(0..rows).collect(),
                y,
                classes,
                features,
                counts,
                step: 0,
                steps: 10,
                key: Key::from_seed(1),
                logits: wave(rows * classes, 1.7),
                feature: wave(rows * features, 0.9),
                head: [wave(classes * features, 0.6), wave(classes, 2.1)],
                beside: Vec::new(),
                witnesses: Vec::new(),
                slots: Vec::new(),
                columns: BTreeMap::new(),
            }
        }

        /// Value and gradients.
        pub fn run(&self, objective: &dyn Objective) -> (f64, Gradients) {
            let (mut dz, mut dh) = (vec![0.0; self.logits.len()], vec![0.0; self.feature.len()]);
            let (mut dw, mut db) = (vec![0.0; self.head[0].len()], vec![0.0; self.head[1].len()]);
            let beside = |p: &Params| Beside { values: p.clone(), gradient: vec![0.0; p.data().len()] };
            let mut beside: Vec<Beside> = self.beside.iter().map(beside).collect();
            let ids: Vec<u32> = (0..self.y.len() as u32).collect();
            let mut here = Here {
                y: &self.y,
                ids: &ids,
                feeds: &self.feeds,
                classes: self.classes,
                features: self.features,
                counts: &self.counts,
                step: self.step,
                steps: self.steps,
                batch: self.step,
                batches: self.steps,
                progress: self.step as f32 / (self.steps.max(2) - 1) as f32,
                key: self.key,
                network: 0,
                logits: &self.logits,
                feature: &self.feature,
                map: &[],
                head: (&self.head[0], &self.head[1]),
                d_logits: &mut dz,
                d_feature: &mut dh,
                d_map: &mut [],
                d_head: (&mut dw, &mut db),
                beside: &mut beside,
                witnesses: &self.witnesses,
                slots: &self.slots,
                columns: &self.columns,
            };
            let value = objective.add(&mut here).unwrap();
            let mut gradients = vec![dz, dh, dw, db];
            gradients.extend(beside.into_iter().map(|b| b.gradient));
            (value, gradients)
        }

        fn array(&mut self, which: usize) -> &mut [f32] {
            match which {
                0 => &mut self.logits,
                1 => &mut self.feature,
                2 | 3 => &mut self.head[which - 2],
                _ => self.beside[which - 4].data_mut(),
            }
        }

        /// Asserts that every partial derivative is the central difference, to `tolerance`; the arrays `held` have none
        /// (a stop-gradient, or no dependence) and must get zeros.
        pub fn differs_by(&self, objective: &dyn Objective, tolerance: f64, held: &[usize]) {
            let (_, gradients) = self.run(objective);
            for (which, gradient) in gradients.iter().enumerate() {
                if held.contains(&which) {
                    assert!(gradient.iter().all(|g| *g == 0.0), "array {which} gets no gradient");
                    continue;
                }
                for (i, &g) in gradient.iter().enumerate() {
                    let at = |h: f32| {
                        let mut moved = self.clone();
                        moved.array(which)[i] += h;
                        moved.run(objective).0
                    };
                    let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
                    assert!((f64::from(g) - numeric).abs() < tolerance, "array {which}, {i}: {g}, numeric {numeric}");
                }
            }
        }
    }
}
