//! Compact networks against PyTorch in float64 (`tests/golden/net/make.py`): outputs, taps, every gradient, batch-norm
//! statistics; on every interpreter and instruction set that this machine has.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device};
use fedllava::error::Result;
use fedllava::key::Key;
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::engine::candle::Candle;
use fedllava::nn::engine::cpu::Engine;
use fedllava::nn::engine::cuda;
use fedllava::nn::kernels::Isa;
use fedllava::nn::net::Start;
use fedllava::nn::{Interpreter, Mode, Net, NetBuilder, Role};
use safetensors::SafeTensors;

/// Multiply-adds of a forward pass that the emulated card may take on.
const EMULATED: usize = 100_000_000;

/// Entries that a golden file keeps of a tensor.
const SAMPLES: usize = 64;

#[path = "golden/net/noise.rs"]
mod hash;
pub use hash::{noise, params};

/// Every operation in an odd shape: the same list as `Zoo` in make.py.
pub fn zoo() -> Result<Net> {
    let mut b = NetBuilder::new(5, 13, 17);
    let s = Start::Constant(0.0);
    let x = b.batch_norm(NetBuilder::INPUT, "norm0")?;
    let x = b.conv_with(x, "conv1", 12, 5, 2, 2, 1, s, Some(s))?;
    let x = b.max_pool(x, 3, 1, 1)?;
    let x = b.conv_with(x, "conv2", 18, 3, 1, 1, 3, s, None)?;
    let x = b.batch_norm(x, "bn2")?;
    let x = b.relu(x);
    b.tap("early", x);
    let y = b.conv_with(x, "conv3", 18, 3, 1, 2, 18, s, Some(s))?;
    let small = b.subsample(y, 2, 20)?;
    let z = b.conv_with(y, "conv4", 20, 3, 2, 1, 1, s, Some(s))?;
    let z = b.add(small, z)?;
    let z = b.avg_pool(z, 2, 1)?;
    let z = b.relu(z);
    b.tap("side", z);
    let v = b.conv_with(z, "conv5", 33, 2, 1, 0, 1, s, None)?;
    let v = b.batch_norm(v, "bn5")?;
    let w = b.conv_with(z, "conv6", 33, 2, 1, 0, 1, s, None)?;
    let w = b.relu(w);
    let z = b.add(v, w)?;
    let z = b.relu(z);
    let z = b.conv_with(z, "conv7", 70, 4, 3, 3, 1, s, Some(s))?;
    let z = b.flatten(z);
    let z = b.linear(z, "fc1", 19)?;
    let z = b.relu(z);
    let z = b.linear(z, "fc2", 4)?;
    b.finish("zoo", z)
}

struct Golden {
    net: Net,
    batch: usize,
    train: bool,
    /// Salt of the images' noise.
    images: u32,
    /// Where the parameters stand.
    params: Vec<f32>,
    /// What each entry's gradient is projected on.
    onto: Vec<Vec<f32>>,
    tensors: BTreeMap<String, Vec<f32>>,
}

fn golden(name: &str) -> Golden {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/net/{name}.safetensors"));
    let bytes = std::fs::read(&path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, head) = SafeTensors::read_metadata(&bytes).unwrap();
    let meta = head.metadata().clone().unwrap();
    let floats = |d: &[u8]| d.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    let tensors: BTreeMap<String, Vec<f32>> =
        file.tensors().into_iter().map(|(name, view)| (name, floats(view.data()))).collect();
    let batch: usize = meta["batch"].parse().unwrap();
    let shape: [usize; 3] = serde_json::from_str(&meta["shape"]).unwrap();
    let net = if name.starts_with("zoo") {
        zoo().unwrap()
    } else {
        let config: ModelConfig = serde_json::from_str(&meta["config"]).unwrap();
        config.build(shape, Head::Classes(tensors["logits"].len() / batch)).unwrap()
    };
    let images = meta.get("images").map_or(7777, |salt| salt.parse().unwrap());
    let onto = net.layout.entries().iter().enumerate().map(|(i, e)| noise(e.len(), 6000 + i as u32)).collect();
    let params = params(&net);
    Golden { net, batch, train: meta["train"] == "1", images, params, onto, tensors }
}

/// As `sample` in make.py.
fn sample(of: &[f32], salt: usize) -> Vec<f32> {
    if of.len() <= SAMPLES {
        return of.to_vec();
    }
    let at = noise(SAMPLES, salt as u32).into_iter().map(|u| ((f64::from(u) + 1.0) / 2.0 * of.len() as f64) as usize);
    at.map(|i| of[i]).collect()
}

/// Largest difference over the largest value.
pub fn distance(got: &[f32], want: &[f32]) -> f64 {
    assert_eq!(got.len(), want.len());
    let largest = want.iter().fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
    let off = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - f64::from(*b)).abs());
    let worst = off.fold(0.0, |m, d| if d.is_nan() { f64::INFINITY } else { f64::max(m, d) });
    worst / largest.max(1e-12)
}

