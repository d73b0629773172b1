//! The laws of the training loop itself.

use std::sync::Arc;

use super::lane::first_not_finite;
use super::*;
use crate::fl::brief::{Feed, Length, Name};
use crate::fl::feed::Source;
use crate::model::cnn::Cnn;
use crate::model::{Head, ModelConfig, resnet};
use crate::nn::engine::cuda::{Emulated, Resident};
use crate::nn::optim::{OptimiserConfig, SgdConfig};
use crate::nn::{Backend, Batch, Net, Pull, Samples, View};

/// Hashed images, `(n, 3, 16, 16)`, whose draw in a view depends on its key.
struct Drawn;

const PIXELS: usize = 3 * 16 * 16;

impl Samples for Drawn {
    fn fill(&self, ids: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()> {
        let shift = if view == View::Plain { 0.0 } else { key.rng().f32() };
        batch.x =
            ids.iter().flat_map(|&i| (0..PIXELS).map(move |p| ((i * 7 + p as u32) as f32).sin() + shift)).collect();
        batch.y = ids.iter().map(|i| i % 3).collect();
        batch.ids = ids.to_vec();
        batch.rows = vec![ids.len()];
        Ok(())
    }
}

/// One with batch norm, one with dropout.
fn nets() -> [Arc<Net>; 2] {
    let configs = [
        ModelConfig::Resnet8(resnet::Resnet8 { width: 4, ..resnet::Resnet8::default() }),
        ModelConfig::Cnn(Cnn::default()),
    ];
    configs.map(|c| Arc::new(c.build([3, 16, 16], Head::Classes(3)).unwrap()))
}

fn train() -> Train<'static> {
    Train {
        feeds: vec![Feed { batch_size: 32, ..Feed::default() }],
        length: Length::Epochs(2),
        pulls: vec![Pull::Proximal { mu: 0.1, to: 0, over: None }],
        optimiser: OptimiserConfig::Sgd(SgdConfig { lr: 0.05, momentum: 0.9, ..SgdConfig::default() }),
        ..Train::default()
    }
}

struct Case {
    ids: Vec<Vec<u32>>,
    slots: Vec<Vec<Params>>,
    columns: BTreeMap<Name, crate::fl::Column>,
}

impl Case {
    fn new(net: &Net, sizes: &[u32]) -> Self {
        let ids = sizes.iter().map(|&n| (0..n).collect()).collect();
        let slots = (0..sizes.len()).map(|k| vec![net.init(Key::from_seed(k as u64))]).collect();
        Case { ids, slots, columns: BTreeMap::new() }
    }

    /// Trains clients `which` side by side.
    fn fit(
        &self,
        net: &Arc<Net>,
        which: &[usize],
        standing: Vec<Standing>,
        observer: &mut dyn Observer,
    ) -> Vec<Fitted> {
        let mut session = Backend::Cpu.session(net, &Context::cpu(1), 1, which.len()).unwrap();
        self.fit_in(session.as_mut(), which, standing, observer)
    }

    /// The same in some session.
    fn fit_in(
        &self,
        session: &mut dyn Session,
        which: &[usize],
        standing: Vec<Standing>,
        observer: &mut dyn Observer,
    ) -> Vec<Fitted> {
        let (cx, train) = (Context::cpu(1), train());
        let of = |&k: &usize| Data {
            own: Source { samples: &Drawn, ids: &self.ids[k] },
            server: None,
            unlabelled: None,
            columns: &self.columns,
        };
        let data: Vec<Data<'_>> = which.iter().map(of).collect();
        let plan = |(&k, data): (&usize, _)| Plan {
            train: &train,
            slots: self.slots[k].as_slice(),
            data,
            key: Key::from_seed(50 + k as u64),
        };
        let plans: Vec<Plan<'_>> = which.iter().zip(&data).map(plan).collect();
        fit(session, &plans, standing, &cx, observer).unwrap()
    }
}

/// Rows 32/32/0, then 32/13/0, and two epochs in which the last client has ended long before the first.
#[test]
fn three_clients_side_by_side_get_the_bytes_that_each_gets_alone() {
    for net in nets() {
        let case = Case::new(&net, &[96, 45, 0]);
        let together = case.fit(&net, &[0, 1, 2], vec![Standing::default(); 3], &mut ());
        assert_eq!(together.iter().map(|f| f.steps).collect::<Vec<_>>(), [6, 4, 0]);
        for (k, got) in together.iter().enumerate() {
            let alone = case.fit(&net, &[k], vec![Standing::default()], &mut ()).pop().unwrap();
            assert_eq!(got.params.data(), alone.params.data(), "{}, client {k}", net.name);
            assert_eq!((got.loss, got.multiply_adds), (alone.loss, alone.multiply_adds));
        }
        assert_eq!(together[2].params.data(), case.slots[2][0].data(), "no rows, nothing moves");
        assert_ne!(together[1].params.data(), case.slots[1][0].data());
    }
}

