//! What every stage of a run shares: the benchmark, who holds what, the network.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::Library;
use super::outlook::memory;
use crate::config::Config;
use crate::data::creff::Cohorts;
use crate::data::overlap::{self, Fingerprints};
use crate::data::{
    self, Benchmark, Census, Dataset, Groups, Ledger, Loader, Order, PartitionConfig, Pictures, Split, reserve,
};
use crate::error::{Error, Result};
use crate::exec::{self, Context, Event};
use crate::fl::estimate::{Estimate, available_memory};
use crate::fl::{ClientId, cohort};
use crate::key::{Key, Purpose};
use crate::model::Head;
use crate::nn::Net;
use crate::nn::kernels::Isa;
use crate::run::{RunDir, directory, program};
use crate::stage::Loaded;
use crate::stage::embed::Embedder;
use crate::stage::evaluate::Judge;

/// The commit that the program was built from, `-changed` where the checkout differed from it; `unknown` outside one.
pub const COMMIT: &str = env!("FEDLLAVA_COMMIT");

/// The inputs of a run, read and checked.
pub struct Experiment {
    /// The configuration.
    pub config: Config,
    /// The root of all randomness.
    pub key: Key,
    /// Training and test images.
    pub benchmark: Benchmark,
    /// Who holds what.
    pub split: Split,
    /// The server set, where it comes from elsewhere than the training images.
    pub server: Option<Dataset>,
    /// The validation set, where it comes from the benchmark's own.
    own_validation: Option<Dataset>,
    /// Classes by frequency over all clients.
    pub groups: Groups,
    /// Normalisation and augmentation.
    pub loader: Loader,
    /// The classifier.
    pub net: Arc<Net>,
    /// The frozen CLIP.
    pub embedder: Embedder,
    /// What was read, and what was left out of it.
    pub ledger: Ledger,
    /// The reference generator's cohorts, as far as they were drawn.
    drawn: Mutex<Cohorts>,
}

impl Experiment {
    /// Reads the data and draws the split.
    pub fn open(config: Config, cx: &Context) -> Result<Self> {
        Self::open_with(config, &Library::default(), cx)
    }

    /// Takes the benchmark from a library and draws the split.
    pub fn open_with(config: Config, library: &Library, cx: &Context) -> Result<Self> {
        let (key, split_key) = (Key::from_seed(config.run.seed), config.run.split_key());
        let benchmark = library.benchmark(&config, split_key, cx)?;
        let ledger = Ledger::default();
        let enter = |census: &Census| ledger.enter(census, config.run.tolerate, cx);
        let sets = [Some(&benchmark.train), benchmark.val.as_ref(), Some(&benchmark.test)];
        benchmark.sources.iter().try_for_each(enter)?;
        sets.into_iter().flatten().try_for_each(|set| enter(&set.census))?;
        say_absent(&benchmark, cx);
        refuse_absent(&config, &benchmark)?;
        let drawn = split_key.fold(Purpose::Partition, 0);
        let (split, census) = draw(&config, &benchmark, drawn)?;
        enter(&census)?;
        let groups = config.evaluate.shots.group(&split.global_counts())?;
        let shape = benchmark.train.images.shape();
        let loader = Loader::new(&config.augment, shape)?;
        let net = Arc::new(config.model.build(shape, Head::Classes(benchmark.train.classes.len()))?);
        let embedder = Embedder::new(&config.clip, &config.run.cache);
        let (val, drawn) = (benchmark.val.as_ref(), config.partition.key(drawn));
        let [server, own_validation] = match reserve::from_val(&config.server_set, &config.validation, val, drawn)? {
            Some(both) => both,
            None => [reserve::from_folder(&config.server_set, &benchmark.train, cx)?, None],
        };
        server.iter().try_for_each(|s| enter(&s.census))?;
        if let PartitionConfig::File(file) = &config.partition {
            let text = format!(
                "{} says who holds what: longtail, server_set.per_class and validation have no part in it",
                file.path
            );
            cx.events.on(Event::Note(&text));
        }
        let seeded = matches!(config.partition, PartitionConfig::Creff(_)) || config.longtail.seed.is_some();
        if seeded && benchmark.train.order == Order::Unknown {
            cx.events.on(Event::Warning(
                "the training images are in no known order: the reference's seeds pick its counts, not its images",
            ));
        }
        say_empty(&split, &benchmark.train.classes, cx);
        let (seed, clients) = (config.partition.reference_seed(), split.clients.len());
        let drawn = Mutex::new(Cohorts::new(seed, clients, config.federated.cohort.min(clients)));
        Ok(Experiment {
            config,
            key,
            benchmark,
            split,
            server,
            own_validation,
            groups,
            loader,
            net,
            embedder,
            ledger,
            drawn,
        })
    }

