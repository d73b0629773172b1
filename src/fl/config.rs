//! The `federated` section: rounds, cohorts and local work.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::brief::Length;
use super::failure::OnFailure;
use super::way::{self, LinkConfig};
use super::{Algorithm, cohort};
use crate::error::{Error, Result};
use crate::nn::OptimiserConfig;
use crate::nn::optim::Schedule;
use crate::nn::outer_rate::{FirstRate, outer_cosine};

/// The last rounds whose mean is the headline number; they are always judged.
pub const LAST: usize = 10;

/// Who trains with whom.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Clients train, the server puts together.
    #[default]
    Federated,
    /// Control: each client alone, in the rounds in which it is drawn; nothing is ever sent.
    Local,
    /// Control: all clients' images on one machine, as many samples a round as a cohort sees.
    Centralised,
}

/// Which round's model a stage exports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Export {
    /// The last round's.
    #[default]
    Last,
    /// That of the judged round with the highest accuracy on the validation set, the earliest of equals. Test never
    /// selects.
    Best,
}

/// How a learning rate moves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RateSchedule {
    /// It stays.
    #[default]
    Constant,
    /// It rises for a while, then falls as half a cosine to 0.
    Cosine,
}

/// The `federated` section. The defaults are the reference protocol's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct FederatedConfig {
    /// Communication rounds; 0 leaves the start model.
    pub rounds: usize,
    /// Who trains with whom.
    pub mode: Mode,
    /// Clients in a round.
    pub cohort: usize,
    /// Where cohorts come from.
    pub cohort_draw: cohort::CohortDraw,
    /// Passes over a client's data in a round.
    pub local_epochs: usize,
    /// Samples in a local step; 0 takes all of a client's data at once.
    pub batch_size: usize,
    /// Whether a last batch that is not full is left out; a client with fewer images than a batch keeps its only one.
    pub drop_last: bool,
    /// The clients' optimiser, fresh in every round.
    pub optimiser: OptimiserConfig,
    /// The learning rate is multiplied by this after every round.
    pub lr_decay: f32,
    /// How the learning rate moves over rounds, on top of `lr_decay`: `constant`, or `cosine` after a hundredth of them.
    pub lr_schedule: RateSchedule,
    /// Rounds of that schedule; 0 for all rounds of the run.
    pub lr_rounds: usize,
    /// What a warming cosine gives the first rounds: at most the rate, or twice it as FedMLLM's script does for 50 rounds.
    pub first_rate: FirstRate,
    /// How the learning rate moves inside a client's training in a round.
    pub local_schedule: RateSchedule,
    /// Share of a client's steps over which a local `cosine` rises first, in `[0, 1)`.
    pub local_warmup: f32,
    /// Largest norm of a local step's gradient over all trained weights, longer ones are scaled to it
    /// (`clip_grad_norm_`); 0 for none.
    pub clip_gradient: f32,
    /// What becomes of a round in which a client's training diverges or panics: `stop`, or `skip` the client.
    pub on_failure: OnFailure,
    /// Share of an exchange's clients, in `[0, 1]`, that `skip` may leave out of a round; more stop it.
    pub max_failures: f64,
    /// What happens to updates on their way to the server, link by link: tables `[[federated.way]]`, each of a kind.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub way: Vec<LinkConfig>,
    /// Evaluate on test after every so many rounds (the last ten always).
    pub eval_every: usize,
    /// Write a checkpoint after every so many rounds (the last always).
    pub checkpoint_every: usize,
    /// Checkpoints kept, the newest ones.
    pub keep_checkpoints: usize,
    /// Which round's model is exported: `last`, or `best` by validation (needs `validation.per_class`).
    pub export: Export,
}

