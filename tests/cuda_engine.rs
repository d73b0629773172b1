//! The CUDA engine on the card that stands in for a GPU: the shop's networks for several clients side by side, and what a
//! step costs.

use std::path::Path;
use std::sync::Arc;

use fedllava::key::Key;
use fedllava::model::cnn::Cnn;
use fedllava::model::mlp::Mlp;
use fedllava::model::resnet::{Imagenet, Plain, Resnet8};
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::engine::cohort::Cohort;
use fedllava::nn::engine::cpu;
use fedllava::nn::engine::cuda::{Counted, Emulated, Engine, Resident};
use fedllava::nn::optim::{OptimiserConfig, SgdConfig};
use fedllava::nn::session::{Input, Training};
use fedllava::nn::{Interpreter, Mode, Named, Net, Params, Session};

use super::net_golden::{distance, noise, params};

/// The card; none, and said so, where there is no C++ compiler.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
pub fn card(seed: u64) -> Option<Emulated> {
    let card = Emulated::new(Path::new(env!("CARGO_TARGET_TMPDIR")), seed).unwrap();
    if card.is_none() {
        eprintln!("skipped: no C++ compiler here (CXX may name one)");
    }
    card
}

fn build(config: ModelConfig, side: usize) -> Arc<Net> {
    Arc::new(config.build([3, side, side], Head::Classes(10)).unwrap())
}

/// Forward, backward and running statistics of clients side by side beside the CPU engine, each within `tolerance` of the
/// largest of its tensor, or of a hundredth of the client's largest.
fn compare(net: &Arc<Net>, rows: &[usize], training: bool, tolerance: f64) {
    let Some(card) = card(9) else { return };
    let mut ours = Engine::new(net, card).unwrap();
    let mut theirs = Cohort::new(net, rows.iter().map(|_| cpu::Engine::new(net, 1).unwrap()).collect());
    let keys: Vec<Key> = (0..rows.len()).map(|k| Key::from_seed(k as u64)).collect();
    let mode = if training { Mode::Train(keys.as_slice()) } else { Mode::Eval };
    let one = params(net);
    let scaled = |k: usize| one.iter().map(move |v| v * (1.0 + 0.03 * k as f32));
    let mut all: Vec<f32> = (0..rows.len()).flat_map(scaled).collect();
    let mut others = all.clone();
    let x = noise(rows.iter().sum::<usize>() * net.input_shape().iter().product::<usize>(), 3);
    ours.forward(&all, &x, rows, mode).unwrap();
    theirs.forward(&all, &x, rows, mode).unwrap();
    let (mut got, mut want, mut seeds) = (Vec::new(), Vec::new(), Vec::new());
    for (i, &node) in net.taps.values().chain([&net.logits]).enumerate() {
        ours.read(node, &mut got).unwrap();
        theirs.read(node, &mut want).unwrap();
        assert!(distance(&got, &want) < tolerance, "{} node {node}: {:.1e}", net.name, distance(&got, &want));
        seeds.push((node, noise(want.len(), 50 + i as u32)));
    }
    let seeds: Vec<_> = seeds.iter().map(|(node, seed)| (*node, seed.as_slice())).collect();
    let (mut a, mut b) = (vec![f32::NAN; all.len()], vec![f32::NAN; all.len()]);
    ours.backward(&all, &seeds, &mut a).unwrap();
    theirs.backward(&all, &seeds, &mut b).unwrap();
    ours.update_buffers(&mut all).unwrap();
    theirs.update_buffers(&mut others).unwrap();
    let p = net.layout.len();
    let largest = |of: &[f32]| of.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    for (k, entry) in (0..rows.len()).flat_map(|k| net.layout.entries().iter().map(move |e| (k, e))) {
        let part = |v: &[f32]| v[k * p..][entry.range()].to_vec();
        let least = 0.01 * largest(&b[k * p..][..p]) / largest(&part(&b)).max(1e-12);
        let off = distance(&part(&a), &part(&b)) / least.max(1.0);
        assert!(
            rows[k] == 0 || off < tolerance,
            "{} {rows:?} {training}: {} of client {k}: {off:.1e}",
            net.name,
            entry.name
        );
        assert!(rows[k] > 0 || part(&a).iter().all(|v| *v == 0.0));
        assert!(distance(&part(&all), &part(&others)) < 1e-5, "{}: {} after", net.name, entry.name);
    }
}

