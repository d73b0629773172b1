//! Noise on features: how a client's features spread within their classes, measured once a round, and draws of that
//! shape.

use crate::error::{Error, Result};
use crate::fl::objective::Sums;
use crate::fl::{Here, Named, Statistic, Tap};
use crate::key::{Key, Purpose};
use crate::nn::Params;

/// Measures `Σ = Σ_c n_c Σ_c / Σ_c n_c`, `Σ_c` a class's unbiased covariance (0 for a single image), and finds its
/// factor: the lower triangle L `(features, features)` with `L Lᵀ = Σ`.
pub struct Spread {
    /// Under which name L is found.
    pub name: &'static str,
}

impl Statistic for Spread {
    fn taps(&self) -> &[Tap] {
        &[Tap::Feature]
    }

    /// Keeps all features: two passes over them lose no digits.
    fn add(&self, at: &Here<'_>, sums: &mut Sums) -> Result<()> {
        sums.entry("feature".into()).or_default().extend(at.feature.iter().map(|&v| f64::from(v)));
        sums.entry("label".into()).or_default().extend(at.y.iter().map(|&y| f64::from(y)));
        Ok(())
    }

    fn close(&self, sums: Sums) -> Result<Named> {
        let of = |name: &str| sums.get(name).map_or(&[][..], Vec::as_slice);
        let (features, labels) = (of("feature"), of("label"));
        let d = features.len() / labels.len().max(1);
        let mut covariance = vec![0.0; d * d];
        let classes = labels.iter().fold(0, |most, &y| most.max(y as usize + 1));
        for class in 0..classes {
            let rows = features.chunks_exact(d).zip(labels).filter(|(_, y)| **y as usize == class).map(|(h, _)| h);
            scatter(rows.collect::<Vec<_>>().as_slice(), d, &mut covariance);
        }
        covariance.iter_mut().for_each(|v| *v /= labels.len() as f64);
        let factor: Vec<f32> = cholesky(covariance, d).into_iter().map(|v| v as f32).collect();
        Ok(Named::from([(self.name.to_string(), Params::tensor(self.name, &[d, d], factor)?)]))
    }
}

/// Adds `n Σ` of `n` rows of width `d` to the lower triangle of `out`.
fn scatter(rows: &[&[f64]], d: usize, out: &mut [f64]) {
    if rows.len() < 2 {
        return;
    }
    let n = rows.len() as f64;
    let mean: Vec<f64> = (0..d).map(|i| rows.iter().map(|row| row[i]).sum::<f64>() / n).collect();
    let mut off = vec![0.0; d];
    for row in rows {
        off.iter_mut().zip(row.iter().zip(&mean)).for_each(|(o, (v, m))| *o = v - m);
        for i in 0..d {
            let scale = off[i] * n / (n - 1.0);
            out[i * d..=i * d + i].iter_mut().zip(&off).for_each(|(o, v)| *o += scale * v);
        }
    }
}

/// The lower factor of a positive semidefinite matrix, of which the lower triangle is read. Where images are fewer than
/// features, most pivots are 0 but for rounding: their columns are left 0.
fn cholesky(mut a: Vec<f64>, d: usize) -> Vec<f64> {
    let floor = 1e-12 * (0..d).map(|i| a[i * d + i]).fold(0.0, f64::max);
    for j in 0..d {
        let (above, below) = a.split_at_mut((j + 1) * d);
        let row = &mut above[j * d..];
        let pivot = row[j] - row[..j].iter().map(|v| v * v).sum::<f64>();
        let root = if pivot > floor { pivot.sqrt() } else { 0.0 };
        row[j] = root;
        row[j + 1..].fill(0.0);
        for other in below.chunks_exact_mut(d) {
            let product: f64 = other[..j].iter().zip(&row[..j]).map(|(x, y)| x * y).sum();
            other[j] = if root > 0.0 { (other[j] - product) / root } else { 0.0 };
        }
    }
    a
}

