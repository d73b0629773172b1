//! One worker's walk through the steps in reverse.
//!
//! SAFETY of this file's unsafe blocks: as in `forward`. Gradients of values go by the worker's samples; gradients of
//! weights by its tiles or outputs, after a barrier that follows all samples.

use super::Call;
use super::arena::Shared;
use super::crew::Worker;
use super::dense::{self, Rows};
use super::plan::{ConvStep, Norm, Slot, Step};
use super::pool;
use super::rows::{self, NormGrad, Upstream};
use crate::nn::interpreter::Mode;
use crate::nn::net::{Node, ParamId};

/// Which gradients hold something already.
struct Filled(Vec<bool>);

impl Filled {
    /// Whether to add to the node's gradient (true) or to write it (false); it is filled from now on.
    fn visit(&mut self, node: Node) -> bool {
        std::mem::replace(&mut self.0[node], true)
    }
}

impl<'a> Call<'a> {
    /// The whole backward pass; adds to `grads`.
    pub fn backward(&self, worker: &Worker<'_>, seeds: &[(Node, &[f32])], grads: Shared<'_>) {
        let mut filled = Filled(vec![false; self.net.ops.len()]);
        self.pack_back(worker);
        for &(node, seed) in seeds {
            self.seed(worker, node, seed, &mut filled);
        }
        worker.meet();
        let mut ran = Vec::new();
        for step in self.plan.steps.iter().rev() {
            self.step_back(worker, step, &mut filled, grads, &mut ran);
        }
        worker.meet();
        for step in ran {
            self.unpack(worker, step, grads);
        }
    }