/// Runs a golden case; `tolerance` bounds every relative difference.
fn check(case: &Golden, engine: &mut dyn Interpreter, tolerance: f64, who: &str) {
    let (net, want) = (&case.net, &case.tensors);
    let near = |what: &str, got: &[f32], want: &[f32]| {
        let d = distance(got, want);
        assert!(d < tolerance, "{who} {}: {what} is off by {d:.1e}", net.name);
    };
    let mut params = case.params.clone();
    let x = noise(case.batch * net.input_shape().iter().product::<usize>(), case.images);
    let mode = if case.train { Mode::Train(Key::from_seed(1)) } else { Mode::Eval };
    engine.forward(&params, &x, &[case.batch], mode.alone()).unwrap();
    let mut value = Vec::new();
    engine.read(net.logits, &mut value).unwrap();
    near("logits", &value, &want["logits"]);
    let mut seeds = vec![(net.logits, noise(value.len(), 9000))];
    for (i, (name, &node)) in net.taps.iter().enumerate() {
        engine.read(node, &mut value).unwrap();
        near(name, &sample(&value, 5000), &want[&format!("tap.{name}")]);
        seeds.push((node, noise(value.len(), 9001 + i as u32).iter().map(|v| v * 0.125).collect()));
    }
    let seeds: Vec<_> = seeds.iter().map(|(node, s)| (*node, s.as_slice())).collect();
    let mut grads = vec![f32::NAN; params.len()];
    engine.backward(&params, &seeds, &mut grads).unwrap();
    let (mut g, mut at, mut buffers) = (0, 0, Vec::new());
    if case.train {
        engine.update_buffers(&mut params).unwrap();
    }
    for (i, entry) in net.layout.entries().iter().enumerate() {
        let grad = &grads[entry.range()];
        if entry.role == Role::Buffer {
            assert!(grad.iter().all(|&v| v == 0.0));
            buffers.extend(sample(&params[entry.range()], 4000));
            continue;
        }
        let norm = grad.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let scale = f64::from(want["norms"][g]).max(1e-6);
        assert!((norm / scale - 1.0).abs() < tolerance, "{who} {}: {} norm {norm} {scale}", net.name, entry.name);
        let product: f64 = grad.iter().zip(&case.onto[i]).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
        let off = (product - f64::from(want["products"][g])).abs() / scale;
        assert!(off < tolerance, "{who} {}: {} projection is off by {off:.1e}", net.name, entry.name);
        let got = sample(grad, 5000 + i);
        near(&entry.name, &got, &want["samples"][at..at + got.len()]);
        (g, at) = (g + 1, at + got.len());
    }
    if case.train && !buffers.is_empty() {
        near("statistics", &buffers, &want["buffers"]);
    }
}

/// On every interpreter here.
fn everywhere(name: &str, tolerance: f64) {
    let case = golden(name);
    for isa in Isa::available() {
        for threads in if name.starts_with("resnet50") { 2..3 } else { 1..3 } {
            let mut engine = Engine::with_isa(&case.net, threads, isa).unwrap();
            check(&case, &mut engine, tolerance, &format!("{isa} × {threads}"));
        }
    }
    // The emulated card runs thread by thread: small cases alone.
    if case.batch * case.net.multiply_adds() as usize <= EMULATED
        && let Some(card) = super::cuda_engine::card(1)
    {
        let mut engine = cuda::Engine::new(&Arc::new(case.net.clone()), card).unwrap();
        check(&case, &mut engine, tolerance, "CUDA engine, emulated");
    }
    // candle's convolution gradients are too slow for the deepest.
    if !name.starts_with("resnet50") && !name.starts_with("resnet18") {
        let mut candle = Candle::new(Arc::new(case.net.clone()), Device::Cpu, DType::F32);
        check(&case, &mut candle, tolerance, "candle");
    }
}

#[test]
fn every_operation_in_odd_shapes_equals_pytorch() {
    everywhere("zoo", 1e-5);
    everywhere("zoo-eval", 1e-5);
}

#[test]
fn resnet8_equals_pytorch() {
    everywhere("resnet8-tiny", 2e-5);
    everywhere("resnet8-narrow", 2e-5);
    everywhere("resnet8-narrow-eval", 1e-5);
    everywhere("resnet8-wide", 2e-5);
}

#[test]
fn cnn_and_mlp_equal_pytorch() {
    everywhere("cnn", 1e-5);
    everywhere("mlp", 1e-5);
}

#[test]
fn deep_resnets_equal_pytorch() {
    everywhere("resnet20", 1e-4);
    everywhere("resnet18", 1e-4);
    everywhere("resnet50-eval", 1e-4);
    // Fifty batch norms over a few values are ill-conditioned: the projections of PyTorch's own float32 are off by 2e-2.
    everywhere("resnet50", 0.15);
}
