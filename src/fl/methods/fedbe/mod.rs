//! FedBE: Chen and Chao, *FedBE: Making Bayesian Model Ensemble Applicable to Federated Learning*, ICLR 2021,
//! Algorithm 1.
//!
//! The clients' models are seen as draws from a distribution of good ones. The server fits it, draws M models, adds the
//! clients and FedAvg's mean, averages their softmax on images without labels, and distils that into the mean.
//!
//! - Gaussian: `w ~ N(μ, diag σ²)`, `μ = Σ_k p_k w_k`, `σ² = Σ_k p_k (w_k − μ)²`, `p_k = n_k/n`; running statistics of μ.
//! - Dirichlet: `w = Σ_k γ_k n_k w_k / Σ_k γ_k n_k`, `γ ~ Dir(α, …, α)`; running statistics in the same mean.
//!
//! Distillation: KL by SGD 1e-3, momentum 0.9, weight decay 1e-5, 20 epochs of batches of 128, and stochastic weight
//! averaging: the rate falls from 1e-3 to 4e-4 over cycles of 25 steps, and the result is the mean of the iterates at
//! the ends of cycles after step 250. The rates and the cycle are re-implementations' reading of the paper, the first
//! averaged step is our choice; the authors' code (hongyouc/FedBE) keeps the rate (`cycle = 0`) and averages after step
//! 500 (`average_after`). How the Dirichlet weighs clients by size is from memory of the paper. With `bn = "update"` one
//! more pass at the mean lets running statistics follow, as there; here they move by a tenth a batch, and are no plain
//! mean over the pass. Where distillation is too short to average, the last iterate is the result.
//!
//! The published code differs further: deviations a tenth as large (`scale = 0.1`), drawn for each tensor's unit step
//! and not its weights (left out); γ without n_k (`by_size = false`); the teacher sharpened by `q^(1/0.5)`
//! (`temperature = 0.5`); the KL a mean over classes too (a rate C times smaller); crops of the student's images (left
//! out). Nothing leaves a client but its model.

mod posterior;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::posterior::{deviation, gaussian, mixture, shares};
use super::check_server;
use super::distillation::{self, Average, EXCHANGES, Ensemble};
use crate::error::{Error, Result};
use crate::fl::align::BatchNorm;
use crate::fl::brief::MODEL;
use crate::fl::{
    About, Algorithm, Averaging, Brief, ClientId, Collected, Exchange, Job, Length, Named, Needs, Now, Outcome, Reply,
    Slot, Step, Train,
};
use crate::key::{Key, Purpose};
use crate::nn::optim::{Schedule, SgdConfig};
use crate::nn::{OptimiserConfig, Params};

/// Most models that anybody draws: all of them are held.
const SAMPLES: usize = 1000;

/// FedBE's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedBe {
    /// The distribution of models.
    pub posterior: Posterior,
    /// Models drawn from it in a round.
    pub samples: usize,
    /// Factor of the Gaussian's deviations, ≥ 0.
    pub scale: f32,
    /// The Dirichlet's α, > 0.
    pub concentration: f32,
    /// Whether the Dirichlet's shares are weighted by images.
    pub by_size: bool,
    /// The ensemble teaches `q^(1/T)`, normalised; T > 0.
    pub temperature: f32,
    /// Passes over the images without labels.
    pub epochs: usize,
    /// Images in a step; 0 for all.
    pub batch_size: usize,
    /// The server's optimiser, fresh in every round.
    pub optimiser: OptimiserConfig,
    /// Steps of a cycle of the learning rate; 0 keeps it.
    pub cycle: usize,
    /// The rate's factor at a cycle's end.
    pub cycle_low: f32,
    /// Steps before iterates are averaged.
    pub average_after: usize,
    /// Steps between two that are; 0 averages none, and the last iterate is the result.
    pub average_every: usize,
    /// The student's batch norm.
    pub bn: BatchNorm,
}

/// A distribution of models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Posterior {
    /// Every weight by itself.
    Gaussian,
    /// Mixtures of the clients' models.
    Dirichlet,
}

impl Default for FedBe {
    fn default() -> Self {
        let sgd = SgdConfig { lr: 1e-3, momentum: 0.9, weight_decay: 1e-5, nesterov: false };
        FedBe {
            posterior: Posterior::Gaussian,
            samples: 10,
            scale: 1.0,
            concentration: 0.5,
            by_size: true,
            temperature: 1.0,
            epochs: 20,
            batch_size: 128,
            optimiser: OptimiserConfig::Sgd(sgd),
            cycle: 25,
            cycle_low: 0.4,
            average_after: 250,
            average_every: 25,
            bn: BatchNorm::Update,
        }
    }
}

