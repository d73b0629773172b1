//! Losses in closed form on logits: value and gradient, deterministic sums in f64.

use crate::error::{Error, Result};

/// Row-wise softmax of `logits`, `(rows, classes)`, into `out` of the same size.
pub fn softmax(logits: &[f32], classes: usize, out: &mut Vec<f32>) {
    out.clear();
    out.extend_from_slice(logits);
    for row in out.chunks_mut(classes) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut sum = 0.0f64;
        for v in row.iter_mut() {
            *v = (*v - top).exp();
            sum += f64::from(*v);
        }
        for v in row.iter_mut() {
            *v = (f64::from(*v) / sum) as f32;
        }
    }
}

/// Cross-entropy `mean_i −log softmax(z_i)[y_i]`.
///
/// `gradient` gets `(softmax(z_i) − e_{y_i}) · scale / rows` added, `(rows, classes)`; the mean loss is returned.
pub fn cross_entropy(logits: &[f32], labels: &[u32], classes: usize, scale: f32, gradient: &mut [f32]) -> Result<f64> {
    entropies(logits, labels, &|_| 1.0, classes, scale, gradient)
}

/// `mean_i v_i` of losses `(rows,)` that are known already; `gradient` gets `1 / rows` added, `(rows,)`.
pub fn mean(values: &[f32], gradient: &mut [f32]) -> Result<f64> {
    check("mean loss", values.len(), gradient.len(), 1)?;
    let rows = values.len().max(1) as f64;
    gradient.iter_mut().for_each(|g| *g += (1.0 / rows) as f32);
    Ok(values.iter().map(|&v| f64::from(v)).sum::<f64>() / rows)
}

/// `mean_i −w_i log softmax(z_i)[y_i]`, `weights` `(rows,)`; the mean is over rows, not over the weights' sum.
///
/// `gradient` gets `(softmax(z_i) − e_{y_i}) · w_i · scale / rows` added, `(rows, classes)`. With weights of 1 every
/// byte is [`cross_entropy`]'s.
pub fn weighted_cross_entropy(
    logits: &[f32],
    labels: &[u32],
    weights: &[f64],
    classes: usize,
    scale: f32,
    gradient: &mut [f32],
) -> Result<f64> {
    if weights.len() != labels.len() {
        return Err(Error::defect(format!("cross-entropy: {} weights for {} rows", weights.len(), labels.len())));
    }
    entropies(logits, labels, &|i| weights[i], classes, scale, gradient)
}

fn entropies(
    logits: &[f32],
    labels: &[u32],
    weight: &dyn Fn(usize) -> f64,
    classes: usize,
    scale: f32,
    gradient: &mut [f32],
) -> Result<f64> {
    let rows = labels.len();
    check("cross-entropy", logits.len(), rows, classes)?;
    let mut total = 0.0;
    for (i, (row, &label)) in logits.chunks(classes).zip(labels).enumerate() {
        let (label, weight) = (class(label, classes)?, weight(i));
        let lse = log_sum_exp(row);
        total += weight * (lse - f64::from(row[label]));
        let step = weight * (f64::from(scale) / rows as f64);
        for (c, (g, &z)) in gradient[i * classes..(i + 1) * classes].iter_mut().zip(row).enumerate() {
            let hit = if c == label { 1.0 } else { 0.0 };
            *g += (((f64::from(z) - lse).exp() - hit) * step) as f32;
        }
    }
    Ok(total / rows.max(1) as f64)
}

/// `log softmax(z_i)[y_i]`, `(rows,)`.
pub fn log_likelihoods(logits: &[f32], labels: &[u32], classes: usize) -> Result<Vec<f64>> {
    check("log-likelihood", logits.len(), labels.len(), classes)?;
    let own = |(row, &y): (&[f32], &u32)| Ok(f64::from(row[class(y, classes)?]) - log_sum_exp(row));
    logits.chunks(classes.max(1)).zip(labels).map(own).collect()
}

