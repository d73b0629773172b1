//! One worker's walk through the steps in reverse.
//!
//! SAFETY of this file's unsafe blocks: as in `forward`. Gradients of values go by the worker's samples; gradients of
//! weights by its tiles or outputs, after a barrier that follows all samples (a lone worker needs none).

use std::ops::Range;

use super::Call;
use super::forward::{Affine, blocks};
use super::map;
use super::plan::{ConvStep, Norm, PlanStep, Spot};
use super::pooling;
use super::regions::Shared;
use super::rows::{self, Gate, NormGrad, Summand, Upstream};
use crate::nn::kernels::crew::Worker;
use crate::nn::kernels::dense::{self, Rows};
use crate::nn::net::{Node, ParamId};

/// Batch norm's input gradient: scale, offset and slope of each channel.
type Coefficients = [Vec<f32>; 3];

/// A rectified sum.
#[derive(Clone, Copy)]
enum Relu<'p> {
    /// Known by its value.
    Of(Node),
    /// Of one batch norm alone: its input tells as much.
    After(&'p Norm),
}

/// A term of a fused pass that wants its gradient.
struct Branch<'p> {
    node: Node,
    norm: Option<(&'p Norm, Coefficients)>,
    add: bool,
}

/// What goes sample by sample.
enum Local<'p> {
    /// Rectifier and bias of a convolution.
    Gate(&'p ConvStep, &'p Spot),
    /// Input gradient (`add`: onto what is there; none: not wanted) and, for a lone worker, weight gradient.
    Conv {
        step: &'p ConvStep,
        gy: &'p Spot,
        add: Option<bool>,
        weights: bool,
    },
    /// A rectified batch norm whose value was not kept.
    Again {
        terms: &'p [(Node, Option<usize>)],
        affine: [Affine; 1],
        out: Node,
    },
    /// The sums that a batch norm needs of the whole batch.
    Sums {
        norm: &'p Norm,
        relu: Option<Relu<'p>>,
        gy: &'p Spot,
    },
    Fuse {
        branches: Vec<Branch<'p>>,
        relu: Option<Relu<'p>>,
        gy: &'p Spot,
    },
    Sample {
        step: &'p PlanStep,
        gy: &'p Spot,
        gx: &'p Spot,
        add: bool,
    },
}

/// One backward pass of one worker.
struct Walk<'c, 'p, 'w> {
    call: &'c Call<'p>,
    worker: &'w Worker<'w>,
    grads: Shared<'c>,
    /// Which gradients hold something already.
    filled: Vec<bool>,
    segment: Vec<Local<'p>>,
    /// Convolutions whose weight gradient waits for a barrier.
    waiting: Vec<(&'p ConvStep, &'p Spot)>,
    /// Convolutions whose packed gradient goes to the caller's at the end.
    ran: Vec<&'p ConvStep>,
}

impl<'p> Call<'p> {
    /// The whole backward pass; what `grads` held is lost.
    pub fn backward(&self, worker: &Worker<'_>, seeds: &[(Node, &[f32])], grads: Shared<'_>) {
        let filled = vec![false; self.net.ops.len()];
        let (segment, waiting, ran) = (Vec::new(), Vec::new(), Vec::new());
        let mut walk = Walk { call: self, worker, grads, filled, segment, waiting, ran };
        self.pack_back(worker);
        if worker.first() {
            self.clear(grads);
        }
        for &(node, seed) in seeds {
            walk.seed(node, seed);
        }
        worker.meet();
        for step in self.plan.steps.iter().rev() {
            walk.step(step);
        }
        walk.run();
        walk.barrier();
        worker.meet();
        for (i, step) in walk.ran.iter().enumerate() {
            if worker.share(walk.ran.len()).contains(&i) {
                self.unpack(step, grads);
            }
        }
    }

