//! Whole local steps: the resident session beside the plain one on the CPU engine.

use super::*;
use crate::exec::Context;
use crate::key::Key;
use crate::nn::Backend;
use crate::nn::engine::cuda::Resident;
use crate::nn::interpreter::Mode;
use crate::nn::loss;
use crate::nn::optim::{AdamConfig, AdamwConfig, Optimiser, OptimiserConfig, SgdConfig};
use crate::nn::params::{Named, Params};
use crate::nn::session::{Input, Pull, Session, Training};

fn optimisers() -> [OptimiserConfig; 5] {
    let sgd = SgdConfig { lr: 0.05, momentum: 0.9, weight_decay: 0.01, nesterov: false };
    [
        OptimiserConfig::Sgd(SgdConfig { momentum: 0.0, ..sgd.clone() }),
        OptimiserConfig::Sgd(sgd.clone()),
        OptimiserConfig::Sgd(SgdConfig { nesterov: true, ..sgd }),
        OptimiserConfig::Adamw(AdamwConfig { lr: 0.01, eps: 1e-3, ..AdamwConfig::default() }),
        OptimiserConfig::Adam(AdamConfig { lr: 0.01, eps: 1e-3, weight_decay: 0.1, ..AdamConfig::default() }),
    ]
}

fn of(net: &Net, salt: u32) -> Params {
    Params::new(net.layout.clone(), params(net, salt)).unwrap()
}

/// Lane `k` of several: optimisers, what is trained, pulls and moments differ.
fn training(net: &Net, k: usize, optimiser: &OptimiserConfig) -> Training {
    let proximal = Pull::Proximal { mu: 0.3, to: of(net, 70 + k as u32), over: None };
    let head = Pull::Proximal { mu: 0.2, to: of(net, 80), over: Some(net.head()) };
    let linear = Pull::Linear { coefficient: -0.05, of: of(net, 90) };
    let pulls = match k % 4 {
        0 => vec![proximal, linear],
        1 => vec![],
        2 => vec![head],
        _ => vec![linear, proximal, head],
    };
    let trained = (k % 3 == 2).then(|| net.head());
    Training { optimiser: optimiser.clone(), trained, pulls, moments: Named::new() }
}

/// A step on a batch: cross-entropy's seed on the logits, something on every tap, perhaps a clip, parts, more on the head.
fn step(session: &mut dyn Session, rows: &[usize], at: u32) -> Vec<f32> {
    let net = session.net().clone();
    let keys: Vec<Key> = (0..rows.len()).map(|k| Key::from_seed(u64::from(at * 100) + k as u64)).collect();
    let x = noise(rows.iter().sum::<usize>() * net.input_shape().iter().product::<usize>(), at);
    let mut logits = Vec::new();
    for part in 0..1 + at % 2 {
        if part > 0 {
            session.part().unwrap();
        }
        session.forward(Input::Images(&x), rows, Mode::Train(&keys)).unwrap();
        session.read(net.logits, &mut logits).unwrap();
        let (mut seeds, mut first) = (Vec::new(), 0);
        let mut seed = vec![0.0; logits.len()];
        for n in rows {
            let own = first * net.outputs()..(first + n) * net.outputs();
            let labels: Vec<u32> = (0..*n).map(|i| (i % net.outputs()) as u32).collect();
            loss::cross_entropy(&logits[own.clone()], &labels, net.outputs(), 1.0, &mut seed[own]).unwrap();
            first += n;
        }
        seeds.push((net.logits, seed));
        for &node in net.taps.values() {
            let mut value = Vec::new();
            session.read(node, &mut value).unwrap();
            seeds.push((node, value.iter().map(|v| 0.01 * v).collect()));
        }
        let seeds: Vec<_> = seeds.iter().map(|(node, seed)| (*node, seed.as_slice())).collect();
        session.backward(&seeds).unwrap();
    }
    let head = net.head()[0].clone();
    session.add(0, head.clone(), &noise(head.len(), at).iter().map(|v| 0.01 * v).collect::<Vec<_>>()).unwrap();
    if at % 3 == 1 {
        for k in (0..rows.len()).filter(|&k| rows[k] > 0) {
            logits.push(session.clip(k, 0.2 + k as f32, 0.1).unwrap());
        }
    }
    let rates: Vec<f32> = (0..rows.len()).map(|k| 1.0 / (1 + k + at as usize) as f32).collect();
    session.step(&rates).unwrap();
    logits
}

/// Runs `work` on the resident session and on the plain one.
fn both(net: &Arc<Net>, lanes: usize, mut work: impl FnMut(&mut dyn Session, &mut dyn FnMut(&str, Vec<f32>))) {
    let Some(card) = card(17) else { return };
    let mut said: [Vec<(String, Vec<f32>)>; 2] = Default::default();
    let mut ours = Resident::new(net, card, lanes).unwrap();
    work(&mut ours, &mut |what, values| said[0].push((what.to_string(), values)));
    let mut plain = Backend::Cpu.session(net, &Context::cpu(1), 1, lanes).unwrap();
    work(plain.as_mut(), &mut |what, values| said[1].push((what.to_string(), values)));
    let [got, want] = said;
    assert_eq!(got.len(), want.len());
    for ((what, got), (other, want)) in got.iter().zip(&want) {
        assert_eq!(what, other);
        near(&format!("{}: {what}", net.name), got, want, 1e-3);
    }
}

