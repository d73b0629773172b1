//! The memory of a workspace: values, gradients, and what lies between, for K clients of R rows.

use super::card::{Card, Memory};
use super::plan::Plan;
use crate::error::{Error, Result};
use crate::nn::net::{Net, Node};

/// Memory for so many clients of so many rows; made anew when more is wanted.
#[derive(Default)]
pub(super) struct Arena {
    lanes: usize,
    rows: usize,
    values: Vec<Option<Memory>>,
    grads: Vec<Option<Memory>>,
    /// Winners of each max-pooling, bytes.
    pub winners: Vec<Memory>,
    /// What batch norms keep, `[5, K, C]`.
    pub states: Vec<Memory>,
    /// Means and slopes of the batch norm at hand, `[2, K, C]`.
    slopes: Option<Memory>,
    columns: Option<Memory>,
    staging: Option<Memory>,
    /// `rows[k]` and `first[k]`.
    counts: Option<[Memory; 2]>,
    /// Dropout's keys, `[operations, K, 4]`.
    keys: Option<Memory>,
}

fn there<T>(what: Option<T>) -> Result<T> {
    what.ok_or_else(|| Error::defect("CUDA engine: memory used before a forward"))
}

impl Arena {
    /// Makes room.
    pub fn reserve<C: Card>(&mut self, card: &mut C, plan: &Plan, net: &Net, lanes: usize, rows: usize) -> Result<()> {
        if lanes <= self.lanes && rows <= self.rows {
            return Ok(());
        }
        plan.check(net, lanes, rows)?;
        self.release(card)?;
        let sample = |node: Node| lanes * rows * plan.shapes[node].floats();
        for node in 0..plan.shapes.len() {
            let mut place = |wanted: bool| wanted.then(|| card.allocate(4 * sample(node))).transpose();
            self.values.push(place(plan.kept[node])?);
            self.grads.push(place(plan.has_gradient(node))?);
        }
        for &node in &plan.pooled {
            self.winners.push(card.allocate(sample(node))?);
        }
        for norm in &plan.norms {
            self.states.push(card.allocate(4 * 5 * lanes * plan.shapes[norm.x].channels)?);
        }
        self.slopes = Some(card.allocate(4 * 2 * lanes * plan.widest_norm())?);
        self.columns = Some(card.allocate(4 * lanes * rows * plan.columns)?);
        self.staging = Some(card.allocate(4 * lanes * rows * plan.staged())?);
        self.counts = Some([card.allocate(4 * lanes)?, card.allocate(4 * lanes)?]);
        self.keys = Some(card.allocate(16 * lanes * plan.dropouts)?);
        (self.lanes, self.rows) = (lanes, rows);
        Ok(())
    }

    /// Gives everything back.
    pub fn release<C: Card>(&mut self, card: &mut C) -> Result<()> {
        let old = std::mem::take(self);
        let several = old.values.into_iter().chain(old.grads).flatten().chain(old.winners).chain(old.states);
        let single = [old.slopes, old.columns, old.staging, old.keys].into_iter().flatten();
        several.chain(single).chain(old.counts.into_iter().flatten()).try_for_each(|memory| card.release(memory))
    }

    pub fn value(&self, node: Node) -> Result<Memory> {
        there(self.values.get(node).copied().flatten())
    }

    pub fn grad(&self, node: Node) -> Option<Memory> {
        self.grads.get(node).copied().flatten()
    }

    pub fn columns(&self) -> Result<Memory> {
        there(self.columns)
    }

    pub fn staging(&self) -> Result<Memory> {
        there(self.staging)
    }

    /// `rows[k]` on the card.
    pub fn rows(&self) -> Result<Memory> {
        Ok(there(self.counts)?[0])
    }

    /// The first row of each client in the seam's order, on the card.
    pub fn first(&self) -> Result<Memory> {
        Ok(there(self.counts)?[1])
    }

    pub fn keys(&self) -> Result<Memory> {
        there(self.keys)
    }

    pub fn slopes(&self) -> Result<Memory> {
        there(self.slopes)
    }
}
