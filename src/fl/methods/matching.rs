//! Gradient matching in closed form: rows of features move until a classifier's gradient on them points where the
//! gradient on real images does (CReFF, Shang et al., IJCAI 2022; the distance is that of Zhao et al., *Dataset
//! Condensation with Gradient Matching*, ICLR 2021).
//!
//! All rows `F`, `(n, width)`, are of one class c. With `e_i = softmax(W F_i + b) − 1_c` the gradient of mean
//! cross-entropy is `G = eᵀF / n` and, of the bias, `mean_i e_i`. The derivative of a distance `D(G)` with respect to
//! `F_i`, with `M = ∂D/∂G`, `m = ∂D/∂(bias)`, `u_i = M F_i + m` and `p_i = e_i + 1_c`, is
//! `(Mᵀ e_i + Wᵀ (p_i ⊙ (u_i − ⟨p_i, u_i⟩))) / n`: three products more, and no second derivative is recorded.

use crate::error::Result;
use crate::exec::{self, Context};
use crate::nn::classifier::{gradient, input_gradient, logits};

/// Added to the product of two lengths before dividing by it.
const EPSILON: f64 = 1e-6;

/// A linear classifier: W `(classes, width)` and b `(classes,)`, empty where there is none.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    /// W.
    pub weight: &'a [f32],
    /// b.
    pub bias: &'a [f32],
    /// Columns of W.
    pub width: usize,
}

impl Linear<'_> {
    /// Rows of W.
    pub fn classes(&self) -> usize {
        self.weight.len() / self.width.max(1)
    }
}

/// `softmax(z_i) − 1_class` of logits `(rows, classes)`, in f64: the own class is minus the sum of the others', so that
/// nothing cancels where it is nearly certain.
pub fn residuals(logits: &[f32], classes: usize, class: usize, out: &mut Vec<f64>) {
    out.clear();
    for row in logits.chunks_exact(classes) {
        let top = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        let first = out.len();
        out.extend(row.iter().map(|&z| (f64::from(z) - top).exp()));
        let own = &mut out[first..];
        let total: f64 = own.iter().sum();
        own.iter_mut().for_each(|v| *v /= total);
        own[class] = 0.0;
        own[class] = -own.iter().sum::<f64>();
    }
}

/// `Σ_rows 1 − ⟨G, G'⟩ / (|G| |G'| + 1e-6)` over the rows of W and the whole bias, each gradient W's `(classes, width)`
/// and then b's; `slope`, of the same length, becomes the derivative with respect to `made`.
pub fn distance(made: &[f32], real: &[f32], classes: usize, width: usize, slope: &mut [f32]) -> f64 {
    let (made, made_bias) = made.split_at(classes * width);
    let (real, real_bias) = real.split_at(classes * width);
    let (slope, slope_bias) = slope.split_at_mut(classes * width);
    let rows = made.chunks_exact(width).zip(real.chunks_exact(width)).zip(slope.chunks_exact_mut(width));
    let weights: f64 = rows.map(|((g, r), d)| turned(g, r, d)).sum();
    if made_bias.is_empty() { weights } else { weights + turned(made_bias, real_bias, slope_bias) }
}

/// One row's term. Where the made gradient is zero its length gives no slope, as in PyTorch.
fn turned(made: &[f32], real: &[f32], slope: &mut [f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum::<f64>();
    let (length, other, along) = (product(made, made).sqrt(), product(real, real).sqrt(), product(made, real));
    let scale = length * other + EPSILON;
    let back = if length > 0.0 { along * other / (length * scale * scale) } else { 0.0 };
    for ((d, &g), &r) in slope.iter_mut().zip(made).zip(real) {
        *d = (back * f64::from(g) - f64::from(r) / scale) as f32;
    }
    1.0 - along / scale
}

/// The distance of one class's rows to its real gradient, with room for the arrays of a step.
pub struct Matching<'a> {
    head: Linear<'a>,
    class: usize,
    real: &'a [f32],
    z: Vec<f32>,
    errors: Vec<f64>,
    seeds: Vec<f32>,
    made: Vec<f32>,
    turn: Vec<f32>,
}

impl<'a> Matching<'a> {
    /// `real` is the gradient of `head` to match: W's, then b's.
    pub fn new(head: Linear<'a>, class: usize, real: &'a [f32]) -> Self {
        let (z, errors, seeds) = Default::default();
        Matching { head, class, real, z, errors, seeds, made: vec![0.0; real.len()], turn: vec![0.0; real.len()] }
    }