/// Adds `L ε`, ε standard normal, to a row of label y with probability `1 − n_y / max n`: rarer classes more often.
///
/// `factor` is L `(features, features)`; every row has draws of its own.
pub fn blurred(at: &Here<'_>, factor: &Params, key: Key) -> Result<Vec<f32>> {
    let d = at.features;
    if factor.data().len() != d * d {
        return Err(Error::defect(format!("balancefl: {} values for ({d}, {d}) of noise", factor.data().len())));
    }
    let most = f64::from(at.counts.iter().copied().max().unwrap_or(0).max(1));
    let mut out = at.feature.to_vec();
    let mut normal = vec![0.0f32; d];
    for (i, (row, &y)) in out.chunks_exact_mut(d).zip(at.y).enumerate() {
        let mut rng = key.fold(Purpose::Noise, i as u64).rng();
        let own = at.counts.get(y as usize).map_or(most, |&n| f64::from(n));
        if rng.f64() >= 1.0 - own / most {
            continue;
        }
        normal.iter_mut().for_each(|v| *v = rng.normal() as f32);
        for (j, (value, line)) in row.iter_mut().zip(factor.data().chunks_exact(d)).enumerate() {
            *value += line[..=j].iter().zip(&normal).map(|(l, e)| l * e).sum::<f32>();
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::fl::Objective;
    use crate::fl::objective::check::Made;

    /// Hands what it is shown to a statistic.
    struct Shown<'s>(&'s Spread, Mutex<Sums>);

    impl Objective for Shown<'_> {
        fn add(&self, at: &mut Here<'_>) -> Result<f64> {
            self.0.add(at, &mut self.1.lock().unwrap())?;
            Ok(0.0)
        }
    }

    fn factor(made: &Made) -> Vec<f64> {
        let shown = Shown(&Spread { name: "noise" }, Mutex::default());
        made.run(&shown);
        let found = Spread { name: "noise" }.close(shown.1.into_inner().unwrap()).unwrap();
        found["noise"].data().iter().map(|v| f64::from(*v)).collect()
    }

    /// numpy's `cov` of every class, weighted by its images: `E[hhᵀ] − E[h]E[h]ᵀ` times n/(n−1).
    fn covariance(made: &Made, d: usize) -> Vec<f64> {
        let mut out = vec![0.0; d * d];
        let h = |row: usize, i: usize| f64::from(made.feature[row * d + i]);
        for class in 0..made.classes as u32 {
            let rows: Vec<usize> = (0..made.y.len()).filter(|&r| made.y[r] == class).collect();
            let n = rows.len() as f64;
            for (i, j) in (0..d).flat_map(|i| (0..d).map(move |j| (i, j))).filter(|_| n > 1.0) {
                let mean = |f: &dyn Fn(usize) -> f64| rows.iter().map(|&r| f(r)).sum::<f64>() / n;
                let both = mean(&|r| h(r, i) * h(r, j)) - mean(&|r| h(r, i)) * mean(&|r| h(r, j));
                out[i * d + j] += both * n / (n - 1.0) * n / made.y.len() as f64;
            }
        }
        out
    }

    fn assert_factor(made: &Made, d: usize) {
        let (l, want) = (factor(made), covariance(made, d));
        for (i, j) in (0..d).flat_map(|i| (0..d).map(move |j| (i, j))) {
            let got: f64 = (0..d).map(|k| l[i * d + k] * l[j * d + k]).sum();
            assert!((got - want[i * d + j]).abs() < 1e-6, "{i} {j}: {got} {}", want[i * d + j]);
            assert!(j <= i || l[i * d + j] == 0.0);
        }
    }

    #[test]
    fn the_factor_is_that_of_the_weighted_mean_of_class_covariances() {
        assert_factor(&Made::new(&[0, 1, 1, 0, 1, 2, 0, 1], 3, 2), 2);
        // Fewer images than features: rank three of six.
        assert_factor(&Made::new(&[0, 1, 1, 0, 1, 2], 3, 6), 6);
    }

    #[test]
    fn images_of_one_each_have_no_spread() {
        assert!(factor(&Made::new(&[0, 1, 2], 3, 4)).iter().all(|v| *v == 0.0));
    }

    /// Looks at the noise instead of a loss.
    struct Blur(Mutex<Vec<f32>>);

    impl Objective for Blur {
        fn add(&self, at: &mut Here<'_>) -> Result<f64> {
            *self.0.lock().unwrap() = blurred(at, at.slot(0)?, at.key)?;
            Ok(0.0)
        }
    }

    #[test]
    fn noise_has_the_measured_covariance_and_falls_on_a_class_as_often_as_it_is_rare() {
        let (rows, mut y) = (40_000, vec![1; 10_000]);
        y.resize(rows, 0);
        let mut made = Made::new(&y, 2, 2);
        made.feature = vec![0.0; 2 * rows];
        made.slots = vec![Params::tensor("noise", &[2, 2], vec![2.0, 0.0, -1.0, 0.5]).unwrap()];
        let blur = Blur(Mutex::default());
        made.run(&blur);
        let noise = blur.0.into_inner().unwrap();
        let (rare, common) = noise.split_at(20_000);
        assert!(common.iter().all(|v| *v == 0.0), "the largest class is left alone");
        let hit: Vec<&[f32]> = rare.chunks(2).filter(|h| h[0] != 0.0).collect();
        assert!((hit.len() as f64 / 10_000.0 - (1.0 - 10.0 / 30.0)).abs() < 0.02, "{}", hit.len());
        let mean = |i: usize, j: usize| hit.iter().map(|h| f64::from(h[i] * h[j])).sum::<f64>() / hit.len() as f64;
        for (i, j, want) in [(0, 0, 4.0), (0, 1, -2.0), (1, 1, 1.25)] {
            assert!((mean(i, j) - want).abs() < 0.15, "{i} {j}: {} {want}", mean(i, j));
        }
    }
}
