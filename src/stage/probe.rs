//! Control: a linear probe, which is multinomial logistic regression on a frozen CLIP's image features, fitted to the
//! server set alone.
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

/// The last weight is the bias.
fn score(weight: &[f64], x: &[f32]) -> f64 {
    weight.iter().zip(x).map(|(w, v)| w * f64::from(*v)).sum::<f64>() + weight[x.len()]
}

fn fit(train: &Features, labels: &[u32], classes: usize) -> Vec<Vec<f64>> {
    let width = train.dim + 1;
    let mut weights = vec![vec![0.0; width]; classes];
    let mut ahead = weights.clone();
    // Unit features and a bias: the gradient's Lipschitz constant is at most 2 · 1/2 + λ.
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
