//! Clients that lie, the same ones in every round: what [`robust`](super::robust) rules are tested against. Flipped
//! signs and noise are of Li et al., *RSA*, AAAI 2019; boosted steps of Bagdasaryan et al., *How To Backdoor Federated
//! Learning*, AISTATS 2020; flipped labels (`c → C − 1 − c`) of Tolpegin et al., *Data Poisoning Attacks*, ESORICS 2020.
//!
//! A lie stands where it is listed: before a clip it is clipped as an honest step is, behind one it is not.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Acts, Link, Parcel, Station, each_weight, refuse_unless, steps};
use crate::error::{Error, Result};
use crate::fl::ClientId;
use crate::fl::brief::Job;
use crate::key::Key;
use crate::nn::{Batch, Samples, View};

/// What attackers do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// The step's sign is turned, and its size multiplied by `scale`.
    #[default]
    SignFlip,
    /// The step is noise of standard deviation `scale`.
    Gaussian,
    /// The step is multiplied by `scale`.
    Scaled,
    /// They train on flipped labels.
    LabelFlip,
}

/// The knobs of `attack`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Attack {
    /// What attackers do.
    pub how: How,
    /// How many clients of the federation attack whenever they are drawn; 0 for none.
    pub attackers: usize,
    /// How hard: a factor of the step, of `gaussian` its standard deviation.
    pub scale: f64,
}

impl Default for Attack {
    fn default() -> Self {
        Attack { how: How::SignFlip, attackers: 0, scale: 1.0 }
    }
}

impl Attack {
    /// Who attacks, in draw order; `key` is the same in every round.
    pub fn attackers(&self, clients: usize, key: Key) -> Vec<ClientId> {
        key.rng().choose(clients, self.attackers).into_iter().map(|c| c as ClientId).collect()
    }

    /// Whether they train on flipped labels.
    pub fn flips(&self) -> bool {
        self.how == How::LabelFlip
    }

    /// Refuses more attackers than clients.
    pub fn fits(&self, clients: usize) -> Result<()> {
        match self.attackers <= clients {
            true => Ok(()),
            false => {
                let text = format!("federated.way: attack: attackers = {} of {clients} clients", self.attackers);
                Err(Error::input(text).hint("partition.clients is the federation's size"))
            }
        }
    }
}

impl Link for Attack {
    fn acts(&self) -> Acts {
        Acts::Client
    }

    fn idle(&self) -> bool {
        self.attackers == 0
    }

    fn check(&self) -> Result<()> {
        let fits = self.scale.is_finite() && self.scale >= 0.0;
        refuse_unless(fits, "attack", "scale", self.scale, "choose 0 or more")
    }

    fn leave(&self, parcel: &mut Parcel, job: &Job, at: &Station<'_>) -> Result<()> {
        if self.flips() || !at.way.attackers(at.place, self).contains(&job.client) {
            return Ok(());
        }
        let mut rng = at.key.rng();
        for part in steps(&mut parcel.reply) {
            match self.how {
                How::SignFlip => each_weight(&mut part.data, |w| (-self.scale * f64::from(w)) as f32),
                How::Scaled => each_weight(&mut part.data, |w| (self.scale * f64::from(w)) as f32),
                How::Gaussian => each_weight(&mut part.data, |_| (self.scale * rng.normal()) as f32),
                How::LabelFlip => {}
            }
        }
        Ok(())
    }
}

/// Images whose labels are flipped.
pub struct Flipped<'a> {
    of: &'a dyn Samples,
    last: u32,
    labels: Vec<u32>,
}

impl<'a> Flipped<'a> {
    /// Of so many classes.
    pub fn new(of: &'a dyn Samples, classes: usize) -> Self {
        let last = classes.saturating_sub(1) as u32;
        Flipped { of, last, labels: of.labels().iter().map(|y| last.saturating_sub(*y)).collect() }
    }
}

impl Samples for Flipped<'_> {
    fn fill(&self, ids: &[u32], view: View, key: Key, batch: &mut Batch) -> Result<()> {
        self.of.fill(ids, view, key, batch)?;
        batch.y.iter_mut().for_each(|y| *y = self.last.saturating_sub(*y));
        Ok(())
    }

    fn ahead(&self, ids: &[u32], view: View, key: Key) {
        self.of.ahead(ids, view, key);
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }
}
