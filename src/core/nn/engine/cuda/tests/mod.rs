//! The engine on the emulated card beside the CPU engine, client by client.

mod kernels;
mod memory;
mod networks;
mod sessions;
mod speed;

use std::sync::Arc;

use super::{Card, Emulated};
use crate::nn::kernels::check::noise;
use crate::nn::net::{Net, NetBuilder, Node, Start};

/// An emulated card whose threads run in this order; none, and said so, where there is no C++ compiler.
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
fn emulated(seed: u64) -> Option<Emulated> {
    let own = std::env::current_exe().unwrap();
    let card = Emulated::new(own.parent().unwrap(), seed).unwrap();
    match &card {
        None => eprintln!("skipped: no C++ compiler here (CXX may name one)"),
        Some(card) if !card.sanitized() => {
            eprintln!("this C++ compiler has no address sanitizer: reads may stray unseen")
        }
        Some(_) => {}
    }
    card
}

/// Whether tests run on a GPU: `FEDLLAVA_CARD` has its number, and this was built with the feature `cuda`.
fn on_gpu() -> bool {
    std::env::var_os("FEDLLAVA_CARD").is_some()
}

/// The GPU, or an emulated card.
fn card(seed: u64) -> Option<Box<dyn Card>> {
    if !on_gpu() {
        return Some(Box::new(emulated(seed)?));
    }
    #[cfg(feature = "cuda")]
    {
        let number = std::env::var("FEDLLAVA_CARD").unwrap().parse().expect("FEDLLAVA_CARD: a GPU's number, such as 0");
        Some(Box::new(super::Cuda::new(number, super::Precision::Strict).unwrap()))
    }
    #[cfg(not(feature = "cuda"))]
    panic!("FEDLLAVA_CARD is set, and this was built without the feature cuda");
}

/// Hashed parameters, another set for each salt: weights of the usual sizes, positive variances.
pub(super) fn params(net: &Net, salt: u32) -> Vec<f32> {
    let mut all = Vec::with_capacity(net.layout.len());
    for (i, entry) in net.layout.entries().iter().enumerate() {
        let inputs: usize = entry.shape.iter().skip(1).product();
        let value = |u: f32| match entry.name.rsplit('.').next() {
            Some("running_var") => 1.0 + 0.5 * u,
            Some("running_mean") => 0.1 * u,
            _ if entry.shape.len() > 1 => u * (6.0 / inputs as f32).sqrt(),
            Some("weight") => 1.0 + 0.25 * u,
            _ => 0.1 * u,
        };
        all.extend(noise(entry.len(), 1000 * salt + i as u32).into_iter().map(value));
    }
    all
}

/// The largest absolute value.
pub(super) fn largest(of: &[f32]) -> f32 {
    of.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Refuses values that are further apart than 1e-5 of the largest, or of `least` where all are smaller.
pub(super) fn near(what: &str, got: &[f32], want: &[f32], least: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let largest = largest(want).max(least);
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((g - w).abs() <= 1e-5 * largest, "{what}[{i}]: {g}, expected {w} (largest {largest})");
    }
}

const START: Start = Start::Constant(0.0);

/// Convolution, norm, rectifier.
fn unit(b: &mut NetBuilder, x: Node, name: &str, [out, kernel, stride]: [usize; 3]) -> Node {
    let x = b.conv(x, name, out, kernel, stride, kernel / 2, START).unwrap();
    let x = b.batch_norm(x, &format!("{name}-norm")).unwrap();
    b.relu(x)
}

/// A residual network: projection and option-A shortcuts, a bottleneck of single pixels.
fn residual() -> Net {
    let mut b = NetBuilder::new(3, 8, 8);
    let x = unit(&mut b, 0, "stem", [8, 3, 1]);
    let y = unit(&mut b, x, "a1", [12, 3, 2]);
    let y = b.conv(y, "a2", 12, 3, 1, 1, START).unwrap();
    let y = b.batch_norm(y, "a2-norm").unwrap();
    let side = b.conv(x, "side", 12, 1, 2, 0, START).unwrap();
    let side = b.batch_norm(side, "side-norm").unwrap();
    let y = b.add(y, side).unwrap();
    let x = b.relu(y);
    let y = unit(&mut b, x, "b1", [6, 1, 1]);
    let y = unit(&mut b, y, "b2", [6, 3, 2]);
    let y = b.conv(y, "b3", 17, 1, 1, 0, START).unwrap();
    let y = b.batch_norm(y, "b3-norm").unwrap();
    let side = b.subsample(x, 2, 17).unwrap();
    let y = b.add(y, side).unwrap();
    let x = b.relu(y);
    b.tap("map", x);
    let x = b.global_avg_pool(x).unwrap();
    b.tap("feature", x);
    let x = b.linear(x, "fc", 5).unwrap();
    b.finish("residual", x).unwrap()
}

/// Convolutions with biases, groups and no norm, overlapping windows, dropout on a map and on a feature.
fn plain() -> Net {
    let mut b = NetBuilder::new(3, 11, 9);
    let x = b.conv_with(0, "conv1", 6, 3, 1, 0, 1, START, Some(START)).unwrap();
    let x = b.relu(x);
    let x = b.max_pool(x, 3, 2, 1).unwrap();
    let x = b.dropout(x, 0.25).unwrap();
    b.tap("map", x);
    let y = b.conv_with(x, "conv2", 6, 3, 1, 1, 3, START, None).unwrap();
    let x = b.add(x, y).unwrap();
    let x = b.avg_pool(x, 2, 1).unwrap();
    let x = b.flatten(x);
    let x = b.linear(x, "fc1", 7).unwrap();
    let x = b.relu(x);
    let x = b.dropout(x, 0.5).unwrap();
    b.tap("feature", x);
    let x = b.linear(x, "fc2", 4).unwrap();
    b.finish("plain", x).unwrap()
}

/// Fully connected layers alone; a dropout that never drops.
fn flat() -> Net {
    let mut b = NetBuilder::new(2, 3, 5);
    let x = b.flatten(0);
    let x = b.linear(x, "fc1", 9).unwrap();
    let x = b.relu(x);
    let x = b.dropout(x, 0.0).unwrap();
    b.tap("feature", x);
    let x = b.linear_with(x, "fc2", 3, START, None).unwrap();
    b.finish("flat", x).unwrap()
}

/// Norms on the images, on a sum, behind a norm, behind a rectifier and on one pixel; taps on a norm and on a sum; a value
/// added to itself.
fn odd() -> Net {
    let mut b = NetBuilder::new(4, 7, 6);
    let x = b.batch_norm(0, "n0").unwrap();
    let x = b.batch_norm(x, "n1").unwrap();
    b.tap("early", x);
    let x = b.relu(x);
    let y = b.batch_norm(x, "n2").unwrap();
    let x = b.add(y, y).unwrap();
    let x = b.conv(x, "conv", 5, 4, 3, 2, START).unwrap();
    let y = b.relu(x);
    let x = b.add(x, y).unwrap();
    b.tap("sum", x);
    let x = b.batch_norm(x, "n3").unwrap();
    let x = b.max_pool(x, 2, 2, 0).unwrap();
    let x = b.batch_norm(x, "n4").unwrap();
    let x = b.relu(x);
    let x = b.flatten(x);
    let x = b.linear(x, "fc", 3).unwrap();
    b.finish("odd", x).unwrap()
}

pub(super) fn nets() -> [Arc<Net>; 4] {
    [residual(), plain(), flat(), odd()].map(Arc::new)
}
