//! FedIR: Hsu, Qi and Brown, *Federated Visual Classification with Real-World Data Distribution*, ECCV 2020:
//! each client minimises `mean_i (p(y_i) / q_k(y_i)) CE_i`, with q_k its own class shares and p the target's; FedAvg at
//! the server.
//!
//! `prior = "global"`: p is the share of a class in all clients' images, so the clients send their counts once and C
//! numbers come with every brief. `prior = "uniform"`: p = 1/C, and nothing is asked. `normalised = true` divides by
//! the batch's sum of weights (self-normalised importance sampling) in place of its rows. A class that the client does
//! not hold never divides: it has no image to weigh. Where p = q_k it is cross-entropy, byte for byte.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::prior;
use crate::error::{Error, Result};
use crate::fl::{
    About, Algorithm, Brief, ClientId, Collected, Cost, Exchange, Here, Job, Named, Needs, Now, Objective, Outcome,
    Reply, Sizes,
};
use crate::nn::{Params, loss};

/// Which class shares clients should train as if they had.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Target {
    /// Those of all clients together.
    #[default]
    Global,
    /// All classes alike.
    Uniform,
}

/// FedIR's knobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedIr {
    /// The target's class shares.
    pub prior: Target,
    /// Whether the batch's mean is over its weights' sum.
    pub normalised: bool,
}

/// `p(c) / q(c)` from counts, `(classes,)` each; 0 where the client holds none of a class.
fn ratios(target: &[f64], own: &[f64]) -> Vec<f64> {
    let (all, mine): (f64, f64) = (target.iter().sum(), own.iter().sum());
    // One division of exact products, so that equal shares give 1 exactly.
    target.iter().zip(own).map(|(t, n)| if *n > 0.0 && all > 0.0 { (t * mine) / (all * n) } else { 0.0 }).collect()
}

impl Objective for FedIr {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let target = match self.prior {
            Target::Global => prior::sent(at.slot(prior::SLOT)?),
            Target::Uniform => vec![1.0; at.classes],
        };
        let ratios = ratios(&target, &prior::own(at.counts));
        let weight = |&y: &u32| {
            let none = || Error::data(format!("fedir: the weights of class {y} are not known"));
            ratios.get(y as usize).copied().ok_or_else(none)
        };
        let mut weights = at.y.iter().map(weight).collect::<Result<Vec<f64>>>()?;
        let sum: f64 = weights.iter().sum();
        if self.normalised && sum > 0.0 {
            let rows = at.rows() as f64;
            weights.iter_mut().for_each(|w| *w *= rows / sum);
        }
        loss::weighted_cross_entropy(at.logits, at.y, &weights, at.classes, 1.0, at.d_logits)
    }
}

impl FedIr {
    fn global(&self) -> bool {
        self.prior == Target::Global
    }
}

impl Algorithm for FedIr {
    fn about(&self) -> About {
        let leaves = if self.global() { prior::LEAVES } else { "" };
        About { paper: "Hsu et al., Federated Visual Classification with Real-World Data Distribution, ECCV 2020", leaves }
    }

    fn needs(&self) -> Needs {
        Needs { classifier: true, ..Needs::default() }
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        prior::cost(self.global(), sizes)
    }

    fn exchanges(&self, state: &Named, _: &Now<'_>) -> Vec<Exchange> {
        prior::exchanges(self.global(), state)
    }

    fn brief(&self, _: &Params, state: &Named, e: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        prior::brief(self.clone(), self.global(), state, e, now)
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        prior::reply(job, outcome)
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        e: &Exchange,
        got: &Collected,
        _: &Now<'_>,
    ) -> Result<(Params, Named)> {
        prior::server(model, state, e, got)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;

    fn made(counts: &[u32], all: &[f32]) -> Made {
        let slot = |data: &[f32]| Params::tensor("counts", &[data.len()], data.to_vec()).unwrap();
        Made { counts: counts.to_vec(), slots: vec![slot(&[]), slot(all)], ..Made::new(&[0, 2, 0, 1, 0], 4, 2) }
    }

    fn plain(made: &Made) -> (f64, Vec<f32>) {
        let mut gradient = vec![0.0; made.logits.len()];
        (loss::cross_entropy(&made.logits, &made.y, 4, 1.0, &mut gradient).unwrap(), gradient)
    }

    #[test]
    fn gradients_are_central_differences() {
        let made = made(&[3, 1, 1, 0], &[5.0, 9.0, 4.0, 2.0]);
        for prior in [Target::Global, Target::Uniform] {
            for normalised in [false, true] {
                made.differs_by(&FedIr { prior, normalised }, 5e-5, &[1, 2, 3]);
            }
        }
    }

    #[test]
    fn a_client_with_the_targets_shares_has_cross_entropy_to_the_bit() {
        let global = made(&[3, 1, 1, 0], &[21.0, 7.0, 7.0, 0.0]);
        let (value, gradients) = global.run(&FedIr::default());
        assert_eq!((value, gradients[0].clone()), plain(&global));
        let even = made(&[7, 7, 7, 7], &[1.0, 2.0, 3.0, 4.0]);
        let (value, gradients) = even.run(&FedIr { prior: Target::Uniform, ..FedIr::default() });
        assert_eq!((value, gradients[0].clone()), plain(&even));
    }

    #[test]
    fn weights_make_the_clients_shares_the_targets_and_absent_classes_get_none() {
        let (target, own) = ([20.0, 12.0, 6.0, 2.0], [3.0, 0.0, 1.0, 4.0]);
        let got = ratios(&target, &own);
        for (c, want) in [(0, 0.5 / 0.375), (1, 0.0), (2, 0.15 / 0.125), (3, 0.05 / 0.5)] {
            assert!((got[c] - want).abs() < 1e-12, "class {c}: {}", got[c]);
        }
    }

    #[test]
    fn normalised_weights_leave_a_batch_of_one_class_at_cross_entropy() {
        let mut made = made(&[5, 1, 1, 0], &[1.0, 50.0, 3.0, 4.0]);
        made.y = vec![0; 5];
        let got = made.run(&FedIr { normalised: true, ..FedIr::default() }).0;
        assert!((got - plain(&made).0).abs() < 1e-12);
    }
}