fn class(label: u32, classes: usize) -> Result<usize> {
    let label = label as usize;
    if label < classes {
        return Ok(label);
    }
    Err(Error::defect(format!("cross-entropy: label {label} of {classes} classes")))
}

/// `mean_i w_i KL(q_i ‖ softmax(z_i / T))`, `KL(q‖p) = Σ_c q_c log(q_c/p_c)`; rows of `q` sum to 1.
///
/// `gradient` gets `(softmax(z_i/T) − q_i) · w_i · scale / (T · rows)` added; the weighted mean is returned.
pub fn kl_divergence(
    logits: &[f32],
    q: &[f32],
    weights: &[f32],
    classes: usize,
    temperature: f32,
    scale: f32,
    gradient: &mut [f32],
) -> Result<f64> {
    let rows = weights.len();
    check("KL divergence", logits.len(), rows, classes)?;
    check("KL divergence, teacher", q.len(), rows, classes)?;
    let mut total = 0.0;
    let mut row = vec![0.0f32; classes];
    for (i, (z, q)) in logits.chunks(classes).zip(q.chunks(classes)).enumerate() {
        row.iter_mut().zip(z).for_each(|(r, z)| *r = z / temperature);
        let lse = log_sum_exp(&row);
        let weight = f64::from(weights[i]);
        let step = weight * f64::from(scale) / (f64::from(temperature) * rows as f64);
        for ((g, &s), &q) in gradient[i * classes..(i + 1) * classes].iter_mut().zip(&row).zip(q) {
            let (log_p, q) = (f64::from(s) - lse, f64::from(q));
            if q > 0.0 {
                total += weight * q * (q.ln() - log_p);
            }
            *g += ((log_p.exp() - q) * step) as f32;
        }
    }
    Ok(total / rows.max(1) as f64)
}

/// `mean_i KL(softmax(t_i) ‖ softmax(z_i))` of two tables of logits, `(rows, classes)` each.
///
/// `gradient` gets `(softmax(z_i) − softmax(t_i)) / rows` added; where a row of both is the same, exactly 0.
pub fn kl_of_logits(logits: &[f32], teacher: &[f32], classes: usize, gradient: &mut [f32]) -> Result<f64> {
    let rows = logits.len() / classes.max(1);
    check("KL of logits", logits.len(), rows, classes)?;
    check("KL of logits, teacher", teacher.len(), rows, classes)?;
    let mut total = 0.0;
    let all = logits.chunks(classes).zip(teacher.chunks(classes)).zip(gradient.chunks_mut(classes));
    for ((z, t), gradient) in all {
        let (lse_z, lse_t) = (log_sum_exp(z), log_sum_exp(t));
        for ((g, &z), &t) in gradient.iter_mut().zip(z).zip(t) {
            let (log_p, log_q) = (f64::from(z) - lse_z, f64::from(t) - lse_t);
            total += log_q.exp() * (log_q - log_p);
            *g += ((log_p.exp() - log_q.exp()) / rows as f64) as f32;
        }
    }
    Ok(total / rows.max(1) as f64)
}

/// `log Σ_c exp z_c`.
pub fn log_sum_exp(row: &[f32]) -> f64 {
    let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    f64::from(top) + row.iter().map(|&z| f64::from(z - top).exp()).sum::<f64>().ln()
}

