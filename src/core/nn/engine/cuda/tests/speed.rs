//! How long a local step takes, with its floor beside it: `-- --nocapture a_local_step` prints it. On a GPU
//! (`FEDLLAVA_CARD`) it is CReFF's: ResNet-8, 32 CIFAR images a client; on the emulated card a small one, to see that all
//! of it runs.

use std::time::Instant;

use super::*;
use crate::key::Key;
use crate::nn::engine::cuda::{Counted, Cut, Resident};
use crate::nn::interpreter::Mode;
use crate::nn::loss;
use crate::nn::optim::OptimiserConfig;
use crate::nn::params::{Named, Params};
use crate::nn::session::{Session, Training};

/// CReFF's ResNet-8: a stem and three blocks with projections.
fn resnet8(width: usize, side: usize) -> Net {
    let mut b = NetBuilder::new(3, side, side);
    let mut x = unit(&mut b, 0, "stem", [width, 3, 1]);
    for stage in 0..3 {
        let (out, stride, name) = (width << stage, 1 + usize::from(stage > 0), format!("layer{stage}"));
        let y = unit(&mut b, x, &format!("{name}.1"), [out, 3, stride]);
        let y = b.conv(y, &format!("{name}.2"), out, 3, 1, 1, START).unwrap();
        let y = b.batch_norm(y, &format!("{name}.2-norm")).unwrap();
        if stage > 0 {
            x = b.conv(x, &format!("{name}.side"), out, 1, stride, 0, START).unwrap();
            x = b.batch_norm(x, &format!("{name}.side-norm")).unwrap();
        }
        let y = b.add(y, x).unwrap();
        x = b.relu(y);
    }
    let x = b.global_avg_pool(x).unwrap();
    let x = b.linear(x, "classifier", 10).unwrap();
    b.finish("resnet8", x).unwrap()
}

/// A session whose images lie on the card, loaded.
fn ready<C: Card>(net: &Arc<Net>, card: C, lanes: usize, images: usize) -> Resident<C> {
    let mut session = Resident::new(net, card, lanes).unwrap();
    let optimiser = OptimiserConfig::default();
    let training = Training { optimiser, trained: None, pulls: vec![], moments: Named::new() };
    for k in 0..lanes {
        session.load(k, Params::new(net.layout.clone(), params(net, 1)).unwrap(), &training).unwrap();
    }
    let bytes: Vec<u8> = (0..images * net.input_shape().iter().product::<usize>()).map(|i| (i * 31) as u8).collect();
    let table = vec![std::array::from_fn(|v| v as f32 / 128.0 - 1.0); 3];
    session.hold(&bytes, &table, 4).unwrap();
    session
}

/// One local step with the task's loss on the host, as the training loop takes it.
fn step<C: Card>(session: &mut Resident<C>, rows: usize, at: u32) {
    let (lanes, net) = (session.lanes(), session.net().clone());
    let ids: Vec<Vec<u32>> =
        (0..lanes as u32).map(|k| (0..rows as u32).map(|i| (i + k + at) % rows as u32).collect()).collect();
    let cuts = vec![Cut { dy: at % 9, dx: 4, flip: at.is_multiple_of(2) }; rows];
    let keys = vec![Key::from_seed(at.into()); lanes];
    let ids: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    session.forward_held(&ids, &vec![cuts.as_slice(); lanes], Mode::Train(&keys)).unwrap();
    let (mut logits, labels) = (Vec::new(), (0..rows as u32).map(|i| i % 10).collect::<Vec<_>>());
    session.read(net.logits, &mut logits).unwrap();
    let mut seed = vec![0.0; logits.len()];
    for (z, d) in logits.chunks_exact(rows * 10).zip(seed.chunks_exact_mut(rows * 10)) {
        assert!(loss::cross_entropy(z, &labels, 10, 1.0, d).unwrap().is_finite());
    }
    session.backward(&[(net.logits, &seed)]).unwrap();
    session.step(&vec![0.01; lanes]).unwrap();
}

/// An H100 SXM: operations a second in f32, and bytes a second.
const H100: (f64, f64) = (67e12, 3.35e12);

#[test]
#[allow(clippy::print_stderr, reason = "the times are the result")]
fn a_local_step_takes_its_time_and_not_less_than_its_floor() {
    let (width, side, rows, most, repeats) = if on_gpu() { (64, 32, 32, 20, 20) } else { (4, 8, 4, 2, 3) };
    let net = Arc::new(resnet8(width, side));
    for lanes in [1, 8, 20].into_iter().map(|k: usize| k.min(most)) {
        let Some(card) = card(2) else { return };
        let (name, before) = (card.name(), card.room().unwrap());
        let mut session = ready(&net, card, lanes, rows);
        let mut counted = ready(&net, Counted::default(), lanes, rows);
        let loaded = counted.card().launches.len();
        step(&mut counted, rows, 0);
        assert!(counted.card().launches.len() > loaded + 100);
        (0..3).for_each(|at| step(&mut session, rows, at));
        let mut times: Vec<f64> = (0..repeats)
            .map(|at| {
                let start = Instant::now();
                step(&mut session, rows, at);
                // What was asked for is done when something is read.
                session.peek(0, 0..1, &mut Vec::new()).unwrap();
                1e3 * start.elapsed().as_secs_f64()
            })
            .collect();
        times.sort_by(f64::total_cmp);
        let (median, floor) = (times[times.len() / 2], 1e3 * counted.card().floor(H100.0, H100.1));
        assert!(!on_gpu() || median > 0.5 * floor, "{median} ms under a floor of {floor}: what was counted?");
        let used = before.saturating_sub(session.card().room().unwrap()) >> 20;
        eprintln!(
            "{name}: resnet8-{width} at {side}, {lanes} × {rows}: {median:.3} ms a step ({:.0} images/s), \
             an H100's floor in f32 {floor:.3} ms, {used} MiB",
            1e3 * (lanes * rows) as f64 / median
        );
    }
}
