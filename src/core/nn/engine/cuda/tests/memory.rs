//! What is counted before it is allocated.

use super::*;
use crate::error::Result;
use crate::nn::engine::cuda::arena::Arena;
use crate::nn::engine::cuda::card::{Arg, Card, Memory, Product, Work};
use crate::nn::engine::cuda::plan::Plan;
use crate::nn::engine::cuda::split;
use crate::nn::engine::cuda::update::{self, Stacks};
use crate::nn::optim::{AdamConfig, OptimiserConfig};

/// A card that only counts.
#[derive(Default)]
struct Ledger {
    bytes: usize,
    count: u32,
}

impl Card for Ledger {
    fn name(&self) -> String {
        "ledger".to_string()
    }

    fn room(&self) -> Result<usize> {
        Ok(usize::MAX)
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory> {
        self.bytes += bytes;
        self.count += 1;
        Ok(Memory { id: self.count, bytes })
    }

    fn release(&mut self, memory: Memory) -> Result<()> {
        self.bytes -= memory.bytes;
        Ok(())
    }

    fn write(&mut self, _: Memory, _: usize, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, _: Memory, _: usize, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn zero(&mut self, _: Memory, _: usize, _: usize) -> Result<()> {
        Ok(())
    }

    fn launch(&mut self, _: &'static str, _: Work, _: &[Arg]) -> Result<()> {
        Ok(())
    }

    fn multiply(&mut self, _: &Product) -> Result<()> {
        Ok(())
    }
}

#[test]
fn the_memory_rule_counts_what_is_allocated() {
    for net in nets() {
        let (plan, mut card, mut arena) = (Plan::new(&net).unwrap(), Ledger::default(), Arena::default());
        for (lanes, rows) in [(1, 4), (8, 32)] {
            arena.reserve(&mut card, &plan, &net, lanes, rows).unwrap();
            assert_eq!(plan.bytes(lanes, rows), card.bytes, "{} {lanes} × {rows}", net.name);
        }
        arena.release(&mut card).unwrap();
        assert_eq!(card.bytes, 0);
        let size = net.layout.len();
        Stacks::new(&mut card, 5, size).unwrap();
        let plain = update::bytes(size, &OptimiserConfig::default(), 0, false);
        assert!((5 * plain..5 * (plain + 36) + 1024).contains(&card.bytes), "{} {plain}", card.bytes);
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
    // More elements than kernels count.
    assert!(plan.lanes_within(&net, usize::MAX, usize::MAX, 32, 0).unwrap() < 1 << 24);
    assert!(plan.check(&net, 1 << 24, 32).is_err());
}
