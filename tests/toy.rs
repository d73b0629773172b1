//! A federation small enough to check by hand: random 8×8 images whose label shifts their mean.

use std::sync::Arc;

use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::fl::round::{Federation, Server, ServerStep};
use fedllava::fl::trainer::CompactTrainer;
use fedllava::fl::{AlgorithmConfig, ClientId, FederatedConfig};
use fedllava::key::{Key, Purpose};
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::{Backend, Batch, Net, OptimiserConfig, Params, Samples, View, optim::SgdConfig};

pub const CLASSES: usize = 3;
pub const SIDE: usize = 8;

/// Images in memory, `(n, 1, 8, 8)`.
pub struct Toy {
    pub pixels: Vec<f32>,
    pub labels: Vec<u32>,
}

impl Toy {
    pub fn new(n: usize) -> Self {
        let mut rng = Key::from_seed(99).fold(Purpose::Test, 0).rng();
        let labels: Vec<u32> = (0..n).map(|i| (i % CLASSES) as u32).collect();
        let pixels = labels
            .iter()
            .flat_map(|&y| (0..SIDE * SIDE).map(move |i| (y, i)))
            .map(|(y, i)| rng.normal() as f32 + if i % CLASSES == y as usize { 1.0 } else { 0.0 })
            .collect();
        Toy { pixels, labels }
    }
}

impl Samples for Toy {
    fn labels(&self) -> &[u32] {
        &self.labels
    }

    fn fill(&self, ids: &[u32], _: View, _: Key, batch: &mut Batch) -> Result<()> {
        let size = SIDE * SIDE;
        batch.x = ids.iter().flat_map(|&i| &self.pixels[i as usize * size..(i as usize + 1) * size]).copied().collect();
        batch.y = ids.iter().map(|&i| self.labels[i as usize]).collect();
        batch.ids = ids.to_vec();
        batch.rows = vec![ids.len()];
        Ok(())
    }
}

/// A tiny ResNet-8 with batch norm.
pub fn net() -> Arc<Net> {
    let config: ModelConfig = toml::from_str("kind = \"resnet8\"\nwidth = 4").unwrap();
    Arc::new(config.build([1, SIDE, SIDE], Head::Classes(CLASSES)).unwrap())
}

pub fn federated(rounds: usize, cohort: usize) -> FederatedConfig {
    FederatedConfig {
        rounds,
        cohort,
        local_epochs: 2,
        batch_size: 4,
        optimiser: OptimiserConfig::Sgd(SgdConfig { lr: 0.05, ..SgdConfig::default() }),
        ..FederatedConfig::default()
    }
}

/// Deals `n` images to clients of the given sizes, in order.
pub fn deal(sizes: &[usize]) -> Vec<Vec<u32>> {
    let mut next = 0u32;
    sizes
        .iter()
        .map(|&n| {
            next += n as u32;
            (next - n as u32..next).collect()
        })
        .collect()
}

/// Everything a toy run needs.
pub struct Setting<'a> {
    pub algorithm: &'a AlgorithmConfig,
    pub config: &'a FederatedConfig,
    pub clients: &'a [Vec<u32>],
    pub align: Option<&'a dyn ServerStep>,
    pub feedback: bool,
    pub threads: usize,
}

pub fn run(setting: &Setting<'_>) -> Result<Server> {
    run_from(setting, net().init(Key::from_seed(5)))
}

pub fn run_from(s: &Setting<'_>, start: Params) -> Result<Server> {
    run_on(Backend::Candle, s, start)
}

pub fn run_on(backend: Backend, s: &Setting<'_>, start: Params) -> Result<Server> {
    let toy = Toy::new(s.clients.iter().map(Vec::len).sum::<usize>().max(1));
    let net = net();
    let trainer = CompactTrainer::new(net, backend, &toy, s.clients);
    let (n, m) = (s.clients.len(), s.config.cohort);
    let cohort =
        |round: usize| -> Result<Vec<ClientId>> { Ok(fedllava::fl::cohort::by_key(Key::from_seed(3), round, n, m)) };
    let federation = Federation {
        algorithm: s.algorithm.algorithm(),
        trainer: &trainer,
        config: s.config,
        clients: n,
        cohort: &cohort,
        align: s.align,
        feedback: s.feedback,
        key: Key::from_seed(11),
    };
    let cx = Context::cpu(s.threads);
    let server = federation.start(start, &cx)?;
    federation.run(server, &cx, &mut |_| Ok(()))
}

pub fn algorithm(text: &str) -> AlgorithmConfig {
    toml::from_str(text).unwrap()
}
