//! What runs of one process and of one cache share: the benchmark, and stages that depend on the very same inputs.

use std::path::Path;
use std::sync::Mutex;

use serde_json::{Value, json};

use super::Experiment;
use super::experiment::instruction_set;
use crate::config::Config;
use crate::data::shared::Shared;
use crate::data::{self, Benchmark, DataConfig, PoolConfig};
use crate::error::Result;
use crate::exec::{Context, Event, lock};
use crate::fl::align::When;
use crate::fsx;
use crate::key::Key;
use crate::nn::Params;
use crate::run::Shelf;
use crate::stage::pretrain::Pretext;

/// The benchmark that was read last, so that arms of one seed read it once.
#[derive(Default)]
pub struct Library(Mutex<Option<Last>>);

struct Last {
    name: Value,
    benchmark: Benchmark,
    /// For other ranks of this machine, where there are any.
    shared: Option<Shared>,
}

fn name(config: &Config) -> Value {
    json!({ "data": config.data, "seed": config.run.split_seed.unwrap_or(config.run.seed) })
}

impl Library {
    /// The benchmark of a config.
    pub fn benchmark(&self, config: &Config, key: Key, cx: &Context) -> Result<Benchmark> {
        let name = name(config);
        let mut last = lock(&self.0);
        if let Some(known) = last.as_ref().filter(|last| last.name == name) {
            return Ok(known.benchmark.clone());
        }
        let mut benchmark = data::load(&config.data, key, cx)?;
        let near = cx.ranks.neighbours();
        let shared = match near.len() > 1 && near[0] == cx.ranks.rank() {
            true => benchmark.share().unwrap_or_else(|e| {
                cx.events.on(Event::Warning(&format!("every rank reads the benchmark: {}", e.plain())));
                None
            }),
            false => None,
        };
        *last = Some(Last { name, benchmark: benchmark.clone(), shared });
        Ok(benchmark)
    }

    /// With a benchmark that is there already.
    pub(super) fn of(config: &Config, benchmark: Benchmark) -> Self {
        Library(Mutex::new(Some(Last { name: name(config), benchmark, shared: None })))
    }

    /// What other ranks of this machine need to see the benchmark, as JSON; none where each reads it.
    pub(super) fn notice(&self) -> Option<String> {
        let last = lock(&self.0);
        let notice = last.as_ref().and_then(|last| last.shared.as_ref()).map(|shared| &shared.notice);
        notice.and_then(|notice| serde_json::to_string(notice).ok())
    }
}

impl Experiment {
    /// What every trained stage depends on.
    fn machine(&self) -> Value {
        let config = &self.config;
        json!({ "seed": config.run.seed, "engine": config.run.engine, "device": config.run.device,
            "instruction_set": instruction_set(), "model": config.model, "augment": config.augment })
    }

    /// Where stage 1 is kept, if it is.
    pub fn pretrain_shelf(&self, cx: &Context) -> Result<Option<Shelf>> {
        let config = &self.config;
        // A language model's weights are not among the inputs below.
        if !config.run.share || config.pretrain.objective == Pretext::Llm {
            return Ok(None);
        }
        let pool = match (&config.pool, &config.data) {
            (PoolConfig::World(own), DataConfig::World(world)) if own.captions.is_empty() => {
                let mut world = world.clone();
                // The benchmark's sizes do not reach the pool.
                (world.train_per_class, world.test_per_class) = (0, 0);
                json!({ "pool": config.pool, "world": world })
            }
            _ => {
                let pool = self.open_pool(cx)?;
                let texts: Vec<&Vec<String>> = pool.items.iter().map(|i| &i.texts).collect();
                json!({ "images": fsx::sha256(pool.seen_digests(cx)?.join("\n").as_bytes()),
                    "texts": fsx::sha256(json!(texts).to_string().as_bytes()) })
            }
        };
        let inputs = json!({ "machine": self.machine(), "pretrain": config.pretrain, "pool": pool,
            "shape": self.benchmark.train.images.shape(), "clip": self.embedder.digest(cx)? });
        Shelf::new(Path::new(&config.run.cache), "pretrain", inputs).map(Some)
    }

