//! The global prior: how many different images of a class the cohort has, judged by the features' directions.
//!
//! A client looks at its images batch by batch, plain and with running statistics. With μ_c its own mean feature of
//! class c, the n images of c in a batch have deviations d_i = h_i − μ_c and the mean cosine
//! `c = Σ_ij cos(d_i, d_j) / n²`, i = j included; the batch adds `1 / max(c, 1e-6)` to class c, or 1 for a single image.

use crate::error::Result;
use crate::fl::brief::SlotId;
use crate::fl::{Here, Statistic, Sums, Tap};

/// A client's mean features, found as `(classes · features,)`; zeros for classes that it lacks.
pub const MEANS: &str = "means";

/// A client's effective numbers, found as `(classes,)`.
pub const EFFECTIVE: &str = "effective";

/// Smallest mean cosine.
const FLOOR: f64 = 1e-6;

/// Sums above this are left out of the first estimate.
const WILD: f64 = 1e4;

/// An estimate that moves by more than so many times itself stays where it is.
const JUMP: f64 = 100.0;

/// Mean features by class.
pub struct Means;

impl Statistic for Means {
    fn taps(&self) -> &[Tap] {
        &[Tap::Feature]
    }

    fn add(&self, at: &Here<'_>, sums: &mut Sums) -> Result<()> {
        let d = at.features;
        let means = sums.entry(MEANS.to_string()).or_insert_with(|| vec![0.0; at.classes * d]);
        for (&y, h) in at.y.iter().zip(at.feature.chunks_exact(d)) {
            let n = f64::from(at.counts[y as usize].max(1));
            means[y as usize * d..][..d].iter_mut().zip(h).for_each(|(m, &v)| *m += f64::from(v) / n);
        }
        Ok(())
    }
}

/// Effective numbers by class.
pub struct Effective {
    /// The slot of [`MEANS`].
    pub means: SlotId,
}

impl Statistic for Effective {
    fn taps(&self) -> &[Tap] {
        &[Tap::Feature]
    }

    fn add(&self, at: &Here<'_>, sums: &mut Sums) -> Result<()> {
        let (d, means) = (at.features, at.slot(self.means)?.data());
        let effective = sums.entry(EFFECTIVE.to_string()).or_insert_with(|| vec![0.0; at.classes]);
        for (class, sum) in effective.iter_mut().enumerate() {
            let own = at.y.iter().zip(at.feature.chunks_exact(d)).filter(|(y, _)| **y as usize == class);
            let rows: Vec<&[f32]> = own.map(|(_, h)| h).collect();
            *sum += match rows.len() {
                0 => 0.0,
                1 => 1.0,
                _ => 1.0 / cosine(&rows, &means[class * d..][..d]).max(FLOOR),
            };
        }
        Ok(())
    }
}

/// The mean cosine of all pairs of deviations, `‖Σ d_i/‖d_i‖‖² / n²`; a deviation of length zero has no direction.
fn cosine(rows: &[&[f32]], mean: &[f32]) -> f64 {
    let mut sum = vec![0.0; mean.len()];
    for row in rows {
        let d: Vec<f64> = row.iter().zip(mean).map(|(&h, &m)| f64::from(h) - f64::from(m)).collect();
        let length = d.iter().map(|v| v * v).sum::<f64>().sqrt();
        if length > 0.0 {
            sum.iter_mut().zip(&d).for_each(|(s, v)| *s += v / length);
        }
    }
    sum.iter().map(|s| s * s).sum::<f64>() / (rows.len() * rows.len()) as f64
}

/// The server's estimate g from the cohort's summed effective numbers, s = 1 + `sum`, `(classes,)`.
///
/// At first g = s, with entries above 1e4 replaced by the mean of the others (by 1, if there is no other); then
/// g ← momentum · g + (1 − momentum) · s, except where that moves g by more than a hundred times itself.
pub fn estimate(before: Option<&[f32]>, sum: &[f64], momentum: f64) -> Vec<f64> {
    let now = sum.iter().map(|s| 1.0 + s);
    match before {
        None => {
            let (mean, n) = now.clone().filter(|s| *s <= WILD).fold((0.0, 0.0), |(sum, n), s| (sum + s, n + 1.0));
            let mean = if n > 0.0 { mean / n } else { 1.0 };
            now.map(|s| if s > WILD { mean } else { s }).collect()
        }
        Some(before) => {
            let moved = |(s, &g): (f64, &f32)| {
                let g = f64::from(g);
                let next = momentum * g + (1.0 - momentum) * s;
                if (next - g).abs() / (g + 1e-8) > JUMP { g } else { next }
            };
            now.zip(before).map(moved).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_directions_count_once_and_orthogonal_ones_as_often_as_they_are() {
        let mean = [1.0, 1.0, 1.0];
        let same: [&[f32]; 3] = [&[2.0, 1.0, 1.0], &[5.0, 1.0, 1.0], &[1.5, 1.0, 1.0]];
        assert!((cosine(&same, &mean) - 1.0).abs() < 1e-12);
        let orthogonal: [&[f32]; 3] = [&[2.0, 1.0, 1.0], &[1.0, 4.0, 1.0], &[1.0, 1.0, 0.5]];
        assert!((1.0 / cosine(&orthogonal, &mean) - 3.0).abs() < 1e-12);
        let opposite: [&[f32]; 2] = [&[2.0, 1.0, 1.0], &[0.0, 1.0, 1.0]];
        assert!(cosine(&opposite, &mean) < FLOOR);
    }

    #[test]
    fn the_mean_cosine_of_the_closed_form_is_that_of_all_pairs() {
        let rows: Vec<Vec<f32>> = (0..5).map(|i| (0..4).map(|j| ((i * 4 + j) as f32).sin()).collect()).collect();
        let (rows, mean): (Vec<&[f32]>, _) = (rows.iter().map(Vec::as_slice).collect(), [0.1, -0.2, 0.3, 0.0]);
        let d: Vec<Vec<f64>> =
            rows.iter().map(|r| r.iter().zip(mean).map(|(&h, m)| f64::from(h) - f64::from(m)).collect()).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let pair = |a: &[f64], b: &[f64]| dot(a, b) / (dot(a, a).sqrt() * dot(b, b).sqrt());
        let want: f64 = d.iter().flat_map(|a| d.iter().map(move |b| pair(a, b))).sum::<f64>() / 25.0;
        assert!((cosine(&rows, &mean) - want).abs() < 1e-12);
    }

    #[test]
    fn estimates_leave_out_wild_sums_at_first_and_wild_jumps_later() {
        assert_eq!(estimate(None, &[3.0, 1e6, 0.0], 0.9), [4.0, 2.5, 1.0]);
        assert_eq!(estimate(None, &[1e6, 1e5], 0.9), [1.0, 1.0]);
        let next = estimate(Some(&[4.0, 2.5, 1.0]), &[13.0, 1e6, 0.0], 0.9);
        assert!((next[0] - 5.0).abs() < 1e-12 && next[1] == 2.5 && (next[2] - 1.0).abs() < 1e-12, "{next:?}");
    }
}
