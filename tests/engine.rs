//! The CPU engine as its callers see it: the same bytes for any number of threads, the same training as candle's.

use std::sync::Arc;

use candle_core::{DType, Device};
use fedllava::key::{Key, Purpose};
use fedllava::model::cnn::Cnn;
use fedllava::model::resnet::{Imagenet, Plain, Resnet8};
use fedllava::model::{Head, ModelConfig};
use fedllava::nn::engine::candle::Candle;
use fedllava::nn::engine::cohort::Cohort;
use fedllava::nn::engine::cpu::{Algorithm, Engine};
use fedllava::nn::kernels::Isa;
use fedllava::nn::net::Start;
use fedllava::nn::{Interpreter, Mode, Net, NetBuilder};

use super::net_golden::{distance, noise, params, zoo};

fn narrow(side: usize) -> Net {
    let config = ModelConfig::Resnet8(Resnet8 { width: 16, mlp: None });
    config.build([3, side, side], Head::Classes(10)).unwrap()
}

fn images(net: &Net, rows: usize, salt: u32) -> Vec<f32> {
    noise(rows * net.input_shape().iter().product::<usize>(), salt)
}

/// Cross-entropy's gradient for labels `row mod outputs`, mean over the batch.
fn seed(logits: &[f32], outputs: usize) -> Vec<f32> {
    let rows = logits.len() / outputs;
    let mut out = Vec::with_capacity(logits.len());
    for (r, row) in logits.chunks_exact(outputs).enumerate() {
        let top = row.iter().copied().fold(f32::MIN, f32::max);
        let total: f32 = row.iter().map(|v| (v - top).exp()).sum();
        let soft = |(c, v): (usize, &f32)| (v - top).exp() / total - f32::from(c == r % outputs);
        out.extend(row.iter().enumerate().map(|p| soft(p) / rows as f32));
    }
    out
}

/// SGD on fresh noise at every step; gives the parameters and the last logits.
fn train(net: &Net, engine: &mut dyn Interpreter, rows: &[usize], lr: f32) -> (Vec<f32>, Vec<f32>) {
    let mut params = params(net);
    let mut logits = Vec::new();
    for (step, &n) in rows.iter().enumerate() {
        let key = Key::from_seed(3).fold(Purpose::Step, step as u64);
        let x = images(net, n, 100 + step as u32);
        engine.forward(&params, &x, &[n], Mode::Train(&[key])).unwrap();
        engine.read(net.logits, &mut logits).unwrap();
        let mut grads = vec![f32::NAN; params.len()];
        let seed = seed(&logits, net.outputs());
        engine.backward(&params, &[(net.logits, &seed)], &mut grads).unwrap();
        engine.update_buffers(&mut params).unwrap();
        params.iter_mut().zip(&grads).for_each(|(p, g)| *p -= lr * g);
    }
    (params, logits)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let cnn = ModelConfig::Cnn(Cnn::default()).build([3, 20, 20], Head::Classes(10)).unwrap();
    let deep = ModelConfig::Resnet20(Plain {}).build([3, 16, 16], Head::Classes(10)).unwrap();
    for net in [narrow(32), zoo().unwrap(), cnn, deep] {
        for isa in Isa::available() {
            let run = |threads| {
                let mut engine = Engine::with_isa(&net, threads, isa).unwrap();
                let (params, logits) = train(&net, &mut engine, &[7, 10, 5], 0.01);
                (bits(&params), bits(&logits))
            };
            let one = run(1);
            for threads in [2, 3, 5] {
                assert!(run(threads) == one, "{} on {isa} with {threads} threads", net.name);
            }
        }
    }
}

#[test]
fn twenty_steps_equal_candles() {
    let cnn = ModelConfig::Cnn(Cnn::default()).build([3, 12, 12], Head::Classes(10)).unwrap();
    let tiny = ModelConfig::Resnet8(Resnet8 { width: 8, mlp: Some(24) });
    let tiny = tiny.build([3, 16, 16], Head::Classes(10)).unwrap();
    for net in [cnn, tiny, zoo().unwrap()].into_iter().chain(all_pooled()) {
        let mut ours = Engine::new(&net, 2).unwrap();
        let mut candle = Candle::new(Arc::new(net.clone()), Device::Cpu, DType::F32);
        let (a, x) = train(&net, &mut ours, &[8; 20], 0.02);
        let (b, y) = train(&net, &mut candle, &[8; 20], 0.02);
        assert!(distance(&x, &y) < 1e-3, "{}: logits {:.1e}", net.name, distance(&x, &y));
        assert!(distance(&a, &b) < 1e-3, "{}: parameters {:.1e}", net.name, distance(&a, &b));
        assert!(distance(&a, &params(&net)) > 1e-2, "{}: training moved nothing", net.name);
    }
}