    /// Where stage 2 from `start` is kept, if it is. Rounds with an alignment in them are not.
    pub fn finetune_shelf(&self, start: &Params) -> Result<Option<Shelf>> {
        let config = &self.config;
        let aligned = config.align.enabled && config.align.when == When::EveryRound;
        if !config.run.share || aligned || self.split.cohorts.is_some() {
            return Ok(None);
        }
        let (train, test) = (&self.benchmark.train, &self.benchmark.test);
        let inputs = json!({ "machine": self.machine(), "start": start.digest(), "split": self.split.digest(),
            "train": train.digest, "test": test.digest, "partition": config.partition, "federated": config.federated,
            "algorithm": config.algorithm, "shots": config.evaluate.shots });
        Shelf::new(Path::new(&config.run.cache), "finetune", inputs).map(Some)
    }

    /// Images that each stage trained on, counted as often as they were seen, and the multiply-adds of all of them:
    /// three forward passes an image-step (a backward pass is two), and CLIP's forward pass over the pool.
    /// Of the federated stage as many rounds as were run.
    pub fn budget(&self, pool_images: usize, rounds: usize, cx: &Context) -> Result<Value> {
        let config = &self.config;
        let (pretrain, mut work) = if config.pretrain.enabled {
            let size = config.pretrain.batch_size.max(1);
            let seen = (config.pretrain.epochs * (pool_images / size) * size) as u64;
            let head = self.net.multiply_adds(); // a projection of CLIP's width adds less than 0.2 %
            (seen, 3 * seen * head + pool_images as u64 * self.embedder.image_multiply_adds(cx)?)
        } else {
            (0, 0)
        };
        let mut finetune = 0u64;
        for round in 1..=rounds {
            cx.cancel.check()?;
            let cohort = self.cohort(round)?;
            let held: usize = cohort.iter().map(|&c| self.split.clients[c as usize].len()).sum();
            finetune += (held * config.federated.local_epochs) as u64;
        }
        let align = if config.align.enabled { self.align_steps() } else { 0 };
        work += 3 * (finetune + align) * self.net.multiply_adds();
        Ok(json!({ "pretrain": pretrain, "finetune": finetune, "align": align, "multiply_adds": work }))
    }

    /// What a client bears in a round in which it takes part: means over the recorded rounds, and the memory that its
    /// training takes at least: parameters, gradients, the optimiser's moments, what it keeps, one batch's activations.
    pub fn burden(&self, records: &[Value]) -> Value {
        let config = &self.config.federated;
        let rounds: Vec<&Value> =
            records.iter().filter(|r| r["stage"] == "finetune" && r["split"] == "train").collect();
        let replies = (rounds.len() * config.cohort).max(1) as f64;
        let mean = |key: &str| rounds.iter().filter_map(|r| r[key].as_f64()).sum::<f64>() / replies;
        let kept = usize::from(self.config.algorithm.algorithm().needs().kept);
        let vectors = 2 + config.optimiser.moments() + kept;
        let activations: usize = self.net.shapes.iter().map(|s| s.iter().product::<usize>()).sum();
        let memory = 4 * (vectors * self.net.layout.len() + config.batch_size * activations);
        json!({ "bytes_down": mean("bytes_down"), "bytes_up": mean("bytes_up"), "multiply_adds": mean("multiply_adds"),
            "memory": memory, "leaves": self.config.algorithm.algorithm().about().leaves })
    }

    fn align_steps(&self) -> u64 {
        let (config, n) = (&self.config.align, self.server_set().1.len());
        let size = config.batch_size.clamp(1, n.max(1));
        let per_epoch = n.div_ceil(size).max(1);
        let last = n - (per_epoch - 1) * size;
        let (epochs, rest) = (config.steps / per_epoch, config.steps % per_epoch);
        let once = epochs * n + rest.min(per_epoch - 1) * size + if rest == per_epoch { last } else { 0 };
        let times = if config.when == When::EveryRound { self.config.federated.rounds.max(1) } else { 1 };
        (once * times) as u64
    }
}
