//! One round of FedAvg against a hand-written one in PyTorch (`tests/golden/round/make.py`).

use std::path::Path;
use std::sync::Arc;

use fedllava::data::Split;
use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::fl::FederatedConfig;
use fedllava::fl::round::Federation;
use fedllava::fl::trainer::CompactTrainer;
use fedllava::key::Key;
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::{Backend, Batch, Params, Samples, View};

use crate::net_golden::{distance, noise, params};
use crate::toy::algorithm;

struct Noise(Vec<f32>);

impl Samples for Noise {
    fn fill(&self, ids: &[u32], _: View, _: Key, batch: &mut Batch) -> Result<()> {
        let size = 3 * 32 * 32;
        batch.x = ids.iter().flat_map(|&i| &self.0[i as usize * size..(i as usize + 1) * size]).copied().collect();
        batch.y = ids.iter().map(|i| i % 10).collect();
        batch.ids = ids.to_vec();
        batch.rows = vec![ids.len()];
        Ok(())
    }
}

#[test]
fn a_round_of_fedavg_from_an_exported_split_equals_pytorch() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/round");
    let labels: Vec<u32> = (0..24).map(|i| i % 10).collect();
    let split = Split::import(&folder.join("split.json"), &labels, 10).unwrap().0;
    let model: ModelConfig = toml::from_str("kind = \"resnet8\"\nwidth = 4").unwrap();
    let net = Arc::new(model.build([3, 32, 32], Head::Classes(10)).unwrap());
    let want = Params::load(&folder.join("round.safetensors"), &net.layout).unwrap();
    let images = Noise(noise(24 * 3 * 32 * 32, 7777));
    let config = FederatedConfig { rounds: 1, cohort: 3, local_epochs: 1, batch_size: 0, ..FederatedConfig::default() };
    let algorithm = algorithm("kind = \"fedavg\"");
    for backend in [Backend::Candle, Backend::Cpu] {
        let trainer = CompactTrainer::new(net.clone(), backend, &images, &split.clients);
        let federation = Federation {
            algorithm: algorithm.algorithm(),
            trainer: &trainer,
            config: &config,
            clients: 3,
            cohort: &|_| Ok(vec![2, 0, 1]),
            align: None,
            feedback: false,
            key: Key::from_seed(1),
        };
        let cx = Context::cpu(1);
        let start = federation.start(Params::new(net.layout.clone(), params(&net)).unwrap(), &cx).unwrap();
        let got = federation.run(start, &cx, &mut |_| Ok(())).unwrap().model;
        for entry in net.layout.entries() {
            let off = distance(got.get(&entry.name).unwrap(), want.get(&entry.name).unwrap());
            assert!(off < 1e-5, "{backend:?} {}: off by {off:.1e}", entry.name);
        }
    }
}