/// Four steps of three unequal clients, for every network and optimiser; then the state goes on in another lane.
#[test]
fn local_steps_of_unequal_clients_are_those_of_the_plain_session() {
    for (net, optimiser) in nets().iter().flat_map(|net| optimisers().map(|o| (net, o))) {
        both(net, 3, |session, say| {
            for k in 0..3 {
                session.load(k, of(net, k as u32), &training(net, k, &optimiser)).unwrap();
            }
            for (at, rows) in [[13, 6, 0], [13, 2, 4], [0, 3, 13], [5, 0, 2]].iter().enumerate() {
                say(&format!("step {at}"), step(session, rows, at as u32));
            }
            let (now, moments) = session.state(0).unwrap();
            moments.iter().for_each(|(name, values)| say(name, values.data().to_vec()));
            session.load(1, now, &Training { moments, ..training(net, 0, &optimiser) }).unwrap();
            say("after", step(session, &[3, 5, 4], 4));
            let mut seen = Vec::new();
            session.peek(2, 1..9, &mut seen).unwrap();
            say("peeked", seen);
            (0..3).for_each(|k| say(&format!("lane {k}"), session.take(k).unwrap().data().to_vec()));
        });
    }
}

/// One client, and eight.
#[test]
fn any_number_of_lanes_trains_alike() {
    let net = Arc::new(residual());
    for rows in [&[32][..], &[4, 9, 0, 2, 3, 0, 5, 6]] {
        both(&net, rows.len(), |session, say| {
            for k in 0..rows.len() {
                session.load(k, of(&net, k as u32), &training(&net, k, &optimisers()[1])).unwrap();
            }
            (0..2).for_each(|at| say("logits", step(session, rows, at)));
            (0..rows.len()).for_each(|k| say("trained", session.take(k).unwrap().data().to_vec()));
        });
    }
}

#[test]
fn stored_features_train_the_classifier_alone() {
    let net = Arc::new(residual());
    both(&net, 2, |session, say| {
        for k in 0..2 {
            let head = Training { trained: Some(net.head()), ..training(&net, k, &optimisers()[1]) };
            session.load(k, of(&net, k as u32), &head).unwrap();
        }
        for (at, rows) in [[4usize, 3], [0, 6]].iter().enumerate() {
            let n = rows.iter().sum::<usize>();
            session.forward(Input::Features(&noise(17 * n, at as u32)), rows, Mode::Eval).unwrap();
            let mut logits = Vec::new();
            session.read(net.logits, &mut logits).unwrap();
            session.backward(&[(net.logits, &noise(logits.len(), 40))]).unwrap();
            session.step(&[1.0, 0.5]).unwrap();
            say("logits", logits);
        }
        (0..2).for_each(|k| say("trained", session.take(k).unwrap().data().to_vec()));
        let all = Training { trained: None, ..training(&net, 1, &optimisers()[0]) };
        session.load(0, of(&net, 0), &all).unwrap();
        session.forward(Input::Features(&noise(34, 2)), &[2, 0], Mode::Eval).unwrap();
        session.backward(&[]).unwrap();
        assert!(session.step(&[1.0, 1.0]).unwrap_err().to_string().contains("the classifier alone"));
    });
}

#[test]
fn frozen_networks_are_looked_at_without_disturbing_the_lanes() {
    let net = Arc::new(plain());
    both(&net, 2, |session, say| {
        (0..2).for_each(|k| session.load(k, of(&net, k as u32), &training(&net, k, &optimisers()[0])).unwrap());
        let (x, key) = (noise(5 * 297, 1), Key::from_seed(4));
        session.forward(Input::Images(&x), &[3, 2], Mode::Train(&[key, key])).unwrap();
        let mut before = Vec::new();
        session.read(net.logits, &mut before).unwrap();
        let nodes = [net.logits, net.tap("feature").unwrap()];
        for (salt, mode) in [(5, Mode::Infer), (6, Mode::Train(key)), (5, Mode::Eval)] {
            let mut outs = [Vec::new(), Vec::new()];
            session.look(&of(&net, salt), &x[..4 * 297], 4, mode, &nodes, &mut outs).unwrap();
            outs.into_iter().for_each(|out| say("seen", out));
        }
        let mut after = Vec::new();
        session.read(net.logits, &mut after).unwrap();
        assert_eq!(before, after);
        session.backward(&[(net.logits, &noise(20, 3))]).unwrap();
        session.step(&[1.0, 1.0]).unwrap();
        (0..2).for_each(|k| say("trained", session.take(k).unwrap().data().to_vec()));
    });
}

/// With the same gradients every optimiser's step is the host's to the last bit.
#[test]
fn optimisers_move_as_the_host_moves() {
    let net = Arc::new(flat());
    let size = net.layout.len();
    for config in optimisers() {
        let Some(card) = card(23) else { return };
        let mut session = Resident::new(&net, card, 1).unwrap();
        let plain = Training { optimiser: config.clone(), trained: None, pulls: vec![], moments: Named::new() };
        session.load(0, of(&net, 1), &plain).unwrap();
        let (mut optimiser, mut want) = (Optimiser::new(&config, &net.layout), params(&net, 1));
        for t in 0..4 {
            let x = noise(2 * 30, t);
            session.forward(Input::Images(&x), &[2], Mode::Eval).unwrap();
            session.backward(&[]).unwrap();
            let g = noise(size, 30 + t);
            session.add(0, 0..size, &g).unwrap();
            session.step(&[0.5]).unwrap();
            optimiser.step(&mut want, &g, 0.5);
        }
        assert_eq!(session.take(0).unwrap().data(), want, "{config:?}");
    }
}
