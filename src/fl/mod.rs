//! The federated loop, once; what algorithms say, what trainers do, how updates are added up.
//!
//! An [`Algorithm`] says what to do, a [`Trainer`] does it, and [`Federation`](round::Federation) owns the model.
//! One file per algorithm; adding one is a new file, a line in [`AlgorithmConfig`], and a config.

pub mod aggregate;
pub mod align;
pub mod brief;
pub mod cohort;
pub mod estimate;
pub mod fedavg;
pub mod fedprox;
pub mod predict;
pub mod round;
pub mod scaffold;
pub mod trainer;

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{OptimiserConfig, Params};
pub use aggregate::{Collected, LEAF};
pub use brief::{Brief, Job, Outcome, Part, PartKind, Reply, Slot, Step, Term};
pub use trainer::Trainer;

/// A client's number, `0..clients`.
pub type ClientId = u32;

/// State as named parameter vectors: what a server or a client keeps between rounds, ready for a checkpoint.
pub type Named = BTreeMap<String, Params>;

/// What an algorithm asks of the run; impossible combinations are refused before it starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Clients keep state from one participation to the next.
    pub kept: bool,
    /// The correction is derived for plain SGD: no momentum, no weight decay, no Adam.
    pub plain_sgd: bool,
}

/// Who takes part in an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The cohort of the round.
    Cohort,
    /// Every client.
    All,
}

/// How replies are collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collect {
    /// Added up as they come; memory holds at most two leaves of replies.
    Sum,
    /// Kept one by one, for methods that compare clients.
    Each,
}

/// One exchange of messages between server and clients; a round has one or several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// A name for errors and for algorithms with several exchanges.
    pub name: &'static str,
    /// Who takes part.
    pub who: Who,
    /// How replies are collected.
    pub collect: Collect,
}

/// What every algorithm knows about local work.
#[derive(Clone, Debug)]
pub struct Local<'a> {
    /// The `federated` section.
    pub config: &'a FederatedConfig,
    /// Round, from 1.
    pub round: usize,
    /// Number of clients in the federation.
    pub clients: usize,
}

/// A federated algorithm: values in, values out. It never trains, stores or sends anything itself.
pub trait Algorithm: Send + Sync {
    /// What the run must provide.
    fn needs(&self) -> Needs {
        Needs::default()
    }

    /// What the server carries besides the model.
    fn init(&self, _model: &Params) -> Result<Named> {
        Ok(Named::new())
    }

    /// The exchanges of a round; by default the cohort trains and its replies are added up.
    fn exchanges(&self, _round: usize) -> Vec<Exchange> {
        vec![Exchange { name: "train", who: Who::Cohort, collect: Collect::Sum }]
    }

    /// What the server sends to a client, as data.
    fn brief(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        local: &Local<'_>,
        client: ClientId,
    ) -> Result<Brief>;

    /// The client's side after the work: what it sends back, and what it keeps.
    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)>;

    /// The server's step: the next model and the next state.
    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        local: &Local<'_>,
    ) -> Result<(Params, Named)>;

    /// What is evaluated and exported.
    fn deploy<'m>(&self, model: &'m Params, _state: &Named) -> Cow<'m, Params> {
        Cow::Borrowed(model)
    }
}

/// Which algorithm, with its knobs (`algorithm` section).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum AlgorithmConfig {
    /// Federated averaging.
    FedAvg(fedavg::FedAvg),
    /// A proximal term keeps clients near the model they received.
    FedProx(fedprox::FedProx),
    /// Control variates correct client drift.
    Scaffold(scaffold::Scaffold),
}

impl Default for AlgorithmConfig {
    fn default() -> Self {
        AlgorithmConfig::FedAvg(fedavg::FedAvg::default())
    }
}

impl AlgorithmConfig {
    /// The algorithm itself.
    pub fn algorithm(&self) -> &dyn Algorithm {
        match self {
            AlgorithmConfig::FedAvg(a) => a,
            AlgorithmConfig::FedProx(a) => a,
            AlgorithmConfig::Scaffold(a) => a,
        }
    }
}

/// The `federated` section: rounds, cohorts and local work. The defaults are the reference protocol's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FederatedConfig {
    /// Communication rounds; 0 leaves the start model.
    pub rounds: usize,
    /// Clients in a round.
    pub cohort: usize,
    /// Where cohorts come from.
    pub cohort_draw: cohort::CohortDraw,
    /// Passes over a client's data in a round.
    pub local_epochs: usize,
    /// Samples in a local step; 0 takes all of a client's data at once.
    pub batch_size: usize,
    /// The clients' optimiser, fresh in every round.
    pub optimiser: OptimiserConfig,
    /// The learning rate is multiplied by this after every round.
    pub lr_decay: f32,
    /// Evaluate on test after every so many rounds (the last ten always).
    pub eval_every: usize,
    /// Write a checkpoint after every so many rounds (the last always).
    pub checkpoint_every: usize,
    /// Checkpoints kept, the newest ones.
    pub keep_checkpoints: usize,
}

impl Default for FederatedConfig {
    fn default() -> Self {
        FederatedConfig {
            rounds: 200,
            cohort: 8,
            cohort_draw: cohort::CohortDraw::Key,
            local_epochs: 10,
            batch_size: 32,
            optimiser: OptimiserConfig::default(),
            lr_decay: 1.0,
            eval_every: 1,
            checkpoint_every: 10,
            keep_checkpoints: 2,
        }
    }
}

impl FederatedConfig {
    /// Refuses what cannot run, `clients` being the federation's size.
    pub fn check(&self, clients: usize, algorithm: &dyn Algorithm) -> Result<()> {
        if self.cohort == 0 || self.cohort > clients {
            return Err(Error::input(format!("federated.cohort = {}: choose 1 to {clients} clients", self.cohort))
                .hint("partition.clients is the federation's size"));
        }
        for (key, value) in [("eval_every", self.eval_every), ("checkpoint_every", self.checkpoint_every)] {
            if value == 0 {
                return Err(Error::input(format!("federated.{key} = 0: the smallest is 1")));
            }
        }
        let lr = self.optimiser.lr();
        if !(lr.is_finite() && lr >= 0.0 && self.lr_decay.is_finite() && self.lr_decay > 0.0) {
            return Err(Error::input(format!("federated: learning rate {lr}, lr_decay {}", self.lr_decay)));
        }
        if algorithm.needs().plain_sgd && !self.optimiser.is_plain_sgd() {
            return Err(Error::input("federated.optimiser: this algorithm corrects plain SGD steps")
                .hint("use kind = \"sgd\" with momentum = 0 and weight_decay = 0"));
        }
        Ok(())
    }

    /// The learning-rate factor of a round, from 1.
    pub fn rate(&self, round: usize) -> f32 {
        self.lr_decay.powi(round.saturating_sub(1) as i32)
    }
}
