//! What is counted before it is allocated.

use super::*;
use crate::nn::engine::cuda::Counted;
use crate::nn::engine::cuda::Resident;
use crate::nn::engine::cuda::arena::Arena;
use crate::nn::engine::cuda::plan::Plan;
use crate::nn::engine::cuda::split;
use crate::nn::engine::cuda::update::{self, Stacks};
use crate::nn::interpreter::Mode;
use crate::nn::optim::{AdamConfig, OptimiserConfig};
use crate::nn::params::{Named, Params};
use crate::nn::session::{Input, Session, Training};

#[test]
fn the_memory_rule_counts_what_is_allocated() {
    for net in nets() {
        let (plan, mut card, mut arena) = (Plan::new(&net).unwrap(), Counted::default(), Arena::default());
        for (lanes, rows) in [(1, 4), (8, 32)] {
            arena.reserve(&mut card, &plan, &net, lanes, rows).unwrap();
            assert_eq!(plan.bytes(lanes, rows), card.allocated, "{} {lanes} × {rows}", net.name);
        }
        arena.release(&mut card).unwrap();
        assert_eq!(card.allocated, 0);
        let size = net.layout.len();
        Stacks::new(&mut card, 5, size).unwrap();
        let plain = update::bytes(size, &OptimiserConfig::default(), 0, false);
        assert!((5 * plain..5 * (plain + 36) + 1024).contains(&card.allocated), "{} {plain}", card.allocated);
        assert_eq!(update::bytes(size, &OptimiserConfig::Adam(AdamConfig::default()), 1, true), plain + 16 * size);
    }
}

#[test]
fn a_cohort_that_does_not_fit_is_split_and_a_client_that_does_not_fit_refused() {
    let net = residual();
    let plan = Plan::new(&net).unwrap();
    let each = plan.bytes(1, 32) + 1000;
    let fit = |room: usize| plan.lanes_within(&net, room, 20, 32, 1000);
    assert_eq!((fit(100 * each).unwrap(), fit(8 * each).unwrap()), (20, 7));
    assert_eq!(split(20, 7), [7, 7, 6]);
    assert_eq!((split(20, 20), split(0, 4), split(5, 1)), (vec![20], vec![], vec![1; 5]));
    let e = fit(each / 2).unwrap_err().to_string();
    assert!(e.contains("one client of 32 rows needs") && e.contains("hint"), "{e}");
    // More elements than kernels count; parameters are counted once, not for every row.
    let wide = Plan { elements: 1, ..plan.clone() };
    let all = wide.lanes_within(&net, usize::MAX, usize::MAX, 32, 0).unwrap();
    assert_eq!(all, (i32::MAX as usize / 32).min(i32::MAX as usize / net.layout.len()));
    assert!(plan.lanes_within(&net, usize::MAX, usize::MAX, 32, 0).unwrap() < 1 << 24);
    assert!(plan.check(&net, 1 << 24, 32).is_err());
}

/// Three products a layer, two for the first, each of all rows that side by side clients have room for.
#[test]
fn a_steps_operations_and_bytes_are_counted_by_hand() {
    let (net, lanes, rows) = (Arc::new(flat()), 2, 4);
    let mut session = Resident::new(&net, Counted::default(), lanes).unwrap();
    let training =
        Training { optimiser: OptimiserConfig::default(), trained: None, pulls: vec![], moments: Named::new() };
    (0..lanes).for_each(|k| session.load(k, Params::zeros(net.layout.clone()), &training).unwrap());
    session.forward(Input::Images(&[0.0; 7 * 30]), &[4, 3], Mode::Eval).unwrap();
    session.backward(&[(net.logits, &[0.0; 7 * 3][..])]).unwrap();
    session.step(&[1.0; 2]).unwrap();
    let totals = session.card().totals();
    let [count, operations, bytes] = totals["product"];
    assert_eq!((count, operations), (5, (2 * lanes * rows * (2 * 30 * 9 + 3 * 9 * 3)) as u64));
    let floats = 2 * (30 * 9 + 30 * rows + 9 * rows) + 3 * (9 * 3 + 9 * rows + 3 * rows);
    assert_eq!(bytes, (4 * lanes * floats) as u64);
    assert_eq!(totals["update"], [1, 0, (13 * lanes * net.layout.len()) as u64]);
    let floor = session.card().floor(f64::INFINITY, 1.0);
    assert_eq!(floor as u64, totals.values().map(|t| t[2]).sum::<u64>());
}
