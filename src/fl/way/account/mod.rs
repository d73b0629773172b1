//! What Gaussian noise on sums over random cohorts costs: ε for a δ, after so many rounds.
//!
//! [`rdp`] bounds Rényi divergences and turns them into ε; [`prv`] follows the privacy loss's whole distribution, and is
//! tighter. Both are of the Poisson-sampled Gaussian mechanism, for adding or leaving out one client.
//! `tests/golden/dp` holds dp-accounting's values.

pub mod prv;
pub mod rdp;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How ε is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Accountant {
    /// By Rényi divergences (Mironov et al., 2019): quick, an upper bound.
    #[default]
    Rdp,
    /// By the privacy loss's distribution (Gopi et al., NeurIPS 2021): nearly exact.
    Prv,
}

/// ε at `delta` after `rounds`, each a sum over clients drawn at `rate` with noise of `multiplier` times the clip's norm.
pub fn epsilon(accountant: Accountant, rate: f64, multiplier: f64, rounds: usize, delta: f64) -> Result<f64> {
    let fits = (0.0..=1.0).contains(&rate) && multiplier > 0.0 && delta > 0.0 && delta < 1.0;
    if !fits {
        let text = format!("privacy accountant: rate {rate}, multiplier {multiplier}, delta {delta}");
        return Err(Error::defect(text));
    }
    if rounds == 0 || rate == 0.0 {
        return Ok(0.0);
    }
    match accountant {
        Accountant::Rdp => Ok(rdp::epsilon(rate, multiplier, rounds, delta)),
        Accountant::Prv => prv::epsilon(rate, multiplier, rounds, delta),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    struct Golden {
        rate: f64,
        multiplier: f64,
        rounds: usize,
        delta: f64,
        rdp: f64,
        rdp_whole: f64,
        pld: f64,
    }

    #[derive(Deserialize)]
    struct Divergence {
        rate: f64,
        multiplier: f64,
        order: f64,
        divergence: f64,
    }

    #[derive(Deserialize)]
    struct Reference {
        cases: Vec<Golden>,
        divergences: Vec<Divergence>,
    }

    /// `tests/golden/dp/accountants.py` with dp-accounting.
    fn golden() -> Reference {
        serde_json::from_str(include_str!("../../../../tests/golden/dp/accountants.json")).unwrap()
    }

    #[test]
    fn renyis_epsilon_is_dp_accountings() {
        for g in golden().cases {
            let whole = (2..64).map(f64::from).chain([128.0, 256.0, 512.0, 1024.0]);
            let own = rdp::least(whole, g.rate, g.multiplier, g.rounds, g.delta);
            let at = format!("q {} z {} T {}", g.rate, g.multiplier, g.rounds);
            assert!((own - g.rdp_whole).abs() < 1e-3, "{at}: {own} {}", g.rdp_whole);
            // Over all orders the reference is an upper bound.
            let own = epsilon(Accountant::Rdp, g.rate, g.multiplier, g.rounds, g.delta).unwrap();
            assert!(own < g.rdp + 1e-3 && own > g.pld, "{at}: {own} {} {}", g.rdp, g.pld);
        }
    }

    #[test]
    fn divergences_at_orders_that_are_not_whole_are_the_integrals() {
        for d in golden().divergences {
            let own = rdp::divergence(d.rate, d.multiplier, d.order);
            assert!((own / d.divergence - 1.0).abs() < 1e-6, "{} {} {}: {own}", d.rate, d.multiplier, d.order);
        }
    }

    #[test]
    fn the_loss_distributions_epsilon_is_dp_accountings() {
        for g in golden().cases {
            let own = epsilon(Accountant::Prv, g.rate, g.multiplier, g.rounds, g.delta).unwrap();
            assert!((own - g.pld).abs() < 1e-3, "q {} z {} T {}: {own} {}", g.rate, g.multiplier, g.rounds, g.pld);
        }
    }

    #[test]
    fn nothing_costs_nothing_and_more_costs_more() {
        for accountant in [Accountant::Rdp, Accountant::Prv] {
            let cost = |rate, rounds| epsilon(accountant, rate, 1.0, rounds, 1e-5).unwrap();
            assert_eq!((cost(0.5, 0), cost(0.0, 9)), (0.0, 0.0));
            assert!(cost(0.1, 10) < cost(0.2, 10) && cost(0.1, 10) < cost(0.1, 20));
        }
    }
}