    fn grad(&self, node: Node) -> Option<&'a Slot> {
        self.plan.grads[node].as_ref()
    }

    fn pack_back(&self, worker: &Worker<'_>) {
        let convs: Vec<&ConvStep> = self.convs().collect();
        for step in &convs[worker.share(convs.len())] {
            // SAFETY: this worker's share of the convolutions.
            unsafe {
                self.mem.get_mut(step.packed_grad, 0, step.conv.packed()).fill(0.0);
                let to = self.mem.get_mut(step.packed_back, 0, step.conv.packed_back());
                step.conv.pack_back(self.param(step.weight), to);
            }
        }
    }

    fn seed(&self, worker: &Worker<'_>, node: Node, seed: &[f32], filled: &mut Filled) {
        let Some(slot) = self.grad(node) else { return };
        let sample = slot.map.c * slot.map.pixels();
        let add = filled.visit(node);
        for image in worker.share(self.rows) {
            let (from, to) = (&seed[image * sample..][..sample], self.sample_mut(slot, image));
            if add { slot.map.add(from, to) } else { slot.map.pack(from, to) }
        }
    }

    fn step_back<'p>(
        &self,
        worker: &Worker<'_>,
        step: &'p Step,
        filled: &mut Filled,
        grads: Shared<'_>,
        ran: &mut Vec<&'p ConvStep>,
    ) {
        let out = match step {
            Step::Conv(c) => c.out,
            Step::Stats { .. } => return,
            Step::Fuse { out, .. }
            | Step::MaxPool { out, .. }
            | Step::AvgPool { out, .. }
            | Step::GlobalMean { out, .. }
            | Step::Subsample { out, .. }
            | Step::Flatten { out, .. }
            | Step::Linear { out, .. }
            | Step::Dropout { out, .. } => *out,
        };
        let Some(gy) = self.grad(out).filter(|_| filled.0[out]) else { return };
        match step {
            Step::Conv(step) => {
                self.conv_back(worker, step, gy, filled, grads);
                ran.push(step);
            }
            Step::Fuse { terms, relu, out } => self.fuse_back(worker, terms, relu.then_some(*out), gy, filled, grads),
            Step::Linear { x, weight, bias, .. } => {
                self.linear_back(worker, *x, [Some(*weight), *bias], gy, filled, grads);
            }
            Step::MaxPool { x, .. }
            | Step::AvgPool { x, .. }
            | Step::GlobalMean { x, .. }
            | Step::Subsample { x, .. }
            | Step::Flatten { x, .. }
            | Step::Dropout { x, .. } => {
                let Some(gx) = self.grad(*x) else { return };
                let add = filled.visit(*x);
                for image in worker.share(self.rows) {
                    self.sample_back(step, image, gy, gx, add);
                }
            }
            Step::Stats { .. } => {}
        }
    }

    fn sample_back(&self, step: &Step, image: usize, gy: &Slot, gx: &Slot, add: bool) {
        let from = (self.sample(gy, image), &gy.map);
        let to = (self.sample_mut(gx, image), &gx.map);
        if !add && matches!(step, Step::MaxPool { .. } | Step::AvgPool { .. } | Step::Subsample { .. }) {
            to.0.fill(0.0);
        }
        match step {
            Step::MaxPool { window, index, .. } => {
                pool::max_grad(*window, from, (self.sample(index, image), &index.map), to);
            }
            Step::AvgPool { window, .. } => pool::mean_grad(*window, from, to),
            Step::GlobalMean { .. } => pool::global_mean_grad(from.0, add, to),
            Step::Subsample { stride, before, .. } => pool::subsample_grad(*stride, *before, from, to),
            Step::Flatten { .. } if add => to.1.add(&from.0[..gy.map.c], to.0),
            Step::Flatten { .. } => to.1.pack(&from.0[..gy.map.c], to.0),
            Step::Dropout { mask, .. } => pool::multiply(from, (self.sample(mask, image), &mask.map), add, to),
            _ => {}
        }
    }

    fn conv_back(&self, worker: &Worker<'_>, step: &ConvStep, gy: &Slot, filled: &mut Filled, grads: Shared<'_>) {
        let y = self.value(step.out);
        for image in worker.share(self.rows) {
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
        worker.meet();
        if let (Some(bias), true) = (step.bias, worker.first()) {
            self.bias_gradient(step, bias, gy.map.cp, grads);
        }
        let (x, gy_at) = (self.value(step.x), self.mem.ptr(gy.region));
        let tiles = worker.share(step.conv.gradient_tiles());
        // SAFETY: this worker's tiles; then its samples.
        unsafe {
            let gw = self.mem.ptr(step.packed_grad);
            step.conv.weight_gradient(self.mem.ptr(x.region), gy_at, gw, tiles, 0..self.rows);
        }
        if let Some(gx) = self.grad(step.x) {
            let add = filled.visit(step.x);
            let (share, at_once) = (worker.share(self.rows), step.conv.images_per_pass());
            let mut image = share.start;
            while image < share.end {
                let images = image..share.end.min(image + at_once);
                image = images.end;
                let (gx, w) = (self.mem.ptr(gx.region), self.mem.ptr(step.packed_back));
                // SAFETY: as above.
                unsafe { step.conv.input_gradient(gy_at, gx, w, add, images) }
            }
        }
    }

    fn bias_gradient(&self, step: &ConvStep, bias: ParamId, cp: usize, grads: Shared<'_>) {
        let entry = &self.net.layout.entries()[bias];
        // SAFETY: only the first worker writes this entry; partial sums were written before the barrier.
        let (grad, partial) =
            unsafe { (grads.part(entry.offset, entry.len()), self.mem.doubles(step.partial, 0, self.rows * cp)) };
        for (c, g) in grad.iter_mut().enumerate() {
            *g += partial.chunks_exact(cp).map(|s| s[c]).sum::<f64>() as f32;
        }
    }

    /// Adds this worker's share of a convolution's packed weight gradient to the caller's.
    fn unpack(&self, worker: &Worker<'_>, step: &ConvStep, grads: Shared<'_>) {
        let entry = &self.net.layout.entries()[step.weight];
        let per_out = entry.len() / step.outputs.max(1);
        let lanes = worker.share(step.outputs);
        // SAFETY: this worker's outputs; the packed gradient was finished before the barrier.
        unsafe {
            let from = self.mem.get(step.packed_grad, 0, step.conv.packed());
            let to = grads.part(entry.offset + lanes.start * per_out, lanes.len() * per_out);
            step.conv.unpack(from, lanes, to);
        }
    }

    fn fuse_back(
        &self,
        worker: &Worker<'_>,
        terms: &[(Node, Option<usize>)],
        relu: Option<Node>,
        gy: &Slot,
        filled: &mut Filled,
        grads: Shared<'_>,
    ) {
        let up = |image| Upstream { g: self.view(gy, image), y: relu.map(|node| self.view(self.value(node), image)) };
        let norms = || terms.iter().filter_map(|t| t.1).map(|n| &self.plan.norms[n]);
        for norm in norms() {
            let z = self.value(norm.x);
            let mean = self.state(norm, 0, z.map.cp);
            for image in worker.share(self.rows) {
                // SAFETY: this worker's samples.
                unsafe {
                    let out = self.mem.doubles(norm.partial, image * 2 * z.map.cp, 2 * z.map.cp);
                    rows::sums(self.isa(), up(image), self.view(z, image), mean, out);
                }
            }
        }
        if norms().next().is_some() {
            worker.meet();
        }
        for &(node, norm) in terms {
            let norm = norm.map(|n| &self.plan.norms[n]);
            let coefficients = norm.map(|n| (n, self.norm_gradient(n, worker.first(), grads)));
            let Some(gx) = self.grad(node) else { continue };
            let add = filled.visit(node);
            for image in worker.share(self.rows) {
                let norm = coefficients.as_ref().map(|(n, [scale, offset, slope])| NormGrad {
                    z: self.view(self.value(n.x), image),
                    scale,
                    offset,
                    mean: self.state(n, 0, scale.len()),
                    slope,
                });
                // SAFETY: this worker's samples.
                unsafe { rows::fuse_grad(self.isa(), up(image), norm, add, self.sample_mut(gx, image), &gx.map) }
            }
        }
    }

    fn state(&self, norm: &Norm, at: usize, len: usize) -> &'a [f32] {
        // SAFETY: written by forward, only read now.
        unsafe { self.mem.get(norm.state, at, len) }
    }

    /// What the input gradient needs: scale, offset, slope; the first worker adds the gradients of γ and β.
    fn norm_gradient(&self, norm: &Norm, keep: bool, grads: Shared<'_>) -> [Vec<f32>; 3] {
        let map = &self.value(norm.x).map;
        let cp = map.cp;
        let inverse = self.state(norm, cp, cp);
        let gamma = self.param(norm.params[0]);
        // SAFETY: written before the last barrier, only read now.
        let partial: &[f64] = unsafe { self.mem.doubles(norm.partial, 0, self.rows * 2 * cp) };
        let total = (map.pixels() * self.rows) as f64;
        let training = matches!(self.mode, Mode::Train(_));
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

    fn linear_back(
        &self,
        worker: &Worker<'_>,
        x: Node,
        [weight, bias]: [Option<ParamId>; 2],
        gy: &Slot,
        filled: &mut Filled,
        grads: Shared<'_>,
    ) {
        let entries = self.net.layout.entries();
        let (Some(weight), xs) = (weight, self.value(x)) else { return };
        let inputs = xs.map.c;
        worker.meet();
        let outs = worker.share(gy.map.c);
        if !outs.is_empty() {
            // SAFETY: this worker's outputs, after all samples of `gy` were written.
            unsafe {
                let gw = grads.part(entries[weight].offset + outs.start * inputs, outs.len() * inputs);
                let (gy, x) = (self.rows_of(gy), self.rows_of(xs));
                dense::weight_gradient(self.isa(), gy, x, inputs, gw, outs.clone());
            }
        }
        if let Some(bias) = bias {
            for o in outs {
                let sum: f64 = (0..self.rows).map(|r| f64::from(self.sample(gy, r)[o])).sum();
                // SAFETY: this worker's outputs.
                unsafe { grads.part(entries[bias].offset + o, 1)[0] += sum as f32 };
            }
        }
        let Some(gx) = self.grad(x) else { return };
        let add = filled.visit(x);
        let share = worker.share(self.rows);
        let from = self.rows_of(gy);
        // SAFETY: this worker's samples.
        unsafe {
            let rows = Rows { at: from.at.add(share.start * from.stride), count: share.len(), ..from };
            let to = self.mem.ptr(gx.region).add(share.start * gx.map.image());
            let w = self.param(weight);
            dense::input_gradient(self.isa(), rows, w, inputs, gy.map.c, add, to, gx.map.image());
        }
    }
}
