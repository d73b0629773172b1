//! A card that runs nothing and counts everything: float operations, bytes, launches, memory. What comes out is the floor
//! of a step on a GPU of known speed, before there is one.

use std::collections::BTreeMap;

use super::card::{Arg, Card, Memory, Product, Work, inside};
use crate::error::Result;

/// What a launch costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// The kernel's name; `product` for products, `zero` for zeroing.
    pub name: &'static str,
    /// Float operations of a product, two for a multiply-add; those of other kernels are not worth counting.
    pub operations: u64,
    /// Bytes read and written, each operand once: what caches cannot spare.
    pub bytes: u64,
}

/// A card that counts.
#[derive(Debug, Default)]
pub struct Counted {
    /// Every launch, in order.
    pub launches: Vec<Cost>,
    /// Bytes allocated now.
    pub allocated: usize,
    /// Bytes brought to the card and back.
    pub copied: u64,
    count: u32,
}

impl Counted {
    /// The least seconds that the counted work takes on a card of so many operations and bytes a second: each launch is
    /// bound by one of both. Launches themselves are not counted, nor copies.
    pub fn floor(&self, operations: f64, bytes: f64) -> f64 {
        self.launches.iter().map(|c| (c.operations as f64 / operations).max(c.bytes as f64 / bytes)).sum()
    }

    /// The sums of each kernel: launches, operations, bytes.
    pub fn totals(&self) -> BTreeMap<&'static str, [u64; 3]> {
        let mut totals: BTreeMap<&'static str, [u64; 3]> = BTreeMap::new();
        for cost in &self.launches {
            let sums = totals.entry(cost.name).or_default();
            [1, cost.operations, cost.bytes].iter().zip(sums).for_each(|(v, sum)| *sum += v);
        }
        totals
    }

    fn add(&mut self, name: &'static str, operations: u64, bytes: u64) {
        self.launches.push(Cost { name, operations, bytes });
    }
}

/// Bytes that a launch reads and writes.
fn traffic(kernel: &str, work: Work, args: &[Arg]) -> u64 {
    let int = |i: usize| if let Some(Arg::Int(v)) = args.get(i) { *v as u64 } else { 0 };
    let there = |i: usize| u64::from(matches!(args.get(i), Some(Arg::At(..) | Arg::Fill(..))));
    let written: u64 = args.iter().map(|a| if let Arg::Fill(_, _, bytes) = a { *bytes as u64 } else { 0 }).sum();
    // A result that is added to is read and written.
    let last = |n: u64| if let Some(Arg::At(..)) = args.last() { 8 * n } else { written };
    let n = match work {
        Work::Elements(n) | Work::Blocks(n) => n as u64,
    };
    match kernel {
        "unpack_rows" | "flatten" | "flatten_gradient" | "subsample" | "subsample_gradient" => 4 * n + last(n),
        "pack_rows" => 2 * written,
        "gather_images" => 5 * n,
        "gather_columns" => 4 * int(1) * int(4) * int(5) * int(6) * int(7) + written,
        "scatter_columns" => 4 * int(1) * int(4) * int(5) * int(8) * int(9) * int(10) * int(10) + last(n),
        "add_bias" => 8 * n,
        "channel_sums" => 4 * n * int(3) * int(4),
        "norm_statistics" => 4 * n * int(5) * int(6) + written,
        "norm_running" | "norm_update" => 36 * n,
        "fuse" => 4 * n * (1 + there(2)) + written,
        "norm_sums" => 4 * n * (2 + there(1)) * int(7) * int(8) + written,
        "fuse_gradient" => 4 * n * (1 + there(1) + there(2)) + last(n),
        "max_pool" | "mean_pool" => 4 * int(1) * int(2) * int(3) + written,
        "max_pool_gradient" => 5 * int(2) * int(5) * int(6) + last(n),
        "mean_pool_gradient" => 4 * int(1) * int(4) * int(5) + last(n),
        "plane_mean" => 4 * n * int(2) + written,
        "plane_mean_gradient" => 4 * int(1) + last(n),
        "dropout" => 32 * n,
        "add_vector" => 12 * n,
        "pull" => 17 * n,
        "squares" => 5 * int(2),
        "scale_marked" => 9 * n,
        "update" => n * (13 + 8 * (there(8) + there(9))),
        _ => 0,
    }
}

impl Card for Counted {
    fn name(&self) -> String {
        "counted".to_string()
    }

    fn room(&self) -> Result<usize> {
        Ok(usize::MAX)
    }

    fn allocate(&mut self, bytes: usize) -> Result<Memory> {
        self.allocated += bytes;
        self.count += 1;
        Ok(Memory { id: self.count, bytes })
    }

    fn release(&mut self, memory: Memory) -> Result<()> {
        self.allocated -= memory.bytes;
        Ok(())
    }

    fn write(&mut self, memory: Memory, at: usize, bytes: &[u8]) -> Result<()> {
        self.copied += bytes.len() as u64;
        inside("write", memory, at, bytes.len())
    }

    /// Zeroes.
    fn read(&mut self, memory: Memory, at: usize, bytes: &mut [u8]) -> Result<()> {
        bytes.fill(0);
        self.copied += bytes.len() as u64;
        inside("read", memory, at, bytes.len())
    }

    fn zero(&mut self, memory: Memory, at: usize, bytes: usize) -> Result<()> {
        self.add("zero", 0, bytes as u64);
        inside("zero", memory, at, bytes)
    }

    fn launch(&mut self, kernel: &'static str, work: Work, args: &[Arg]) -> Result<()> {
        self.add(kernel, 0, traffic(kernel, work, args));
        Ok(())
    }

    fn multiply(&mut self, p: &Product) -> Result<()> {
        let ([m, n, k], batch) = (p.size.map(|v| v as u64), p.batch as u64);
        let results = if p.add { 2 } else { 1 };
        self.add("product", 2 * batch * m * n * k, 4 * batch * (m * k + k * n + results * m * n));
        Ok(())
    }
}