impl FedBe {
    /// The server's work of the round, with a Gaussian's standard normal numbers given: sample → as many as the model
    /// has weights, in the order of its layout.
    pub fn distil(&self, model: &Params, now: &Now<'_>, noise: &dyn Fn(usize) -> Vec<f64>) -> Result<Brief> {
        let (mean, clients) = (distillation::fedavg(model, now)?, distillation::clients(model, now)?);
        let mut teachers = Vec::with_capacity(self.samples + clients.len() + 1);
        match self.posterior {
            Posterior::Gaussian => {
                let deviation = deviation(&mean, &clients, self.scale);
                teachers.extend((0..self.samples).map(|j| gaussian(&mean, &deviation, &noise(j))));
            }
            Posterior::Dirichlet => {
                for j in 0..self.samples {
                    let shares = shares(&clients, f64::from(self.concentration), self.by_size, draw(now.key, j));
                    teachers.push(mixture(&clients, &shares)?);
                }
            }
        }
        teachers.extend(clients.into_iter().map(|(_, client)| client));
        teachers.push(mean.clone());
        let temperature = f64::from(self.temperature);
        let ensemble = Ensemble { average: Average::Probabilities, of: teachers.len(), temperature };
        let mut brief = distillation::brief(mean, teachers, ensemble, self.train(), self.batch_size, self.bn);
        if let (BatchNorm::Update, true, Some(Step::Train(train))) =
            (self.bn, self.average_every > 0, brief.steps.last().cloned())
        {
            // Nothing is trained: the pass moves running statistics alone.
            let (from, length) = (brief.slots.len(), Length::Epochs(1));
            brief.slots.push(Slot::Found(MODEL.into()));
            brief.steps.push(Step::Train(Train { from, trained: Some(Vec::new()), length, average: None, ..train }));
        }
        Ok(brief)
    }

    fn train(&self) -> Train<'static> {
        let averaging = Averaging { after: self.average_after, every: self.average_every };
        Train {
            length: Length::Epochs(self.epochs),
            optimiser: self.optimiser.clone(),
            rate: match self.cycle {
                0 => Schedule::Constant(1.0),
                period => Schedule::Cyclic { period, low: self.cycle_low },
            },
            average: (self.average_every > 0).then_some(averaging),
            ..Train::default()
        }
    }
}

/// The key of draw `j` of a round.
fn draw(round: Key, j: usize) -> Key {
    round.fold(Purpose::Noise, 0).fold(Purpose::Item, j as u64)
}

impl Algorithm for FedBe {
    fn about(&self) -> About {
        let paper = "Chen and Chao, FedBE: Making Bayesian Model Ensemble Applicable to Federated Learning, ICLR 2021";
        About { paper, leaves: "" }
    }

    fn needs(&self) -> Needs {
        Needs { unlabelled: true, each: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        let FedBe { scale, concentration, temperature, cycle_low, .. } = *self;
        check_server(&self.optimiser)?;
        let bad = |name: &str, value: f32, range: &str| Error::input(format!("algorithm.{name} = {value}: {range}"));
        if self.samples > SAMPLES {
            return Err(Error::input(format!("algorithm.samples = {}: the most is {SAMPLES}", self.samples)));
        }
        if !(scale.is_finite() && scale >= 0.0) {
            return Err(bad("scale", scale, "a factor ≥ 0"));
        }
        if !(concentration.is_finite() && concentration > 0.0) {
            return Err(bad("concentration", concentration, "a number > 0"));
        }
        if !(temperature.is_finite() && temperature > 0.0) {
            return Err(bad("temperature", temperature, "a number > 0"));
        }
        if !(0.0..=1.0).contains(&cycle_low) {
            return Err(bad("cycle_low", cycle_low, "a factor of the rate, 0 to 1"));
        }
        Ok(())
    }

    fn exchanges(&self, _: &Named, _: &Now<'_>) -> Vec<Exchange> {
        EXCHANGES.to_vec()
    }

    fn brief(&self, model: &Params, _: &Named, exchange: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        if *exchange == EXCHANGES[0] {
            return Ok(Brief::train(Brief::training(now), vec![]));
        }
        let weights = model.layout().weights();
        self.distil(model, now, &|j| {
            let mut rng = draw(now.key, j).rng();
            (0..weights).map(|_| rng.normal()).collect()
        })
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        Ok(distillation::reply(job, outcome))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        _: &Now<'_>,
    ) -> Result<(Params, Named)> {
        Ok((distillation::server(model, exchange, got)?, state.clone()))
    }
}
