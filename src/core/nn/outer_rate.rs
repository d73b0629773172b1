//! The learning rate's factor over communication rounds, beside [`Schedule`](super::Schedule), which is over the steps of one
//! training.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What the first rounds' rate is where rounds warm up (`federated.first_rate`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum FirstRate {
    /// Never above the rate that is asked for.
    #[default]
    Clamped,
    /// As FedMLLM's script computes it: with fewer than 100 rounds the first one's is 1 / (0.01 rounds), twice the rate for 50.
    Reference,
}

/// Share of the rounds that warm up.
const WARM: f64 = 0.01;

/// The factor of a round, from 1, of `rounds`: it rises over the first hundredth of them, then falls as half a cosine, which
/// would be 0 one round after the last.
///
/// FedMLLM's script, t from 0 and w = 0.01 rounds: (t + 1) / w below w, else (1 + cos(π (t − w) / (rounds − w))) / 2.
pub fn outer_cosine(round: usize, rounds: usize, first: FirstRate) -> f32 {
    let (t, rounds) = (round.saturating_sub(1) as f64, rounds.max(1) as f64);
    let warm = WARM * rounds;
    let factor = match t < warm {
        true => (t + 1.0) / warm,
        false => 0.5 * (1.0 + (std::f64::consts::PI * ((t - warm) / (rounds - warm)).min(1.0)).cos()),
    };
    match first {
        FirstRate::Clamped => factor.min(1.0) as f32,
        FirstRate::Reference => factor as f32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rates that FedMLLM's script gives of 2e-5 over 50 rounds; its log shows the first.
    #[test]
    fn the_references_rates_are_met_and_clamping_changes_the_first_alone() {
        let published = [
            (0, 4e-5),
            (1, 2e-5),
            (5, 1.96e-5),
            (10, 1.82e-5),
            (20, 1.33e-5),
            (24, 1.08e-5),
            (39, 2.34e-6),
            (49, 2e-8),
        ];
        for (t, want) in published {
            let got = 2e-5 * f64::from(outer_cosine(t + 1, 50, FirstRate::Reference));
            assert!((got - want).abs() < 0.007 * want, "round {}: {got}, published {want}", t + 1);
        }
        assert_eq!(outer_cosine(1, 50, FirstRate::Clamped), 1.0);
        for round in 2..=50 {
            let of = |first| outer_cosine(round, 50, first);
            assert_eq!(of(FirstRate::Clamped), of(FirstRate::Reference));
        }
    }

    #[test]
    fn many_rounds_warm_up_and_the_factor_never_rises_afterwards() {
        let factors: Vec<f32> = (1..=1000).map(|round| outer_cosine(round, 1000, FirstRate::Clamped)).collect();
        assert!((factors[0] - 0.1).abs() < 1e-6 && (factors[9] - 1.0).abs() < 1e-6);
        assert!(factors[10..].windows(2).all(|w| w[1] < w[0]) && factors.iter().all(|f| (0.0..=1.0).contains(f)));
        assert_eq!(outer_cosine(1, 1, FirstRate::Clamped), 1.0);
    }
}
