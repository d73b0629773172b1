//! The plan's steps as launches, backward: gradients of values where they have a place, and of parameters `[K, P]`.

use super::card::{Arg, Card, Matrix, Memory};
use super::forward::falls;
use super::pass::{Pass, at, fill, ints};
use super::plan::{Step, Window};
use crate::error::Result;
use crate::nn::net::{Node, ParamId};

/// A backward pass at work.
pub(super) struct Backward<'p, 'a, C> {
    pass: &'p mut Pass<'a, C>,
    /// Gradients of parameters, `[K, P]`.
    grads: Memory,
    /// Values whose gradient something has reached.
    filled: Vec<bool>,
}

impl<'a, C: Card> Pass<'a, C> {
    /// Gradients of `Σ ⟨seed, value(node)⟩` into `grads`, over what was there; of the steps from `first` on alone.
    pub fn backward(&mut self, seeds: &[(Node, &[f32])], grads: Memory, first: usize) -> Result<()> {
        self.card.zero(grads, 0, 4 * self.lanes() * self.net.layout.len())?;
        if self.rows.all() == 0 {
            return Ok(());
        }
        let filled = vec![false; self.plan.shapes.len()];
        let plan = self.plan;
        let mut backward = Backward { pass: self, grads, filled };
        for &(node, seed) in seeds {
            if let Some(to) = backward.pass.arena.grad(node) {
                let add = backward.visit(node);
                backward.pass.put(node, seed, to, add)?;
            }
        }
        plan.steps[first..].iter().rev().try_for_each(|step| backward.step(step))
    }
}