    /// The distance at `rows`, `(n, width)`; its derivative is added to `slope`, of the same shape.
    pub fn add(&mut self, rows: &[f32], slope: &mut [f32]) -> f64 {
        let Linear { weight, bias, width } = self.head;
        let classes = self.head.classes();
        logits(weight, bias, rows, width, &mut self.z);
        residuals(&self.z, classes, self.class, &mut self.errors);
        let n = (rows.len() / width) as f64;
        self.seeds.clear();
        self.seeds.extend(self.errors.iter().map(|e| (e / n) as f32));
        self.made.fill(0.0);
        let (made, made_bias) = self.made.split_at_mut(weight.len());
        gradient(rows, &self.seeds, width, made);
        for (k, g) in made_bias.iter_mut().enumerate() {
            *g = (self.errors.iter().skip(k).step_by(classes).sum::<f64>() / n) as f32;
        }
        let value = distance(&self.made, self.real, classes, width, &mut self.turn);
        let (turn, turn_bias) = self.turn.split_at(weight.len());
        input_gradient(turn, &self.seeds, width, slope);
        logits(turn, turn_bias, rows, width, &mut self.z);
        softmax_seeds(&self.errors, &self.z, classes, self.class, n, &mut self.seeds);
        input_gradient(weight, &self.seeds, width, slope);
        value
    }
}

/// `p_i ⊙ (u_i − ⟨p_i, u_i⟩) / n` with `p_i = e_i + 1_class`, of all rows.
fn softmax_seeds(e: &[f64], u: &[f32], classes: usize, class: usize, n: f64, out: &mut [f32]) {
    let rows = e.chunks_exact(classes).zip(u.chunks_exact(classes)).zip(out.chunks_exact_mut(classes));
    for ((e, u), out) in rows {
        let own = f64::from(u[class]);
        let shift: f64 = e.iter().zip(u).map(|(e, &u)| e * (f64::from(u) - own)).sum();
        for (k, (out, (e, &u))) in out.iter_mut().zip(e.iter().zip(u)).enumerate() {
            let p = if k == class { 1.0 + e } else { *e };
            *out = (p * (f64::from(u) - own - shift) / n) as f32;
        }
    }
}

/// A term beside the distance: adds its derivative at the rows of a class, `(n, width)`, to the slope.
pub type Term<'a> = dyn Fn(&[f32], usize, &mut [f32]) + Sync + 'a;

