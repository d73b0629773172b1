//! SSE-C: a sparse simplex equiangular tight frame, the fixed classifier that FedLoGe trains its body through.
//!
//! Start: `M = √(C/(C−1)) P (I − 11ᵀ/C)`, P `(d, C)` with orthonormal columns (of uniform draws, as the published code
//! orthogonalises them). Exactly `⌊share · d · C⌋` entries become 0 for good; Adam moves the others down
//! `Σ_c (‖m_c‖ − norm)² − mean_c acos(max_{j≠c} cos(m_c, m_j))`, so that columns of that length end as far apart as the
//! frame's own `acos(−1/(C−1))`.

use crate::error::{Error, Result};
use crate::exec::Context;
use crate::key::{Key, Purpose};
use crate::nn::optim::AdamwConfig;
use crate::nn::{Optimiser, OptimiserConfig};

/// Beyond this cosine the angle's gradient is 0, as in the published code: the arc's slope has no bound.
const STEEP: f32 = 0.99999;
/// The published learning rate of Adam.
const RATE: f32 = 1e-4;

/// What a sparse frame is to be.
#[derive(Clone, Copy, Debug)]
pub struct SparseEtf {
    /// Columns C, one a class; at least 2.
    pub classes: usize,
    /// Rows d, the feature's width; at least C.
    pub features: usize,
    /// Share of entries that are 0, in `[0, 1)`.
    pub zeros: f64,
    /// Length of every column.
    pub norm: f32,
    /// Adam's steps.
    pub steps: usize,
}

impl SparseEtf {
    /// The frame as a classifier's weight, `(classes, features)`: row c is column c of M.
    pub fn make(&self, key: Key, cx: &Context) -> Result<Vec<f32>> {
        let (classes, d) = (self.classes, self.features);
        if classes < 2 || d < classes {
            let message = format!("fedloge: no simplex of {classes} classes fits a feature of width {d}");
            return Err(Error::input(message).hint("use a network with as many features as classes at least"));
        }
        let mut frame = simplex(classes, d, key);
        let zeros = (self.zeros * (classes * d) as f64).floor() as usize;
        let chosen = key.fold(Purpose::Item, 1).rng().choose(classes * d, zeros);
        let mut kept = vec![1.0f32; frame.len()];
        chosen.into_iter().for_each(|i| kept[i] = 0.0);
        frame.iter_mut().zip(&kept).for_each(|(v, k)| *v *= k);
        let adam = OptimiserConfig::Adamw(AdamwConfig { lr: RATE, weight_decay: 0.0, ..AdamwConfig::default() });
        let mut optimiser = Optimiser::for_ranges(&adam, std::iter::once(0..frame.len()).collect(), frame.len());
        let mut descent = Descent::new(classes, d, self.norm);
        for step in 0..self.steps {
            if step % 100 == 0 {
                cx.cancel.check()?;
            }
            descent.look(&frame);
            descent.gradient.iter_mut().zip(&kept).for_each(|(g, k)| *g *= k);
            optimiser.step(&mut frame, &descent.gradient, 1.0);
        }
        Ok(frame)
    }
}

/// The simplex frame itself, `(classes, d)`.
fn simplex(classes: usize, d: usize, key: Key) -> Vec<f32> {
    let mut rng = key.fold(Purpose::Item, 0).rng();
    let mut columns: Vec<Vec<f64>> = (0..classes).map(|_| (0..d).map(|_| rng.f64()).collect()).collect();
    for c in 0..classes {
        let (before, rest) = columns.split_at_mut(c);
        let column = &mut rest[0];
        // Twice is enough for orthogonality to rounding.
        for other in before.iter().chain(before.iter()) {
            let along: f64 = column.iter().zip(other).map(|(a, b)| a * b).sum();
            column.iter_mut().zip(other).for_each(|(a, b)| *a -= along * b);
        }
        let length = column.iter().map(|v| v * v).sum::<f64>().sqrt();
        column.iter_mut().for_each(|v| *v /= length);
    }
    let scale = (classes as f64 / (classes as f64 - 1.0)).sqrt();
    let mean: Vec<f64> = (0..d).map(|i| columns.iter().map(|c| c[i]).sum::<f64>() / classes as f64).collect();
    columns.iter().flat_map(|c| c.iter().zip(&mean).map(move |(v, m)| (scale * (v - m)) as f32)).collect()
}