    /// Says what was seen of a source, and refuses it where too much of it was lost.
    pub fn enter(&self, census: &Census, cx: &Context) -> Result<()> {
        self.ledger.enter(census, self.config.run.tolerate, cx)
    }

    /// The training images as the loop sees them.
    pub fn train(&self) -> Loaded<'_> {
        Loaded { data: &self.benchmark.train, loader: &self.loader }
    }

    /// The server set: the images it is in, and which of them.
    pub fn server_set(&self) -> (&Dataset, Vec<u32>) {
        match &self.server {
            Some(data) => (data, (0..data.len() as u32).collect()),
            None => (&self.benchmark.train, self.split.server.clone()),
        }
    }

    /// The test set as a judge.
    pub fn judge(&self) -> Judge<'_> {
        let data = &self.benchmark.test;
        let (backend, tau_norm) = (self.config.run.engine, self.config.finetune.tau_norm);
        Judge { data, loader: &self.loader, groups: &self.groups, backend, tau_norm }
    }

    /// The validation images, where some are reserved.
    pub fn validation(&self) -> Result<Option<Dataset>> {
        if self.own_validation.is_some() {
            return Ok(self.own_validation.clone());
        }
        let (train, ids) = (&self.benchmark.train, &self.split.validation);
        let name = || format!("{} (validation)", train.name);
        (!ids.is_empty()).then(|| train.select(name(), ids)).transpose()
    }

    /// Images of each class of the server's and of the validation set, `(classes,)`.
    pub fn reserved(&self) -> [Vec<u32>; 2] {
        let (server, ids) = self.server_set();
        let mut counts = vec![0; self.split.classes];
        ids.iter().for_each(|&i| counts[server.labels[i as usize] as usize] += 1);
        let validation = match &self.own_validation {
            Some(own) => own.class_counts(),
            None => self.split.count(&self.split.validation),
        };
        [counts, validation]
    }

    /// The cohort of a round, from 1: an imported one, the reference generator's, or the key path's.
    pub fn cohort(&self, round: usize) -> Result<Vec<ClientId>> {
        let (clients, size) = (self.split.clients.len(), self.config.federated.cohort);
        if let Some(cohorts) = &self.split.cohorts {
            let cohort = cohorts.get(round - 1).ok_or_else(|| {
                Error::data(format!(
                    "the split's file has cohorts for {} rounds, round {round} is asked",
                    cohorts.len()
                ))
                .hint("lower federated.rounds, or export more cohorts")
            })?;
            return Ok(cohort.iter().map(|&c| c as ClientId).collect());
        }
        Ok(match self.config.federated.cohort_draw {
            cohort::CohortDraw::Key => cohort::by_key(self.key, round, clients, size),
            cohort::CohortDraw::Creff => exec::lock(&self.drawn).of(round),
            cohort::CohortDraw::Fedmllm => cohort::fedmllm(round, clients, size),
        })
    }

    /// Bytes the run will take, refused when they cannot be had.
    pub fn estimate(&self, cx: &Context) -> Result<Estimate> {
        let (train, test) = (&self.benchmark.train, &self.benchmark.test);
        let pixels = match train.images {
            // Both are seen through one stream.
            Pictures::Streamed(_) => train.images.memory(),
            Pictures::Held(_) => train.images.memory() + test.images.memory(),
        };
        let largest = self.holders().iter().map(Vec::len).max().unwrap_or(0);
        let estimate = memory(&self.config, &self.net, pixels, largest, cx.threads);
        estimate.check(available_memory())?;
        Ok(estimate)
    }

    /// Writes `split.json`, checks it on resumption, and measures what the sets share.
    pub fn record_split(&self, dir: &RunDir, cx: &Context) -> Result<()> {
        let path = dir.file("split.json");
        let old = path.exists().then(|| directory::read_json(&path));
        if let Some(Err(e)) = &old {
            cx.events.on(Event::Warning(&format!("{}: drawn again", e.message())));
        }
        if let Some(Ok(old)) = old {
            if old["digest"].as_str() != Some(&self.split.digest()) {
                return Err(Error::data(format!("{} is another split than this run draws", path.display()))
                    .hint("the data set changed since the run began; start it in another directory"));
            }
        } else {
            self.split.export(&path)?;
        }
        if self.config.evaluate.overlaps && !dir.file("overlaps.json").exists() {
            dir.write_json("overlaps.json", &self.overlaps(&[], cx)?)?;
        }
        Ok(())
    }

    /// Exact and near duplicates between the sets of this run, and other sets given as images.
    pub fn overlaps(&self, others: &[(&str, &Pictures)], cx: &Context) -> Result<Value> {
        let train = &self.benchmark.train.images;
        let clients: Vec<u32> = {
            let mut all: Vec<u32> = self.split.clients.iter().flatten().copied().collect();
            all.sort_unstable();
            all
        };
        let everything = |images: &Pictures| (0..images.len() as u32).collect::<Vec<u32>>();
        let mut sets = Vec::new();
        for (name, images) in others {
            sets.push(Fingerprints::new(*name, images, &everything(images), cx)?);
        }
        let (server, ids) = self.server_set();
        sets.push(Fingerprints::new("server", &server.images, &ids, cx)?);
        sets.push(match &self.own_validation {
            Some(own) => Fingerprints::new("validation", &own.images, &everything(&own.images), cx)?,
            None => Fingerprints::new("validation", train, &self.split.validation, cx)?,
        });
        sets.push(Fingerprints::new("clients", train, &clients, cx)?);
        let test = &self.benchmark.test.images;
        sets.push(Fingerprints::new("test", test, &everything(test), cx)?);
        let found = overlap::overlaps(&sets, overlap::NEAR, cx)?;
        let mut rows = Vec::new();
        for o in found.iter().filter(|o| o.exact + o.near > 0) {
            let text = format!("{} and {} share {} images exactly and {} nearly", o.a, o.b, o.exact, o.near);
            cx.events.on(Event::Note(&text));
            rows.push(json!({ "a": o.a, "b": o.b, "exact": o.exact, "near": o.near, "examples": o.examples }));
        }
        if rows.is_empty() {
            let names: Vec<&str> =
                others.iter().map(|o| o.0).chain(["server", "validation", "clients", "test"]).collect();
            cx.events.on(Event::Note(&format!("no duplicates between {}", names.join(", "))));
        }
        Ok(json!({ "bits": overlap::NEAR, "of": 256, "overlaps": rows }))
    }

    /// What the manifest says of this run.
    pub fn facts(&self, cx: &Context) -> Result<BTreeMap<&'static str, Value>> {
        let (train, test) = (&self.benchmark.train, &self.benchmark.test);
        Ok(BTreeMap::from([
            ("commit", json!(COMMIT)),
            ("program", json!(program()?)),
            ("version", json!(env!("CARGO_PKG_VERSION"))),
            ("seed", json!(self.config.run.seed)),
            ("split_seed", json!(self.config.run.split_seed.unwrap_or(self.config.run.seed))),
            ("device", json!(format!("{:?}", cx.device.location()))),
            ("engine", json!(self.config.run.engine)),
            ("instruction_set", json!(instruction_set())),
            ("train", json!({ "digest": train.digest, "images": train.len(), "order": train.order })),
            ("test", json!({ "digest": test.digest, "images": test.len() })),
            (
                "apart",
                json!({ "server": self.server.as_ref().map(|s| &s.digest),
                "validation": self.own_validation.as_ref().map(|s| &s.digest) }),
            ),
            ("split", json!({ "digest": self.split.digest(), "counts_sha1": self.split.counts_sha1() })),
            ("sources", self.ledger.to_json()),
            ("parameters", json!(self.net.layout.weights())),
            ("multiply_adds", json!(self.net.multiply_adds())),
        ]))
    }
}