fn check(op: &str, len: usize, rows: usize, classes: usize) -> Result<()> {
    if len == rows * classes {
        return Ok(());
    }
    Err(Error::defect(format!("{op}: {len} values for ({rows}, {classes})")))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Central differences of `f` at `z`.
    fn numeric(z: &[f32], f: impl Fn(&[f32]) -> f64) -> Vec<f64> {
        (0..z.len())
            .map(|i| {
                let at = |h: f32| {
                    let mut moved = z.to_vec();
                    moved[i] += h;
                    f(&moved)
                };
                (at(1e-2) - at(-1e-2)) / 2e-2
            })
            .collect()
    }

    fn close(a: &[f32], b: &[f64]) {
        for (a, b) in a.iter().zip(b) {
            assert!((f64::from(*a) - b).abs() < 2e-5, "{a} {b}");
        }
    }

    const Z: [f32; 6] = [0.3, -1.2, 2.0, 0.1, 0.1, -0.4];

    #[test]
    fn cross_entropy_of_equal_logits_is_log_classes_and_its_gradient_matches_differences() {
        let mut g = [0.0; 6];
        let loss = cross_entropy(&[0.0; 6], &[0, 2], 3, 1.0, &mut g).unwrap();
        assert!((loss - 3f64.ln()).abs() < 1e-12);
        let mut g = [0.0; 6];
        cross_entropy(&Z, &[2, 0], 3, 1.0, &mut g).unwrap();
        close(&g, &numeric(&Z, |z| cross_entropy(z, &[2, 0], 3, 1.0, &mut [0.0; 6]).unwrap()));
    }

    #[test]
    fn a_weight_counts_like_so_many_rows_and_weights_of_one_change_no_byte() {
        let (mut plain, mut ones, mut doubled) = ([0.0; 6], [0.0; 6], [0.0; 6]);
        let value = cross_entropy(&Z, &[2, 0], 3, 1.0, &mut plain).unwrap();
        assert_eq!(value, weighted_cross_entropy(&Z, &[2, 0], &[1.0, 1.0], 3, 1.0, &mut ones).unwrap());
        assert_eq!(plain, ones);
        let got = weighted_cross_entropy(&Z, &[2, 0], &[3.0, 0.0], 3, 1.0, &mut doubled).unwrap();
        let lone = cross_entropy(&Z[..3], &[2], 3, 1.5, &mut [0.0; 3]).unwrap();
        assert!((got - 1.5 * lone).abs() < 1e-12 && doubled[3..] == [0.0; 3]);
        close(&doubled, &plain.map(|g| 3.0 * f64::from(g))[..3]);
        assert!((log_likelihoods(&Z[..3], &[2], 3).unwrap()[0] + lone).abs() < 1e-12);
    }

    #[test]
    fn kl_to_itself_is_zero_and_its_gradient_matches_differences() {
        let mut p = Vec::new();
        softmax(&Z.map(|z| z / 2.0), 3, &mut p);
        let own = kl_divergence(&Z, &p, &[1.0, 1.0], 3, 2.0, 1.0, &mut [0.0; 6]).unwrap();
        assert!(own.abs() < 1e-6);
        let (q, w) = ([0.7, 0.3, 0.0, 0.2, 0.2, 0.6], [0.5, 2.0]);
        let mut g = [0.0; 6];
        kl_divergence(&Z, &q, &w, 3, 2.0, 1.0, &mut g).unwrap();
        close(&g, &numeric(&Z, |z| kl_divergence(z, &q, &w, 3, 2.0, 1.0, &mut [0.0; 6]).unwrap()));
    }

    #[test]
    fn kl_of_logits_is_kl_of_their_softmax_and_nothing_where_both_are_equal() {
        let (teacher, mut q, mut g) = ([1.1, 0.2, -0.7, 3.0, 2.5, 2.0], Vec::new(), [0.0; 6]);
        softmax(&teacher, 3, &mut q);
        let kl = kl_of_logits(&Z, &teacher, 3, &mut g).unwrap();
        assert!((kl - kl_divergence(&Z, &q, &[1.0, 1.0], 3, 1.0, 1.0, &mut [0.0; 6]).unwrap()).abs() < 1e-6);
        close(&g, &numeric(&Z, |z| kl_of_logits(z, &teacher, 3, &mut [0.0; 6]).unwrap()));
        let mut none = [0.0; 6];
        assert_eq!((kl_of_logits(&Z, &Z, 3, &mut none).unwrap(), none), (0.0, [0.0; 6]));
    }

    #[test]
    fn a_label_out_of_range_is_an_error() {
        assert!(cross_entropy(&Z, &[0, 3], 3, 1.0, &mut [0.0; 6]).is_err());
    }
}