    fn grad(&self, node: Node) -> Option<&'p Spot> {
        self.plan.grads[node].as_ref()
    }

    fn pack_back(&self, worker: &Worker<'_>) {
        let convs: Vec<&ConvStep> = self.convs().collect();
        for step in &convs[worker.share(convs.len())] {
            // SAFETY: this worker's share of the convolutions.
            unsafe {
                self.mem.get_mut(step.packed_grad, 0, step.conv.packed_gradient()).fill(0.0);
                let to = self.mem.get_mut(step.packed_back, 0, step.conv.packed_back());
                step.conv.pack_back(self.param(step.weight), to);
            }
        }
    }

    /// Starts every sum at 0, and what no gradient may reach. Products write their weights' gradients at once: they are
    /// most of a network, and a pass over memory counts.
    fn clear(&self, grads: Shared<'_>) {
        let written = |id: ParamId| {
            self.plan.steps.iter().any(|step| match step {
                PlanStep::Conv(conv) => conv.weight == id,
                PlanStep::Linear { weight, .. } => *weight == id,
                _ => false,
            })
        };
        (0..self.net.layout.entries().len()).filter(|id| !written(*id)).for_each(|id| self.zero(id, grads));
    }

    /// Sets a parameter's gradient to 0: the first worker alone, before anybody else writes it.
    fn zero(&self, id: ParamId, grads: Shared<'_>) {
        let entry = &self.net.layout.entries()[id];
        // SAFETY: the caller's promise.
        unsafe { grads.part(entry.offset, entry.len()) }.fill(0.0);
    }

    /// Writes a convolution's packed weight gradient into the caller's.
    fn unpack(&self, step: &ConvStep, grads: Shared<'_>) {
        let entry = &self.net.layout.entries()[step.weight];
        // SAFETY: this worker's share of the convolutions; the packed gradient was finished before the barrier.
        unsafe {
            let from = self.mem.get(step.packed_grad, 0, step.conv.packed_gradient());
            step.conv.unpack(from, grads.part(entry.offset, entry.len()));
        }
    }

    fn state(&self, norm: &Norm, at: usize, len: usize) -> &'p [f32] {
        // SAFETY: written by forward, only read now.
        unsafe { self.mem.get(norm.state, at, len) }
    }

    /// What forward multiplied a batch norm's input with and added to it.
    fn scale_and_shift(&self, norm: &Norm) -> (&'p [f32], &'p [f32]) {
        let cp = self.value(norm.x).map.cp;
        (self.state(norm, 3 * cp, cp), self.state(norm, 4 * cp, cp))
    }

    /// What the input gradient needs; the first worker adds the gradients of γ and β.
    fn norm_gradient(&self, norm: &Norm, keep: bool, grads: Shared<'_>) -> Coefficients {
        let map = &self.value(norm.x).map;
        let cp = map.cp;
        let inverse = self.state(norm, cp, cp);
        let gamma = self.param(norm.params[0]);
        // SAFETY: written before the last barrier, only read now.
        let partial: &[f64] = unsafe { self.mem.doubles(norm.partial, 0, self.rows * 2 * cp) };
        let total = (map.pixels() * self.rows) as f64;
        let training = self.training();
        let mut out = [vec![0.0; cp], vec![0.0; cp], vec![0.0; cp]];
        let entries = self.net.layout.entries();
        for c in 0..map.c {
            let sum: f64 = partial.chunks_exact(2 * cp).map(|s| s[c]).sum();
            let product: f64 = partial.chunks_exact(2 * cp).map(|s| s[cp + c]).sum();
            let inverse = f64::from(inverse[c]);
            out[0][c] = (f64::from(gamma[c]) * inverse) as f32;
            if training {
                out[1][c] = (sum / total) as f32;
                out[2][c] = (product * inverse * inverse / total) as f32;
            }
            if keep {
                // SAFETY: only the first worker writes these entries.
                unsafe {
                    grads.part(entries[norm.params[0]].offset + c, 1)[0] += (product * inverse) as f32;
                    grads.part(entries[norm.params[1]].offset + c, 1)[0] += sum as f32;
                }
            }
        }
        out
    }

    fn upstream<'v>(&'v self, gy: &'v Spot, relu: Option<Relu<'_>>, image: usize) -> Upstream<'v> {
        let gate = match relu {
            None => Gate::Open,
            Some(Relu::Of(node)) => Gate::Output(self.view(self.value(node), image)),
            Some(Relu::After(norm)) => Gate::Summand(Summand {
                z: self.view(self.value(norm.x), image),
                affine: Some(self.scale_and_shift(norm)),
            }),
        };
        Upstream { g: self.view(gy, image), gate }
    }

    fn local(&self, local: &Local<'p>, images: Range<usize>, scratch: *mut f32) {
        match local {
            Local::Gate(step, gy) => images.for_each(|image| self.gate(step, gy, image)),
            Local::Conv { step, gy, add, weights } => self.conv_back(step, gy, *add, *weights, images, scratch),
            Local::Again { terms, affine, out } => images.for_each(|image| self.fuse(terms, affine, true, *out, image)),
            Local::Sums { norm, relu, gy } => images.for_each(|image| self.sums(norm, *relu, gy, image)),
            Local::Fuse { branches, relu, gy } => {
                for image in images {
                    branches.iter().for_each(|b| self.branch(b, *relu, gy, image));
                }
            }
            Local::Sample { step, gy, gx, add } => {
                images.for_each(|image| self.sample_back(step, image, gy, gx, *add));
            }
        }
    }

    fn gate(&self, step: &ConvStep, gy: &Spot, image: usize) {
        let y = self.value(step.out);
        // SAFETY: this worker's samples.
        unsafe {
            if step.relu {
                rows::gate_in_place(self.isa(), self.view(y, image), self.sample_mut(gy, image), &gy.map);
            }
            if step.bias.is_some() {
                let out = self.mem.doubles(step.partial, image * gy.map.cp, gy.map.cp);
                rows::channel_sums(self.isa(), self.view(gy, image), out);
            }
        }
    }

    fn conv_back(
        &self,
        step: &ConvStep,
        gy: &Spot,
        add: Option<bool>,
        weights: bool,
        images: Range<usize>,
        scratch: *mut f32,
    ) {
        let g = self.at(gy, images.start);
        if weights {
            let (x, tiles) = (self.at(self.value(step.x), images.start), 0..step.conv.gradient_tiles());
            // SAFETY: a lone worker owns everything.
            unsafe { step.conv.weight_gradient(x, g, self.mem.ptr(step.packed_grad), tiles, images.len(), scratch) }
        }
        if let (Some(add), Some(gx)) = (add, self.grad(step.x)) {
            let (to, w) = (self.at(gx, images.start), self.mem.ptr(step.packed_back));
            // SAFETY: this worker's samples.
            unsafe { step.conv.input_gradient(g, to, w, add, images.len(), scratch) }
        }
    }

    fn sums(&self, norm: &Norm, relu: Option<Relu<'_>>, gy: &Spot, image: usize) {
        let z = self.value(norm.x);
        let mean = self.state(norm, 0, z.map.cp);
        // SAFETY: this worker's samples.
        unsafe {
            let out = self.mem.doubles(norm.partial, image * 2 * z.map.cp, 2 * z.map.cp);
            rows::sums(self.isa(), self.upstream(gy, relu, image), self.view(z, image), mean, out);
        }
    }

    fn branch(&self, branch: &Branch<'_>, relu: Option<Relu<'_>>, gy: &Spot, image: usize) {
        let Some(gx) = self.grad(branch.node) else { return };
        let norm = branch.norm.as_ref().map(|(n, [scale, offset, slope])| NormGrad {
            z: self.view(self.value(n.x), image),
            scale,
            offset,
            mean: self.state(n, 0, scale.len()),
            slope,
        });
        let (up, out) = (self.upstream(gy, relu, image), self.sample_mut(gx, image));
        // SAFETY: this worker's samples.
        unsafe { rows::fuse_grad(self.isa(), up, norm, branch.add, out, &gx.map) }
    }

    fn sample_back(&self, step: &PlanStep, image: usize, gy: &Spot, gx: &Spot, add: bool) {
        let from = (self.sample(gy, image), &gy.map);
        let to = (self.sample_mut(gx, image), &gx.map);
        // Windows side by side write every pixel; others add to zeros.
        let written = matches!(step, PlanStep::MaxPool { window, .. } if window.covers(&gy.map, &gx.map));
        let sums = matches!(step, PlanStep::MaxPool { .. } | PlanStep::AvgPool { .. } | PlanStep::Subsample { .. });
        if !add && sums && !written {
            to.0.fill(0.0);
        }
        match step {
            PlanStep::MaxPool { window, index, .. } => {
                let index = (self.sample(index, image), &index.map);
                // SAFETY: the machine has the instruction set.
                unsafe { pooling::max_grad(self.isa, *window, from, index, add || !written, to) }
            }
            PlanStep::AvgPool { window, .. } => pooling::mean_grad(*window, from, to),
            PlanStep::GlobalMean { .. } => pooling::global_mean_grad(from.0, add, to),
            PlanStep::Subsample { stride, before, .. } => pooling::subsample_grad(*stride, *before, from, to),
            PlanStep::Flatten { .. } if add => to.1.add(&from.0[..gy.map.c], to.0),
            // SAFETY: the machine has the instruction set.
            PlanStep::Flatten { .. } => unsafe { map::pack(self.isa, to.1, &from.0[..gy.map.c], to.0) },
            PlanStep::Dropout { mask, .. } => pooling::multiply(from, (self.sample(mask, image), &mask.map), add, to),
            _ => {}
        }
    }
}