impl Default for FederatedConfig {
    fn default() -> Self {
        FederatedConfig {
            rounds: 200,
            mode: Mode::Federated,
            cohort: 8,
            cohort_draw: cohort::CohortDraw::Key,
            local_epochs: 10,
            batch_size: 32,
            drop_last: false,
            optimiser: OptimiserConfig::default(),
            lr_decay: 1.0,
            lr_schedule: RateSchedule::Constant,
            lr_rounds: 0,
            first_rate: FirstRate::Clamped,
            local_schedule: RateSchedule::Constant,
            local_warmup: 0.01,
            clip_gradient: 0.0,
            on_failure: OnFailure::Stop,
            max_failures: 0.5,
            way: Vec::new(),
            eval_every: 1,
            checkpoint_every: 10,
            keep_checkpoints: 2,
            export: Export::Last,
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
        if !(self.clip_gradient.is_finite() && self.clip_gradient >= 0.0) {
            let text = format!("federated.clip_gradient = {}: a norm above 0, or 0 for none", self.clip_gradient);
            return Err(Error::input(text));
        }
        if !(0.0..=1.0).contains(&self.max_failures) {
            let text = format!("federated.max_failures = {}: a share of the clients, 0 to 1", self.max_failures);
            return Err(Error::input(text));
        }
        if !(0.0..1.0).contains(&self.local_warmup) {
            let text = format!("federated.local_warmup = {}: a share below 1, or 0 for none", self.local_warmup);
            return Err(Error::input(text));
        }
        if algorithm.needs().plain_sgd && self.local_schedule != RateSchedule::Constant {
            return Err(Error::input(
                "federated.local_schedule: this algorithm reads the gradient off plain SGD steps",
            )
            .hint("set federated.local_schedule = \"constant\", or choose another algorithm.kind"));
        }
        if algorithm.needs().plain_sgd && self.clip_gradient > 0.0 {
            return Err(Error::input("federated.clip_gradient: this algorithm reads the gradient off plain SGD steps")
                .hint("set federated.clip_gradient = 0, or choose another algorithm.kind"));
        }
        if algorithm.needs().plain_sgd && !self.optimiser.is_plain_sgd() {
            return Err(Error::input("federated.optimiser: this algorithm corrects plain SGD steps")
                .hint("use kind = \"sgd\" with momentum = 0 and weight_decay = 0"));
        }
        way::order::check(self, clients, algorithm)?;
        algorithm.check()
    }

    /// Whether a client with so many images trains on a batch of a single one.
    pub fn leaves_one(&self, images: usize) -> bool {
        let size = if self.batch_size == 0 { images.max(1) } else { self.batch_size };
        match images {
            0 => false,
            1 => true,
            n => size == 1 || (n % size == 1 && !(self.drop_last && n > size)),
        }
    }

    /// The learning-rate factor of a round, from 1.
    pub fn rate(&self, round: usize) -> f32 {
        let decayed = self.lr_decay.powi(round.saturating_sub(1) as i32);
        let rounds = if self.lr_rounds == 0 { self.rounds } else { self.lr_rounds };
        match self.lr_schedule {
            RateSchedule::Constant => decayed,
            RateSchedule::Cosine => decayed * outer_cosine(round, rounds, self.first_rate),
        }
    }

    /// The optimiser and the schedule of a client's training in a round, from 1.
    pub fn training(&self, round: usize) -> (OptimiserConfig, Schedule) {
        match self.local_schedule {
            RateSchedule::Constant => (self.optimiser.clone(), Schedule::Constant(self.rate(round))),
            RateSchedule::Cosine => {
                (self.optimiser.scaled(self.rate(round)), Schedule::WarmupCosine(self.local_warmup))
            }
        }
    }

    /// Whether the model is judged on test after this round.
    pub fn judged(&self, round: usize) -> bool {
        // The server's model never moves in the local control.
        if self.mode == Mode::Local {
            return round == self.rounds;
        }
        round.is_multiple_of(self.eval_every) || round + LAST > self.rounds
    }

    /// How many rounds are judged.
    pub fn judged_rounds(&self) -> usize {
        match self.mode {
            Mode::Local => self.rounds.min(1),
            _ => self.rounds.saturating_sub(LAST) / self.eval_every.max(1) + self.rounds.min(LAST),
        }
    }

    /// How long a client trains in a round; in [`Mode::Centralised`] the one machine, which holds what `clients` held.
    pub fn length(&self, clients: usize) -> Length {
        match self.mode {
            Mode::Centralised => Length::Passes((self.local_epochs * self.cohort) as f64 / clients.max(1) as f64),
            _ => Length::Epochs(self.local_epochs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn judged_rounds_are_counted_without_looking_at_each() {
        for (rounds, eval_every) in [(0, 1), (3, 2), (10, 3), (11, 3), (100, 7), (200, 1), (25, 40)] {
            for mode in [Mode::Federated, Mode::Local] {
                let config = FederatedConfig { rounds, eval_every, mode, ..FederatedConfig::default() };
                let counted = (1..=rounds).filter(|&r| config.judged(r)).count();
                assert_eq!(config.judged_rounds(), counted, "{rounds} {eval_every} {mode:?}");
            }
        }
    }

    #[test]
    fn a_single_image_is_left_over_as_the_batches_fall() {
        let config = |batch_size, drop_last| FederatedConfig { batch_size, drop_last, ..FederatedConfig::default() };
        assert!(config(8, false).leaves_one(9) && config(8, false).leaves_one(1) && config(1, true).leaves_one(5));
        assert!(!config(8, false).leaves_one(10) && !config(8, true).leaves_one(9) && !config(0, false).leaves_one(9));
        assert!(config(8, true).leaves_one(1));
    }
}
