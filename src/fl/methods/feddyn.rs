//! FedDyn: Acar et al., *Federated Learning Based on Dynamic Regularization*, ICLR 2021, Algorithm 1.
//!
//! Client: minimises `F_k(θ) − ⟨g_k, θ⟩ + α/2 ‖θ − w_t‖²`, then keeps `g_k ← g_k − α (θ_k − w_t)`. Server, over all N
//! clients: `h ← h − α/N Σ_{k in cohort} (θ_k − w_t)`, `w_{t+1} = mean(θ_k) − h / α`; the mean is uniform, and g and h are
//! zero at first. α → 0 is *not* FedAvg: h / α stays finite, and a first round with everybody gives `2 mean − w_0`.
//!
//! The published code differs: α_k = α · mean(n) / n_k at the clients (`alpha_scale = "size"`; the sizes are then asked
//! for once), and gradients clipped at norm 10, which is left out here. The terms cover the weights; batch-norm
//! statistics, of which the paper says nothing, are averaged uniformly. A client keeps a vector as large as the model;
//! nothing but the model leaves it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::{
    About, Algorithm, Brief, ClientId, Collect, Collected, Exchange, Job, Named, Needs, Now, Outcome, Part, Reply,
    Slot, Step, Who,
};
use crate::nn::{Params, Pull, Role};

const GRADIENT: &str = "g";
const SERVER: &str = "h";
const SIZES: &str = "sizes";

/// What a client's α is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum AlphaScale {
    /// α for everybody, as the paper writes.
    #[default]
    Constant,
    /// α times the mean client's size over its own, as the published code has it.
    Size,
}

/// FedDyn's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedDyn {
    /// Strength α > 0 of the regularisation.
    pub alpha: f32,
    /// What a client's α is.
    pub alpha_scale: AlphaScale,
}

impl Default for FedDyn {
    fn default() -> Self {
        FedDyn { alpha: 0.1, alpha_scale: AlphaScale::Constant }
    }
}

impl FedDyn {
    /// A client's α; a client without images has the plain one.
    fn alpha_of(&self, state: &Named, client: ClientId) -> Result<f32> {
        let Some(sizes) = state.get(SIZES).map(Params::data) else { return Ok(self.alpha) };
        let none = || Error::data(format!("feddyn: client {client}: {} sizes are known", sizes.len()));
        let own = *sizes.get(client as usize).ok_or_else(none)?;
        let holders = sizes.iter().filter(|n| **n > 0.0).count().max(1) as f64;
        let mean = sizes.iter().map(|&n| f64::from(n)).sum::<f64>() / holders;
        Ok(if own > 0.0 { (f64::from(self.alpha) * mean / f64::from(own)) as f32 } else { self.alpha })
    }

    /// The state with the sizes of all clients, `(clients,)`.
    fn sized(state: &Named, got: &Collected) -> Result<Named> {
        let size = |(_, reply): &(ClientId, Reply)| Ok(reply.part(SIZES)?.data.data().first().copied().unwrap_or(0.0));
        let sizes = got.each.iter().map(size).collect::<Result<Vec<f32>>>()?;
        let mut state = state.clone();
        state.insert(SIZES.into(), Params::tensor(SIZES, &[sizes.len()], sizes)?);
        Ok(state)
    }
}

impl Algorithm for FedDyn {
    fn about(&self) -> About {
        let leaves = match self.alpha_scale {
            AlphaScale::Constant => "",
            AlphaScale::Size => "how many images it holds, once",
        };
        About { paper: "Acar et al., Federated Learning Based on Dynamic Regularization, ICLR 2021", leaves }
    }

    fn needs(&self) -> Needs {
        Needs { kept: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        if self.alpha > 0.0 && self.alpha.is_finite() {
            return Ok(());
        }
        Err(Error::input(format!("algorithm.alpha = {}: choose a positive number", self.alpha))
            .hint("alpha = 0 is not FedAvg: the server divides by it"))
    }

    fn init(&self, model: &Params, _: &Now<'_>) -> Result<Named> {
        Ok(Named::from([(SERVER.to_string(), Params::zeros(model.layout().clone()))]))
    }

    fn exchanges(&self, state: &Named, _: &Now<'_>) -> Vec<Exchange> {
        match self.alpha_scale == AlphaScale::Size && !state.contains_key(SIZES) {
            true => vec![Exchange { name: SIZES, who: Who::All, collect: Collect::Each }, Exchange::TRAIN],
            false => vec![Exchange::TRAIN],
        }
    }

    fn brief(&self, model: &Params, state: &Named, e: &Exchange, now: &Now<'_>, client: ClientId) -> Result<Brief> {
        if e.name == SIZES {
            return Ok(Brief::default());
        }
        let mut train = Brief::training(now);
        let mu = self.alpha_of(state, client)?;
        train.pulls =
            vec![Pull::Proximal { mu, to: 0, over: None }, Pull::Linear { coefficient: -1.0, of: 1 }];
        Ok(Brief::train(train, vec![Slot::Kept(GRADIENT.into(), Params::zeros(model.layout().clone()))]))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        if job.exchange == SIZES {
            let size = Params::tensor(SIZES, &[1], vec![outcome.samples as f32])?;
            return Ok((Reply::of(&outcome, vec![Part::value(SIZES, size)]), None));
        }
        let alpha = match job.brief.steps.first() {
            Some(Step::Train(train)) => match train.pulls.first() {
                Some(Pull::Proximal { mu, .. }) => *mu,
                _ => return Err(Error::defect("feddyn: a brief without the proximal term")),
            },
            _ => return Err(Error::defect("feddyn: a brief without training")),
        };
        let mut gradient = job.slot(1, &outcome.found)?;
        let reply = Reply::model(job, outcome, 1.0);
        let step = &reply.part(MODEL)?.data;
        let data = gradient.data_mut();
        for range in step.layout().ranges(Role::Weight) {
            data[range.clone()].iter_mut().zip(&step.data()[range]).for_each(|(g, s)| *g -= alpha * s);
        }
        Ok((reply, Some(Named::from([(GRADIENT.to_string(), gradient)]))))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        if exchange.name == SIZES {
            return Ok((model.clone(), Self::sized(state, got)?));
        }
        let mut server = state.get(SERVER).cloned().ok_or_else(|| Error::data("feddyn: the state has no h"))?;
        let (mean, mut next) = (got.sum(MODEL)?.mean()?, got.moved(model, MODEL, 0.0)?);
        let (alpha, share) = (f64::from(self.alpha), got.replies as f64 / now.clients as f64);
        let (h, w) = (server.data_mut(), next.data_mut());
        for i in model.layout().ranges(Role::Weight).into_iter().flatten() {
            let moved = f64::from(h[i]) - alpha * share * mean[i];
            w[i] = (f64::from(w[i]) + mean[i] - moved / alpha) as f32;
            h[i] = moved as f32;
        }
        let mut state = state.clone();
        state.insert(SERVER.into(), server);
        Ok((next, state))
    }
}
