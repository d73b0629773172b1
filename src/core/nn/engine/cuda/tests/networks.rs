//! Forward, backward and statistics of whole networks.

use proptest::prelude::*;

use super::*;
use crate::key::Key;
use crate::nn::engine::cohort::Cohort;
use crate::nn::engine::cpu;
use crate::nn::engine::cuda::Engine;
use crate::nn::interpreter::{Interpreter, Mode};

/// Runs both engines on the same batch of clients, and compares everything that the seam shows.
fn compare(net: &Arc<Net>, engine: &mut dyn Interpreter, rows: &[usize], training: bool, salt: u32) {
    let clients = rows.iter().map(|_| cpu::Engine::new(net, 1).unwrap()).collect();
    let mut cohort = Cohort::new(net, clients);
    let keys: Vec<Key> = (0..rows.len()).map(|k| Key::from_seed(u64::from(salt) + k as u64)).collect();
    let mode = if training { Mode::Train(keys.as_slice()) } else { Mode::Eval };
    let mut all: Vec<f32> = (0..rows.len() as u32).flat_map(|k| params(net, salt + k)).collect();
    let mut theirs = all.clone();
    let x = noise(rows.iter().sum::<usize>() * net.input_shape().iter().product::<usize>(), salt);
    cohort.forward(&all, &x, rows, mode).unwrap();
    engine.forward(&all, &x, rows, mode).unwrap();
    let who = |what: &str| format!("{} {rows:?} training {training}: {what}", net.name);
    let (mut got, mut want, mut seeds) = (Vec::new(), Vec::new(), Vec::new());
    for (i, &node) in net.taps.values().chain([&net.logits]).enumerate() {
        cohort.read(node, &mut want).unwrap();
        engine.read(node, &mut got).unwrap();
        near(&who(&format!("node {node}")), &got, &want, 1e-3);
        seeds.push((node, noise(want.len(), salt + 50 + i as u32)));
    }
    let seeds: Vec<_> = seeds.iter().map(|(node, seed)| (*node, seed.as_slice())).collect();
    let (mut grads, mut their_grads) = (vec![f32::NAN; all.len()], vec![f32::NAN; all.len()]);
    cohort.backward(&all, &seeds, &mut their_grads).unwrap();
    engine.backward(&all, &seeds, &mut grads).unwrap();
    cohort.update_buffers(&mut theirs).unwrap();
    engine.update_buffers(&mut all).unwrap();
    let p = net.layout.len();
    for (k, entry) in (0..rows.len()).flat_map(|k| net.layout.entries().iter().map(move |e| (k, e))) {
        let range = |v: &[f32]| v[k * p..][entry.range()].to_vec();
        // In these two a norm stands behind a norm or a bias, which leaves nothing but rounding of their gradients.
        let share = if training && ["odd", "any"].contains(&net.name.as_str()) { 1.0 } else { 0.01 };
        let least = share * largest(&their_grads[k * p..][..p]);
        near(&who(&format!("gradient of {} of client {k}", entry.name)), &range(&grads), &range(&their_grads), least);
        near(&who(&format!("{} of client {k}", entry.name)), &range(&all), &range(&theirs), 1e-3);
    }
}

/// Unequal clients, clients without rows, one workspace for one batch after the other, larger and smaller.
#[test]
fn clients_side_by_side_get_what_the_cpu_engine_gives_each_alone() {
    for (i, net) in nets().iter().enumerate() {
        let Some(card) = card(i as u64) else { return };
        let mut engine = Engine::new(net, card).unwrap();
        for (j, rows) in [&[13][..], &[32, 13, 0], &[4, 13, 0, 2, 7, 0, 3, 5], &[2, 0, 6]].into_iter().enumerate() {
            compare(net, &mut engine, rows, true, 10 * j as u32);
            compare(net, &mut engine, rows, false, 10 * j as u32 + 5);
        }
    }
}

