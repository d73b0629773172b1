//! Whole parameter vectors on the card: `[K, P]` stacks of parameters, gradients, moments and anchors, and what moves
//! them, by the rules of [`crate::nn::optim`].

use std::ops::Range;

use super::card::{Arg, Card, Memory, Work};
use super::pass::at;
use crate::error::{Error, Result};
use crate::nn::optim::OptimiserConfig;
use crate::nn::params::{Params, Ranges};
use crate::nn::session::Pull;

/// Pulls of one lane: each has a bit of the marks.
const PULLS: usize = 7;
/// Blocks that add up one client's squares.
const BLOCKS: usize = 64;

/// The stacks of a session.
pub(super) struct Stacks {
    pub params: Memory,
    pub grads: Memory,
    marks: Memory,
    /// Sums of the gradients of a step's earlier parts.
    parts: Option<Memory>,
    /// What the host adds.
    incoming: Option<Memory>,
    moments: [Option<Memory>; 2],
    anchors: Vec<Memory>,
    kinds: Memory,
    numbers: Memory,
    partial: Memory,
    lanes: usize,
    size: usize,
}

/// A lane's optimiser and pulls, as the kernels are told of them.
#[derive(Clone, Debug)]
pub(super) struct Moves {
    pub optimiser: OptimiserConfig,
    pub trained: Ranges,
    pub steps: i32,
    /// Kind and coefficient of each pull.
    pub pulls: Vec<(i32, f32)>,
}

impl Stacks {
    pub fn new<C: Card>(card: &mut C, lanes: usize, size: usize) -> Result<Self> {
        let all = lanes * size;
        let (params, grads) = (card.allocate(4 * all)?, card.allocate(4 * all)?);
        let (marks, kinds) = (card.allocate(all)?, card.allocate(4 * lanes)?);
        let (numbers, partial) = (card.allocate(4 * 8 * lanes)?, card.allocate(8 * BLOCKS)?);
        // Lanes that are never loaded are multiplied as well.
        card.zero(params, 0, 4 * all)?;
        card.zero(grads, 0, 4 * all)?;
        let (parts, incoming, moments, anchors) = Default::default();
        #[rustfmt::skip]
        let stacks = Stacks { params, grads, marks, parts, incoming, moments, anchors, kinds, numbers, partial, lanes, size };
        Ok(stacks)
    }

    fn all(&self) -> usize {
        self.lanes * self.size
    }

    fn sizes(&self) -> [Arg; 2] {
        [Arg::Int(self.lanes as i32), Arg::Int(self.size as i32)]
    }

    /// A lane's part of a stack, as bytes.
    fn lane(&self, k: usize) -> usize {
        4 * k * self.size
    }

    fn write<C: Card>(&self, card: &mut C, stack: Memory, k: usize, values: &[f32]) -> Result<()> {
        card.write(stack, self.lane(k), bytemuck::cast_slice(values))
    }

    /// Some of a lane's part of a stack.
    pub fn read<C: Card>(&self, card: &mut C, stack: Memory, k: usize, range: Range<usize>) -> Result<Vec<f32>> {
        let mut out = vec![0.0f32; range.len()];
        card.read(stack, self.lane(k) + 4 * range.start, bytemuck::cast_slice_mut(&mut out))?;
        Ok(out)
    }

