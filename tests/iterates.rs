//! Means of iterates and early stopping, against trainings of every length by itself.

use std::collections::BTreeMap;

use fedllava::exec::Context;
use fedllava::fl::feed::{Data, Source};
use fedllava::fl::predict::predict;
use fedllava::fl::{Averaging, Brief, Feed, Job, Length, Order, Outcome, Rows, Stop, Train, local};
use fedllava::key::Key;
use fedllava::nn::{Backend, OptimiserConfig, Params, Role, View, optim::SgdConfig};

use crate::toy::{CLASSES, Toy, net};

const TRAINED: std::ops::Range<u32> = 0..14;
const HELD_OUT: std::ops::Range<u32> = 14..31;

fn training(steps: usize) -> Train<'static> {
    Train {
        feeds: vec![Feed { batch_size: 4, ..Feed::default() }],
        length: Length::Steps(steps),
        optimiser: OptimiserConfig::Sgd(SgdConfig { lr: 0.3, momentum: 0.9, ..SgdConfig::default() }),
        ..Train::default()
    }
}

/// Trains a toy network so.
fn outcome(train: Train<'static>) -> Outcome {
    let (net, cx, toy) = (net(), Context::cpu(1), Toy::new(31));
    let (own, held_out): (Vec<u32>, Vec<u32>) = (TRAINED.collect(), HELD_OUT.collect());
    let source = |ids| Source { samples: &toy, ids };
    let columns = BTreeMap::new();
    let data = Data { own: source(&own), server: Some(source(&held_out)), unlabelled: None, columns: &columns };
    let job = Job {
        client: 0,
        server: false,
        round: 1,
        exchange: "train",
        brief: Brief::train(train, vec![]),
        model: net.init(Key::from_seed(5)),
        kept: None,
        flipped: false,
        key: Key::from_seed(8),
    };
    let mut session = Backend::Candle.session(&net, &cx, 1, 1).unwrap();
    local::work(session.as_mut(), &[local::Work { job: &job, data: &data }], &cx).unwrap().remove(0)
}

/// The iterate after so many steps.
fn iterate(steps: usize) -> Params {
    outcome(training(steps)).params
}

#[test]
fn the_result_is_the_mean_of_the_iterates_asked_for_running_statistics_included() {
    let average = Averaging { after: 3, every: 2 };
    let got = outcome(Train { average: Some(average), ..training(9) });
    let of = [4, 6, 8].map(iterate);
    for (i, got) in got.params.data().iter().enumerate() {
        let mean = of.iter().map(|p| f64::from(p.data()[i])).sum::<f64>() / 3.0;
        assert_eq!(*got, mean as f32, "entry {i}");
    }
    assert_eq!(got.steps, 9);
}

#[test]
fn a_training_too_short_to_average_gives_its_last_iterate() {
    let average = Averaging { after: 9, every: 1 };
    assert_eq!(outcome(Train { average: Some(average), ..training(9) }).params.digest(), iterate(9).digest());
}

#[test]
fn a_pass_that_trains_nothing_moves_running_statistics_alone() {
    let (start, got) = (net().init(Key::from_seed(5)), outcome(Train { trained: Some(Vec::new()), ..training(3) }));
    for entry in start.layout().entries() {
        let same = start.get(&entry.name).unwrap() == got.params.get(&entry.name).unwrap();
        assert_eq!(same, entry.role == Role::Weight, "{}", entry.name);
    }
}

/// Images of the held-out set told right.
fn hits(params: &Params) -> usize {
    let (net, toy, ids) = (net(), Toy::new(31), HELD_OUT.collect::<Vec<u32>>());
    let (z, y) = predict(&net, Backend::Candle, params, net.logits, &toy, &ids, &Context::cpu(1)).unwrap();
    let best = |row: &[f32]| (0..CLASSES).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
    z.chunks(CLASSES).zip(y).filter(|(row, y)| best(row) == *y as usize).count()
}

#[test]
fn training_stops_after_the_patience_and_gives_the_first_of_the_best_iterates() {
    const STEPS: usize = 30;
    let looks: Vec<(usize, usize)> = (1..=STEPS / 2).map(|n| (2 * n, hits(&iterate(2 * n)))).collect();
    let mut ends = Vec::new();
    for patience in [2, 6, STEPS] {
        let (mut best, mut end) = (looks[0], STEPS);
        for &look in &looks {
            if look.1 > best.1 {
                best = look;
            }
            if look.0 - best.0 >= patience {
                end = look.0;
                break;
            }
        }
        let feed =
            Feed { rows: Rows::Server, order: Order::Stored, view: View::Plain, batch_size: 5, ..Feed::default() };
        let got = outcome(Train { stop: Some(Box::new(Stop { feed, every: 2, patience })), ..training(STEPS) });
        assert_eq!((got.steps, got.params.digest()), (end, iterate(best.0).digest()), "patience {patience}: {looks:?}");
        let forward = net().multiply_adds();
        let plain = outcome(training(end)).multiply_adds;
        assert_eq!(got.multiply_adds - plain, HELD_OUT.len() as u64 * forward * (end as u64 / 2));
        ends.push((end, best.0));
    }
    let [(first, best), (second, _), _] = ends[..] else { unreachable!() };
    assert!(best < first && first < second && second < STEPS, "the case tells ends apart: {ends:?} of {looks:?}");
}

#[test]
fn averaging_and_stopping_together_are_refused() {
    let feed = Feed { rows: Rows::Server, ..Feed::default() };
    let stop = Some(Box::new(Stop { feed, every: 1, patience: 1 }));
    let train = Train { stop, average: Some(Averaging { after: 0, every: 1 }), ..training(2) };
    let (net, cx, toy) = (net(), Context::cpu(1), Toy::new(4));
    let (ids, columns) = ([0, 1], BTreeMap::new());
    let own = Source { samples: &toy, ids: &ids };
    let data = Data { own, server: Some(own), unlabelled: None, columns: &columns };
    let mut session = Backend::Candle.session(&net, &cx, 1, 1).unwrap();
    let slots = [net.init(Key::from_seed(5))];
    let plan = fedllava::fl::fit::Plan { train: &train, slots: &slots, data: &data, key: Key::from_seed(1) };
    let got = fedllava::fl::fit::fit(session.as_mut(), &[plan], vec![Default::default()], &cx, &mut ());
    assert!(got.err().unwrap().to_string().contains("not both"));
}