impl<'p> Walk<'_, 'p, '_> {
    /// Whether to add to the node's gradient (true) or to write it (false); it is filled from now on.
    fn visit(&mut self, node: Node) -> bool {
        std::mem::replace(&mut self.filled[node], true)
    }

    fn seed(&mut self, node: Node, seed: &[f32]) {
        let Some(spot) = self.call.grad(node) else { return };
        let sample = spot.map.c * spot.map.pixels();
        let add = self.visit(node);
        for image in self.worker.share(self.call.rows) {
            let (from, to) = (&seed[image * sample..][..sample], self.call.sample_mut(spot, image));
            if add { spot.map.add(from, to) } else { spot.map.pack(from, to) }
        }
    }

    /// No gradient reaches a product's weight.
    fn unreached(&self, weight: ParamId) {
        if self.worker.first() {
            self.call.zero(weight, self.grads);
        }
    }

    /// The gradient of a step's output, if anything reached it.
    fn upstream(&self, out: Node) -> Option<&'p Spot> {
        self.call.grad(out).filter(|_| self.filled[out])
    }

    fn step(&mut self, step: &'p PlanStep) {
        match step {
            PlanStep::Conv(conv) => self.conv(conv),
            PlanStep::Stats { .. } => {}
            PlanStep::Fuse { terms, relu, out, .. } => self.fuse(terms, *relu, *out),
            PlanStep::Linear { x, out, weight, bias } => self.linear(*x, *out, *weight, *bias),
            PlanStep::MaxPool { x, out, .. }
            | PlanStep::AvgPool { x, out, .. }
            | PlanStep::GlobalMean { x, out }
            | PlanStep::Subsample { x, out, .. }
            | PlanStep::Flatten { x, out }
            | PlanStep::Dropout { x, out, .. } => {
                if let (Some(gy), Some(gx)) = (self.upstream(*out), self.call.grad(*x)) {
                    let add = self.visit(*x);
                    self.segment.push(Local::Sample { step, gy, gx, add });
                }
            }
        }
    }

    /// Runs the gathered steps block by block.
    fn run(&mut self) {
        let convs =
            self.segment.iter().filter_map(|l| if let Local::Conv { step, .. } = l { Some(step) } else { None });
        let at_once = convs.map(|c| c.conv.images_per_pass()).max().unwrap_or(1);
        for images in blocks(self.worker.share(self.call.rows), at_once) {
            for local in &self.segment {
                self.call.local(local, images.clone(), self.call.scratch(self.worker));
            }
        }
        self.segment.clear();
    }

    /// Waits for everybody, then does what waited for it.
    fn barrier(&mut self) {
        self.worker.meet();
        for (step, gy) in std::mem::take(&mut self.waiting) {
            if let (Some(bias), true) = (step.bias, self.worker.first()) {
                self.bias_gradient(step, bias, gy.map.cp);
            }
            if !self.worker.alone() {
                let tiles = self.worker.share(step.conv.gradient_tiles());
                let call = self.call;
                let (x, g) = (call.mem.ptr(call.value(step.x).region), call.mem.ptr(gy.region));
                // SAFETY: this worker's tiles, after all samples of `gy` were written.
                unsafe {
                    step.conv.weight_gradient(
                        x,
                        g,
                        call.mem.ptr(step.packed_grad),
                        tiles,
                        call.rows,
                        call.scratch(self.worker),
                    )
                }
            }
        }
    }

    fn conv(&mut self, step: &'p ConvStep) {
        let Some(gy) = self.upstream(step.out) else { return self.unreached(step.weight) };
        if step.relu || step.bias.is_some() {
            self.segment.push(Local::Gate(step, gy));
        }
        self.again(step.x);
        let add = self.call.grad(step.x).map(|_| self.visit(step.x));
        self.segment.push(Local::Conv { step, gy, add, weights: self.worker.alone() });
        self.waiting.push((step, gy));
        self.ran.push(step);
    }

    /// Computes a value that was not kept before it is read.
    fn again(&mut self, node: Node) {
        if self.call.value(node).ring.is_none() {
            return;
        }
        for step in &self.call.plan.steps {
            if let PlanStep::Fuse { terms, out, .. } = step
                && let (&[(_, Some(norm))], true) = (terms.as_slice(), *out == node)
            {
                let (scale, shift) = self.call.scale_and_shift(&self.call.plan.norms[norm]);
                let affine = [Some((scale.to_vec(), shift.to_vec()))];
                self.segment.push(Local::Again { terms, affine, out: node });
            }
        }
    }

    /// Runs the segment before a step that no gradient reached: rings are as long as one segment's blocks.
    fn segment_ends(&mut self, ends: bool) {
        if ends {
            self.run();
        }
    }

    fn bias_gradient(&self, step: &ConvStep, bias: ParamId, cp: usize) {
        let call = self.call;
        let entry = &call.net.layout.entries()[bias];
        // SAFETY: only the first worker writes this entry; partial sums were written before the barrier.
        let (grad, partial) =
            unsafe { (self.grads.part(entry.offset, entry.len()), call.mem.doubles(step.partial, 0, call.rows * cp)) };
        for (c, g) in grad.iter_mut().enumerate() {
            *g += partial.chunks_exact(cp).map(|s| s[c]).sum::<f64>() as f32;
        }
    }

    fn fuse(&mut self, terms: &'p [(Node, Option<usize>)], relu: bool, out: Node) {
        let Some(gy) = self.upstream(out) else {
            return self.segment_ends(terms.iter().any(|t| t.1.is_some()));
        };
        let norms: Vec<Option<&'p Norm>> = terms.iter().map(|t| t.1.map(|n| &self.call.plan.norms[n])).collect();
        let relu = relu.then_some(match norms.as_slice() {
            &[Some(norm)] => Relu::After(norm),
            _ => Relu::Of(out),
        });
        for norm in norms.iter().flatten() {
            self.segment.push(Local::Sums { norm, relu, gy });
        }
        if norms.iter().any(Option::is_some) {
            self.run();
            self.barrier();
        }
        let mut branches = Vec::new();
        for (&(node, _), norm) in terms.iter().zip(norms) {
            let norm = norm.map(|n| (n, self.call.norm_gradient(n, self.worker.first(), self.grads)));
            let add = self.visit(node);
            branches.push(Branch { node, norm, add });
        }
        self.segment.push(Local::Fuse { branches, relu, gy });
    }

    fn linear(&mut self, x: Node, out: Node, weight: ParamId, bias: Option<ParamId>) {
        let call = self.call;
        let Some(gy) = self.upstream(out) else {
            self.unreached(weight);
            return self.segment_ends(true);
        };
        self.run();
        self.barrier();
        let (entries, xs) = (call.net.layout.entries(), call.value(x));
        let inputs = xs.map.c;
        let outs = self.worker.share(gy.map.c);
        if !outs.is_empty() {
            // SAFETY: this worker's outputs, after all samples of `gy` were written.
            unsafe {
                let gw = self.grads.part(entries[weight].offset + outs.start * inputs, outs.len() * inputs);
                let (gy, x) = (call.rows_of(gy), call.rows_of(xs));
                dense::weight_gradient(call.isa(), gy, x, inputs, gw, outs.clone());
            }
        }
        if let Some(bias) = bias {
            for o in outs {
                let sum: f64 = (0..call.rows).map(|r| f64::from(call.sample(gy, r)[o])).sum();
                // SAFETY: this worker's outputs.
                unsafe { self.grads.part(entries[bias].offset + o, 1)[0] += sum as f32 };
            }
        }
        let Some(gx) = call.grad(x) else { return };
        let add = self.visit(x);
        let share = self.worker.share(call.rows);
        let from = call.rows_of(gy);
        // SAFETY: this worker's samples.
        unsafe {
            let rows = Rows { at: from.at.add(share.start * from.stride), count: share.len(), ..from };
            let to = call.mem.ptr(gx.region).add(share.start * gx.map.image());
            let w = call.param(weight);
            dense::input_gradient(call.isa(), rows, w, inputs, gy.map.c, add, to, gx.map.image());
        }
    }
}