    /// Brings a lane's parameters, moments (as many as its optimiser has) and pulls.
    #[allow(clippy::too_many_arguments, reason = "what a lane is loaded with")]
    pub fn load<C: Card>(
        &mut self,
        card: &mut C,
        k: usize,
        params: &Params,
        moves: &Moves,
        moments: [&[f32]; 2],
        pulls: &[Pull<Params>],
        weights: &Ranges,
    ) -> Result<()> {
        if pulls.len() > PULLS {
            return Err(Error::defect(format!("CUDA engine: {} pulls in a step, at most {PULLS}", pulls.len())));
        }
        self.write(card, self.params, k, params.data())?;
        let mut marks = vec![0u8; self.size];
        moves.trained.iter().for_each(|range| marks[range.clone()].iter_mut().for_each(|m| *m |= 1));
        for (j, pull) in pulls.iter().enumerate() {
            let (anchor, over) = match pull {
                Pull::Proximal { to, over, .. } => (to, over.as_ref().unwrap_or(weights)),
                Pull::Linear { of, .. } => (of, weights),
            };
            over.iter().for_each(|range| marks[range.clone()].iter_mut().for_each(|m| *m |= 2 << j));
            if self.anchors.len() == j {
                self.anchors.push(card.allocate(4 * self.all())?);
            }
            self.write(card, self.anchors[j], k, anchor.data())?;
        }
        card.write(self.marks, k * self.size, &marks)?;
        for (i, values) in moments.into_iter().enumerate().filter(|(_, values)| !values.is_empty()) {
            let stack = match self.moments[i] {
                Some(stack) => stack,
                None => card.allocate(4 * self.all())?,
            };
            self.moments[i] = Some(stack);
            self.write(card, stack, k, values)?;
        }
        Ok(())
    }

    /// A lane's moments, as many as there are.
    pub fn moments<C: Card>(&self, card: &mut C, k: usize, count: usize) -> Result<[Vec<f32>; 2]> {
        let mut out = [Vec::new(), Vec::new()];
        for (values, stack) in out.iter_mut().zip(self.moments).take(count) {
            let stack = stack.ok_or_else(|| Error::defect("CUDA engine: a lane without its moments"))?;
            *values = self.read(card, stack, k, 0..self.size)?;
        }
        Ok(out)
    }

    /// Adds to a lane's gradient.
    pub fn add<C: Card>(&mut self, card: &mut C, k: usize, range: Range<usize>, gradient: &[f32]) -> Result<()> {
        let bytes = 4 * range.len();
        if range.is_empty() || range.len() != gradient.len() || range.end > self.size {
            return Err(Error::defect(format!("session: {} values onto gradient {range:?}", gradient.len())));
        }
        let incoming = match self.incoming {
            Some(memory) if memory.bytes >= bytes => memory,
            old => {
                old.map_or(Ok(()), |memory| card.release(memory))?;
                card.allocate(bytes)?
            }
        };
        self.incoming = Some(incoming);
        card.write(incoming, 0, bytemuck::cast_slice(gradient))?;
        let to = Arg::At(self.grads, self.lane(k) + 4 * range.start);
        card.launch("add_vector", Work::Elements(range.len()), &[at(incoming), Arg::Int(range.len() as i32), to])
    }

    /// Sets the gradient aside as an earlier part of the step; `first` is the step's first.
    pub fn part<C: Card>(&mut self, card: &mut C, first: bool) -> Result<()> {
        let parts = match self.parts {
            Some(parts) => parts,
            None => card.allocate(4 * self.all())?,
        };
        self.parts = Some(parts);
        if first {
            card.zero(parts, 0, 4 * self.all())?;
        }
        self.sum(card, self.grads, parts)
    }

    /// Adds the step's earlier parts to the gradient.
    pub fn whole<C: Card>(&mut self, card: &mut C) -> Result<()> {
        self.parts.map_or(Ok(()), |parts| self.sum(card, parts, self.grads))
    }

    fn sum<C: Card>(&self, card: &mut C, from: Memory, to: Memory) -> Result<()> {
        let n = self.all();
        card.launch("add_vector", Work::Elements(n), &[at(from), Arg::Int(n as i32), at(to)])
    }

    /// The pulls of all lanes.
    pub fn pull<C: Card>(&mut self, card: &mut C, lanes: &[Option<Moves>], counts: Memory) -> Result<()> {
        for j in 0..self.anchors.len() {
            let of = |lane: &Option<Moves>| lane.as_ref().and_then(|m| m.pulls.get(j).copied()).unwrap_or((0, 0.0));
            let (kinds, by): (Vec<i32>, Vec<f32>) = lanes.iter().map(of).unzip();
            card.write(self.kinds, 0, bytemuck::cast_slice(&kinds))?;
            card.write(self.numbers, 0, bytemuck::cast_slice(&by))?;
            let vectors = [self.params, self.anchors[j], self.marks, self.kinds, self.numbers, counts].map(at);
            let [k, p] = self.sizes();
            let args = [&vectors[..], &[k, p, Arg::Int(1 + j as i32), at(self.grads)]].concat();
            card.launch("pull", Work::Elements(self.all()), &args)?;
        }
        Ok(())
    }