/// The objective's gradient, in arrays that are reused.
struct Descent {
    d: usize,
    norm: f32,
    /// Columns at length 1, `(classes, d)`, and their lengths.
    unit: Vec<f32>,
    lengths: Vec<f32>,
    /// The column nearest to each, and the cosine between them.
    nearest: Vec<(usize, f32)>,
    gradient: Vec<f32>,
}

impl Descent {
    fn new(classes: usize, d: usize, norm: f32) -> Self {
        let (unit, gradient) = (vec![0.0; classes * d], vec![0.0; classes * d]);
        Descent { d, norm, unit, lengths: vec![0.0; classes], nearest: vec![(0, 0.0); classes], gradient }
    }

    /// Fills `gradient` at this frame.
    fn look(&mut self, frame: &[f32]) {
        let d = self.d;
        for ((column, unit), length) in frame.chunks(d).zip(self.unit.chunks_mut(d)).zip(&mut self.lengths) {
            *length = dot(column, column).sqrt().max(f32::MIN_POSITIVE);
            unit.iter_mut().zip(column).for_each(|(u, v)| *u = v / *length);
        }
        self.neighbours();
        for (c, &length) in self.lengths.iter().enumerate() {
            let pull = 2.0 * (length - self.norm);
            let gradient = &mut self.gradient[c * d..(c + 1) * d];
            gradient.iter_mut().zip(&self.unit[c * d..(c + 1) * d]).for_each(|(g, u)| *g = pull * u);
        }
        for c in 0..self.lengths.len() {
            let (other, cosine) = self.nearest[c];
            if cosine.abs() < STEEP {
                let slope = 1.0 / (self.lengths.len() as f32 * (1.0 - cosine * cosine).sqrt());
                self.part(c, other, slope, cosine);
                self.part(other, c, slope, cosine);
            }
        }
    }

    /// For every column the first of those nearest to it.
    fn neighbours(&mut self) {
        self.nearest.fill((0, f32::NEG_INFINITY));
        let columns: Vec<&[f32]> = self.unit.chunks(self.d).collect();
        for a in 0..columns.len() {
            for b in a + 1..columns.len() {
                let cosine = dot(columns[a], columns[b]);
                for (c, other) in [(a, b), (b, a)] {
                    if cosine > self.nearest[c].1 {
                        self.nearest[c] = (other, cosine);
                    }
                }
            }
        }
    }

    /// Adds `slope · ∂cos(c, other)/∂m_c`.
    fn part(&mut self, c: usize, other: usize, slope: f32, cosine: f32) {
        let (d, slope) = (self.d, slope / self.lengths[c]);
        let (own, far) = (&self.unit[c * d..(c + 1) * d], &self.unit[other * d..(other + 1) * d]);
        for ((g, own), far) in self.gradient[c * d..(c + 1) * d].iter_mut().zip(own).zip(far) {
            *g += slope * (far - cosine * own);
        }
    }
}

