//! Models drawn around the clients'.

use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::sum::add_weighted;
use crate::nn::{Params, Role};

/// `scale · √(Σ_k p_k (w_k − μ)²)` of every weight, in layout order.
pub fn deviation(mean: &Params, clients: &[(f64, Params)], scale: f32) -> Vec<f64> {
    let sum: f64 = clients.iter().map(|(n, _)| n).sum();
    let variance = |i: usize| {
        let square = |(n, client): &(f64, Params)| n * f64::from(client.data()[i] - mean.data()[i]).powi(2);
        clients.iter().map(square).sum::<f64>() / sum
    };
    let weights = mean.layout().ranges(Role::Weight).into_iter().flatten();
    weights.map(|i| f64::from(scale) * variance(i).sqrt()).collect()
}

/// `μ + σ ε` in the weights, μ in the buffers.
pub fn gaussian(mean: &Params, deviation: &[f64], noise: &[f64]) -> Params {
    let mut sample = mean.clone();
    let weights = mean.layout().ranges(Role::Weight).into_iter().flatten();
    let data = sample.data_mut();
    for (i, (d, e)) in weights.zip(deviation.iter().zip(noise)) {
        data[i] = (f64::from(data[i]) + d * e) as f32;
    }
    sample
}

/// A draw of γ from `Dir(α, …, α)`, each times its client's images where `by_size` says so.
pub fn shares(clients: &[(f64, Params)], alpha: f64, by_size: bool, key: Key) -> Vec<f64> {
    let gamma = key.rng().dirichlet(alpha, clients.len());
    gamma.iter().zip(clients).map(|(g, (n, _))| if by_size { g * n } else { *g }).collect()
}

/// `Σ_k s_k w_k / Σ_k s_k`, every entry of the state.
pub fn mixture(clients: &[(f64, Params)], shares: &[f64]) -> Result<Params> {
    let sum: f64 = shares.iter().sum();
    let (Some((_, first)), true) = (clients.first(), sum > 0.0) else {
        return Err(Error::data("fedbe: the clients of this round hold no samples"));
    };
    let models: Vec<&[f32]> = clients.iter().map(|(_, client)| client.data()).collect();
    let mut total = vec![0.0; first.data().len()];
    add_weighted(&mut total, shares, &models);
    Params::new(first.layout().clone(), total.iter().map(|t| (t / sum) as f32).collect::<Vec<f32>>())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::nn::Layout;

    fn model(data: [f32; 4]) -> Params {
        let mut layout = Layout::default();
        layout.push("a", &[2], Role::Weight).unwrap();
        layout.push("running_mean", &[1], Role::Buffer).unwrap();
        layout.push("b", &[1], Role::Weight).unwrap();
        Params::new(Arc::new(layout), data.to_vec()).unwrap()
    }

    /// Sizes 1, 2, 1: means (3, 0, 1, 1), variances of the weights (4.5, 0.5, 0).
    fn clients() -> (Params, Vec<(f64, Params)>) {
        let of = vec![
            (1.0, model([0.0, 1.0, 4.0, 1.0])),
            (2.0, model([3.0, 0.0, 0.0, 1.0])),
            (1.0, model([6.0, -1.0, 0.0, 1.0])),
        ];
        (model([3.0, 0.0, 1.0, 1.0]), of)
    }

    #[test]
    fn deviations_are_weighted_by_images_and_cover_the_weights_alone() {
        let (mean, of) = clients();
        let got = deviation(&mean, &of, 2.0);
        assert!(got.iter().zip([2.0 * 4.5f64.sqrt(), 2.0 * 0.5f64.sqrt(), 0.0]).all(|(a, b)| (a - b).abs() < 1e-12));
        let sample = gaussian(&mean, &got, &[1.0, -1.0, 5.0]);
        assert_eq!(sample.data(), &[3.0 + got[0] as f32, -got[1] as f32, 1.0, 1.0]);
    }

    #[test]
    fn without_deviation_every_draw_is_the_mean() {
        let (mean, of) = clients();
        let none = deviation(&mean, &of, 0.0);
        assert_eq!(gaussian(&mean, &none, &[3.0, -2.0, 1.0]).data(), mean.data());
        let same = vec![of[0].clone(), of[0].clone()];
        assert_eq!(deviation(&of[0].1, &same, 1.0), [0.0; 3]);
    }

    /// 4,000 mixtures; E γ_k n_k/Σ γ n has no simple form with unequal sizes, so sizes are left out: E = the plain mean,
    /// Var of γ_k = (1/K)(1 − 1/K)/(Kα + 1).
    #[test]
    fn mixtures_stay_among_the_clients_with_the_dirichlets_mean_and_variance() {
        let of: Vec<(f64, Params)> =
            (0..3).map(|k| (1.0, model(std::array::from_fn(|i| if i == k { 1.0 } else { 0.0 })))).collect();
        let n = 4000u32;
        let (mut sum, mut square) = (0.0, 0.0);
        for j in 0..u64::from(n) {
            let mixed = mixture(&of, &shares(&of, 0.5, false, Key::from_seed(j))).unwrap();
            let gamma = &mixed.data()[..3];
            assert!(gamma.iter().all(|g| *g >= 0.0) && (gamma.iter().sum::<f32>() - 1.0).abs() < 1e-5);
            sum += f64::from(gamma[0]);
            square += f64::from(gamma[0]).powi(2);
        }
        let (mean, square) = (sum / f64::from(n), square / f64::from(n));
        let variance = (1.0 / 3.0) * (2.0 / 3.0) / 2.5;
        assert!((mean - 1.0 / 3.0).abs() < 0.02, "{mean}");
        assert!((square - mean * mean - variance).abs() < 0.01, "{} for {variance}", square - mean * mean);
    }

    #[test]
    fn shares_are_weighted_by_images_unless_told_otherwise() {
        let (_, of) = clients();
        let key = Key::from_seed(2);
        let gamma = key.rng().dirichlet(0.5, 3);
        let got = mixture(&of, &shares(&of, 0.5, true, key)).unwrap();
        let weights = [gamma[0], 2.0 * gamma[1], gamma[2]];
        let want = (3.0 * weights[1] + 6.0 * weights[2]) / weights.iter().sum::<f64>();
        assert!((f64::from(got.data()[0]) - want).abs() < 1e-6);
    }
}
