//! Differential privacy by Gaussian noise, with a client as the unit: McMahan et al., *Learning Differentially Private
//! Recurrent Language Models*, ICLR 2018.
//!
//! **Central**: the server adds `N(0, (z C)²)` to the sum of clipped steps and divides by the cohort's fixed size, every
//! client weighing the same; ε is that of the Poisson-sampled Gaussian mechanism for adding or leaving out a client, at a
//! rate of cohort / clients. Cohorts of a fixed size are taken for Poisson's, as is usual. **Local**: each client adds
//! `N(0, (z C)²)` to its own step before it leaves. Any two steps are at most 2C apart, so ε is that of a multiplier of
//! z / 2, without sampling, for the client that was asked most often.
//!
//! With a clip that follows a quantile, the number of clients within the norm is noised too; the noise on the steps is
//! then raised so that both together cost what z alone does (Andrew et al., NeurIPS 2021, Theorem 1).
//!
//! A round that comes to nothing gives nothing away and costs nothing. Who was drawn is not told, but the simulation's
//! records tell it.
//!
//! What is not protected is refused: buffers of batch norm, parts beside the model, replies looked at one by one. Losses
//! in the records are the simulation's, not the server's.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::account::{Accountant, epsilon};
use super::{Acts, Link, LinkConfig, Parcel, Station, each_weight, name_at, refuse_unless, steps};
use crate::error::{Error, Result};
use crate::fl::Collected;
use crate::fl::brief::{Job, MODEL};
use crate::fl::reply::{Part, PartKind, Reply};
use crate::nn::{Named, Params};

/// The figure that the records hold.
pub const EPSILON: &str = "epsilon";
/// What the server carries: rounds that cost something, `(1,)`; for local noise of each client, `(clients,)`.
const SPENT: &str = "spent";

/// Who adds the noise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The server, to the sum: clients trust it with their steps.
    #[default]
    Server,
    /// Each client, to its own step: it trusts nobody.
    Client,
}

/// The knobs of `noise`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Noise {
    /// Who adds it: `server` (central privacy) or `client` (local privacy).
    pub by: By,
    /// The noise multiplier z: its standard deviation over the norm of the clip before it; 0 for none.
    pub multiplier: f64,
    /// δ at which ε is said, in `(0, 1)`; below one over the number of clients.
    pub delta: f64,
    /// How ε is computed: `rdp` or `prv`.
    pub accountant: Accountant,
    /// The budget: the rounds end before one that would bring ε above it; 0 for none.
    pub epsilon: f64,
}

impl Default for Noise {
    fn default() -> Self {
        Noise { by: By::Server, multiplier: 1.0, delta: 1e-5, accountant: Accountant::Rdp, epsilon: 0.0 }
    }
}

impl Noise {
    /// What the rounds so far have cost, and with `more` further ones.
    fn cost(&self, at: &Station<'_>, more: usize) -> Result<f64> {
        let spent = at.way.state.get(&at.name(SPENT));
        let most = spent.map_or(0.0, |spent| spent.data().iter().fold(0.0, |most: f32, n| most.max(*n)));
        let (rounds, clients) = (most as usize + more, at.way.clients.max(1));
        match self.by {
            By::Server => {
                let rate = (at.way.cohort as f64 / clients as f64).min(1.0);
                epsilon(self.accountant, rate, self.multiplier, rounds, self.delta)
            }
            By::Client => epsilon(self.accountant, 1.0, self.multiplier / 2.0, rounds, self.delta),
        }
    }

    /// Takes a method's reply onto a way with noise: its model's step alone, weighing as much as everybody's.
    pub fn admit(&self, reply: &mut Reply, job: &Job) -> Result<()> {
        let bare = |part: &&Part| part.name != MODEL || part.kind != PartKind::Delta;
        if let Some(part) = reply.parts.iter().find(bare) {
            let (part, exchange) = (&part.name, job.exchange);
            return Err(Error::input(format!(
                "algorithm.kind: a client sends {part} in exchange {exchange}, which no noise protects"
            ))
            .hint("choose a method that sends its model's step alone, such as fedavg, fedprox or fedadam"));
        }
        reply.parts.iter_mut().for_each(|part| part.weight = 1.0);
        Ok(())
    }