/// Says which classes no client holds: nothing can be learned of them.
fn say_empty(split: &Split, classes: &[String], cx: &Context) {
    let counts = split.global_counts();
    let empty: Vec<&str> = classes.iter().zip(&counts).filter(|(_, n)| **n == 0).map(|(c, _)| c.as_str()).collect();
    if !empty.is_empty() {
        let (n, all, names) = (empty.len(), classes.len(), empty[..empty.len().min(10)].join(", "));
        let text = format!(
            "no client holds an image of {n} of {all} classes ({names}): longtail, server_set.per_class or validation.per_class leave none"
        );
        cx.events.on(Event::Warning(&text));
    }
}

/// Says which classes the test set lacks: no figure counts them.
fn say_absent(benchmark: &Benchmark, cx: &Context) {
    let test = &benchmark.test;
    let absent: Vec<&str> =
        test.classes.iter().zip(test.class_counts()).filter(|(_, n)| *n == 0).map(|(c, _)| c.as_str()).collect();
    if !absent.is_empty() {
        let (n, all, names) = (absent.len(), test.classes.len(), absent[..absent.len().min(10)].join(", "));
        let note = format!(
            "{}: no image of {n} of {all} classes ({names}); means and the worst class leave them out",
            test.name
        );
        cx.events.on(Event::Warning(&note));
    }
}