/// A product in sixteen lanes, added in one fixed order.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut lanes = [0.0f32; 16];
    let (a16, b16) = (a.chunks_exact(16), b.chunks_exact(16));
    let rest: f32 = a16.remainder().iter().zip(b16.remainder()).map(|(x, y)| x * y).sum();
    for (x, y) in a16.zip(b16) {
        lanes.iter_mut().zip(x.iter().zip(y)).for_each(|(l, (x, y))| *l += x * y);
    }
    lanes.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths_and_angles(frame: &[f32], d: usize) -> (Vec<f64>, Vec<f64>) {
        let columns: Vec<&[f32]> = frame.chunks(d).collect();
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
        let lengths: Vec<f64> = columns.iter().map(|c| product(c, c).sqrt()).collect();
        let mut angles = Vec::new();
        for a in 0..columns.len() {
            for b in 0..a {
                angles.push((product(columns[a], columns[b]) / lengths[a] / lengths[b]).acos().to_degrees());
            }
        }
        (lengths, angles)
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / values.len() as f64
    }

    /// MᵀM = C/(C−1) (I − 11ᵀ/C): 1 on the diagonal, −1/(C−1) off it.
    #[test]
    fn the_start_is_a_simplex_equiangular_tight_frame() {
        let (lengths, angles) = lengths_and_angles(&simplex(7, 24, Key::from_seed(1)), 24);
        let want = (-1.0 / 6.0f64).acos().to_degrees();
        assert!(lengths.iter().all(|l| (l - 1.0).abs() < 1e-6), "{lengths:?}");
        assert!(angles.iter().all(|a| (a - want).abs() < 1e-4), "{angles:?}");
    }

    /// The authors' logs of ten classes: lengths 0.1006, angles 96.379° = acos(−1/9).
    #[test]
    fn columns_end_at_the_published_length_and_angles_with_the_asked_number_of_zeros() {
        let etf = SparseEtf { classes: 10, features: 64, zeros: 0.6, norm: 0.1, steps: 10_000 };
        let frame = etf.make(Key::from_seed(3), &Context::cpu(1)).unwrap();
        assert_eq!(frame.iter().filter(|v| **v == 0.0).count(), 384);
        let (lengths, angles) = lengths_and_angles(&frame, 64);
        assert!(lengths.iter().all(|l| (l - 0.1).abs() < 2e-3), "{lengths:?}");
        assert!((mean(&angles) - 96.379).abs() < 0.05, "{}", mean(&angles));
        assert!(angles.iter().all(|a| (a - 96.379).abs() < 1.5), "{angles:?}");
    }

    #[test]
    fn the_gradient_is_that_of_the_objective() {
        let (classes, d) = (4, 5);
        let frame: Vec<f32> = (0..classes * d).map(|i| (i as f32 * 1.9 + 0.4).sin()).collect();
        let value = |frame: &[f32]| {
            let columns: Vec<&[f32]> = frame.chunks(d).collect();
            let product = |a: usize, b: usize| {
                columns[a].iter().zip(columns[b]).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>()
            };
            let nearest = |c: usize| {
                let cosine = |j: usize| product(c, j) / (product(c, c) * product(j, j)).sqrt();
                (0..classes).filter(|j| *j != c).map(cosine).fold(f64::NEG_INFINITY, f64::max)
            };
            let length: f64 = (0..classes).map(|c| (product(c, c).sqrt() - 0.1).powi(2)).sum();
            length - (0..classes).map(|c| nearest(c).acos()).sum::<f64>() / classes as f64
        };
        let mut descent = Descent::new(classes, d, 0.1);
        descent.look(&frame);
        for i in 0..frame.len() {
            let at = |h: f32| {
                let mut moved = frame.clone();
                moved[i] += h;
                value(&moved)
            };
            let numeric = (at(1e-3) - at(-1e-3)) / 2e-3;
            assert!((f64::from(descent.gradient[i]) - numeric).abs() < 2e-3, "{i}: {} {numeric}", descent.gradient[i]);
        }
    }

    #[test]
    fn more_classes_than_features_are_refused() {
        let etf = SparseEtf { classes: 5, features: 4, zeros: 0.6, norm: 0.1, steps: 1 };
        assert!(etf.make(Key::from_seed(1), &Context::cpu(1)).unwrap_err().to_string().contains("width 4"));
    }
}
