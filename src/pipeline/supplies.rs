//! What a method may ask for besides clients' images: the server set, images without labels, a teacher's logits, texts.

use std::collections::BTreeMap;

use super::Experiment;
use crate::data::{self, Dataset, Order};
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event};
use crate::fl::config::Export;
use crate::fl::feed::Source;
use crate::fl::{Column, Mode, Supplies};
use crate::nn::Params;
use crate::stage::{Loaded, teach};

/// Image sets that [`Supplies`] point into.
pub(super) struct Stock<'a> {
    server: Loaded<'a>,
    server_ids: Vec<u32>,
    unlabelled: Option<(Dataset, Vec<u32>)>,
}

impl Experiment {
    /// Refuses a method that asks for what this config does not name, before any stage runs.
    pub(super) fn refuse_unsupplied(&self) -> Result<()> {
        let needs = self.config.algorithm.algorithm().needs();
        let lacking = |what: &str, hint: &str| {
            Err(Error::input(format!("algorithm.kind: this method needs {what}, and the config names none")).hint(hint))
        };
        if needs.server_set && self.server_set().1.is_empty() {
            return lacking("a labelled set of the server", "set server_set.per_class");
        }
        if needs.classifier && self.net.classifier().is_none() {
            return lacking("a network that ends in a linear classifier", "choose another model.kind");
        }
        if self.config.federated.export == Export::Best && self.reserved()[1].iter().all(|n| *n == 0) {
            return Err(Error::input("federated.export = \"best\": there is no validation set to choose by")
                .hint("set validation.per_class; the test set never chooses"));
        }
        match &self.split.cohorts {
            Some(cohorts) if cohorts.len() < self.config.federated.rounds => Err(Error::input(format!(
                "federated.rounds = {}: the split's file has cohorts for {} rounds",
                self.config.federated.rounds,
                cohorts.len()
            ))
            .hint(format!("set federated.rounds={}, or export the split with more rounds", cohorts.len()))),
            _ => Ok(()),
        }
    }

    /// Refuses, before any stage runs, training on a single image where batch norm needs more: the network's maps there
    /// are one pixel.
    pub(super) fn refuse_single(&self, cx: &Context) -> Result<()> {
        let Some(norm) = self.net.norms_of_one_pixel().next() else { return Ok(()) };
        let (align, set) = (&self.config.align, self.server_set().1.len());
        if align.enabled && align.leaves_one(set) {
            let size = align.batch_size;
            return Err(Error::input(format!(
                "align.bn = \"update\": {set} images in batches of {size} leave a batch of one; {norm} needs two"
            ))
            .hint("set align.bn = \"frozen\", another align.batch_size, or a larger server_set.per_class"));
        }
        // Two views of one image are two rows.
        match self.config.algorithm.algorithm().needs().paired {
            true => Ok(()),
            false => self.refuse_single_of_client(norm, cx),
        }
    }

    /// Refuses a client that would be drawn and train on a single image.
    fn refuse_single_of_client(&self, norm: &str, cx: &Context) -> Result<()> {
        let (config, holders) = (&self.config.federated, self.holders());
        let mut alone: Vec<usize> = (0..holders.len()).filter(|&k| config.leaves_one(holders[k].len())).collect();
        let n = alone.len();
        if config.mode != Mode::Centralised && !alone.is_empty() {
            // The first that is drawn is enough: of many rounds nobody need wait for all.
            let drawn = |round| -> Result<Option<usize>> {
                Ok(self.cohort(round)?.into_iter().map(|k| k as usize).find(|k| alone.binary_search(k).is_ok()))
            };
            let first = (1..=config.rounds).map(|round| cx.cancel.check().and_then(|()| drawn(round)));
            alone = first.filter_map(Result::transpose).next().transpose()?.into_iter().collect();
        }
        let Some(&first) = alone.first() else { return Ok(()) };
        let (size, images) = (config.batch_size, holders[first].len());
        let error = Error::input(format!(
            "{n} of {} clients train on a batch of one image, the first is client {first} with {images} in batches of {size}; {norm} needs two",
            holders.len()
        ));
        Err(match images {
            1 => error.hint("give every client at least two images: partition.min_size"),
            _ => error.hint("set federated.drop_last = true, or another federated.batch_size"),
        })
    }

