//! One worker's walk through the steps.
//!
//! SAFETY of this file's unsafe blocks: a worker writes only the samples of its share (or, where it says so, the
//! outputs or weights of its share), reads what the same samples or an earlier phase before a barrier wrote, and
//! regions differ for different values. Kernels get regions whose sizes come from the same maps as their tables.

use std::ops::Range;

use super::Call;
use super::conv::Target;
use super::map;
use super::plan::{ConvStep, Norm, PlanStep, Spot, WholeSum, block_of};
use super::pooling;
use super::rows::{self, Summand, View};
use crate::nn::interpreter::Mode;
use crate::nn::kernels::Isa;
use crate::nn::kernels::crew::Worker;
use crate::nn::kernels::dense::{self, Rows};
use crate::nn::net::{BN_EPS, Node, ParamId};

/// Scale and shift of each channel, where batch norm stands before a term.
pub(super) type Affine = Option<(Vec<f32>, Vec<f32>)>;

/// What goes sample by sample.
enum Local<'p> {
    Conv(&'p ConvStep),
    Stats(usize),
    Fuse {
        terms: &'p [(Node, Option<usize>)],
        relu: bool,
        out: Node,
        affine: Vec<Affine>,
    },
    /// A convolution with its folded batch norm and the sum behind it.
    Whole(&'p ConvStep, &'p WholeSum),
    Sample(&'p PlanStep),
}

/// Cuts a share of the samples into the blocks of a segment whose convolutions take `at_once`.
pub(super) fn blocks(share: Range<usize>, at_once: usize) -> impl Iterator<Item = Range<usize>> {
    let size = block_of(at_once);
    share.clone().step_by(size).map(move |first| first..share.end.min(first + size))
}

impl<'a> Call<'a> {
    /// The whole forward pass.
    pub fn forward(&self, worker: &Worker<'_>, x: &[f32]) {
        self.pack(worker, x);
        worker.meet();
        self.walk(worker, &self.plan.steps);
    }

    /// A parameter's values.
    pub fn param(&self, id: ParamId) -> &'a [f32] {
        &self.params[self.net.layout.entries()[id].range()]
    }

    /// A node's value; the plan gives every operand one.
    pub fn value(&self, node: Node) -> &'a Spot {
        self.plan.values[node].as_ref().expect("the plan stores every operand")
    }

    /// Whether batch norms take the batch's statistics.
    pub fn training(&self) -> bool {
        matches!(self.mode, Mode::Train(_))
    }

    /// One sample of a spot, to read.
    pub fn sample(&self, spot: &Spot, image: usize) -> &'a [f32] {
        // SAFETY: see the head of this file.
        unsafe { self.mem.get(spot.region, spot.at(image, self.training()), spot.map.image()) }
    }

    /// One sample of a spot, to write.
    #[allow(clippy::mut_from_ref, reason = "the regions are shared by workers under the contract of Mem")]
    pub fn sample_mut(&self, spot: &Spot, image: usize) -> &'a mut [f32] {
        // SAFETY: see the head of this file.
        unsafe { self.mem.get_mut(spot.region, spot.at(image, self.training()), spot.map.image()) }
    }

    /// The first float of a sample.
    pub fn at(&self, spot: &Spot, image: usize) -> *mut f32 {
        self.sample_mut(spot, image).as_mut_ptr()
    }

    /// One sample of a spot with its map.
    pub fn view<'b>(&self, spot: &'b Spot, image: usize) -> View<'b>
    where
        'a: 'b,
    {
        View { data: self.sample(spot, image), map: &spot.map }
    }

    /// Images and convolution weights into the engine's layouts.
    fn pack(&self, worker: &Worker<'_>, x: &[f32]) {
        let input = self.value(0);
        let sample = input.map.c * input.map.pixels();
        for image in worker.share(self.rows) {
            input.map.pack(&x[image * sample..][..sample], self.sample_mut(input, image));
        }
        let convs: Vec<&ConvStep> = self.convs().collect();
        for step in &convs[worker.share(convs.len())] {
            // SAFETY: this worker's share of the convolutions.
            let to = unsafe { self.mem.get_mut(step.packed, 0, step.conv.packed()) };
            let (weight, bias) = (self.param(step.weight), step.bias.map(|b| self.param(b)));
            match self.folded(step) {
                Some(norm) => {
                    let (scale, shift) = self.affine(norm, false);
                    step.conv.pack_folded(weight, bias, [&scale, &shift], to);
                }
                None => step.conv.pack(weight, bias, to),
            }
        }
    }

    /// The batch norm inside a convolution's packed weights.
    fn folded(&self, step: &ConvStep) -> Option<&'a Norm> {
        step.fold.filter(|_| self.mode == Mode::Infer).map(|norm| &self.plan.norms[norm])
    }

    /// The convolutions of the plan.
    pub fn convs(&self) -> impl Iterator<Item = &'a ConvStep> {
        self.plan.steps.iter().filter_map(|step| match step {
            PlanStep::Conv(c) => Some(&**c),
            _ => None,
        })
    }

    /// Gathers steps that go sample by sample into segments, and runs a segment block by block, so that what one
    /// step writes the next finds in the cache.
    fn walk<'p>(&self, worker: &Worker<'_>, steps: &'p [PlanStep]) {
        let mut segment: Vec<Local<'p>> = Vec::new();
        for step in steps {
            match step {
                PlanStep::Conv(step) if self.mode == Mode::Infer && step.into.is_some() => {}
                PlanStep::Conv(step) => segment.push(Local::Conv(step)),
                PlanStep::Stats { norm } => segment.push(Local::Stats(*norm)),
                PlanStep::Fuse { whole: Some(conv), .. } if self.mode == Mode::Infer => {
                    if let PlanStep::Conv(step) = &steps[*conv]
                        && let Some(into) = &step.into
                    {
                        segment.push(Local::Whole(step, into));
                    }
                }
                PlanStep::Fuse { terms, relu, out, .. } => {
                    if step.ends_segment() && self.training() {
                        self.run(worker, &mut segment);
                        worker.meet();
                    }
                    let affine = |t: &(Node, Option<usize>)| self.of_term(t, worker.first());
                    let affine = terms.iter().map(affine).collect();
                    segment.push(Local::Fuse { terms, relu: *relu, out: *out, affine });
                }
                PlanStep::Linear { x, out, weight, bias } => {
                    self.run(worker, &mut segment);
                    self.linear(worker, *x, *out, *weight, *bias);
                }
                _ => segment.push(Local::Sample(step)),
            }
        }
        self.run(worker, &mut segment);
    }

    fn run(&self, worker: &Worker<'_>, segment: &mut Vec<Local<'_>>) {
        let convs =
            segment.iter().filter_map(|l| if let Local::Conv(c) | Local::Whole(c, _) = l { Some(c) } else { None });
        let at_once = convs.map(|c| c.conv.images_per_pass()).max().unwrap_or(1);
        let mut scratch = Vec::new();
        for images in blocks(worker.share(self.rows), at_once) {
            for local in segment.iter() {
                match local {
                    Local::Conv(step) => self.conv(step, images.clone(), self.scratch(worker)),
                    Local::Whole(step, into) => self.whole(step, into, images.clone(), self.scratch(worker)),
                    Local::Stats(norm) => images.clone().for_each(|image| self.stats(*norm, image)),
                    Local::Fuse { terms, relu, out, affine } => {
                        images.clone().for_each(|image| self.fuse(terms, affine, *relu, *out, image));
                    }
                    Local::Sample(step) => {
                        images.clone().for_each(|image| self.by_sample(step, image, &mut scratch));
                    }
                }
            }
        }
        segment.clear();
    }

    fn by_sample(&self, step: &PlanStep, image: usize, scratch: &mut Vec<f32>) {
        let pair = |x: Node, out: Node| {
            let (x, out) = (self.value(x), self.value(out));
            ((self.sample(x, image), &x.map), (self.sample_mut(out, image), &out.map))
        };
        match step {
            PlanStep::MaxPool { x, out, window, index } => {
                let (x, out) = pair(*x, *out);
                let index = (self.sample_mut(index, image), &index.map);
                // SAFETY: the machine has the instruction set.
                unsafe { pooling::max(self.isa, *window, x, out, index) }
            }
            PlanStep::AvgPool { x, out, window } => {
                let (x, out) = pair(*x, *out);
                pooling::mean(*window, x, out);
            }
            PlanStep::GlobalMean { x, out } => {
                let (x, (out, _)) = pair(*x, *out);
                pooling::global_mean(x, out, scratch);
            }
            PlanStep::Subsample { x, out, stride, before } => {
                let (x, out) = pair(*x, *out);
                pooling::subsample(*stride, *before, x, out);
            }
            PlanStep::Flatten { x, out } => {
                let ((x, map), (out, om)) = pair(*x, *out);
                // SAFETY: the machine has the instruction set.
                unsafe { map::unpack(self.isa, map, x, &mut out[..om.c]) }
            }
            PlanStep::Dropout { x, out, p, mask } => {
                let m = self.sample_mut(mask, image);
                self.draw_mask(*out, image, *p, mask, m, scratch);
                let (x, out) = pair(*x, *out);
                pooling::multiply(x, (m, &mask.map), false, out);
            }
            _ => {}
        }
    }

    fn draw_mask(&self, node: Node, image: usize, p: f32, spot: &Spot, mask: &mut [f32], scratch: &mut Vec<f32>) {
        match self.mode {
            Mode::Train(key) => {
                scratch.resize(spot.map.c * spot.map.pixels(), 0.0);
                // SAFETY: the machine has the instruction set.
                unsafe {
                    pooling::dropout(self.isa, key, node, image, p, scratch);
                    map::pack(self.isa, &spot.map, scratch, mask);
                }
            }
            Mode::Eval | Mode::Infer => mask.fill(1.0),
        }
    }

    fn conv(&self, step: &ConvStep, images: Range<usize>, scratch: *mut f32) {
        let (x, y) = (self.at(self.value(step.x), images.start), self.at(self.value(step.out), images.start));
        let w = self.mem.ptr(step.packed);
        let bias = step.bias.is_some() || self.folded(step).is_some();
        // SAFETY: see the head of this file.
        unsafe { step.conv.forward(x, y, w, bias, step.relu, images.len(), scratch) }
        for &norm in &step.norms {
            images.clone().for_each(|image| self.stats(norm, image));
        }
    }

    fn whole(&self, step: &ConvStep, into: &WholeSum, images: Range<usize>, scratch: *mut f32) {
        let (x, out) = (self.at(self.value(step.x), images.start), self.value(into.out));
        let y = Target { at: self.at(out, images.start), map: &out.map, to: &into.to };
        let skip = into.skip.as_ref().map(|(node, to)| {
            let spot = self.value(*node);
            Target { at: self.at(spot, images.start), map: &spot.map, to }
        });
        // SAFETY: see the head of this file.
        unsafe { step.conv.forward_into(x, self.mem.ptr(step.packed), y, skip, into.relu, images.len(), scratch) }
    }

    /// A sample's part of a batch norm's statistics.
    fn stats(&self, norm: usize, image: usize) {
        if self.training() {
            let norm = &self.plan.norms[norm];
            let z = self.value(norm.x);
            // SAFETY: the sample's own part; the machine has the instruction set.
            unsafe {
                let out = self.mem.doubles(norm.partial, image * 2 * z.map.cp, 2 * z.map.cp);
                rows::stats(self.isa, self.view(z, image), out);
            }
        }
    }

    /// One sample of a sum.
    pub fn fuse(&self, terms: &[(Node, Option<usize>)], affine: &[Affine], relu: bool, out: Node, image: usize) {
        let spot = self.value(out);
        let summand = |i: usize| Summand {
            z: self.view(self.value(terms[i].0), image),
            affine: affine[i].as_ref().map(|(a, b)| (a.as_slice(), b.as_slice())),
        };
        let out = self.sample_mut(spot, image);
        // SAFETY: the machine has the instruction set.
        unsafe {
            match terms.len() {
                1 => rows::fuse(self.isa, &[summand(0)], relu, out, &spot.map),
                _ => rows::fuse(self.isa, &[summand(0), summand(1)], relu, out, &spot.map),
            }
        }
    }

    /// Scale and shift of a term that batch norm stands before, unless a convolution has done it.
    fn of_term(&self, &(node, norm): &(Node, Option<usize>), keep: bool) -> Affine {
        let norm = norm.map(|n| &self.plan.norms[n])?;
        let done = self.convs().any(|c| c.out == node && self.folded(c).is_some());
        (!done).then(|| self.affine(norm, keep))
    }

    /// Scale and shift of each channel; the first worker keeps the statistics for backward.
    fn affine(&self, norm: &Norm, keep: bool) -> (Vec<f32>, Vec<f32>) {
        let map = &self.value(norm.x).map;
        let [gamma, beta, mean, var] = norm.params.map(|id| self.param(id));
        let (mut scale, mut shift) = (vec![0.0; map.cp], vec![0.0; map.cp]);
        let mut state = vec![0.0; 5 * map.cp];
        for c in 0..map.c {
            let (mean, biased, unbiased) = match self.mode {
                Mode::Train(_) => self.moments(norm, c),
                Mode::Eval | Mode::Infer => (f64::from(mean[c]), f64::from(var[c]), 0.0),
            };
            let inverse = 1.0 / (biased + f64::from(BN_EPS)).sqrt();
            let a = f64::from(gamma[c]) * inverse;
            (scale[c], shift[c]) = (a as f32, (f64::from(beta[c]) - mean * a) as f32);
            state[c] = mean as f32;
            state[map.cp + c] = inverse as f32;
            state[2 * map.cp + c] = unbiased as f32;
            (state[3 * map.cp + c], state[4 * map.cp + c]) = (scale[c], shift[c]);
        }
        if keep {
            // SAFETY: only the first worker writes the state, and nobody reads it before the next barrier.
            unsafe { self.mem.get_mut(norm.state, 0, 5 * map.cp) }.copy_from_slice(&state);
        }
        (scale, shift)
    }

    /// Mean, biased and unbiased variance of a channel over the batch, samples in order.
    fn moments(&self, norm: &Norm, c: usize) -> (f64, f64, f64) {
        let map = &self.value(norm.x).map;
        // SAFETY: written before the last barrier, only read now.
        let partial: &[f64] = unsafe { self.mem.doubles(norm.partial, 0, self.rows * 2 * map.cp) };
        let samples = || partial.chunks_exact(2 * map.cp);
        let mean = samples().map(|s| s[c]).sum::<f64>() / self.rows as f64;
        let n = map.pixels() as f64;
        let squares: f64 = samples().map(|s| s[map.cp + c] + n * (s[c] - mean).powi(2)).sum();
        let total = n * self.rows as f64;
        (mean, squares / total, squares / (total - 1.0))
    }

    fn linear(&self, worker: &Worker<'_>, x: Node, out: Node, weight: ParamId, bias: Option<ParamId>) {
        worker.meet();
        let (x, y) = (self.value(x), self.value(out));
        let share = worker.share(y.map.c);
        if !share.is_empty() {
            let rows = self.rows_of(x);
            let (w, bias) = (self.param(weight), bias.map(|b| self.param(b)));
            // SAFETY: this worker's share of the outputs; vectors have no border, so rows are samples.
            unsafe {
                let (y, stride) = (self.mem.ptr(y.region), y.map.image());
                dense::product(self.isa, rows, w, x.map.c, dense::SUMMED, bias, y, stride, share);
            }
        }
        worker.meet();
    }

    /// A worker's own scratch.
    pub fn scratch(&self, worker: &Worker<'_>) -> *mut f32 {
        let (region, each) = self.plan.scratch;
        self.mem.ptr(region).wrapping_add(each * worker.id())
    }

    /// The samples of a vector value as rows.
    pub fn rows_of(&self, spot: &Spot) -> Rows {
        Rows { at: self.mem.ptr(spot.region), stride: spot.map.image(), count: self.rows }
    }

    /// The instruction set, for kernels.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}
