//! The plan's steps as launches, forward.

use super::card::{Arg, Card};
use super::pass::{Pass, at, fill, ints};
use super::plan::{Step, Window};
use crate::error::Result;
use crate::key::Key;
use crate::nn::net::{BN_EPS, Node, ParamId};

/// The draws at which an element falls to dropout, and the factor of the others; none where nothing ever falls.
pub(super) fn falls(p: f32) -> Option<(u32, f32)> {
    let below = (f64::from(p) * 4_294_967_296.0) as u64;
    below.checked_sub(1).map(|last| (last as u32, 1.0 / (1.0 - p)))
}

impl<C: Card> Pass<'_, C> {
    /// All steps, from the input's value on; `keys` are the clients' in training.
    pub fn forward(&mut self, keys: &[Key]) -> Result<()> {
        let plan = self.plan;
        plan.steps.iter().try_for_each(|step| self.forward_step(step, keys))
    }

    /// One step.
    pub fn forward_step(&mut self, step: &Step, keys: &[Key]) -> Result<()> {
        match *step {
            Step::Conv { x, out, weight, bias, window, groups } => self.conv(x, out, weight, bias, window, groups),
            Step::Fuse { ref terms, relu, out } => self.fuse(terms, relu, out),
            Step::MaxPool { x, out, window, index } => {
                let n = self.floats(out);
                let (y, winners) = (fill(self.value(out)?, n), Arg::Fill(self.arena.winners[index], 0, n));
                let (value, planes, window) = (at(self.value(x)?), self.planes(x), self.window(x, out, window));
                self.each("max_pool", n, &[&[value, planes], &window, &[y, winners]])
            }
            Step::MeanPool { x, out, window } => {
                let (n, window) = (self.floats(out), self.window(x, out, window));
                let (value, planes, y) = (at(self.value(x)?), self.planes(x), fill(self.value(out)?, n));
                self.each("mean_pool", n, &[&[value, planes], &window[..6], &[y]])
            }
            Step::PlaneMean { x, out } => {
                let (n, pixels) = (self.floats(out), ints([self.shape(x).pixels()]));
                let (value, planes, y) = (at(self.value(x)?), self.planes(x), fill(self.value(out)?, n));
                self.each("plane_mean", n, &[&[value, planes], &pixels, &[y]])
            }
            Step::Subsample { x, out, stride, before } => {
                let (n, sizes) = (self.floats(out), self.subsampled(x, out, stride, before));
                let (value, y) = (at(self.value(x)?), fill(self.value(out)?, n));
                self.each("subsample", n, &[&[value], &sizes, &[y]])
            }
            Step::Flatten { x, out } => {
                let (n, sizes) = (self.floats(out), self.sizes(x));
                let (value, y) = (at(self.value(x)?), fill(self.value(out)?, n));
                self.each("flatten", n, &[&[value], &sizes, &[y]])
            }
            Step::Linear { x, out, weight, bias } => self.linear(x, out, weight, bias),
            Step::Dropout { x, out, p, number } => match falls(p).filter(|_| self.training) {
                None => self.fuse(&[(x, None)], false, out),
                Some(_) => {
                    self.draw(keys, out, number)?;
                    let (from, to, n) = (at(self.value(x)?), self.value(out)?, self.floats(out));
                    self.mask(out, p, number, from, fill(to, n), false)
                }
            },
        }
    }

    /// Planes (client, channel, row) of a node, as an argument.
    pub fn planes(&self, node: Node) -> Arg {
        Arg::Int((self.lanes() * self.shape(node).channels * self.capacity()) as i32)
    }

    /// The sizes of an option-A shortcut.
    pub fn subsampled(&self, x: Node, out: Node, stride: usize, before: usize) -> [Arg; 10] {
        let (a, b) = (self.shape(x), self.shape(out));
        let sides = [a.height, a.width, b.height, b.width];
        let [lanes, inputs, channels, capacity] = [self.lanes(), a.channels, b.channels, self.capacity()];
        ints([lanes, inputs, channels, capacity, sides[0], sides[1], sides[2], sides[3], stride, before])
    }

    /// Dropout's mask on a value, or on a gradient.
    pub fn mask(&mut self, node: Node, p: f32, number: usize, from: Arg, to: Arg, add: bool) -> Result<()> {
        let Some((last, kept)) = falls(p) else { return Ok(()) };
        let keys = Arg::At(self.arena.keys()?, 16 * self.lanes() * number);
        let (counts, sizes) = (self.counts()?, self.sizes(node));
        let quads = self.lanes() * self.capacity() * self.shape(node).floats().div_ceil(4);
        let purpose = Arg::Int(crate::key::Purpose::Item as i32);
        let how = [purpose, Arg::Int(last as i32), Arg::Float(kept), Arg::Int(add.into()), to];
        self.each("dropout", quads, &[&[from, keys, counts], &sizes, &how])
    }

    /// Columns of group `group` of a convolution's input.
    pub fn gather(&mut self, x: Node, out: Node, window: Window, [group, groups]: [usize; 2]) -> Result<()> {
        let (all, capacity, pixels) = (self.shape(x).channels, self.capacity(), self.shape(out).pixels());
        let channels = all / groups;
        let threads = self.lanes() * channels * capacity * pixels;
        let columns = fill(self.arena.columns()?, threads * window.kernel * window.kernel);
        let sizes = ints([self.lanes(), all, group * channels, channels, capacity]);
        let (value, window) = (at(self.value(x)?), self.window(x, out, window));
        self.each("gather_columns", threads, &[&[value], &sizes, &window, &[columns]])
    }

    fn conv(
        &mut self,
        x: Node,
        out: Node,
        weight: ParamId,
        bias: Option<ParamId>,
        window: Window,
        groups: usize,
    ) -> Result<()> {
        let (outs, taps) = (self.shape(out).channels / groups, self.taps(x, window, groups));
        let columns = self.capacity() * self.shape(out).pixels();
        for group in 0..groups {
            if !window.is_point() {
                self.gather(x, out, window, [group, groups])?;
            }
            let a = self.weight(self.params, weight, taps, group * outs);
            let b = self.columns(self.value(x)?, x, out, window, [group, groups])?;
            let c = self.channels(self.value(out)?, out, group * outs);
            self.multiply([outs, columns, taps], [a, b, c], false)?;
        }
        self.bias(out, bias)
    }

    fn bias(&mut self, out: Node, bias: Option<ParamId>) -> Result<()> {
        let Some(bias) = bias else { return Ok(()) };
        let (params, counts, y) = (at(self.params), self.counts()?, at(self.value(out)?));
        let (sizes, size, offset) = (self.sizes(out), self.size(), self.offsets([bias]));
        self.each("add_bias", self.floats(out), &[&[params, counts], &sizes, &[size], &offset, &[y]])
    }

    /// The classifier, or any other fully connected layer, on the value of `x`.
    pub fn linear(&mut self, x: Node, out: Node, weight: ParamId, bias: Option<ParamId>) -> Result<()> {
        let (inputs, outs) = (self.shape(x).channels, self.shape(out).channels);
        let a = self.weight(self.params, weight, inputs, 0);
        let factors = [a, self.channels(self.value(x)?, x, 0), self.channels(self.value(out)?, out, 0)];
        self.multiply([outs, self.capacity(), inputs], factors, false)?;
        self.bias(out, bias)
    }

    /// What a batch norm does in this mode.
    fn normalise(&mut self, number: usize) -> Result<()> {
        let norm = self.plan.norms[number];
        let channels = self.shape(norm.x).channels;
        let all = self.lanes() * channels;
        let [gamma, beta, mean, var] = self.offsets(norm.params);
        let (params, size, eps) = (at(self.params), self.size(), Arg::Float(BN_EPS));
        let state = fill(self.arena.states[number], 5 * all);
        if self.training {
            let (x, counts, sizes) = (at(self.value(norm.x)?), self.counts()?, self.sizes(norm.x));
            let args: [&[Arg]; 3] = [&[x, params, counts], &sizes, &[size, gamma, beta, eps, state]];
            return self.blocks("norm_statistics", all, &args);
        }
        let [lanes, channels] = ints([self.lanes(), channels]);
        self.each("norm_running", all, &[&[params, lanes, channels, size, gamma, beta, mean, var, eps, state]])
    }

    fn fuse(&mut self, terms: &[(Node, Option<usize>)], relu: bool, out: Node) -> Result<()> {
        terms.iter().filter_map(|term| term.1).try_for_each(|norm| self.normalise(norm))?;
        let mut args = Vec::new();
        for i in 0..2 {
            let (value, state) = match terms.get(i) {
                Some(&(node, norm)) => (at(self.value(node)?), norm.map(|n| at(self.arena.states[n]))),
                None => (Arg::Absent, None),
            };
            args.extend([value, state.unwrap_or(Arg::Absent)]);
        }
        let (n, counts, sizes) = (self.floats(out), self.counts()?, self.sizes(out));
        let y = fill(self.value(out)?, n);
        self.each("fuse", n, &[&args, &[counts], &sizes, &[Arg::Int(relu.into()), y]])
    }
}
