//! A linear probe, which is multinomial logistic regression on frozen image features, fitted to the server set alone.
//! On a CLIP's it is a control ([`probe`]); on the compact model's it is where a classifier can start ([`head`]).
//!
//! `mean CE + λ/2 ‖W‖²` is convex; full-batch gradient descent with Nesterov's momentum runs a fixed number of steps
//! in f64, so the result is the minimum to far below a test image.

use crate::error::{Error, Result};
use crate::model::clip::embed::Features;

/// λ. Set once on a development seed of the demo, not swept.
const DECAY: f64 = 1e-3;
/// Steps of the descent.
const STEPS: usize = 2000;

/// Scores `(test, classes)` of the probe fitted to `train` with `labels` `(train,)`, each below `classes`.
pub fn probe(train: &Features, labels: &[u32], classes: usize, test: &Features) -> Result<Vec<f32>> {
    if train.rows() != labels.len() || train.dim != test.dim || labels.iter().any(|&y| y as usize >= classes) {
        return Err(Error::defect(format!(
            "probe: {} features of width {} for {} labels, tested on width {}",
            train.rows(),
            train.dim,
            labels.len(),
            test.dim
        )));
    }
    let weights = fit(train, labels, classes);
    let row = |i: usize| (0..classes).map(move |c| (i, c));
    let all = (0..test.rows()).flat_map(row);
    Ok(all.map(|(i, c)| score(&weights[c], test.row(i)) as f32).collect())
}

/// Weights `(classes, dim)` and biases `(classes,)` of the probe on a compact model's `features` `(n, dim)` with `labels`
/// `(n,)`, each below `classes`. Fitted to centred features of mean squared length 1, so that λ means the same for any
/// network; what is returned takes the features as they are.
pub fn head(features: &[f32], dim: usize, labels: &[u32], classes: usize) -> Result<(Vec<f32>, Vec<f32>)> {
    let n = labels.len();
    if n == 0 || features.len() != n * dim || labels.iter().any(|&y| y as usize >= classes) {
        return Err(Error::defect(format!("probe: {} values in rows of {dim} for {n} labels", features.len())));
    }
    let mean: Vec<f64> = (0..dim).map(|d| column(features, dim, d).sum::<f64>() / n as f64).collect();
    let square = |d: usize| column(features, dim, d).map(move |v| v * v).sum::<f64>() / n as f64 - mean[d] * mean[d];
    let scale = (0..dim).map(square).sum::<f64>().max(0.0).sqrt();
    if !scale.is_finite() || scale < 1e-12 {
        return Err(Error::input(format!("the server set's features spread by {scale}: no probe fits"))
            .hint("a pretraining that diverged? finetune.head_init = \"random\" does without"));
    }
    let centred = features.iter().enumerate().map(|(i, v)| ((f64::from(*v) - mean[i % dim]) / scale) as f32);
    let weights = fit(&Features { dim, data: centred.collect() }, labels, classes);
    let bias = |w: &Vec<f64>| (w[dim] - w.iter().zip(&mean).map(|(w, m)| w * m).sum::<f64>() / scale) as f32;
    let biases = weights.iter().map(bias).collect();
    Ok((weights.iter().flat_map(|w| &w[..dim]).map(|v| (v / scale) as f32).collect(), biases))
}

fn column(features: &[f32], dim: usize, d: usize) -> impl Iterator<Item = f64> + '_ {
    features.iter().skip(d).step_by(dim).map(|v| f64::from(*v))
}

/// The last weight is the bias.
fn score(weight: &[f64], x: &[f32]) -> f64 {
    weight.iter().zip(x).map(|(w, v)| w * f64::from(*v)).sum::<f64>() + weight[x.len()]
}