#[test]
fn the_shops_networks_on_the_emulated_card_equal_the_cpu_engine() {
    let narrow = |mlp| build(ModelConfig::Resnet8(Resnet8 { width: 4, mlp }), 8);
    let (cnn, mlp) = (build(ModelConfig::Cnn(Cnn::default()), 8), build(ModelConfig::Mlp(Mlp::default()), 6));
    for net in [narrow(None), narrow(Some(12)), cnn, mlp] {
        for training in [true, false] {
            for rows in [&[13][..], &[32, 13, 0], &[2, 5, 0, 3, 13, 0, 4, 2]] {
                compare(&net, rows, training, 1e-5);
            }
        }
    }
}

/// Rounding grows with depth, and with norms over few values: the bounds are those of the CPU engine beside PyTorch.
#[test]
fn deep_networks_on_the_emulated_card_equal_the_cpu_engine() {
    let deep = build(ModelConfig::Resnet20(Plain {}), 8);
    compare(&deep, &[4, 0, 6], true, 1e-4);
    compare(&deep, &[4, 0, 6], false, 1e-5);
    let imagenet = Imagenet::default();
    let ten = build(ModelConfig::Resnet10(imagenet.clone()), 32);
    // Its last norms see one pixel of each image: few images leave them little but rounding.
    compare(&ten, &[8], true, 1e-4);
    compare(&ten, &[2, 0, 3], false, 1e-5);
    compare(&build(ModelConfig::Resnet18(imagenet), 32), &[3], false, 1e-4);
}

/// What `benches/README.md` says of the floor: `-- --nocapture` prints it. CReFF's local step: ResNet-8, batches of 32 of
/// CIFAR, plain SGD; an H100 SXM of 67 TFLOP/s in f32, 495 in TF32 (dense), 3.35 TB/s.
#[test]
#[allow(clippy::print_stderr, reason = "the counts are the result")]
fn a_creff_step_is_counted() {
    for lanes in [1, 8, 20] {
        let net = build(ModelConfig::Resnet8(Resnet8::default()), 32);
        let mut session = Resident::new(&net, Counted::default(), lanes).unwrap();
        let optimiser = OptimiserConfig::Sgd(SgdConfig::default());
        let training = Training { optimiser, trained: None, pulls: vec![], moments: Named::new() };
        for k in 0..lanes {
            session.load(k, Params::zeros(net.layout.clone()), &training).unwrap();
        }
        let (keys, rows) = (vec![Key::from_seed(1); lanes], vec![32; lanes]);
        let loaded = session.card().launches.len();
        assert!(loaded < 8, "loading launches nothing but zeroing");
        session.forward(Input::Images(&vec![0.0; lanes * 32 * 3072]), &rows, Mode::Train(&keys)).unwrap();
        session.backward(&[(net.logits, &vec![0.0; lanes * 320])]).unwrap();
        session.step(&vec![1.0; lanes]).unwrap();
        let (card, totals) = (session.card(), session.card().totals());
        eprintln!("{lanes} clients: {} launches, {} MiB", card.launches.len(), card.allocated >> 20);
        for (name, [launches, operations, bytes]) in &totals {
            eprintln!("  {name:20} {launches:4} {:9.3} GFLOP {:9.3} GB", *operations as f64 / 1e9, *bytes as f64 / 1e9);
        }
        let floor = |operations| 1e3 * card.floor(operations, 3.35e12);
        eprintln!("  floor {:.3} ms in f32, {:.3} ms in TF32", floor(67e12), floor(495e12));
        // Three products a layer, but for the first's input gradient.
        let first = 64 * 27 * 1024;
        assert_eq!(totals["product"][1], 2 * 32 * lanes as u64 * (3 * net.multiply_adds() - first));
    }
}