/// Windows of 2 × 2 side by side over a map, and perhaps something else that reads it. On odd sides they leave a row and
/// a column out.
fn pooled([height, width]: [usize; 2], twice: bool) -> Net {
    let mut b = NetBuilder::new(3, height, width);
    let x = b.conv(0, "a", 20, 3, 1, 1, Start::Uniform(0.2)).unwrap();
    let x = b.relu(x);
    let pooled = b.max_pool(x, 2, 2, 0).unwrap();
    let mut mean = b.global_avg_pool(pooled).unwrap();
    if twice {
        let whole = b.global_avg_pool(x).unwrap();
        mean = b.add(mean, whole).unwrap();
    }
    let logits = b.linear(mean, "fc", 5).unwrap();
    b.finish("pooled", logits).unwrap()
}

fn all_pooled() -> [Net; 4] {
    [pooled([13, 17], true), pooled([13, 17], false), pooled([12, 16], true), pooled([12, 16], false)]
}

#[test]
fn a_used_workspace_gives_what_a_fresh_one_gives() {
    for net in [narrow(16), zoo().unwrap()].into_iter().chain(all_pooled()) {
        let params = params(&net);
        let x = images(&net, 3, 5);
        let run = |engine: &mut Engine| {
            let (mut logits, mut grads) = (Vec::new(), vec![f32::NAN; params.len()]);
            engine.forward(&params, &x, &[3], Mode::Train(&[Key::from_seed(1)])).unwrap();
            engine.read(net.logits, &mut logits).unwrap();
            engine.backward(&params, &[(net.logits, &seed(&logits, net.outputs()))], &mut grads).unwrap();
            bits(&grads)
        };
        let fresh = run(&mut Engine::new(&net, 1).unwrap());
        let mut used = Engine::new(&net, 1).unwrap();
        for rows in [2, 9, 4] {
            train(&net, &mut used, &[rows], 0.1);
        }
        used.forward(&params, &images(&net, 11, 6), &[11], Mode::Eval).unwrap();
        assert!(run(&mut used) == fresh, "{}", net.name);
    }
}

/// Inference folds batch norm into the convolutions and the sums behind them; training's arithmetic says the same.
#[test]
fn inference_gives_what_evaluation_gives() {
    let deep = ModelConfig::Resnet20(Plain {}).build([3, 16, 16], Head::Classes(10)).unwrap();
    let bottlenecks = ModelConfig::Resnet50(Imagenet::default()).build([3, 32, 32], Head::Classes(10)).unwrap();
    for net in [narrow(8), deep, bottlenecks, zoo().unwrap()] {
        let params = params(&net);
        let x = images(&net, 5, 8);
        for isa in Isa::available() {
            for threads in [1, 2] {
                let mut engine = Engine::with_isa(&net, threads, isa).unwrap();
                let mut nodes: Vec<_> = net.taps.values().copied().collect();
                nodes.push(net.logits);
                let mut values = |mode| {
                    engine.forward(&params, &x, &[5], mode).unwrap();
                    let read = |&node: &usize| {
                        let mut out = Vec::new();
                        engine.read(node, &mut out).map(|()| out).unwrap()
                    };
                    nodes.iter().map(read).collect::<Vec<_>>()
                };
                let (kept, folded) = (values(Mode::Eval), values(Mode::Infer));
                for (a, b) in kept.iter().zip(&folded) {
                    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>().sqrt();
                    let apart = norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut a.iter().copied());
                    assert!(apart < 1e-3, "{} {isa}: {apart}", net.name);
                }
                let mut grads = vec![0.0; params.len()];
                assert!(engine.backward(&params, &[], &mut grads).is_err(), "nothing was kept");
            }
        }
    }
}

