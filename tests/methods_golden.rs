//! Every method against an independent one in PyTorch (`tests/golden/methods/make.py`): the state after four rounds of
//! a toy federation with partial participation, in float32 on our side and float64 on its.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fedllava::error::Result;
use fedllava::exec::Context;
use fedllava::fl::feed::Source;
use fedllava::fl::round::{Federation, Server};
use fedllava::fl::trainer::{CompactTrainer, Supplies};
use fedllava::fl::{Algorithm, ClientId, Column, FederatedConfig};
use fedllava::key::Key;
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::{Backend, Batch, Net, Params, Samples, View};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::net_golden::{distance, noise, params};
use crate::toy::algorithm;

const CLASSES: usize = 4;
const PIXELS: usize = 3 * 8 * 8;
/// Entries of a float64 golden file; our own arithmetic is float32.
const TOLERANCE: f64 = 1e-4;

/// Hashed images with a shift by label, `(n, 3, 8, 8)`.
struct Hashed {
    pixels: Vec<f32>,
    labels: Vec<u32>,
    /// Whether the strong view is the image mirrored left to right; else all views are plain.
    mirrored: bool,
}

impl Hashed {
    fn new(labels: Vec<u32>, salt: u32) -> Self {
        let mut pixels = noise(labels.len() * PIXELS, salt);
        for (row, &label) in pixels.chunks_mut(PIXELS).zip(&labels) {
            row.iter_mut().skip(label as usize).step_by(CLASSES).for_each(|v| *v += 0.5);
        }
        Hashed { pixels, labels, mirrored: false }
    }
}

impl Samples for Hashed {
    fn fill(&self, ids: &[u32], view: View, _: Key, batch: &mut Batch) -> Result<()> {
        let image = |&i: &u32| &self.pixels[i as usize * PIXELS..(i as usize + 1) * PIXELS];
        batch.x = ids.iter().flat_map(image).copied().collect();
        if self.mirrored && view == View::Strong {
            batch.x.chunks_mut(8).for_each(<[f32]>::reverse);
        }
        batch.y = ids.iter().map(|&i| self.labels[i as usize]).collect();
        batch.ids = ids.to_vec();
        batch.rows = vec![ids.len()];
        Ok(())
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/methods")
}

fn toy() -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder().join("toy.json")).unwrap()).unwrap()
}

