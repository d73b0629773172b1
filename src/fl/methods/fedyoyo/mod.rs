//! FedYoYo: Yan, Li, Wu, Pang, Lu, Yan, Wang, *You Are Your Own Best Teacher: Achieving Centralized-level Performance in
//! Federated Learning under Heterogeneous and Long-tailed Data*, arXiv 2503.06916; equations as its published code
//! (`shanss132/FedYoYo`, `main_fedyoyo.py`) computes them.
//!
//! A round is two exchanges with one cohort. In the first each client sends effective numbers of its classes
//! ([`prior`]), and the server turns their sum into a prior π. In the second each client trains on a weak and a strong
//! view of the same images, in one forward of 2 B rows. Before step b (from 0), `π ← (1 − γ) π + γ n_k / Σ n_k`, from
//! the received π anew in each round, so `π_b = (1 − γ)^{b+1} π + (1 − (1 − γ)^{b+1}) n_k / Σ n_k`. With
//! `z̃ = z + log(π_b^τ + 1e-9)`,
//! `L = CE(z̃, y) over 2 B rows + λ min(r / warmup, 1) · mean KL(softmax(z̃_weak / T) ‖ softmax(z̃_strong / T))`;
//! the weak view is held fixed there, no T² appears, and the mean is over the images whose weak view is classified as
//! their label (0 where there are none). What is judged are the plain logits.
//!
//! λ is 4, as in the published script (the code's own default is 1.5). Its weak view also rotates by up to 15 degrees;
//! here it is the run's augmentation. It keeps the model that is best on test; here the last one counts.

mod objective;
mod prior;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::objective::Bootstrap;
use self::prior::{EFFECTIVE, Effective, MEANS, Means};
use crate::error::{Error, Result};
use crate::fl::{
    About, Algorithm, Bn, Brief, ClientId, Collect, Collected, Cost, Exchange, Feed, Job, Loss, Measure, Named, Needs,
    Now, Order, Outcome, Part, Reply, Sizes, Slot, Statistic, Step, Who,
};
use crate::nn::{Params, View};

const FIRST: &str = "prior";
const ESTIMATE: &str = "estimate";
const PRIOR: &str = "prior";

/// FedYoYo's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedYoYo {
    /// λ, weight of the weak view's teaching, ≥ 0.
    pub lambda: f32,
    /// T of its two softmaxes, > 0.
    pub temperature: f32,
    /// τ, exponent of the prior in the logits, ≥ 0; 0 for none.
    pub tau: f32,
    /// γ, share of the client's own frequencies that each step adds to the prior, in [0, 1].
    pub gamma: f32,
    /// Rounds until λ has its full weight; 0 for all from the start.
    pub warmup: usize,
    /// Share of the server's earlier estimate that stays in each round, in [0, 1).
    pub momentum: f32,
}

impl Default for FedYoYo {
    fn default() -> Self {
        FedYoYo { lambda: 4.0, temperature: 1.5, tau: 1.5, gamma: 0.1, warmup: 50, momentum: 0.9 }
    }
}

impl FedYoYo {
    /// What a client measures: class means of the features, then effective numbers around them.
    fn measures(now: &Now<'_>) -> Brief {
        let feed = Feed { batch_size: now.config.batch_size, view: View::Plain, ..Feed::default() };
        let measure = |what: Arc<dyn Statistic>| Measure {
            at: vec![0],
            feed: feed.clone(),
            bn: Bn::Running,
            repeats: 1,
            what,
        };
        let steps = vec![measure(Arc::new(Means)), measure(Arc::new(Effective { means: 1 }))];
        Brief::measure(steps, vec![Slot::Found(MEANS.into())])
    }