/// Winograd's gradients are the direct ones but for rounding, and no number of threads changes a byte.
#[test]
fn winograd_trains_as_direct_convolution_does() {
    let net = ModelConfig::Resnet8(Resnet8::default()).build([3, 16, 16], Head::Classes(10)).unwrap();
    for isa in Isa::available() {
        let run = |threads, algorithm| {
            let mut engine = Engine::with(&net, threads, isa, algorithm).unwrap();
            train(&net, &mut engine, &[9, 5], 0.01).0
        };
        let (direct, one) = (run(1, Algorithm::Direct), run(1, Algorithm::Winograd));
        let apart = distance(&one, &direct);
        assert!(direct != one && apart < 1e-4, "{isa}: {apart}");
        for threads in [2, 3] {
            assert!(bits(&run(threads, Algorithm::Winograd)) == bits(&one), "{isa} with {threads} threads");
        }
    }
}

/// Two ends of one network: a tap that nobody trains, through a batch norm or a linear layer that stands between the
/// others' steps, and the logits.
fn two_ends(linear: bool, channels: usize) -> Net {
    let mut b = NetBuilder::new(3, 32, 32);
    let start = Start::Uniform(0.8 / (channels as f32).sqrt());
    let aside = b.conv(0, "aside", channels, 4, 4, 0, start).unwrap();
    let unseen = match linear {
        true => {
            let mean = b.global_avg_pool(aside).unwrap();
            b.linear(mean, "unseen", 5).unwrap()
        }
        false => {
            let normed = b.batch_norm(aside, "unseen").unwrap();
            b.global_avg_pool(normed).unwrap()
        }
    };
    b.tap("unseen", unseen);
    let wide = b.conv(0, "wide", channels, 3, 1, 1, start).unwrap();
    let normed = b.batch_norm(wide, "norm").unwrap();
    let mut x = b.relu(normed);
    if channels > 16 {
        let middle = b.conv(x, "middle", channels, 3, 1, 1, start).unwrap();
        let normed = b.batch_norm(middle, "middle_norm").unwrap();
        x = b.relu(normed);
    }
    let down = b.conv(x, "down", channels, 4, 4, 0, start).unwrap();
    // A product of the whole batch between a convolution and its batch norm.
    let mean = b.global_avg_pool(aside).unwrap();
    let late = b.linear(mean, "late", 5).unwrap();
    b.tap("late", late);
    let normed = b.batch_norm(down, "down_norm").unwrap();
    let sum = b.add(normed, aside).unwrap();
    let mean = b.global_avg_pool(sum).unwrap();
    let logits = b.linear(mean, "fc", 5).unwrap();
    b.finish("two ends", logits).unwrap()
}

/// What one worker keeps for a block only is not overwritten before it is read, wherever gradients or products end a
/// segment.
#[test]
fn one_worker_gives_what_two_give_when_a_branch_gets_no_gradient() {
    // With 64 channels all algorithms differ, with 80 one net has products of several kinds.
    for net in [16, 64, 80].into_iter().flat_map(|c| [two_ends(true, c), two_ends(false, c)]) {
        let run = |threads, algorithm| {
            let mut engine = Engine::with(&net, threads, Isa::detect(), algorithm).unwrap();
            let params = train(&net, &mut engine, &[11, 11], 0.1).0;
            assert!(params.iter().all(|p| p.is_finite()), "the gradient of what nobody trains is 0");
            let mut logits = Vec::new();
            engine.forward(&params, &images(&net, 11, 7), &[11], Mode::Infer).unwrap();
            engine.read(net.logits, &mut logits).unwrap();
            (bits(&params), bits(&logits))
        };
        for algorithm in [Algorithm::Direct, Algorithm::Winograd, Algorithm::Fastest] {
            assert!(run(1, algorithm) == run(2, algorithm), "{algorithm:?}");
        }
    }
}

