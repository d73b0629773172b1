//! What a run will take, before any data is read: memory from the sizes, time from a look at this machine's speed.

use std::sync::Arc;
use std::time::Instant;

use crate::config::Config;
use crate::data::{DataConfig, Dataset, Images, Known, Loader, LongTailKind, Order, PoolConfig};
use crate::error::Result;
use crate::exec::{Context, available_memory};
use crate::fl::LEAF;
use crate::fl::align::When;
use crate::fl::estimate::Estimate;
use crate::fl::predict::predict;
use crate::fl::way::LinkConfig;
use crate::key::{Key, Purpose};
use crate::model::{Head, ModelConfig};
use crate::nn::{Backend, Net};
use crate::stage::Loaded;

/// Seconds that the look at the machine's speed takes at least.
const LOOK: f64 = 0.3;
/// Images in it.
const IMAGES: usize = 128;

/// What a run will take.
pub struct Outlook {
    /// The benchmark's sizes.
    pub known: Known,
    /// Parameters of the network.
    pub parameters: usize,
    /// Bytes.
    pub memory: Estimate,
    /// Seconds of each stage on this machine, evaluation included: those that can be told.
    pub seconds: Vec<(&'static str, f64)>,
    /// Stages whose time cannot be told, and why.
    pub untold: Vec<(&'static str, &'static str)>,
}

/// Bytes that a run needs: `pixels` of the benchmark, models, workers, what clients keep; no batch is larger than the
/// `largest` client.
pub(super) fn memory(config: &Config, net: &Net, pixels: u64, largest: usize, threads: usize) -> Estimate {
    let parameters = 4u64.saturating_mul(net.layout.len() as u64);
    let activations: u64 = net.shapes.iter().map(|s| 4 * s.iter().product::<usize>() as u64).sum();
    let pretrain = if config.pretrain.enabled { config.pretrain.batch_size.min(pool_images(config)) } else { 1 };
    let own = if config.federated.batch_size == 0 { largest } else { config.federated.batch_size.min(largest) };
    let batch = own.max(pretrain) as u64;
    let mut estimate = Estimate::default();
    estimate.add("images", pixels);
    let compares = config.federated.way.iter().any(|link| matches!(link, LinkConfig::Robust(_)));
    let most = if compares { usize::MAX } else { 2 * LEAF };
    let replies = most.min(config.federated.cohort) as u64;
    estimate.add(format!("{replies} replies and the sums"), parameters.saturating_mul(replies + 4));
    estimate.add(
        format!("{threads} workers"),
        activations
            .saturating_mul(3)
            .saturating_mul(batch)
            .saturating_add(parameters.saturating_mul(4))
            .saturating_mul(threads as u64),
    );
    let feeds_back = |link: &LinkConfig| matches!(link, LinkConfig::Compress(c) if c.keeps());
    if config.algorithm.algorithm().needs().kept || config.federated.way.iter().any(feeds_back) {
        let kept = parameters.saturating_mul(2).saturating_mul(config.partition.clients() as u64);
        estimate.add("what clients keep", kept);
    }
    estimate
}

/// How many images the pool has, where the config says it.
fn pool_images(config: &Config) -> usize {
    match (&config.pool, &config.data) {
        (PoolConfig::World(_), DataConfig::World(world)) => world.pool_images,
        _ => usize::MAX,
    }
}

/// Networks whose speed was looked at, with images a second, so that arms of one network look once.
pub type Speeds = Vec<(ModelConfig, Backend, Known, f64)>;

/// The outlook of a config; none where the benchmark's sizes are not known.
pub fn outlook(config: &Config, speeds: &mut Speeds, cx: &Context) -> Result<Option<Outlook>> {
    let Some(known) = config.data.known() else { return Ok(None) };
    let net = Arc::new(config.model.build(known.shape, Head::Classes(known.classes))?);
    let pixels = match config.data.lists() {
        Some(_) => 0,
        None => ((known.train + known.test) * known.shape.iter().product::<usize>()) as u64,
    };
    let memory = memory(config, &net, pixels, known.train, cx.threads);
    if !fits(&net) {
        let untold = vec![("all stages", "the network does not fit into this machine's memory")];
        let (seconds, parameters) = (Vec::new(), net.layout.weights());
        return Ok(Some(Outlook { known, parameters, memory, seconds, untold }));
    }
    let same = |s: &&(ModelConfig, Backend, Known, f64)| {
        (&s.0, s.1, s.2.shape) == (&config.model, config.run.engine, known.shape)
    };
    let speed = match speeds.iter().find(same) {
        Some((.., speed)) => *speed,
        None => {
            let speed = forward_images_per_second(config, &net, known, cx)?;
            speeds.push((config.model.clone(), config.run.engine, known, speed));
            speed
        }
    };
    let (mut seconds, mut untold) = (Vec::new(), Vec::new());
    if config.pretrain.enabled {
        match (&config.pool, &config.data) {
            (PoolConfig::World(_), DataConfig::World(w)) => {
                // Three forward passes an image-step: a backward pass is two.
                let seen = config.pretrain.epochs * w.pool_images;
                seconds.push(("pretrain, CLIP's features aside", (3 * seen + known.test) as f64 / speed));
            }
            _ => untold.push(("pretrain", "the pool's size is known when it is read")),
        }
    }
    seconds.push(("finetune", rounds(config, known)? / speed));
    if config.align.enabled {
        let steps = (config.align.steps * config.align.batch_size) as f64;
        let times = if config.align.when == When::EveryRound { config.federated.rounds.max(1) } else { 1 };
        seconds.push(("align", times as f64 * (3.0 * steps + known.test as f64) / speed));
    }
    if !config.algorithm.algorithm().about().leaves.is_empty() || config.algorithm.algorithm().needs().each {
        untold.push(("finetune", "what this algorithm computes beyond FedAvg's work"));
    }
    Ok(Some(Outlook { known, parameters: net.layout.weights(), memory, seconds, untold }))
}

/// Forward passes of all rounds, training counted as three.
fn rounds(config: &Config, known: Known) -> Result<f64> {
    let most = known.train / known.classes.max(1);
    let held: usize = match config.longtail.kind {
        LongTailKind::None => known.train,
        LongTailKind::Exp => config.longtail.class_counts(most, known.classes)?.iter().sum(),
    };
    let federated = &config.federated;
    let share = federated.cohort as f64 / config.partition.clients().max(1) as f64;
    let trained = held as f64 * share * federated.local_epochs as f64 * federated.rounds as f64;
    Ok(3.0 * trained + federated.judged_rounds() as f64 * known.test as f64)
}

/// Whether a look at a network's speed has the memory that it needs.
fn fits(net: &Net) -> bool {
    let activations: u64 = net.shapes.iter().map(|s| s.iter().product::<usize>() as u64).fold(0, u64::saturating_add);
    let numbers = activations.saturating_mul(IMAGES as u64).saturating_add(2 * net.layout.len() as u64);
    available_memory().is_none_or(|all| numbers.saturating_mul(4) < all)
}

/// How many images a second the network sees on this machine, by a look at blank ones.
fn forward_images_per_second(config: &Config, net: &Arc<Net>, known: Known, cx: &Context) -> Result<f64> {
    // Of large images half as many tell enough.
    let n = if known.shape[1] > 64 { IMAGES / 2 } else { IMAGES };
    let images = Images::new(known.shape, vec![0; n * known.shape.iter().product::<usize>()])?;
    let classes = (0..known.classes).map(|c| c.to_string()).collect();
    let data = Dataset::new("blank", images, vec![0; n], classes, Order::Original)?;
    let loader = Loader::new(&config.augment, known.shape)?;
    let ids: Vec<u32> = (0..n as u32).collect();
    let params = net.init(Key::from_seed(0).fold(Purpose::Init, 0));
    let look =
        || predict(net, config.run.engine, &params, net.logits, &Loaded { data: &data, loader: &loader }, &ids, cx);
    look()?;
    let (began, mut seen) = (Instant::now(), 0);
    while began.elapsed().as_secs_f64() < LOOK {
        look()?;
        seen += n;
    }
    Ok(seen as f64 / began.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_does_not_fit_is_not_looked_at() {
        let table = "[data]\nkind = \"world\"\n[model]\nwidth = 50000";
        let config = Config::from_table(toml::from_str(table).unwrap()).unwrap();
        let outlook = outlook(&config, &mut Speeds::new(), &Context::cpu(1)).unwrap().unwrap();
        assert!(outlook.seconds.is_empty() && outlook.untold[0].1.contains("does not fit"), "{:?}", outlook.untold);
        assert!(outlook.memory.total() > 1 << 40);
    }

    #[test]
    fn more_rounds_take_longer_and_a_folder_is_unknown() {
        let config = Config::default();
        let known = config.data.known().unwrap();
        let mut longer = config.clone();
        longer.federated.rounds *= 2;
        let (a, b) = (rounds(&config, known).unwrap(), rounds(&longer, known).unwrap());
        assert!((b / a - 2.0).abs() < 1e-6, "{a} {b}");
        assert_eq!(DataConfig::Folder(Default::default()).known(), None);
    }
}
