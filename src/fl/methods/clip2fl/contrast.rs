//! Supervised contrast of features with class texts, in closed form.

use crate::nn::classifier::{input_gradient, logits};

/// Contrast of features with class texts, `(classes, width)`, at temperature `tau`.
pub struct Contrast<'a> {
    /// `(classes, width)`, rows of unit length.
    pub texts: &'a [f32],
    /// Rows of `texts`.
    pub classes: usize,
    /// Columns of `texts`.
    pub width: usize,
    /// Temperature τ.
    pub tau: f64,
}

impl Contrast<'_> {
    /// `scale · Σ_i −s_iy + log((n − 1) e^{s_iy} + n Σ_{c ≠ y} e^{s_ic})` over all n features of a class, `(n, width)`; its
    /// derivative is added to `slope`.
    pub fn add(&self, rows: &[f32], class: usize, scale: f64, slope: &mut [f32]) -> f64 {
        let n = (rows.len() / self.width) as f64;
        let (mut seeds, mut value) = (Vec::new(), 0.0);
        logits(self.texts, &[], rows, self.width, &mut seeds);
        for row in seeds.chunks_exact_mut(self.classes) {
            let s: Vec<f64> = row.iter().map(|&z| f64::from(z) / self.tau).collect();
            let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let count = |c: usize| if c == class { n - 1.0 } else { n };
            let parts: Vec<f64> = s.iter().enumerate().map(|(c, s)| count(c) * (s - top).exp()).collect();
            let total: f64 = parts.iter().sum();
            value += scale * (top + total.ln() - s[class]);
            for (c, (seed, part)) in row.iter_mut().zip(&parts).enumerate() {
                let hit = if c == class { 1.0 } else { 0.0 };
                *seed = (scale / self.tau * (part / total - hit)) as f32;
            }
        }
        input_gradient(self.texts, &seeds, self.width, slope);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step + 0.3).sin()).collect()
    }

    const CLASSES: usize = 3;
    const WIDTH: usize = 4;
    const EACH: usize = 5;

    /// `mean_i mean_{j ≠ i, y_j = y_i} −(s_ij − log Σ_{k ≠ i} e^{s_ik})` over all pairs of features.
    fn by_pairs(features: &[f32], texts: &[f32], tau: f64) -> f64 {
        let n = CLASSES * EACH;
        let s = |i: usize, j: usize| {
            let (f, t) = (&features[i * WIDTH..(i + 1) * WIDTH], &texts[j / EACH * WIDTH..(j / EACH + 1) * WIDTH]);
            f.iter().zip(t).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>() / tau
        };
        let of = |i: usize| {
            let norm = (0..n).filter(|&k| k != i).map(|k| s(i, k).exp()).sum::<f64>().ln();
            let own = (0..n).filter(|&j| j != i && j / EACH == i / EACH);
            own.map(|j| norm - s(i, j)).sum::<f64>() / (EACH - 1) as f64
        };
        (0..n).map(of).sum::<f64>() / n as f64
    }

    #[test]
    fn the_contrast_is_the_sum_over_pairs_and_its_derivative_the_central_difference() {
        let (features, texts, tau) = (wave(CLASSES * EACH * WIDTH, 0.9), wave(CLASSES * WIDTH, 1.1), 0.5);
        let contrast = Contrast { texts: &texts, classes: CLASSES, width: WIDTH, tau };
        let (size, scale) = (EACH * WIDTH, 1.0 / (CLASSES * EACH) as f64);
        let mut slope = vec![0.0; features.len()];
        let rows = features.chunks_exact(size).zip(slope.chunks_exact_mut(size));
        let value: f64 = rows.enumerate().map(|(c, (rows, slope))| contrast.add(rows, c, scale, slope)).sum();
        let want = by_pairs(&features, &texts, tau);
        assert!((value - want).abs() < 1e-6, "{value} {want}");
        for i in 0..features.len() {
            let at = |h: f32| {
                let mut moved = features.clone();
                moved[i] += h;
                by_pairs(&moved, &texts, tau)
            };
            let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((f64::from(slope[i]) - numeric).abs() < 1e-4, "{i}: {}, {numeric}", slope[i]);
        }
    }
}