impl<'a, C: Card> Backward<'_, 'a, C> {
    /// Marks a gradient as reached; whether it was before, so that what comes is added.
    fn visit(&mut self, node: Node) -> bool {
        std::mem::replace(&mut self.filled[node], true)
    }

    /// Where the gradient of an input goes: the memory, whether it is added, and both as arguments. None where there are
    /// no parameters upstream.
    fn target(&mut self, x: Node) -> Option<(Memory, bool, [Arg; 2])> {
        let memory = self.pass.arena.grad(x)?;
        let add = self.visit(x);
        Some((memory, add, [Arg::Int(add.into()), self.pass.result(memory, self.pass.floats(x), add)]))
    }

    fn step(&mut self, step: &Step) -> Result<()> {
        let out = step.out();
        let Some(gy) = self.pass.arena.grad(out).filter(|_| self.filled[out]) else { return Ok(()) };
        match *step {
            Step::Conv { x, weight, bias, window, groups, .. } => self.conv(gy, x, out, weight, bias, window, groups),
            Step::Fuse { ref terms, relu, .. } => self.fuse(gy, terms, relu, out),
            Step::Linear { x, weight, bias, .. } => self.linear(gy, x, out, weight, bias),
            Step::MaxPool { x, window, index, .. } => {
                let Some((_, _, to)) = self.target(x) else { return Ok(()) };
                let (winners, planes) = (at(self.pass.arena.winners[index]), self.pass.planes(x));
                let window = self.pass.window(x, out, window);
                let args: [&[Arg]; 3] = [&[at(gy), winners, planes], &window, &to];
                self.pass.each("max_pool_gradient", self.pass.floats(x), &args)
            }
            Step::MeanPool { x, window, .. } => {
                let Some((_, _, to)) = self.target(x) else { return Ok(()) };
                let (planes, window) = (self.pass.planes(x), self.pass.window(x, out, window));
                let args: [&[Arg]; 3] = [&[at(gy), planes], &window[..6], &to];
                self.pass.each("mean_pool_gradient", self.pass.floats(x), &args)
            }
            Step::PlaneMean { x, .. } => {
                let Some((_, _, to)) = self.target(x) else { return Ok(()) };
                let (planes, pixels) = (self.pass.planes(x), ints([self.pass.shape(x).pixels()]));
                let args: [&[Arg]; 3] = [&[at(gy), planes], &pixels, &to];
                self.pass.each("plane_mean_gradient", self.pass.floats(x), &args)
            }
            Step::Subsample { x, stride, before, .. } => {
                let Some((_, _, to)) = self.target(x) else { return Ok(()) };
                let sizes = self.pass.subsampled(x, out, stride, before);
                self.pass.each("subsample_gradient", self.pass.floats(x), &[&[at(gy)], &sizes, &to])
            }
            Step::Flatten { x, .. } => {
                let Some((_, _, to)) = self.target(x) else { return Ok(()) };
                let sizes = self.pass.sizes(x);
                self.pass.each("flatten_gradient", self.pass.floats(x), &[&[at(gy)], &sizes, &to])
            }
            Step::Dropout { x, p, number, .. } => match falls(p).filter(|_| self.pass.training) {
                None => self.fuse(gy, &[(x, None)], false, out),
                Some(_) => {
                    let Some((_, add, [_, to])) = self.target(x) else { return Ok(()) };
                    self.pass.mask(out, p, number, at(gy), to, add)
                }
            },
        }
    }

    /// A parameter's gradient as a matrix.
    fn weight(&self, id: ParamId, columns: usize, first: usize) -> Matrix {
        self.pass.weight(self.grads, id, columns, first)
    }

    fn bias(&mut self, gy: Memory, out: Node, bias: Option<ParamId>) -> Result<()> {
        let Some(bias) = bias else { return Ok(()) };
        let (pass, grads) = (&mut *self.pass, at(self.grads));
        let [_, channels, capacity, pixels] = pass.sizes(out);
        let (counts, blocks) = (pass.counts()?, pass.lanes() * pass.shape(out).channels);
        let (size, offset) = (pass.size(), pass.offsets([bias]));
        pass.blocks("channel_sums", blocks, &[&[at(gy), counts, channels, capacity, pixels, size], &offset, &[grads]])
    }

    #[allow(clippy::too_many_arguments, reason = "a convolution's own list")]
    fn conv(
        &mut self,
        gy: Memory,
        x: Node,
        out: Node,
        weight: ParamId,
        bias: Option<ParamId>,
        window: Window,
        groups: usize,
    ) -> Result<()> {
        self.bias(gy, out, bias)?;
        let target = self.target(x);
        let (outs, taps) = (self.pass.shape(out).channels / groups, self.pass.taps(x, window, groups));
        let columns = self.pass.capacity() * self.pass.shape(out).pixels();
        for group in 0..groups {
            if !window.is_point() {
                self.pass.gather(x, out, window, [group, groups])?;
            }
            let g = self.pass.channels(gy, out, group * outs);
            let seen = self.pass.columns(self.pass.value(x)?, x, out, window, [group, groups])?;
            let factors = [g, Matrix { turned: true, ..seen }, self.weight(weight, taps, group * outs)];
            self.pass.multiply([outs, taps, columns], factors, false)?;
            let Some((gx, add, to)) = target else { continue };
            // The weights' gradient has used the columns; now they become their own gradient.
            let w = Matrix { turned: true, ..self.pass.weight(self.pass.params, weight, taps, group * outs) };
            let back = self.pass.columns(gx, x, out, window, [group, groups])?;
            self.pass.multiply([taps, columns, outs], [w, g, back], window.is_point() && add)?;
            if !window.is_point() {
                // One group's channels are a part of the value: the others keep what they have.
                let to = if groups > 1 { [to[0], at(gx)] } else { to };
                self.pass.scatter(x, out, window, [group, groups], to)?;
            }
        }
        Ok(())
    }

    fn linear(&mut self, gy: Memory, x: Node, out: Node, weight: ParamId, bias: Option<ParamId>) -> Result<()> {
        self.bias(gy, out, bias)?;
        let (inputs, outs) = (self.pass.shape(x).channels, self.pass.shape(out).channels);
        let g = self.pass.channels(gy, out, 0);
        let seen = Matrix { turned: true, ..self.pass.channels(self.pass.value(x)?, x, 0) };
        let rows = self.pass.capacity();
        self.pass.multiply([outs, inputs, rows], [g, seen, self.weight(weight, inputs, 0)], false)?;
        let Some((gx, add, _)) = self.target(x) else { return Ok(()) };
        let w = Matrix { turned: true, ..self.pass.weight(self.pass.params, weight, inputs, 0) };
        self.pass.multiply([inputs, rows, outs], [w, g, self.pass.channels(gx, x, 0)], add)
    }

    fn fuse(&mut self, gy: Memory, terms: &[(Node, Option<usize>)], relu: bool, out: Node) -> Result<()> {
        let (n, sizes, counts) = (self.pass.floats(out), self.pass.sizes(out), self.pass.counts()?);
        let gate = if relu { at(self.pass.value(out)?) } else { Arg::Absent };
        for &(node, norm) in terms {
            let mut normed = [Arg::Absent; 3];
            if let Some(number) = norm {
                let z = at(self.pass.value(node)?);
                let state = at(self.pass.arena.states[number]);
                let (slopes, all) = (self.pass.arena.slopes()?, self.pass.lanes() * self.pass.shape(node).channels);
                let norm = self.pass.plan.norms[number];
                let [gamma, beta] = self.pass.offsets([norm.params[0], norm.params[1]]);
                let (batch, size) = (Arg::Int(self.pass.training.into()), self.pass.size());
                let last = [batch, size, gamma, beta, at(self.grads), fill(slopes, 2 * all)];
                self.pass.blocks("norm_sums", all, &[&[at(gy), gate, z, state, counts], &sizes, &last])?;
                normed = [z, state, at(slopes)];
            }
            let Some((_, _, to)) = self.target(node) else { continue };
            self.pass.each("fuse_gradient", n, &[&[at(gy), gate], &normed, &[counts], &sizes, &to])?;
        }
        Ok(())
    }
}

impl<C: Card> Pass<'_, C> {
    /// The gradient of group `group`'s columns back to its channels.
    fn scatter(&mut self, x: Node, out: Node, window: Window, [group, groups]: [usize; 2], to: [Arg; 2]) -> Result<()> {
        let (all, capacity) = (self.shape(x).channels, self.capacity());
        let channels = all / groups;
        let threads = self.lanes() * channels * capacity * self.shape(x).pixels();
        let sizes = ints([self.lanes(), all, group * channels, channels, capacity]);
        let (columns, window) = (at(self.arena.columns()?), self.window(x, out, window));
        self.each("scatter_columns", threads, &[&[columns], &sizes, &window, &to])
    }
}