/// Refuses a training set that lacks classes, where a split is drawn from it, and names its place.
fn refuse_absent(config: &Config, benchmark: &Benchmark) -> Result<()> {
    let train = &benchmark.train;
    let counts = train.class_counts();
    let absent: Vec<&str> =
        train.classes.iter().zip(&counts).filter(|(_, n)| **n == 0).map(|(c, _)| c.as_str()).collect();
    if absent.is_empty() || matches!(config.partition, PartitionConfig::File(_)) {
        return Ok(());
    }
    let place = config.inputs().into_iter().find(|input| input.key == "data.path");
    let place = place.map_or(String::new(), |input| format!("{}: ", input.path));
    let (n, all, names) = (absent.len(), counts.len(), absent[..absent.len().min(10)].join(", "));
    Err(Error::data(format!("{place}{} has no image of {n} of {all} classes ({names})", train.name)))
}

/// Draws the split from its own key, or reads the one that `partition.kind = "file"` names.
fn draw(config: &Config, benchmark: &Benchmark, key: Key) -> Result<(Split, Census)> {
    let train = &benchmark.train;
    let classes = train.classes.len();
    if let PartitionConfig::File(file) = &config.partition {
        let (split, census) = data::import_split(&data::resolve(&file.path)?, benchmark)?;
        if split.clients.len() != file.clients {
            return Err(Error::input(format!("{} holds {} clients", file.path, split.clients.len()))
                .hint(format!("set partition.clients = {}", split.clients.len())));
        }
        return Ok((split, census));
    }
    let Config { longtail, partition, server_set, validation, .. } = config;
    let split = Split::draw(&train.labels, classes, longtail, partition, server_set, validation, key)?;
    Ok((split, Census::default()))
}

/// What compact networks are computed with here: another may round otherwise.
pub fn instruction_set() -> String {
    Isa::detect().to_string()
}