    /// ε by now.
    pub fn epsilon_now(&self, at: &Station<'_>) -> Result<f64> {
        self.cost(at, 0)
    }

    /// Why the budget allows no further round, where it does not.
    pub fn spent(&self, at: &Station<'_>) -> Result<Option<String>> {
        if self.epsilon == 0.0 {
            return Ok(None);
        }
        let next = self.cost(at, 1)?;
        let text = || format!("another round would bring epsilon to {next:.3}, above the budget of {}", self.epsilon);
        Ok((next > self.epsilon).then(text))
    }

    /// The multiplier of the noise on the steps, raised where a count is noised too.
    fn raised(&self, at: &Station<'_>) -> f64 {
        let counts = at.way.links().filter_map(|(_, link)| match link {
            LinkConfig::Clip(clip) if clip.adapts() => Some(clip.count_noise),
            _ => None,
        });
        counts.fold(self.multiplier, |z, count| (z.powi(-2) - (2.0 * count).powi(-2)).powf(-0.5))
    }

    /// The standard deviation of the noise at this place.
    fn deviation(&self, multiplier: f64, at: &Station<'_>) -> Result<f64> {
        let norm = at.way.norm(at.place).ok_or_else(|| Error::defect("noise: no clip stands before it"))?;
        Ok(multiplier * norm)
    }
}

impl Link for Noise {
    fn acts(&self) -> Acts {
        match self.by {
            By::Server => Acts::Whole,
            By::Client => Acts::Client,
        }
    }

    fn idle(&self) -> bool {
        self.multiplier == 0.0
    }

    fn check(&self) -> Result<()> {
        let Noise { multiplier, delta, epsilon, .. } = *self;
        let want = "a multiplier from 0.05 on, or 0 for no noise";
        let fits = multiplier == 0.0 || (multiplier.is_finite() && multiplier >= 0.05);
        refuse_unless(fits, "noise", "multiplier", multiplier, want)?;
        refuse_unless(delta > 0.0 && delta < 1.0, "noise", "delta", delta, "choose a number between 0 and 1")?;
        let fits = epsilon.is_finite() && epsilon >= 0.0;
        refuse_unless(fits, "noise", "epsilon", epsilon, "a budget above 0, or 0 for none")
    }

    fn init(&self, at: &Station<'_>) -> Result<Named> {
        let n = if self.by == By::Server { 1 } else { at.way.clients };
        Ok(Named::from([(name_at(at.place, SPENT), Params::tensor(SPENT, &[n], vec![0.0; n])?)]))
    }

    fn leave(&self, parcel: &mut Parcel, _: &Job, at: &Station<'_>) -> Result<()> {
        if self.by == By::Client {
            let (deviation, mut rng) = (self.deviation(self.multiplier, at)?, at.key.rng());
            for part in steps(&mut parcel.reply) {
                each_weight(&mut part.data, |w| (f64::from(w) + deviation * rng.normal()) as f32);
            }
        }
        Ok(())
    }

    fn arrive(&self, got: &mut Collected, state: &mut Named, at: &Station<'_>) -> Result<Option<String>> {
        if let (By::Server, Some(sum)) = (self.by, got.sums.get_mut(MODEL)) {
            let (deviation, mut rng) = (self.deviation(self.raised(at), at)?, at.key.rng());
            sum.blur(|| deviation * rng.normal(), at.way.cohort as f64);
        }
        if let Some(spent) = state.get_mut(&at.name(SPENT)) {
            let data = spent.data_mut();
            let whose: Vec<usize> = match self.by {
                By::Server => vec![0],
                By::Client => at.way.asked.iter().map(|c| *c as usize).collect(),
            };
            for i in whose {
                data.get_mut(i).into_iter().for_each(|n| *n += 1.0);
            }
        }
        Ok(None)
    }
}
