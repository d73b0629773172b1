//! Our side of `scripts/bench_vs_pytorch.sh`: `versus NET MODE BATCH THREADS SECONDS` prints one line of JSON.
//!
//! NET: narrow, wide (ResNet-8 16-32-64 and 64-128-256), cnn, resnet18, resnet50; `wide+winograd` and, for one of the
//! machine's instruction sets, `wide+avx512` and the like. MODE: train or infer. Weights and images come from the hash of the golden files, so that both sides compute the same loss after twenty steps.

use std::time::{Duration, Instant};

use fedllava::key::Key;
use fedllava::model::cnn::Cnn;
use fedllava::model::resnet::{Imagenet, Resnet8};
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::engine::cpu::{Algorithm, Engine};
use fedllava::nn::kernels::{Isa, peak};
use fedllava::nn::{Interpreter, Mode, Net};

/// Steps before the loss is compared.
const STEPS: usize = 20;

#[path = "../tests/golden/net/noise.rs"]
mod noise;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    let [net, mode, batch, threads, seconds] = args.as_slice() else { return };
    let batch: usize = batch.parse().expect("BATCH is a number");
    let threads: usize = threads.parse().expect("THREADS is a number");
    let seconds: f64 = seconds.parse().expect("SECONDS is a number");
    let (net, how) = net.split_once('+').unwrap_or((net, ""));
    let algorithm = if how == "winograd" { Algorithm::Winograd } else { Algorithm::Direct };
    let isa = match how {
        "" => Isa::detect(),
        // Its products go by vectors.
        "winograd" => Isa::available().into_iter().rfind(|isa| *isa != Isa::Amx).expect("one at least"),
        other => {
            let known = Isa::available().into_iter().find(|isa| isa.to_string() == other);
            known.unwrap_or_else(|| panic!("no {other} here: {:?}", Isa::available()))
        }
    };
    let (config, side) = match net {
        "narrow" => (ModelConfig::Resnet8(Resnet8 { width: 16, mlp: None }), 32),
        "wide" => (ModelConfig::Resnet8(Resnet8::default()), 32),
        "cnn" => (ModelConfig::Cnn(Cnn { dropout_map: 0.0, dropout_feature: 0.0 }), 32),
        "resnet18" => (ModelConfig::Resnet18(Imagenet::default()), 224),
        "resnet50" => (ModelConfig::Resnet50(Imagenet::default()), 224),
        other => panic!("no network {other}"),
    };
    let net = config.build([3, side, side], Head::Classes(10)).expect("builds");
    run(&net, mode == "train", batch, threads, seconds, (isa, algorithm));
}

#[allow(clippy::print_stdout, reason = "its result")]
fn run(net: &Net, train: bool, batch: usize, threads: usize, seconds: f64, (isa, algorithm): (Isa, Algorithm)) {
    let mut engine = Engine::with(net, threads, isa, algorithm).expect("starts");
    let mut params = noise::params(net);
    let x = noise::noise(batch * net.input_shape().iter().product::<usize>(), 7777);
    let mut loss = 0.0;
    let (mut logits, mut grads) = (Vec::new(), vec![0.0; params.len()]);
    let mut step = |loss: &mut f64| {
        let mode = if train { Mode::Train(Key::from_seed(1)) } else { Mode::Infer };
        engine.forward(&params, &x, &[batch], mode.alone()).expect("runs");
        engine.read(net.logits, &mut logits).expect("runs");
        let seed = cross_entropy(&logits, net.outputs(), loss);
        if train {
            engine.backward(&params, &[(net.logits, &seed)], &mut grads).expect("runs");
            engine.update_buffers(&mut params).expect("runs");
            params.iter_mut().zip(&grads).for_each(|(p, g)| *p -= 0.01 * g);
        }
    };
    let warm = if net.multiply_adds() > 1_000_000_000 { 2 } else { STEPS };
    step(&mut loss);
    let first = loss;
    (1..warm).for_each(|_| step(&mut loss));
    // Fifty layers over few images are ill-conditioned: after a step two orders of additions differ in the loss.
    let compared = if warm < STEPS { first } else { loss };
    let (mut times, start, cpu) = (Vec::new(), Instant::now(), cpu_seconds());
    while start.elapsed() < Duration::from_secs_f64(seconds) || times.len() < 3 {
        let begin = Instant::now();
        step(&mut loss);
        times.push(begin.elapsed().as_secs_f64());
    }
    let per_cpu = (batch * times.len()) as f64 / (cpu_seconds() - cpu);
    times.sort_by(f64::total_cmp);
    let (best, median) = (batch as f64 / times[0], batch as f64 / times[times.len() / 2]);
    let flop = net.multiply_adds() as f64 * if train { 6.0 } else { 2.0 };
    println!(
        "{{\"per_cpu\": {per_cpu}, \"best\": {best}, \"median\": {median}, \"loss\": {compared}, \"flop\": {flop}, \"isa\": \"{}\", \"peak\": {}}}",
        engine.isa(),
        peak(engine.isa(), 50)
    );
}

/// Seconds that this process has run on a core: what it would have taken alone. NaN where /proc does not tell.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/self/schedstat").unwrap_or_default();
    text.split(' ').next().and_then(|n| n.parse::<f64>().ok()).map_or(f64::NAN, |ns| ns / 1e9)
}

/// Gradient of the mean cross-entropy for labels `row mod outputs`; the loss goes into `loss`.
fn cross_entropy(logits: &[f32], outputs: usize, loss: &mut f64) -> Vec<f32> {
    let rows = logits.len() / outputs;
    let mut seed = Vec::with_capacity(logits.len());
    *loss = 0.0;
    for (r, row) in logits.chunks_exact(outputs).enumerate() {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f32 = row.iter().map(|v| (v - top).exp()).sum();
        *loss -= f64::from(row[r % outputs] - top - total.ln()) / rows as f64;
        seed.extend(
            row.iter().enumerate().map(|(c, v)| ((v - top).exp() / total - f32::from(c == r % outputs)) / rows as f32),
        );
    }
    seed
}