/// Whoever runs next to a client, and in whatever order threads run, its bytes are the same.
#[test]
fn a_client_gets_the_same_bytes_in_any_company_and_any_order_of_threads() {
    for net in nets() {
        let run = |seed, rows: &[usize], salts: &[u32]| {
            let mut engine = Engine::new(&net, card(seed)?).unwrap();
            let all: Vec<f32> = salts.iter().flat_map(|&s| params(&net, s)).collect();
            let sample: usize = net.input_shape().iter().product();
            let x: Vec<f32> = rows.iter().zip(salts).flat_map(|(n, &s)| noise(n * sample, s)).collect();
            let keys: Vec<Key> = salts.iter().map(|&s| Key::from_seed(s.into())).collect();
            engine.forward(&all, &x, rows, Mode::Train(&keys)).unwrap();
            let seed: Vec<f32> = rows.iter().zip(salts).flat_map(|(n, &s)| noise(n * net.outputs(), s + 9)).collect();
            let mut grads = vec![0.0; all.len()];
            engine.backward(&all, &[(net.logits, &seed)], &mut grads).unwrap();
            Some(grads)
        };
        let Some(alone) = run(1, &[5], &[3]) else { return };
        let p = net.layout.len();
        assert_eq!(run(2, &[5], &[3]).unwrap(), alone, "{}: another order of threads", net.name);
        let company = run(3, &[9, 5, 0, 2], &[1, 3, 2, 7]).unwrap();
        match on_gpu() {
            // cuBLAS may cut other sizes in another way.
            true => near(&net.name, &company[p..2 * p], &alone, largest(&alone)),
            false => assert_eq!(company[p..2 * p], alone, "{}: three others beside", net.name),
        }
        assert!(company[2 * p..3 * p].iter().all(|g| *g == 0.0));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let net = Arc::new(odd());
    let Some(card) = card(0) else { return };
    let mut engine = Engine::new(&net, card).unwrap();
    let (all, x) = (params(&net, 0), noise(4 * 7 * 6, 1));
    let key = [Key::from_seed(1)];
    let refused = |r: crate::error::Result<()>, what: &str| {
        let e = r.unwrap_err().to_string();
        assert!(e.contains(what), "{e}");
    };
    refused(engine.forward(&all[1..], &x, &[1], Mode::Eval), "parameters for 1 clients");
    refused(engine.forward(&all, &x[1..], &[1], Mode::Eval), "167 values for 1 rows of 168");
    refused(engine.forward(&all, &x, &[1], Mode::Train(&key)), "one value a channel in training");
    refused(engine.forward(&all, &x, &[1], Mode::Train(&[])), "0 keys for 1 clients");
    engine.forward(&all, &x, &[1], Mode::Infer).unwrap();
    refused(engine.read(3, &mut Vec::new()), "neither a tap nor the output");
    refused(engine.backward(&all, &[], &mut vec![0.0; all.len()]), "Mode::Infer");
    let losses = Net::of_losses("losses", net.layout.clone(), net.starts.clone(), 1);
    assert!(Engine::new(&Arc::new(losses), super::card(0).unwrap()).is_err());
}

/// A network of one convolution, one pooling and what goes with them, of any shape.
#[derive(Clone, Debug)]
struct Shape {
    image: [usize; 3],
    conv: [usize; 4],
    groups: usize,
    pool: [usize; 3],
    mean: bool,
    bias: bool,
    norm: bool,
    rows: Vec<usize>,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let image = ([1..4usize, 5..10usize, 5..10usize], 1..4usize);
    let conv = [1..4usize, 1..5usize, 1..4usize, 0..3usize];
    let pool = ([1..4usize, 1..4usize, 0..2usize], any::<[bool; 3]>());
    (image, conv, pool, proptest::collection::vec(0..5usize, 1..5)).prop_map(|(image, conv, pool, rows)| {
        let ([c, h, w], groups) = image;
        let [kernel, stride, border] = pool.0;
        let [mean, bias, norm] = pool.1;
        let rows = rows.into_iter().map(|n| if n == 1 { 2 } else { n }).collect();
        let pool = [kernel, stride, border.min(kernel / 2)];
        Shape {
            image: [c * groups, h, w],
            conv: [conv[0] * groups, conv[1], conv[2], conv[3]],
            groups,
            pool,
            mean,
            bias,
            norm,
            rows,
        }
    })
}

impl Shape {
    /// None where a window is larger than what it sees.
    fn net(&self) -> Option<Net> {
        let [c, h, w] = self.image;
        let mut b = NetBuilder::new(c, h, w);
        let x = b.batch_norm(0, "first").ok()?;
        let [out, kernel, stride, padding] = self.conv;
        let bias = self.bias.then_some(START);
        let mut x = b.conv_with(x, "conv", out, kernel, stride, padding, self.groups, START, bias).ok()?;
        if self.norm {
            x = b.batch_norm(x, "norm").ok()?;
        }
        x = b.relu(x);
        x = match self.mean {
            true => b.avg_pool(x, self.pool[0], self.pool[1]).ok()?,
            false => b.max_pool(x, self.pool[0], self.pool[1], self.pool[2]).ok()?,
        };
        b.tap("map", x);
        x = b.dropout(x, 0.3).ok()?;
        x = b.flatten(x);
        let x = b.linear(x, "fc", 3).ok()?;
        b.finish("any", x).ok()
    }
}

#[test]
fn any_shape_equals_the_cpu_engine() {
    if card(0).is_none() {
        return;
    }
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases: 48,
        failure_persistence: None,
        ..ProptestConfig::default()
    });
    runner
        .run(&shapes(), |shape| {
            if let Some(net) = shape.net().map(Arc::new) {
                let mut engine = Engine::new(&net, card(7).unwrap()).unwrap();
                compare(&net, &mut engine, &shape.rows, true, 3);
                compare(&net, &mut engine, &shape.rows, false, 4);
            }
            Ok(())
        })
        .unwrap();
}