/// The CUDA engine on the card that stands in for a GPU: one launch for three clients, and the whole loop on it. Training
/// gathers rounding, so the bound is wider than one step's.
#[test]
#[allow(clippy::print_stderr, reason = "a test that did not run says so")]
fn clients_side_by_side_on_a_card_get_what_the_cpu_engine_gives_them() {
    let folder = std::env::current_exe().unwrap().parent().unwrap().to_path_buf();
    for net in nets() {
        let Some(card) = Emulated::new(&folder, 3).unwrap() else {
            return eprintln!("skipped: no C++ compiler here (CXX may name one)");
        };
        let case = Case::new(&net, &[40, 45, 0]);
        let mut session = Resident::new(&net, card, 3).unwrap();
        let ours = case.fit_in(&mut session, &[0, 1, 2], vec![Standing::default(); 3], &mut ());
        let theirs = case.fit(&net, &[0, 1, 2], vec![Standing::default(); 3], &mut ());
        for (k, (a, b)) in ours.iter().zip(&theirs).enumerate() {
            assert_eq!((a.steps, a.multiply_adds), (b.steps, b.multiply_adds));
            let start = case.slots[k][0].data();
            let norm = |of: &mut dyn Iterator<Item = f32>| of.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let apart = norm(&mut a.params.data().iter().zip(b.params.data()).map(|(a, b)| a - b));
            let moved = norm(&mut b.params.data().iter().zip(start).map(|(b, s)| b - s));
            assert!(apart <= 1e-4 * moved, "{}, client {k}: {apart} apart, {moved} moved", net.name);
            assert!((moved > 0.0) == (b.steps > 0));
            assert!((a.loss.unwrap_or(0.0) - b.loss.unwrap_or(0.0)).abs() < 1e-5);
        }
    }
}

/// Keeps where the training stood after its first epoch.
#[derive(Default)]
struct First(Option<Standing>);

impl Observer for First {
    fn epoch(&mut self, done: usize, standing: &mut dyn FnMut() -> Result<Standing>) -> Result<()> {
        if done == 1 {
            self.0 = Some(standing()?);
        }
        Ok(())
    }
}

#[test]
fn a_training_that_goes_on_after_an_epoch_ends_with_the_bytes_of_a_whole_one() {
    for net in nets() {
        let (case, mut first) = (Case::new(&net, &[70]), First::default());
        let whole = case.fit(&net, &[0], vec![Standing::default()], &mut first).pop().unwrap();
        let rest = case.fit(&net, &[0], vec![first.0.unwrap()], &mut ()).pop().unwrap();
        assert_eq!(whole.params.data(), rest.params.data());
        assert_eq!((whole.steps, rest.steps), (6, 3));
    }
}

/// Cross-entropy of the rows at hand.
struct CrossEntropy;

impl Objective for CrossEntropy {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        assert_eq!(at.feeds.iter().filter(|rows| !rows.is_empty()).count(), 1, "one feed at a time");
        loss::cross_entropy(at.logits, at.y, at.classes, 1.0, at.d_logits)
    }
}

/// The same images twice, each time in a forward of its own: twice the gradient, and running statistics
/// `0.9 (0.9 r + 0.1 s) + 0.1 s`.
#[test]
fn feeds_apart_add_their_gradients_and_move_running_statistics_one_after_the_other() {
    let (net, cx) = (&nets()[0], Context::cpu(1));
    let (ids, columns, start) = ((0..12).collect::<Vec<u32>>(), BTreeMap::new(), net.init(Key::from_seed(4)));
    let data = Data { own: Source { samples: &Drawn, ids: &ids }, server: None, unlabelled: None, columns: &columns };
    let fitted = |feeds: usize, lr: f32| {
        let plain = Feed { view: View::Plain, order: crate::fl::Order::Stored, ..Feed::default() };
        let train = Train {
            feeds: vec![plain; feeds],
            apart: feeds > 1,
            loss: Loss::Open(vec![Arc::new(CrossEntropy)]),
            optimiser: OptimiserConfig::Sgd(SgdConfig { lr, ..SgdConfig::default() }),
            length: Length::Steps(1),
            ..Train::default()
        };
        let mut session = Backend::Cpu.session(net, &cx, 1, 1).unwrap();
        let slots = [start.clone()];
        let plan = Plan { train: &train, slots: &slots, data: &data, key: Key::from_seed(6) };
        fit(session.as_mut(), &[plan], vec![Standing::default()], &cx, &mut ()).unwrap().pop().unwrap()
    };
    let (twice, once) = (fitted(2, 0.01), fitted(1, 0.02));
    assert_eq!((twice.steps, twice.multiply_adds), (1, 2 * once.multiply_adds));
    assert!((twice.loss.unwrap() - 2.0 * once.loss.unwrap()).abs() < 1e-6);
    for entry in start.layout().entries() {
        let of = |params: &Params| params.get(&entry.name).unwrap().to_vec();
        for ((a, b), r) in of(&twice.params).into_iter().zip(of(&once.params)).zip(of(&start)) {
            // Once: 0.9 r + 0.1 s, so s = (once − 0.9 r) / 0.1.
            let want = if entry.role == crate::nn::Role::Weight { b } else { 0.81 * r + 1.9 * (b - 0.9 * r) };
            assert!((a - want).abs() < 1e-5 * want.abs().max(1.0), "{}: {a}, {want}", entry.name);
        }
    }
}

#[test]
fn the_first_value_that_is_no_number_is_found() {
    let mut data = vec![1.0; 3000];
    assert_eq!(first_not_finite(&data), None);
    for at in [2999, 1024, 1023, 0] {
        data[at] = if at % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY };
        assert_eq!(first_not_finite(&data), Some(at));
    }
}
