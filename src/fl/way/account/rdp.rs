//! Rényi differential privacy of the Poisson-sampled Gaussian mechanism: Mironov, Talwar and Zhang, *Rényi Differential
//! Privacy of the Sampled Gaussian Mechanism*, 2019, section 3.3, at integer orders by its binomial sum and at others by
//! its two series, with their signs (dp-accounting 0.6
//! adds magnitudes there, an upper bound); to ε as Canonne, Kamath and Steinke (*The Discrete Gaussian*, NeurIPS 2020, Proposition 12) do.

use std::f64::consts::{LN_2, PI, SQRT_2};

/// The orders α that are tried: those of dp-accounting.
fn orders() -> impl Iterator<Item = f64> {
    let fine = (1..100).map(|x| 1.0 + f64::from(x) / 10.0);
    let whole = (11..64).map(f64::from);
    fine.chain(whole).chain([128.0, 256.0, 512.0, 1024.0])
}

/// ε at `delta` after `rounds`.
pub fn epsilon(rate: f64, multiplier: f64, rounds: usize, delta: f64) -> f64 {
    least(orders(), rate, multiplier, rounds, delta)
}

/// The least ε over some orders.
pub(super) fn least(orders: impl Iterator<Item = f64>, rate: f64, multiplier: f64, rounds: usize, delta: f64) -> f64 {
    let of = |order: f64| to_epsilon(order, rounds as f64 * divergence(rate, multiplier, order), delta);
    orders.map(of).fold(f64::INFINITY, f64::min)
}

/// ε at `delta` of a mechanism with this divergence at `order`.
fn to_epsilon(order: f64, divergence: f64, delta: f64) -> f64 {
    // Pinsker and Bretagnolle–Huber: so small a divergence keeps the total variation below δ.
    if delta * delta + (-divergence).exp_m1() > 0.0 {
        return 0.0;
    }
    let epsilon = divergence + (-1.0 / order).ln_1p() - (delta * order).ln() / (order - 1.0);
    epsilon.max(0.0)
}

/// The least ε with `P(loss > ε) ≤ tail` after `rounds`, by Chernoff's bound: how far a distribution of losses reaches.
pub fn reach(rate: f64, multiplier: f64, rounds: usize, tail: f64) -> f64 {
    let of = |order: f64| rounds as f64 * divergence(rate, multiplier, order) - tail.ln() / (order - 1.0);
    orders().map(of).fold(f64::INFINITY, f64::min)
}

/// The Rényi divergence of one round at `order`, above 1.
pub(super) fn divergence(rate: f64, multiplier: f64, order: f64) -> f64 {
    let variance = multiplier * multiplier;
    if rate == 1.0 {
        return order / (2.0 * variance);
    }
    let moment = match order.fract() == 0.0 {
        true => whole_moment(rate, variance, order),
        false => moment(rate, multiplier, order),
    };
    moment / (order - 1.0)
}

/// `ln(e^a + e^b)`.
fn log_add(a: f64, b: f64) -> f64 {
    let (most, least) = (a.max(b), a.min(b));
    if least == f64::NEG_INFINITY { most } else { most + (least - most).exp().ln_1p() }
}

/// `ln Σ_k C(α, k) (1 − q)^(α − k) q^k e^((k² − k) / 2σ²)`.
fn whole_moment(rate: f64, variance: f64, order: f64) -> f64 {
    let (mut sum, mut choose) = (f64::NEG_INFINITY, 0.0f64);
    let mut k = 0.0;
    while k <= order {
        let term = choose + k * rate.ln() + (order - k) * (-rate).ln_1p() + (k * k - k) / (2.0 * variance);
        sum = log_add(sum, term);
        choose += ((order - k) / (k + 1.0)).ln();
        k += 1.0;
    }
    sum
}

/// The same at an order that is not whole: an integral that is split where the two densities' terms are equal, each side
/// a series of Gaussian tails with signs.
fn moment(rate: f64, multiplier: f64, order: f64) -> f64 {
    let variance = multiplier * multiplier;
    let split = variance * (1.0 / rate - 1.0).ln() + 0.5;
    let (ln_q, ln_p) = (rate.ln(), (-rate).ln_1p());
    // Positive and negative terms apart.
    let (mut plus, mut minus) = (f64::NEG_INFINITY, f64::NEG_INFINITY);
    let (mut choose, mut negative, mut i) = (0.0f64, false, 0.0);
    loop {
        let j = order - i;
        let tail = |x: f64| log_erfc(x / (SQRT_2 * multiplier)) - LN_2;
        let lower = choose + i * ln_q + j * ln_p + (i * i - i) / (2.0 * variance) + tail(i - split);
        let upper = choose + j * ln_q + i * ln_p + (j * j - j) / (2.0 * variance) + tail(split - j);
        let both = log_add(lower, upper);
        match negative {
            true => minus = log_add(minus, both),
            false => plus = log_add(plus, both),
        }
        // Once i is past the order terms alternate and fall as i^−(α + 2): what is left is smaller than the last.
        if i > order && (both < plus - 32.0 || i > 1_000.0) {
            break;
        }
        let factor = (order - i) / (i + 1.0);
        choose += factor.abs().ln();
        negative ^= factor < 0.0;
        i += 1.0;
    }
    plus + (-(minus - plus).exp()).ln_1p()
}

/// `ln erfc(x)`, by its asymptotic series where erfc is too small for a number.
fn log_erfc(x: f64) -> f64 {
    if x < 20.0 {
        return libm::erfc(x).ln();
    }
    let r = 1.0 / (2.0 * x * x);
    let series = 1.0 - r * (1.0 - 3.0 * r * (1.0 - 5.0 * r * (1.0 - 7.0 * r)));
    -x * x - x.ln() - PI.ln() / 2.0 + series.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_between_integers_lie_on_the_curve_of_those() {
        for (rate, z) in [(0.01, 1.0), (0.2, 0.7), (0.5, 3.0)] {
            for order in [3.0, 8.0] {
                let near = moment(rate, z, order + 1e-7);
                let own = whole_moment(rate, z * z, order);
                assert!((near - own).abs() < 1e-5 * own.abs().max(1.0), "{rate} {z} {order}: {near} {own}");
            }
        }
    }

    #[test]
    fn the_series_of_small_tails_goes_on_from_the_function() {
        let by_function = libm::erfc(19.9f64).ln();
        assert!(
            (log_erfc(20.1) - (by_function - (20.1f64.powi(2) - 19.9f64.powi(2)) - (20.1f64 / 19.9).ln())).abs() < 1e-4
        );
        assert!(log_erfc(100.0).is_finite());
    }

    /// Without sampling: `α / 2σ²`, and ε in closed form.
    #[test]
    fn everybody_in_every_round_is_the_gaussian_mechanism() {
        assert_eq!(divergence(1.0, 2.0, 8.0), 1.0);
        assert!((divergence(1.0 - 1e-12, 2.0, 8.0) - 1.0).abs() < 1e-6);
    }
}