    /// The sets that this run's method asks for, read.
    pub(super) fn stock(&self, cx: &Context) -> Result<Stock<'_>> {
        let needs = self.config.algorithm.algorithm().needs();
        let (data, server_ids) = self.server_set();
        let server = Loaded { data, loader: &self.loader };
        let unlabelled = if needs.unlabelled { self.unlabelled(cx).at(|| "unlabelled")? } else { None };
        Ok(Stock { server, server_ids, unlabelled })
    }

    /// The images of the `unlabelled` section, and which of them.
    fn unlabelled(&self, cx: &Context) -> Result<Option<(Dataset, Vec<u32>)>> {
        let config = &self.config.unlabelled;
        let shape = self.benchmark.train.images.shape();
        let found = if let Some(section) = &config.data {
            let data::Benchmark { train, sources, .. } = data::load(section, self.config.run.split_key(), cx)?;
            sources.iter().chain([&train.census]).try_for_each(|census| self.enter(census, cx))?;
            train
        } else if let Some(section) = &config.pool {
            let pool = self.pool_of(section, cx)?;
            let decoded = pool.like(&self.benchmark.train.images, &(0..pool.len() as u32).collect::<Vec<_>>(), cx)?;
            self.enter(&decoded.census(&pool.name), cx)?;
            let n = decoded.images.len();
            Dataset::new("unlabelled", decoded.images, vec![0; n], vec!["none".into()], Order::Original)?
        } else {
            return Ok(None);
        };
        if found.images.shape() != shape {
            let (a, b) = (found.images.shape(), shape);
            return Err(Error::input(format!("{} has images of {a:?}, the benchmark {b:?}", found.name)));
        }
        if found.digest == self.benchmark.train.digest {
            return Err(Error::input("these are the benchmark's own training images")
                .hint("name another data set: what clients hold must not lie on the server"));
        }
        let chosen = config.choose(found.len(), self.config.run.split_key());
        cx.events.on(Event::Note(&format!("unlabelled: {} of {} images of {}", chosen.len(), found.len(), found.name)));
        Ok(Some((found, chosen)))
    }

    /// What there is, as the loop sees it.
    pub(super) fn supplies<'s>(
        &self,
        stock: &'s Stock<'_>,
        unlabelled: Option<&'s Loaded<'s>>,
        cx: &Context,
    ) -> Result<Supplies<'s>> {
        let needs = self.config.algorithm.algorithm().needs();
        let server =
            (!stock.server_ids.is_empty()).then_some(Source { samples: &stock.server, ids: &stock.server_ids });
        let ids = stock.unlabelled.as_ref().map(|(_, ids)| ids.as_slice());
        let unlabelled = unlabelled.zip(ids).map(|(samples, ids)| Source { samples, ids });
        let mut columns = BTreeMap::new();
        if needs.teacher {
            columns.insert(Supplies::TEACHER.into(), self.teacher_logits(cx).at(|| "the teacher of the clients")?);
        }
        let texts = if needs.texts { Some(self.class_texts(cx)?) } else { None };
        Ok(Supplies { server, unlabelled, columns, texts })
    }

    /// A frozen teacher's logits of all clients' images: `log q`, which is `100 cos` but for a number a row.
    fn teacher_logits(&self, cx: &Context) -> Result<Column> {
        let train = &self.benchmark.train;
        let mut held: Vec<u32> = self.split.clients.iter().flatten().copied().collect();
        held.sort_unstable();
        let q = teach::distributions(&self.config.teacher, train, &held, &self.embedder, cx)?;
        let logits = q.iter().map(|q| q.max(f32::MIN_POSITIVE).ln()).collect();
        Column::new(train.classes.len(), &held, logits)
    }

    /// The frozen text tower's unit features of the class names, `(classes, width)`.
    fn class_texts(&self, cx: &Context) -> Result<Params> {
        let zero_shot = self.embedder.zero_shot(&self.benchmark.train.classes, cx)?;
        let texts = zero_shot.text_features();
        Params::tensor("texts", &[texts.rows(), texts.dim], texts.data.clone())
    }

    /// Who trains: the split's clients, or one machine that holds what all of them do.
    pub(super) fn holders(&self) -> Vec<Vec<u32>> {
        match self.config.federated.mode {
            Mode::Centralised => vec![self.split.clients.concat()],
            _ => self.split.clients.clone(),
        }
    }
}

impl Stock<'_> {
    /// The unlabelled images.
    pub(super) fn unlabelled(&self) -> Option<&Dataset> {
        self.unlabelled.as_ref().map(|(data, _)| data)
    }

    /// The unlabelled images behind the run's loader.
    pub(super) fn loaded<'s>(&'s self, loader: &'s data::Loader) -> Option<Loaded<'s>> {
        self.unlabelled.as_ref().map(|(data, _)| Loaded { data, loader })
    }
}