    fn training(&self, prior: Params, now: &Now<'_>) -> Brief {
        let mut train = Brief::training(now);
        let weak = Feed { view: View::Weak, ..train.feeds[0].clone() };
        let strong = Feed { view: View::Strong, order: Order::Paired, ..weak.clone() };
        train.feeds = vec![weak, strong];
        let ramp = if self.warmup == 0 { 1.0 } else { (now.round as f32 / self.warmup as f32).min(1.0) };
        let FedYoYo { lambda, temperature, tau, gamma, .. } = *self;
        let objective = Bootstrap { weight: lambda * ramp, temperature, tau, gamma, prior: 1 };
        train.loss = Loss::Open(vec![Arc::new(objective)]);
        let slots = vec![Slot::Known, Slot::Sent(PRIOR.into(), prior)];
        Brief { slots, steps: vec![Step::Train(train)] }
    }
}

impl Algorithm for FedYoYo {
    fn about(&self) -> About {
        let paper = "Yan et al., You Are Your Own Best Teacher, arXiv 2503.06916";
        About { paper, leaves: "effective numbers of the client's classes" }
    }

    fn needs(&self) -> Needs {
        Needs { classifier: true, paired: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        let FedYoYo { lambda, temperature, tau, gamma, momentum, .. } = *self;
        let finite = [lambda, temperature, tau].iter().all(|v| v.is_finite());
        if !(finite && lambda >= 0.0 && temperature > 0.0 && tau >= 0.0) {
            let found = format!("lambda {lambda} ≥ 0, temperature {temperature} > 0, tau {tau} ≥ 0");
            return Err(Error::input(format!("algorithm (fedyoyo): {found}")));
        }
        if !((0.0..=1.0).contains(&gamma) && (0.0..1.0).contains(&momentum)) {
            let found = format!("gamma {gamma} in [0, 1], momentum {momentum} in [0, 1)");
            return Err(Error::input(format!("algorithm (fedyoyo): {found}")));
        }
        Ok(())
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        let Sizes { model, classes, samples, epochs, forward, .. } = *sizes;
        Cost { down: model + classes, up: model + classes, extra: (2 + 3 * epochs) * samples * forward }
    }

    fn init(&self, _: &Params, now: &Now<'_>) -> Result<Named> {
        let classes = now.head()?.classes;
        let uniform = Params::tensor(PRIOR, &[classes], vec![1.0 / classes as f32; classes])?;
        Ok(Named::from([(PRIOR.to_string(), uniform)]))
    }

    fn exchanges(&self, _: &Named, _: &Now<'_>) -> Vec<Exchange> {
        vec![Exchange { name: FIRST, who: Who::Cohort, collect: Collect::Sum }, Exchange::TRAIN]
    }

    fn brief(&self, _: &Params, state: &Named, exchange: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        if exchange.name == FIRST {
            return Ok(FedYoYo::measures(now));
        }
        let prior = state.get(PRIOR).cloned().ok_or_else(|| Error::data("fedyoyo: the state has no prior"))?;
        Ok(self.training(prior, now))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        if job.exchange != FIRST {
            let weight = outcome.samples as f64;
            return Ok((Reply::model(job, outcome, weight), None));
        }
        // A client without images finds nothing.
        let classes = outcome.counts.len();
        let zeros = || Params::tensor(EFFECTIVE, &[classes], vec![0.0; classes]);
        let effective = outcome.found.get(EFFECTIVE).cloned().map_or_else(zeros, Ok)?;
        Ok((Reply::of(&outcome, vec![Part::value(EFFECTIVE, effective)]), None))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        _: &Now<'_>,
    ) -> Result<(Params, Named)> {
        if exchange.name != FIRST {
            return Ok((got.moved(model, crate::fl::brief::MODEL, 1.0)?, state.clone()));
        }
        let (sum, _) = got.sum(EFFECTIVE)?.total();
        let estimate = prior::estimate(state.get(ESTIMATE).map(Params::data), sum, f64::from(self.momentum));
        let total: f64 = estimate.iter().sum();
        let named = |name: &str, values: Vec<f32>| Ok((name.to_string(), Params::tensor(name, &[values.len()], values)?));
        let prior = estimate.iter().map(|g| (g / total) as f32).collect();
        let estimate = estimate.iter().map(|&g| g as f32).collect();
        Ok((model.clone(), [named(ESTIMATE, estimate), named(PRIOR, prior)].into_iter().collect::<Result<_>>()?))
    }
}
