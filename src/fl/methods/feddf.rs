//! FedDF: Lin, Kong, Stich, Jaggi, *Ensemble Distillation for Robust Model Fusion in Federated Learning*, NeurIPS 2020,
//! Algorithm 1.
//!
//! The cohort trains as in FedAvg. The server starts from FedAvg's mean and takes steps of
//! `KL(σ(mean_k f(w_k, x)) ‖ σ(f(w, x)))` on images x without labels (equation 1, T = 1), until accuracy on a labelled
//! set no longer grows; the student is the next round's model. Defaults are those of section 4.1 and the published code
//! (epfml/federated-learning-public-code): Adam 1e-3 with a cosine to 0, batches of 128, up to 10,000 steps, a look every
//! 100, an end after 1,000 without gain, and the best model looked at.
//!
//! The published code differs: it may average the KL terms of single teachers (`average = "probabilities"` has the same
//! gradient), stops after 2,000 steps unless told otherwise, and clips the gradient's norm at 5, which is left out here.
//! Its student uses batch statistics (`bn = "update"`). Teachers are asked once, in evaluation mode and without
//! augmentation, so the student sees plain images too. Nothing leaves a client but its model.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::check_server;
use super::distillation::{self, Average, EXCHANGES, Ensemble};
use crate::error::{Error, Result};
use crate::fl::align::BatchNorm;
use crate::fl::{
    About, Algorithm, Brief, ClientId, Collected, Exchange, Feed, Job, Length, Named, Needs, Now, Order, Outcome, Reply,
    Rows, Stop, Train,
};
use crate::nn::optim::{AdamwConfig, Schedule};
use crate::nn::{OptimiserConfig, Params, View};

/// FedDF's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FedDf {
    /// What of the clients is averaged.
    pub average: Average,
    /// Steps of distillation in a round, at most.
    pub steps: usize,
    /// Images in a step; 0 for all.
    pub batch_size: usize,
    /// The server's optimiser, fresh in every round.
    pub optimiser: OptimiserConfig,
    /// The learning rate over the steps.
    pub schedule: Decay,
    /// The student's batch norm.
    pub bn: BatchNorm,
    /// Steps between two looks at the server's labelled set.
    pub look_every: usize,
    /// Steps without gain in its accuracy after which distillation ends; 0 takes all steps, and needs no such set.
    pub stop_after: usize,
}

/// How the learning rate goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Decay {
    /// Half a cosine to 0.
    Cosine,
    /// Not at all.
    Constant,
}

impl Default for FedDf {
    fn default() -> Self {
        FedDf {
            average: Average::Logits,
            steps: 10_000,
            batch_size: 128,
            optimiser: OptimiserConfig::Adamw(AdamwConfig { weight_decay: 0.0, ..AdamwConfig::default() }),
            schedule: Decay::Cosine,
            bn: BatchNorm::Update,
            look_every: 100,
            stop_after: 1_000,
        }
    }
}

impl FedDf {
    fn train(&self) -> Train<'static> {
        let feed = Feed { rows: Rows::Server, order: Order::Stored, view: View::Plain, batch_size: 128, ..Feed::default() };
        let stop = Stop { feed, every: self.look_every, patience: self.stop_after };
        Train {
            length: Length::Steps(self.steps),
            optimiser: self.optimiser.clone(),
            rate: match self.schedule {
                Decay::Cosine => Schedule::WarmupCosine(0.0),
                Decay::Constant => Schedule::Constant(1.0),
            },
            stop: (self.stop_after > 0).then(|| Box::new(stop)),
            ..Train::default()
        }
    }
}

impl Algorithm for FedDf {
    fn about(&self) -> About {
        About { paper: "Lin et al., Ensemble Distillation for Robust Model Fusion, NeurIPS 2020", leaves: "" }
    }

    fn needs(&self) -> Needs {
        Needs { unlabelled: true, each: true, server_set: self.stop_after > 0, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        check_server(&self.optimiser)?;
        if self.stop_after > 0 && self.look_every == 0 {
            return Err(Error::input("algorithm.look_every = 0: the smallest is 1").hint("stop_after = 0 never looks"));
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
        let student = distillation::fedavg(model, now)?;
        let teachers: Vec<Params> = distillation::clients(model, now)?.into_iter().map(|(_, client)| client).collect();
        let ensemble = Ensemble { average: self.average, of: teachers.len(), temperature: 1.0 };
        Ok(distillation::brief(student, teachers, ensemble, self.train(), self.batch_size, self.bn))
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