    /// The squared norm of what lane `k`'s optimiser moves.
    pub fn square<C: Card>(&mut self, card: &mut C, k: usize) -> Result<f64> {
        let (grads, marks) = (Arg::At(self.grads, self.lane(k)), Arg::At(self.marks, k * self.size));
        let args = [grads, marks, Arg::Int(self.size as i32), Arg::Fill(self.partial, 0, 8 * BLOCKS)];
        card.launch("squares", Work::Blocks(BLOCKS), &args)?;
        let mut partial = [0.0f64; BLOCKS];
        card.read(self.partial, 0, bytemuck::cast_slice_mut(&mut partial))?;
        Ok(partial.iter().sum())
    }

    /// Scales the same.
    pub fn scale<C: Card>(&mut self, card: &mut C, k: usize, by: f32) -> Result<()> {
        let (grads, marks) = (Arg::At(self.grads, self.lane(k)), Arg::At(self.marks, k * self.size));
        let args = [marks, Arg::Int(self.size as i32), Arg::Float(by), grads];
        card.launch("scale_marked", Work::Elements(self.size), &args)
    }

    /// One step of every lane with rows.
    pub fn step<C: Card>(
        &mut self,
        card: &mut C,
        lanes: &mut [Option<Moves>],
        rows: &[usize],
        rates: &[f32],
        counts: Memory,
    ) -> Result<()> {
        let (mut kinds, mut numbers) = (vec![0i32; self.lanes], vec![[0.0f32; 8]; self.lanes]);
        for (k, lane) in lanes.iter_mut().enumerate() {
            if let Some(lane) = lane.as_mut().filter(|_| rows[k] > 0) {
                lane.steps += 1;
                (kinds[k], numbers[k]) = rule(&lane.optimiser, rates[k], lane.steps);
            }
        }
        card.write(self.kinds, 0, bytemuck::cast_slice(&kinds))?;
        card.write(self.numbers, 0, bytemuck::cast_slice(numbers.as_flattened()))?;
        let vectors = [self.grads, self.marks, self.kinds, self.numbers, counts].map(at);
        let moments = self.moments.map(|m| m.map_or(Arg::Absent, at));
        let args = [&vectors[..], &self.sizes(), &[at(self.params)], &moments].concat();
        card.launch("update", Work::Elements(self.all()), &args)
    }
}

/// The kernel's kind and numbers of an optimiser's step `t`, from 1.
fn rule(config: &OptimiserConfig, rate: f32, t: i32) -> (i32, [f32; 8]) {
    let lr = config.lr() * rate;
    let adam =
        |b1: f32, b2: f32, eps, decay| [lr, b1, b2, eps, decay, 1.0 - b1.powi(t), (1.0 - b2.powi(t)).sqrt(), 0.0];
    match config {
        OptimiserConfig::Sgd(c) => {
            let kind = if c.momentum == 0.0 { 1 } else { 2 + i32::from(c.nesterov) };
            let first = f32::from(u8::from(t == 1));
            (kind, [lr, c.momentum, c.weight_decay, first, 0.0, 0.0, 0.0, 0.0])
        }
        OptimiserConfig::Adamw(c) => (4, adam(c.beta1, c.beta2, c.eps, c.weight_decay)),
        OptimiserConfig::Adam(c) => (5, adam(c.beta1, c.beta2, c.eps, c.weight_decay)),
    }
}

/// Bytes of the stacks, for one client.
pub(super) fn bytes(size: usize, optimiser: &OptimiserConfig, pulls: usize, parts: bool) -> usize {
    size * (1 + 4 * (2 + optimiser.moments() + pulls + usize::from(parts)))
}
