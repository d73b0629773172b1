//! A training step and inference of compact networks on the CPU engine.
//!
//! `cargo bench --bench engine` prints times; items are images.

use divan::Bencher;
use divan::counter::ItemsCount;
use fedllava::key::Key;
use fedllava::model::cnn::Cnn;
use fedllava::model::resnet::Resnet8;
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::engine::cpu::Engine;
use fedllava::nn::{Interpreter, Mode};

fn main() {
    divan::main();
}

const NETS: [&str; 3] = ["narrow", "wide", "cnn"];

fn config(name: &str) -> ModelConfig {
    match name {
        "narrow" => ModelConfig::Resnet8(Resnet8 { width: 16, mlp: None }),
        "wide" => ModelConfig::Resnet8(Resnet8::default()),
        _ => ModelConfig::Cnn(Cnn::default()),
    }
}

/// Forward, backward and an SGD step on one thread, batch 32 (CNN: 10).
#[divan::bench(args = NETS, sample_count = 20)]
fn step(bencher: Bencher<'_, '_>, name: &str) {
    let net = config(name).build([3, 32, 32], Head::Classes(10)).expect("builds");
    let batch = if name == "cnn" { 10 } else { 32 };
    let mut params = net.init(Key::from_seed(1)).data().to_vec();
    let mut engine = Engine::new(&net, 1).expect("starts");
    let x: Vec<f32> = (0..batch * 3072).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    let seed: Vec<f32> = (0..batch * 10).map(|i| if i % 10 == 0 { -0.09 } else { 0.01 }).collect();
    let mut grads = vec![0.0; params.len()];
    bencher.counter(ItemsCount::new(batch)).bench_local(|| {
        engine.forward(&params, &x, &[batch], Mode::Train(&[Key::from_seed(2)])).expect("runs");
        engine.backward(&params, &[(net.logits, &seed)], &mut grads).expect("runs");
        engine.update_buffers(&mut params).expect("runs");
        params.iter_mut().zip(&grads).for_each(|(p, g)| *p -= 1e-3 * g);
    });
}

/// Evaluation on one thread, batch 100.
#[divan::bench(args = NETS, sample_count = 10)]
fn inference(bencher: Bencher<'_, '_>, name: &str) {
    let net = config(name).build([3, 32, 32], Head::Classes(10)).expect("builds");
    let params = net.init(Key::from_seed(1));
    let mut engine = Engine::new(&net, 1).expect("starts");
    let x: Vec<f32> = (0..100 * 3072).map(|i| ((i * 37) % 101) as f32 / 50.0 - 1.0).collect();
    bencher.counter(ItemsCount::new(100usize)).bench_local(|| {
        engine.forward(params.data(), &x, &[100], Mode::Infer).expect("runs");
    });
}
