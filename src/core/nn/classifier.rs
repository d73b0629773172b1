//! The last linear layer by itself: where it lies in the flat slice, and its sums on stored features.

use std::ops::Range;

use super::net::{Net, Op};

/// The classifier of a network: `z = W h + b`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Classifier {
    /// W, `(classes, features)`.
    pub weight: Range<usize>,
    /// b, `(classes,)`.
    pub bias: Option<Range<usize>>,
    /// Rows of W.
    pub classes: usize,
    /// Columns of W.
    pub features: usize,
}

impl Net {
    /// Where the classifier is; none where the output is not a linear layer's.
    pub fn classifier(&self) -> Option<Classifier> {
        let Op::Linear { weight, bias, .. } = &self.ops[self.logits] else { return None };
        let entry = &self.layout.entries()[*weight];
        let &[classes, features] = entry.shape.as_slice() else { return None };
        let bias = bias.map(|b| self.layout.entries()[b].range());
        Some(Classifier { weight: entry.range(), bias, classes, features })
    }
}

impl Classifier {
    /// The ranges of weight and bias.
    pub fn ranges(&self) -> Vec<Range<usize>> {
        std::iter::once(self.weight.clone()).chain(self.bias.clone()).collect()
    }

    /// W and b of a model's flat slice; b is empty where there is none.
    pub fn of<'p>(&self, params: &'p [f32]) -> (&'p [f32], &'p [f32]) {
        let bias = self.bias.clone().map_or(&[][..], |b| &params[b]);
        (&params[self.weight.clone()], bias)
    }

    /// Logits `(rows, classes)` of features `(rows, features)` into `out`.
    pub fn logits(&self, params: &[f32], features: &[f32], out: &mut Vec<f32>) {
        let (weight, bias) = self.of(params);
        logits(weight, bias, features, self.features, out);
    }

    /// Adds the gradients of W and b for seeds `d_logits` `(rows, classes)` to a flat slice of gradients.
    pub fn gradient(&self, features: &[f32], d_logits: &[f32], grads: &mut [f32]) {
        gradient(features, d_logits, self.features, &mut grads[self.weight.clone()]);
        let Some(bias) = self.bias.clone() else { return };
        bias_gradient(d_logits, &mut grads[bias]);
    }
}

/// `out = features Wᵀ + bias`: features `(rows, d)`, W `(classes, d)`, bias `(classes,)` or empty.
pub fn logits(weight: &[f32], bias: &[f32], features: &[f32], d: usize, out: &mut Vec<f32>) {
    let classes = weight.len() / d.max(1);
    out.clear();
    for h in features.chunks_exact(d.max(1)) {
        for c in 0..classes {
            let b = bias.get(c).copied().unwrap_or(0.0);
            out.push(b + dot(&weight[c * d..(c + 1) * d], h));
        }
    }
}

/// `dW += seedsᵀ features`: seeds `(rows, classes)`, features `(rows, d)`, dW `(classes, d)`.
pub fn gradient(features: &[f32], seeds: &[f32], d: usize, weight: &mut [f32]) {
    let classes = weight.len() / d.max(1);
    for (h, seed) in features.chunks_exact(d.max(1)).zip(seeds.chunks_exact(classes.max(1))) {
        for (row, &s) in weight.chunks_exact_mut(d).zip(seed) {
            row.iter_mut().zip(h).for_each(|(g, x)| *g += s * x);
        }
    }
}

/// `db += Σ_rows seeds`: seeds `(rows, classes)`, db `(classes,)`, or empty where the layer has no bias.
pub fn bias_gradient(seeds: &[f32], bias: &mut [f32]) {
    for seed in seeds.chunks_exact(bias.len().max(1)) {
        bias.iter_mut().zip(seed).for_each(|(g, s)| *g += s);
    }
}

/// `d_features += seeds W`: seeds `(rows, classes)`, W `(classes, d)`, d_features `(rows, d)`.
pub fn input_gradient(weight: &[f32], seeds: &[f32], d: usize, features: &mut [f32]) {
    let classes = weight.len() / d.max(1);
    for (h, seed) in features.chunks_exact_mut(d.max(1)).zip(seeds.chunks_exact(classes.max(1))) {
        for (row, &s) in weight.chunks_exact(d).zip(seed) {
            h.iter_mut().zip(row).for_each(|(g, w)| *g += s * w);
        }
    }
}

/// A product in eight lanes, added in one fixed order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 8];
    let (a8, b8) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a8.remainder().iter().zip(b8.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a8.zip(b8) {
        for i in 0..8 {
            lanes[i] += x[i] * y[i];
        }
    }
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logits_and_gradients_of_two_rows_by_hand() {
        let (weight, bias, h) = ([1.0, 2.0, -1.0, 0.5], [0.1, -0.2], [3.0, 4.0, 1.0, -1.0]);
        let mut z = Vec::new();
        logits(&weight, &bias, &h, 2, &mut z);
        let want = [11.1, -1.2, -0.9, -1.7];
        assert!(z.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{z:?}");
        let (seeds, mut dw, mut dh) = ([1.0, 0.0, 0.5, -1.0], [0.0; 4], [0.0; 4]);
        gradient(&h, &seeds, 2, &mut dw);
        assert_eq!(dw, [3.5, 3.5, -1.0, 1.0]);
        input_gradient(&weight, &seeds, 2, &mut dh);
        assert_eq!(dh, [1.0, 2.0, 1.5, 0.5]);
    }
}