/// `steps` steps of gradient descent on every class's rows: `features` `(classes · n, width)`, class after class;
/// `real[c]` is the gradient to match, none where nobody holds the class. A class with neither stays as it is. Classes
/// do not see each other, so each is done by one thread.
pub fn descend(
    features: &mut [f32],
    head: Linear<'_>,
    real: &[Option<Vec<f32>>],
    term: Option<&Term<'_>>,
    (steps, rate): (usize, f32),
    cx: &Context,
) -> Result<()> {
    let size = features.len() / real.len().max(1);
    let start: &[f32] = features;
    let mut done: Vec<Vec<f32>> = Vec::with_capacity(real.len());
    let one = |_: &mut (), class: usize| -> Result<Vec<f32>> {
        let mut rows = start[class * size..(class + 1) * size].to_vec();
        let mut matching = real[class].as_deref().map(|real| Matching::new(head, class, real));
        let mut slope = vec![0.0; size];
        for _ in 0..if matching.is_some() || term.is_some() { steps } else { 0 } {
            cx.cancel.check()?;
            slope.fill(0.0);
            if let Some(matching) = &mut matching {
                matching.add(&rows, &mut slope);
            }
            if let Some(term) = term {
                term(&rows, class, &mut slope);
            }
            rows.iter_mut().zip(&slope).for_each(|(f, g)| *f -= rate * g);
        }
        Ok(rows)
    };
    let mut keep = |_: usize, rows: Vec<f32>| {
        done.push(rows);
        Ok(())
    };
    exec::ordered(cx.threads, real.len(), real.len(), |_| Ok(()), one, &mut keep)?;
    features.chunks_exact_mut(size.max(1)).zip(done).for_each(|(to, rows)| to.copy_from_slice(&rows));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step + 0.3).sin()).collect()
    }

    const CLASSES: usize = 3;
    const WIDTH: usize = 5;

    fn head<'a>(weight: &'a [f32], bias: &'a [f32]) -> Linear<'a> {
        Linear { weight, bias, width: WIDTH }
    }

    #[test]
    fn equal_gradients_are_zero_apart_and_opposite_ones_two_a_row() {
        let g = wave(CLASSES * (WIDTH + 1), 0.7);
        let away: Vec<f32> = g.iter().map(|v| -3.0 * v).collect();
        let (mut slope, near) = (vec![0.0; g.len()], 1e-5);
        assert!(distance(&g, &g, CLASSES, WIDTH, &mut slope).abs() < near);
        let two = 2.0 * (CLASSES + 1) as f64;
        assert!((distance(&g, &away, CLASSES, WIDTH, &mut slope) - two).abs() < near);
        let (no_bias, rows) = (CLASSES * WIDTH, 2.0 * CLASSES as f64);
        let apart = distance(&g[..no_bias], &away[..no_bias], CLASSES, WIDTH, &mut slope[..no_bias]);
        assert!((apart - rows).abs() < near);
        let zero = vec![0.0; g.len()];
        assert_eq!(distance(&zero, &g, CLASSES, WIDTH, &mut slope), (CLASSES + 1) as f64);
        assert!(slope.iter().all(|v| v.is_finite()));
    }

    #[test]
    fn residuals_of_a_nearly_certain_class_do_not_cancel() {
        let mut e = Vec::new();
        residuals(&[30.0, 0.0, 0.0], 3, 0, &mut e);
        let rest = (-30f64).exp();
        assert!((e[0] / (-2.0 * rest) - 1.0).abs() < 1e-9 && (e[1] / rest - 1.0).abs() < 1e-9, "{e:?}");
        residuals(&[0.0; 3], 3, 1, &mut e);
        assert!(e.iter().zip([1.0 / 3.0, -2.0 / 3.0, 1.0 / 3.0]).all(|(a, b)| (a - b).abs() < 1e-15));
    }

    #[test]
    fn the_derivative_by_the_features_is_the_central_difference() {
        let (weight, bias) = (wave(CLASSES * WIDTH, 0.6), wave(CLASSES, 2.1));
        for (bias, real) in [(&bias[..], wave(CLASSES * (WIDTH + 1), 0.77)), (&[], wave(CLASSES * WIDTH, 0.77))] {
            for class in 0..CLASSES {
                let rows = wave(4 * WIDTH, 0.9);
                let mut matching = Matching::new(head(&weight, bias), class, &real);
                let mut slope = vec![0.0; rows.len()];
                matching.add(&rows, &mut slope);
                for i in 0..rows.len() {
                    let mut at = |h: f32| {
                        let mut moved = rows.clone();
                        moved[i] += h;
                        matching.add(&moved, &mut vec![0.0; rows.len()])
                    };
                    let near = 8.0 * (at(1e-2) - at(-1e-2)) - (at(2e-2) - at(-2e-2));
                    let (got, numeric) = (f64::from(slope[i]), near / 12e-2);
                    assert!((got - numeric).abs() < 1e-4 * (1.0 + got.abs()), "{class}, {i}: {got}, {numeric}");
                }
            }
        }
    }

    /// The gradient of these rows at a classifier.
    fn gradient_of(rows: &[f32], head: Linear<'_>, class: usize) -> Vec<f32> {
        let nothing = vec![0.0; head.weight.len() + head.bias.len()];
        let mut matching = Matching::new(head, class, &nothing);
        matching.add(rows, &mut vec![0.0; rows.len()]);
        matching.made
    }

    #[test]
    fn descent_comes_nearer_and_leaves_classes_alone_that_nobody_holds() {
        let (weight, bias, n) = (wave(CLASSES * WIDTH, 0.6), wave(CLASSES, 2.1), 4);
        let start = wave(CLASSES * n * WIDTH, 0.9);
        let gradient = |step, class| Some(gradient_of(&wave(7 * WIDTH, step), head(&weight, &bias), class));
        let real = vec![gradient(0.77, 0), None, gradient(1.3, 2)];
        let run = |threads| {
            let mut features = start.clone();
            let cx = Context::cpu(threads);
            descend(&mut features, head(&weight, &bias), &real, None, (100, 0.02), &cx).unwrap();
            features
        };
        let end = run(1);
        let size = n * WIDTH;
        assert_eq!(end[size..2 * size], start[size..2 * size]);
        for class in [0, 2] {
            let mut matching = Matching::new(head(&weight, &bias), class, real[class].as_ref().unwrap());
            let mut at = |all: &[f32]| matching.add(&all[class * size..(class + 1) * size], &mut vec![0.0; size]);
            let (before, after) = (at(&start), at(&end));
            assert!(after < 0.5 * before, "class {class}: {before} to {after}");
        }
        assert!([2, 3].into_iter().all(|threads| run(threads) == end), "the same bytes for any number of threads");
    }
}