/// Maps of 12 × 12, where the tiles of no power of two of images fill a group.
#[test]
fn winograd_gives_the_same_bytes_for_any_map() {
    let mut b = NetBuilder::new(64, 12, 12);
    let x = b.conv(0, "a", 64, 3, 1, 1, Start::Uniform(0.2)).unwrap();
    let x = b.conv(x, "b", 64, 3, 1, 1, Start::Uniform(0.2)).unwrap();
    let x = b.global_avg_pool(x).unwrap();
    let logits = b.linear(x, "fc", 5).unwrap();
    let net = b.finish("twelve", logits).unwrap();
    let run = |threads| {
        let mut engine = Engine::with(&net, threads, Isa::detect(), Algorithm::Winograd).unwrap();
        bits(&train(&net, &mut engine, &[8], 0.1).0)
    };
    assert!(run(1) == run(2) && run(1) == run(3));
}

/// ⟨gradient, direction⟩ against the slope of Σ⟨seed, logits⟩ along it, in both modes.
#[test]
fn gradients_are_slopes() {
    let net = zoo().unwrap();
    let start = params(&net);
    let x = images(&net, 4, 8);
    let weights = net.layout.ranges(fedllava::nn::Role::Weight);
    for mode in [Mode::Train(Key::from_seed(1)), Mode::Eval] {
        let mut engine = Engine::new(&net, 1).unwrap();
        let mut value = |params: &[f32]| {
            let mut logits = Vec::new();
            engine.forward(params, &x, &[4], mode.alone()).unwrap();
            engine.read(net.logits, &mut logits).unwrap();
            let seed = noise(logits.len(), 9);
            logits.iter().zip(&seed).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>()
        };
        let direction = noise(start.len(), 10);
        let along = |t: f32| {
            let mut moved = start.clone();
            weights.iter().flat_map(Clone::clone).for_each(|i| moved[i] += t * start[i].abs() * direction[i]);
            moved
        };
        let t = 2e-4;
        let slope = (value(&along(t)) - value(&along(-t))) / (2.0 * f64::from(t));
        value(&start);
        let mut grads = vec![f32::NAN; start.len()];
        let seed = noise(4 * net.outputs(), 9);
        engine.backward(&start, &[(net.logits, &seed)], &mut grads).unwrap();
        let product: f64 =
            (0..start.len()).map(|i| f64::from(grads[i]) * f64::from(start[i].abs() * direction[i])).sum();
        assert!((slope - product).abs() < 0.02 * product.abs().max(0.1), "{mode:?}: {slope} and {product}");
    }
}

#[test]
fn no_rows_change_nothing_and_wrong_sizes_are_refused() {
    let net = narrow(8);
    let mut engine = Engine::new(&net, 1).unwrap();
    let before = params(&net);
    let mut after = before.clone();
    let mut grads = vec![f32::NAN; before.len()];
    engine.forward(&before, &[], &[0], Mode::Train(&[Key::from_seed(1)])).unwrap();
    engine.backward(&before, &[(net.logits, &[])], &mut grads).unwrap();
    engine.update_buffers(&mut after).unwrap();
    assert!(before == after && grads.iter().all(|&g| g == 0.0));

    let mode = Mode::Eval;
    assert!(engine.forward(&before[1..], &images(&net, 1, 1), &[1], mode).is_err());
    assert!(engine.forward(&before, &images(&net, 1, 1), &[2], mode).is_err());
    assert!(engine.forward(&before, &images(&net, 2, 1), &[1, 1], mode).is_err());
    engine.forward(&before, &images(&net, 2, 1), &[2], mode).unwrap();
    assert!(engine.backward(&before, &[(net.logits, &[0.0; 3])], &mut grads).is_err());
    assert!(engine.backward(&before, &[(1, &[0.0; 3])], &mut grads).is_err(), "node 1 is no tap");
}