fn fit(train: &Features, labels: &[u32], classes: usize) -> Vec<Vec<f64>> {
    let width = train.dim + 1;
    let mut weights = vec![vec![0.0; width]; classes];
    let mut ahead = weights.clone();
    // Features of unit length (on average) and a bias: the gradient's Lipschitz constant is at most 2 · 1/2 + λ.
    let rate = 1.0 / (1.0 + DECAY);
    for step in 0..STEPS {
        let gradient = gradient(&ahead, train, labels);
        let momentum = step as f64 / (step as f64 + 3.0);
        for c in 0..classes {
            for i in 0..width {
                let next = ahead[c][i] - rate * gradient[c][i];
                ahead[c][i] = next + momentum * (next - weights[c][i]);
                weights[c][i] = next;
            }
        }
    }
    weights
}

fn gradient(weights: &[Vec<f64>], train: &Features, labels: &[u32]) -> Vec<Vec<f64>> {
    let mut out: Vec<Vec<f64>> = weights.iter().map(|w| w.iter().map(|v| DECAY * v).collect()).collect();
    for (out, weight) in out.iter_mut().zip(weights) {
        // The bias is not pulled to 0.
        out[train.dim] -= DECAY * weight[train.dim];
    }
    let n = labels.len().max(1) as f64;
    for (i, &label) in labels.iter().enumerate() {
        let x = train.row(i);
        let scores: Vec<f64> = weights.iter().map(|w| score(w, x)).collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
        for (c, out) in out.iter_mut().enumerate() {
            let error = ((scores[c] - highest).exp() / sum - f64::from(u8::from(label as usize == c))) / n;
            out.iter_mut().zip(x).for_each(|(g, v)| *g += error * f64::from(*v));
            out[x.len()] += error;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn features() -> (Features, Vec<u32>) {
        let data = vec![1.0, 0.1, 0.9, 0.3, 0.2, 1.0, -0.1, 1.0, -1.0, -0.2, -1.0, 0.1];
        (Features::new(2, data).unwrap(), vec![0, 0, 1, 1, 2, 2])
    }

    #[test]
    fn the_fit_is_where_the_gradient_vanishes() {
        let (x, y) = features();
        let weights = fit(&x, &y, 3);
        let worst = gradient(&weights, &x, &y).into_iter().flatten().fold(0.0f64, |m, g| m.max(g.abs()));
        assert!(worst < 1e-6, "{worst}");
    }

    /// Moved, scaled features have the same classifier in other numbers, and it is the fit of the centred ones.
    #[test]
    fn a_head_takes_features_as_they_are() {
        let (x, y) = features();
        let moved: Vec<f32> = x.data.iter().enumerate().map(|(i, v)| 40.0 * v + [3.0, -7.0][i % 2]).collect();
        let logits = |data: &[f32]| -> Vec<f32> {
            let (w, b) = head(data, 2, &y, 3).unwrap();
            data.chunks(2)
                .flat_map(|x| (0..3).map(|c| w[2 * c] * x[0] + w[2 * c + 1] * x[1] + b[c]).collect::<Vec<_>>())
                .collect()
        };
        let (plain, other) = (logits(&x.data), logits(&moved));
        assert!(plain.iter().zip(&other).all(|(a, b)| (a - b).abs() < 1e-3), "{plain:?} {other:?}");
        for (row, label) in plain.chunks(3).zip(&y) {
            assert!((0..3).all(|c| c as u32 == *label || row[c] < row[*label as usize] - 1.0), "{row:?}");
        }
        assert!(head(&[0.5; 12], 2, &y, 3).unwrap_err().to_string().contains("no probe fits"));
        assert!(head(&x.data, 2, &y[..5], 3).is_err());
    }

    #[test]
    fn separable_classes_are_told_apart_and_wrong_shapes_are_refused() {
        let (x, y) = features();
        let scores = probe(&x, &y, 3, &x).unwrap();
        for (row, label) in scores.chunks(3).zip(&y) {
            let top = (0..3).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
            assert_eq!(top as u32, *label);
        }
        assert!(probe(&x, &y[..3], 3, &x).is_err());
        assert!(probe(&x, &y, 2, &x).is_err());
    }
}
