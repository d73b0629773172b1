//! The inputs of each output pixel along one side, and the pass along columns.

use std::ops::Range;

use super::{BITS, Filter, clip8};
use crate::nn::kernels::simd::{Isa, Simd, per_isa};

/// Where output `i` is centred among the inputs, and where its inputs begin and end.
fn reach(i: usize, from: usize, to: usize, filter: Filter) -> (f64, Range<usize>) {
    let scale = from as f64 / to as f64;
    let (centre, support) = ((i as f64 + 0.5) * scale, filter.support() * scale.max(1.0));
    let first = (centre - support + 0.5).max(0.0) as usize;
    (centre, first..((centre + support + 0.5) as usize).min(from))
}

/// The inputs of the outputs `which`, one at least.
pub(super) fn inputs(from: usize, to: usize, which: Range<usize>, filter: Filter) -> Range<usize> {
    let last = which.end.saturating_sub(1);
    reach(which.start, from, to, filter).1.start..reach(last, from, to, filter).1.end
}

/// The inputs of some outputs: the first of each, and fixed-point weights.
#[derive(Default)]
pub(super) struct Taps {
    first: Vec<usize>,
    /// How many inputs each output has.
    counts: Vec<usize>,
    /// `stride` weights an output, zeros behind its own.
    weights: Vec<i32>,
    stride: usize,
    raw: Vec<f64>,
}

impl Taps {
    /// The taps of the outputs `which` of `to`, from `from` inputs.
    pub fn new(from: usize, to: usize, which: Range<usize>, filter: Filter) -> Self {
        let mut taps = Taps::default();
        taps.fill(from, to, which, filter);
        taps
    }

    /// The same, in the memory at hand.
    pub fn fill(&mut self, from: usize, to: usize, which: Range<usize>, filter: Filter) {
        let widen = (from as f64 / to as f64).max(1.0);
        let (support, inverse) = (filter.support() * widen, 1.0 / widen);
        // Two floors of numbers 2·support apart; the rest is for their rounding.
        self.stride = ((2.0 * support + 1e-6).ceil() as usize).next_multiple_of(4);
        self.first.clear();
        self.counts.clear();
        self.weights.clear();
        self.weights.resize(which.len() * self.stride, 0);
        for (i, weights) in which.zip(self.weights.chunks_exact_mut(self.stride)) {
            let (centre, inputs) = reach(i, from, to, filter);
            self.raw.clear();
            self.raw.extend(inputs.clone().map(|x| filter.weight((x as f64 - centre + 0.5) * inverse)));
            let total: f64 = self.raw.iter().sum();
            for (to, w) in weights.iter_mut().zip(&self.raw) {
                let w = (if total == 0.0 { *w } else { w / total }) * f64::from(1 << BITS);
                *to = (if w < 0.0 { w - 0.5 } else { w + 0.5 }) as i32;
            }
            self.first.push(inputs.start);
            self.counts.push(inputs.len());
        }
    }

    /// Outputs.
    pub fn len(&self) -> usize {
        self.first.len()
    }

    /// The first input of output `i`, and its weights.
    pub fn of(&self, i: usize) -> (usize, &[i32]) {
        (self.first[i], &self.weights[i * self.stride..][..self.counts[i]])
    }

    /// Weights an output where zeros fill up, a multiple of 4; all of them, output after output.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for vectors"))]
    pub fn padded(&self) -> (usize, &[i32]) {
        (self.stride, &self.weights)
    }

    /// Counts inputs from `by` on.
    pub fn shift(&mut self, by: usize) {
        self.first.iter_mut().for_each(|f| *f -= by);
    }
}

/// Rows of `out`, `width` bytes each, from rows of `from` that lie `stride` bytes apart.
pub(super) fn vertical(isa: Isa, from: &[u8], stride: usize, taps: &Taps, out: &mut [u8], width: usize) {
    for (i, to) in out.chunks_exact_mut(width).enumerate().take(taps.len()) {
        let (first, weights) = taps.of(i);
        // SAFETY: callers name an instruction set of this machine.
        unsafe { row(isa, &from[first * stride..], stride, weights, to) };
    }
}

per_isa! {
    /// One row of the result. Indexing is checked.
    row = row_body(from: &[u8], stride: usize, weights: &[i32], to: &mut [u8])
}

#[inline(always)]
unsafe fn row_body<S: Simd>(from: &[u8], stride: usize, weights: &[i32], to: &mut [u8]) {
    const LANES: usize = 64;
    let whole = to.len() / LANES * LANES;
    let (blocks, rest) = to.split_at_mut(whole);
    for (b, to) in blocks.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut sums = [1i32 << (BITS - 1); LANES];
        for (k, &w) in weights.iter().enumerate() {
            for (sum, p) in sums.iter_mut().zip(&from[k * stride + b * LANES..][..LANES]) {
                *sum += i32::from(*p) * w;
            }
        }
        for (to, sum) in to.iter_mut().zip(sums) {
            *to = clip8(sum);
        }
    }
    for (x, to) in rest.iter_mut().enumerate() {
        let at = |k: usize| i32::from(from[k * stride + whole + x]);
        *to = clip8(weights.iter().enumerate().fold(1 << (BITS - 1), |sum, (k, w)| sum + at(k) * w));
    }
}
