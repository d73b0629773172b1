//! Moments of features by class: what a client sums, what the server pools, and draws from.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::fl::{Collected, Here, Statistic, Sums, Tap};
use crate::key::Key;

/// Sums over a client's features: `moments/c` is n, `Σ h (d,)`, and the upper triangle of `Σ h hᵀ` row by row.
pub(super) struct Moments;

impl Statistic for Moments {
    fn taps(&self) -> &[Tap] {
        &[Tap::Feature]
    }

    fn add(&self, at: &Here<'_>, sums: &mut Sums) -> Result<()> {
        let d = at.features;
        for (&y, h) in at.y.iter().zip(at.feature.chunks(d.max(1))) {
            let sum = sums.entry(format!("moments/{y}")).or_insert_with(|| vec![0.0; numbers(d)]);
            let h: Vec<f64> = h.iter().map(|&v| f64::from(v)).collect();
            sum[0] += 1.0;
            sum[1..=d].iter_mut().zip(&h).for_each(|(s, v)| *s += v);
            let mut from = 1 + d;
            for i in 0..d {
                sum[from..from + d - i].iter_mut().zip(&h[i..]).for_each(|(s, v)| *s += h[i] * v);
                from += d - i;
            }
        }
        Ok(())
    }
}

/// Numbers of a class's moments for a feature of width `d`.
pub(super) fn numbers(d: usize) -> usize {
    1 + d + d * (d + 1) / 2
}

/// A class's features over all clients.
#[derive(Clone, Debug)]
pub struct Gaussian {
    /// Images.
    pub count: f64,
    /// `(d,)`.
    pub mean: Vec<f64>,
    /// `(d, d)`, with divisor n − 1.
    pub covariance: Vec<f64>,
}

/// The Gaussians of all classes that somebody holds, from the replies of the exchange `moments`; features of width `d`.
pub fn pooled(got: &Collected, d: usize) -> Result<BTreeMap<u32, Gaussian>> {
    let class = |name: &str| name.strip_prefix("moments/").and_then(|c| c.parse().ok());
    let mut classes = BTreeMap::new();
    for (name, sum) in &got.sums {
        let (total, _) = sum.total();
        let (Some(class), true) = (class(name), total.len() == numbers(d)) else {
            return Err(Error::defect(format!("ccvr: a part {name} of {} numbers", total.len())));
        };
        let count = total[0];
        let mean: Vec<f64> = total[1..=d].iter().map(|s| s / count).collect();
        let (mut covariance, mut second) = (vec![0.0; d * d], total[1 + d..].iter());
        for i in 0..d {
            for j in i..d {
                let second = second.next().copied().unwrap_or_default();
                let value = if count > 1.0 { (second - count * mean[i] * mean[j]) / (count - 1.0) } else { 0.0 };
                (covariance[i * d + j], covariance[j * d + i]) = (value, value);
            }
        }
        classes.insert(class, Gaussian { count, mean, covariance });
    }
    Ok(classes)
}

impl Gaussian {
    /// `n` draws of `N(μ, Σ + ridge I)`, `(n, d)`.
    pub fn draw(&self, n: usize, ridge: f64, key: Key) -> Vec<f32> {
        let d = self.mean.len();
        let (lower, mut rng) = (self.factor(ridge), key.rng());
        let mut out = Vec::with_capacity(n * d);
        for _ in 0..n {
            let noise: Vec<f64> = (0..d).map(|_| rng.normal()).collect();
            out.extend((0..d).map(|i| {
                let row = &lower[i * d..=i * d + i];
                (self.mean[i] + row.iter().zip(&noise).map(|(l, e)| l * e).sum::<f64>()) as f32
            }));
        }
        out
    }