fn numbers(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

pub fn net() -> Arc<Net> {
    let model: ModelConfig = toml::from_str("kind = \"resnet8\"\nwidth = 4").unwrap();
    Arc::new(model.build([3, 8, 8], Head::Classes(CLASSES)).unwrap())
}

/// What a run of the toy leaves: the server, and what would be judged.
pub struct Left {
    pub server: Server,
    pub deployed: Params,
}

/// Runs a method's toy; `change` alters the `federated` section.
pub fn run(golden: &str, config: &str, change: impl Fn(&mut FederatedConfig)) -> Left {
    run_with(golden, config, change, |_| ())
}

/// As [`run`]; `prepare` alters the server before the first round.
pub fn run_with(
    golden: &str,
    config: &str,
    change: impl Fn(&mut FederatedConfig),
    prepare: impl Fn(&mut Server),
) -> Left {
    run_method(golden, algorithm(config).algorithm(), change, prepare)
}

/// As [`run_with`], for a method that a test has altered.
pub fn run_method(
    golden: &str,
    algorithm: &dyn Algorithm,
    change: impl Fn(&mut FederatedConfig),
    prepare: impl Fn(&mut Server),
) -> Left {
    let toy = toy();
    let salt = |name: &str| toy["salts"][name].as_u64().unwrap() as u32;
    let lists = |name: &str| -> Vec<Vec<u32>> { toy[name].as_array().unwrap().iter().map(numbers).collect() };
    let (clients, cohorts, labels) = (lists("clients"), lists("cohorts"), numbers(&toy["labels"]));
    let mut images = Hashed::new(labels.clone(), toy["methods"][golden]["images"].as_u64().unwrap() as u32);
    images.mirrored = golden.ends_with("-flipped");
    let server = Hashed::new((0..8).map(|i| i % 4).collect(), salt("server"));
    let pool = Hashed::new((0..12).map(|i| i % 4).collect(), salt("pool"));
    let (own, unlabelled): (Vec<u32>, Vec<u32>) = ((0..8).collect(), (0..12).collect());
    let ids: Vec<u32> = (0..labels.len() as u32).collect();
    let teacher: Vec<f32> = noise(labels.len() * CLASSES, salt("teacher")).iter().map(|v| 5.0 * v).collect();
    let net = net();
    let width = net.classifier().unwrap().features;
    let mut texts = noise(CLASSES * width, salt("texts"));
    for row in texts.chunks_mut(width) {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
    let supplies = Supplies {
        server: Some(Source { samples: &server, ids: &own }),
        unlabelled: Some(Source { samples: &pool, ids: &unlabelled }),
        columns: BTreeMap::from([(Supplies::TEACHER.into(), Column::new(CLASSES, &ids, teacher).unwrap())]),
        texts: Some(Params::tensor("texts", &[CLASSES, width], texts).unwrap()),
    };
    let trainer = CompactTrainer::new(net.clone(), Backend::Cpu, &images, &clients).with(supplies);
    let mut federated = FederatedConfig { rounds: 4, cohort: 3, local_epochs: 2, batch_size: 0, ..Default::default() };
    change(&mut federated);
    let cohort = |round: usize| -> Result<Vec<ClientId>> { Ok(cohorts[round - 1].clone()) };
    let federation = Federation {
        algorithm,
        trainer: &trainer,
        config: &federated,
        clients: clients.len(),
        cohort: &cohort,
        align: None,
        feedback: false,
        key: Key::from_seed(1),
    };
    let cx = Context::cpu(1);
    let start = Params::new(net.layout.clone(), params(&net)).unwrap();
    let mut server = federation.start(start, &cx).unwrap();
    prepare(&mut server);
    let mut deployed = None;
    let server = federation.run(server, &cx, &mut |finished| {
        deployed = Some(finished.deployed.clone());
        Ok(())
    });
    Left { server: server.unwrap(), deployed: deployed.unwrap() }
}

/// A tensor of a golden file, `None` where the file does not hold it.
pub fn golden(name: &str, tensor: &str) -> Option<Vec<f32>> {
    let bytes = std::fs::read(folder().join(format!("{name}.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let view = file.tensor(tensor).ok()?;
    Some(view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

fn tolerance(name: &str) -> f64 {
    let own = toy()["methods"][name]["float32"].as_f64().unwrap();
    TOLERANCE.max(10.0 * own)
}

/// Compares a whole model with `prefix/<tensor>`; tensors that the file leaves out must equal `prefix`'s `model/…`.
pub fn same_model(name: &str, prefix: &str, got: &Params) {
    let mut compared = 0;
    for entry in got.layout().entries() {
        let own = golden(name, &format!("{prefix}/{}", entry.name));
        let Some(want) = own.or_else(|| golden(name, &format!("model/{}", entry.name))) else { continue };
        let off = distance(got.get(&entry.name).unwrap(), &want);
        assert!(off < tolerance(name), "{name}: {prefix}/{}: off by {off:.1e}", entry.name);
        compared += 1;
    }
    assert_eq!(compared, got.layout().entries().len(), "{name}: {prefix}: tensors compared");
}

/// Compares one vector with a tensor of the file.
pub fn same(name: &str, tensor: &str, got: &[f32]) {
    let want = golden(name, tensor).unwrap_or_else(|| panic!("{name}: no tensor {tensor}"));
    let off = distance(got, &want);
    assert!(off < tolerance(name), "{name}: {tensor}: off by {off:.1e}");
}

#[test]
fn methods_that_move_the_model_alone_equal_pytorch() {
    let cases = [
        ("fedavg", "kind = \"fedavg\""),
        ("fedprox", "kind = \"fedprox\"\nmu = 0.5"),
        ("scaffold", "kind = \"scaffold\""),
    ];
    for (name, config) in cases {
        same_model(name, "model", &run(name, config, |_| ()).server.model);
    }
}
