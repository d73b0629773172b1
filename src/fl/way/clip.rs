//! Steps are held to a norm: fixed (McMahan et al., *Learning Differentially Private Recurrent Language Models*, ICLR
//! 2018), or following a quantile of the clients' norms: Andrew et al., *Differentially Private Learning with Adaptive
//! Clipping*, NeurIPS 2021, Algorithm 1: `C ← C · exp(−η (b − γ))`, b the share of clients whose step is no longer than
//! C, with noise of its own where the run is private.
//!
//! A step's norm is that of all its weights together; buffers are values and are left alone.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Acts, Link, Parcel, Station, each_weight, name_at, norm_of, refuse_unless, steps};
use crate::error::{Error, Result};
use crate::fl::brief::Job;
use crate::fl::{Collected, Part};
use crate::nn::{Named, Params};

/// The part in which a client says whether its step was within the norm, 1 or 0.
const WITHIN: &str = "way/within";
/// What the server carries.
const NORM: &str = "norm";

/// The knobs of `clip`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Clip {
    /// Largest L2 norm of a client's step, longer ones are scaled to it; 0 for none. With `quantile` the first round's.
    pub norm: f64,
    /// The share γ of clients whose steps shall be no longer, in `(0, 1)`: the norm follows it; 0 keeps the norm.
    pub quantile: f64,
    /// How fast the norm follows, η.
    pub rate: f64,
    /// Standard deviation of the noise on the number of clients within the norm; with noise on the steps it must be
    /// above half that noise's multiplier.
    pub count_noise: f64,
}

impl Default for Clip {
    fn default() -> Self {
        Clip { norm: 1.0, quantile: 0.0, rate: 0.2, count_noise: 0.0 }
    }
}

impl Clip {
    /// Whether the norm follows a quantile.
    pub fn adapts(&self) -> bool {
        self.quantile > 0.0
    }

    /// The norm in force at this place, given what the server carries.
    pub fn now(&self, state: &Named, place: usize) -> f64 {
        let carried = state.get(&name_at(place, NORM)).and_then(|norm| norm.data().first());
        carried.map_or(self.norm, |norm| f64::from(*norm))
    }
}

impl Link for Clip {
    fn acts(&self) -> Acts {
        if self.adapts() { Acts::Whole } else { Acts::Client }
    }

    fn idle(&self) -> bool {
        self.norm == 0.0
    }

    fn check(&self) -> Result<()> {
        let Clip { norm, quantile, rate, count_noise } = *self;
        refuse_unless(norm.is_finite() && norm >= 0.0, "clip", "norm", norm, "a norm above 0, or 0 for none")?;
        refuse_unless((0.0..1.0).contains(&quantile), "clip", "quantile", quantile, "a share below 1, or 0 for none")?;
        refuse_unless(rate.is_finite() && rate > 0.0, "clip", "rate", rate, "choose a number above 0")?;
        let noise = count_noise.is_finite() && count_noise >= 0.0;
        refuse_unless(noise, "clip", "count_noise", count_noise, "a standard deviation, or 0 for none")?;
        match self.adapts() && norm == 0.0 {
            true => {
                Err(Error::input("federated.way: clip: norm = 0 with a quantile: the norm grows from the first one")
                    .hint("begin with norm = 0.1"))
            }
            false => Ok(()),
        }
    }

    fn init(&self, at: &Station<'_>) -> Result<Named> {
        let norm = || Params::tensor(NORM, &[1], vec![self.norm as f32]);
        Ok(if self.adapts() { Named::from([(at.name(NORM), norm()?)]) } else { Named::new() })
    }

    fn leave(&self, parcel: &mut Parcel, _: &Job, at: &Station<'_>) -> Result<()> {
        let (most, mut within) = (self.now(&at.way.state, at.place), true);
        for part in steps(&mut parcel.reply) {
            let norm = norm_of(&part.data);
            within &= norm <= most;
            if norm > most {
                let by = most / norm;
                each_weight(&mut part.data, |w| (f64::from(w) * by) as f32);
            }
        }
        if self.adapts() {
            let said = Params::tensor(WITHIN, &[1], vec![if within { 1.0 } else { 0.0 }])?;
            parcel.reply.parts.push(Part::value(WITHIN, said));
        }
        Ok(())
    }

    fn arrive(&self, got: &mut Collected, state: &mut Named, at: &Station<'_>) -> Result<Option<String>> {
        if self.adapts() {
            let (within, sent) = got.take(WITHIN)?;
            let within = within + self.count_noise * at.key.rng().normal();
            // Under noise the number of clients is not to be read off: those who were asked count.
            let of = if self.count_noise > 0.0 { at.way.cohort as f64 } else { sent };
            let share = within / of.max(1.0);
            let norm = self.now(state, at.place) * (-self.rate * (share - self.quantile)).exp();
            state.insert(at.name(NORM), Params::tensor(NORM, &[1], vec![norm as f32])?);
        }
        Ok(None)
    }
}