    /// The lower triangular L with `L Lᵀ = Σ + ridge I`, `(d, d)`, column by column (Cholesky).
    ///
    /// What is left of a variance can only be the ridge or more. Where it is less than rounding of the sums explains
    /// (1e-6 of the largest mean square), the direction does not vary: its pivot is the ridge, its column empty.
    pub fn factor(&self, ridge: f64) -> Vec<f64> {
        let d = self.mean.len();
        let square = |i: usize| self.covariance[i * d + i] + self.mean[i] * self.mean[i];
        let noise = 1e-6 * (0..d).fold(0.0, |top: f64, i| top.max(square(i)));
        let mut lower = vec![0.0; d * d];
        for j in 0..d {
            let left = |i: usize, lower: &[f64]| {
                let (a, b) = (&lower[i * d..i * d + j], &lower[j * d..j * d + j]);
                self.covariance[i * d + j] - a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>()
            };
            let own = left(j, &lower);
            if own <= noise {
                lower[j * d + j] = ridge.sqrt();
                continue;
            }
            let pivot = (own + ridge).sqrt();
            lower[j * d + j] = pivot;
            for i in j + 1..d {
                lower[i * d + j] = left(i, &lower) / pivot;
            }
        }
        lower
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::reply::Wire;
    use crate::fl::{Collect, Part, Reply};
    use crate::fl::objective::check::Made;

    const D: usize = 3;

    /// Features of one class: correlated, with a mean of its own.
    fn features(n: usize, seed: u64) -> Vec<[f32; D]> {
        let mut rng = Key::from_seed(seed).rng();
        let mut row = || {
            let (a, b, c) = (rng.normal() as f32, rng.normal() as f32, rng.normal() as f32);
            [1.0 + a, 2.0 + 0.5 * a + b, -1.0 - a + 0.25 * b + 0.5 * c]
        };
        (0..n).map(|_| row()).collect()
    }

    /// What clients with these features of class 2 send, added up.
    fn sent(clients: &[&[[f32; D]]]) -> Collected {
        let mut got = Collected::default();
        for (k, rows) in clients.iter().enumerate() {
            let mut made = Made::new(&vec![2; rows.len()], 4, D);
            made.feature = rows.iter().flatten().copied().collect();
            let mut sums = Sums::new();
            made.look(&Moments, &mut sums);
            let parts = Moments.close(sums).unwrap().into_iter().map(|(n, p)| Part::value(n, p)).collect();
            let reply = Reply { parts, samples: rows.len(), loss: None, multiply_adds: 0, wire: Wire::default() };
            got.fold(k as u32, reply, Collect::Sum).unwrap();
        }
        got.close();
        got
    }

    /// Mean and covariance of all rows, in two passes.
    fn direct(rows: &[[f32; D]]) -> (Vec<f64>, Vec<f64>) {
        let n = rows.len() as f64;
        let mean: Vec<f64> = (0..D).map(|i| rows.iter().map(|r| f64::from(r[i])).sum::<f64>() / n).collect();
        let off = |r: &[f32; D], i: usize| f64::from(r[i]) - mean[i];
        let entry = |at: usize| rows.iter().map(|r| off(r, at / D) * off(r, at % D)).sum::<f64>() / (n - 1.0);
        (mean.clone(), (0..D * D).map(entry).collect())
    }

    fn close(got: &[f64], want: &[f64], tolerance: f64) {
        assert!(got.iter().zip(want).all(|(a, b)| (a - b).abs() < tolerance), "{got:?}, {want:?}");
    }

    #[test]
    fn pooled_moments_are_those_of_all_features_together() {
        let rows = features(40, 1);
        let got = pooled(&sent(&[&rows[..1], &rows[1..30], &[], &rows[30..]]), D).unwrap();
        let (mean, covariance) = direct(&rows);
        assert_eq!((got.len(), got[&2].count), (1, 40.0));
        close(&got[&2].mean, &mean, 1e-6);
        close(&got[&2].covariance, &covariance, 1e-5);
    }

    /// The spec's equation, from each client's own moments.
    #[test]
    fn pooled_covariance_is_equation_4_of_the_clients_covariances() {
        let rows = features(30, 2);
        let clients = [&rows[..7], &rows[7..9], &rows[9..]];
        let got = pooled(&sent(&clients), D).unwrap();
        let (n, own) = (30.0, clients.map(direct));
        let mut want = vec![0.0; D * D];
        for (rows, (mean, covariance)) in clients.iter().zip(&own) {
            let m = rows.len() as f64;
            for (at, w) in want.iter_mut().enumerate() {
                *w += (m - 1.0) / (n - 1.0) * covariance[at] + m / (n - 1.0) * mean[at / D] * mean[at % D];
            }
        }
        let mean = &got[&2].mean;
        want.iter_mut().enumerate().for_each(|(at, w)| *w -= n / (n - 1.0) * mean[at / D] * mean[at % D]);
        close(&got[&2].covariance, &want, 1e-5);
    }

    #[test]
    fn one_image_has_no_covariance() {
        let got = pooled(&sent(&[&features(1, 3)]), D).unwrap();
        assert_eq!(got[&2].covariance, [0.0; D * D]);
    }

    #[test]
    fn the_factor_multiplies_back_to_the_covariance_and_its_ridge() {
        let (mean, covariance) = direct(&features(50, 4));
        let gaussian = Gaussian { count: 50.0, mean, covariance: covariance.clone() };
        let lower = gaussian.factor(0.01);
        let back = |at: usize| (0..D).map(|k| lower[at / D * D + k] * lower[at % D * D + k]).sum::<f64>();
        let want = |at: usize| covariance[at] + if at / D == at % D { 0.01 } else { 0.0 };
        close(&(0..D * D).map(back).collect::<Vec<_>>(), &(0..D * D).map(want).collect::<Vec<_>>(), 1e-12);
        assert!((0..D).all(|i| (i + 1..D).all(|j| lower[i * D + j] == 0.0)));
    }

    #[test]
    fn draws_have_the_mean_and_the_covariance() {
        let (mean, covariance) = direct(&features(50, 5));
        let gaussian = Gaussian { count: 50.0, mean: mean.clone(), covariance: covariance.clone() };
        let drawn = gaussian.draw(20_000, 1e-6, Key::from_seed(6));
        let rows: Vec<[f32; D]> = drawn.chunks(D).map(|r| [r[0], r[1], r[2]]).collect();
        let (m, c) = direct(&rows);
        close(&m, &mean, 0.05);
        close(&c, &covariance, 0.08);
    }

    /// Two images span one direction; rounding of the sums must not make more of the others.
    #[test]
    fn fewer_images_than_directions_are_drawn_along_the_line_between_them() {
        let rows = [[10.0, 20.0, 30.0], [10.1, 20.1, 29.7]];
        let gaussian = pooled(&sent(&[&rows]), D).unwrap().remove(&2).unwrap();
        for drawn in gaussian.draw(100, 1e-6, Key::from_seed(7)).chunks(D) {
            let t = (drawn[0] - 10.05) / 0.1;
            assert!(t.abs() < 5.0 && (drawn[1] - 20.05 - 0.1 * t).abs() < 0.05, "{drawn:?}");
            assert!((drawn[2] - 29.85 + 0.3 * t).abs() < 0.1, "{drawn:?}");
        }
    }
}