/// Three clients with 32, 13 and no rows, side by side, against each alone on candle; then a step each.
#[test]
fn clients_side_by_side_get_what_each_gets_alone() {
    let net = Arc::new(narrow(8));
    let (p, rows, key) = (net.layout.len(), [32, 13, 0], Key::from_seed(5));
    let mode: Mode<&[Key]> = Mode::Train(&[key; 3]);
    let own = |k: usize| -> Vec<f32> { params(&net).iter().map(|v| v * (1.0 + 0.1 * k as f32)).collect() };
    let start: Vec<f32> = (0..3).flat_map(own).collect();
    let x = images(&net, 45, 77);
    let sample = x.len() / 45;

    let engines = (0..3).map(|_| Engine::new(&net, 1).unwrap()).collect();
    let mut cohort = Cohort::new(&net, engines);
    let (mut logits, mut grads, mut after) = (Vec::new(), vec![f32::NAN; 3 * p], start.clone());
    cohort.forward(&start, &x, &rows, mode).unwrap();
    cohort.read(net.logits, &mut logits).unwrap();
    let seeds: Vec<f32> = [(0, 32), (32, 13)]
        .iter()
        .flat_map(|&(first, rows)| seed(&logits[first * 10..][..rows * 10], net.outputs()))
        .collect();
    cohort.backward(&start, &[(net.logits, &seeds)], &mut grads).unwrap();
    cohort.update_buffers(&mut after).unwrap();

    for (k, (first, rows)) in [(0, 32), (32, 13)].into_iter().enumerate() {
        let mut alone = Candle::new(net.clone(), Device::Cpu, DType::F32);
        let (params, mut one) = (&start[k * p..][..p], Vec::new());
        let (mut gradient, mut buffers) = (vec![f32::NAN; p], params.to_vec());
        alone.forward(params, &x[first * sample..][..rows * sample], &[rows], Mode::Train(&[key])).unwrap();
        alone.read(net.logits, &mut one).unwrap();
        let seed = &seeds[first * 10..][..rows * 10];
        alone.backward(params, &[(net.logits, seed)], &mut gradient).unwrap();
        alone.update_buffers(&mut buffers).unwrap();
        let pairs = [
            (&logits[first * 10..][..rows * 10], &one),
            (&grads[k * p..][..p], &gradient),
            (&after[k * p..][..p], &buffers),
        ];
        for (together, alone) in pairs {
            assert!(distance(together, alone) < 1e-4, "client {k}: {}", distance(together, alone));
        }
    }
    assert!(grads[2 * p..].iter().all(|g| *g == 0.0), "a client without rows has no gradient");
    assert_eq!(bits(&after[2 * p..]), bits(&start[2 * p..]), "nor new buffers");
    assert!(cohort.forward(&start, &x, &[32, 13], mode).is_err(), "rows of two clients for three");
    assert!(cohort.forward(&start, &x, &[32, 13, 1], mode).is_err(), "one image too few");
    assert!(cohort.forward(&start, &x, &rows, Mode::Train(&[key; 2])).is_err(), "two keys for three clients");
}

/// Dropout is part of what a client gets: its masks come from its own key, whoever stands beside it.
#[test]
fn a_clients_dropout_is_the_same_alone_and_beside_others() {
    let net = Arc::new(ModelConfig::Cnn(Cnn::default()).build([3, 12, 12], Head::Classes(10)).unwrap());
    let (p, one) = (net.layout.len(), params(&net));
    let (both, keys) = ([one.clone(), one.clone()].concat(), [Key::from_seed(5), Key::from_seed(6)]);
    // The same five images for each, so that only keys tell the two apart.
    let x = images(&net, 5, 3).repeat(2);
    let run = |net_of: &mut dyn Interpreter, params: &[f32], x: &[f32], rows: &[usize], keys: &[Key]| {
        let (mut logits, mut grads) = (Vec::new(), vec![f32::NAN; params.len()]);
        net_of.forward(params, x, rows, Mode::Train(keys)).unwrap();
        net_of.read(net.logits, &mut logits).unwrap();
        net_of.backward(params, &[(net.logits, &vec![0.1; logits.len()])], &mut grads).unwrap();
        (bits(&logits), bits(&grads))
    };
    let engine = || Engine::new(&net, 1).unwrap();
    let mut cohort = Cohort::new(&net, vec![engine(), engine()]);
    let (logits, grads) = run(&mut cohort, &both, &x, &[5, 5], &keys);
    for (k, key) in keys.into_iter().enumerate() {
        let alone = run(&mut engine(), &one, &x[..x.len() / 2], &[5], &[key]);
        assert_eq!(alone.0, logits[k * 50..][..50], "client {k}");
        assert_eq!(alone.1, grads[k * p..][..p], "client {k}");
    }
    assert_ne!(logits[..50], logits[50..], "another key, other masks");
    let swapped = run(&mut cohort, &both, &x, &[5, 5], &[keys[1], keys[0]]);
    assert_eq!(swapped.0, [&logits[50..], &logits[..50]].concat());
}
