//! What happens to updates on their way from clients to the server: a chain of links by config, in order.
//!
//! A link acts on a client's reply before it leaves ([`Link::leave`], on the worker that trained), on what has been added
//! up ([`Link::arrive`], on the server), or on both; [`Link::acts`] says how much it must see. A link whose knobs are
//! neutral is not there at all. Exchanges of the cohort alone travel: what every client says once (its size), and the
//! server's own work, do not. A new link is a file here and a line in [`LinkConfig`]; [`order`] says what it goes with.
//!
//! | file | link |
//! |---|---|
//! | [`attack`] | clients that lie: flipped labels, flipped signs, noise, boosted steps |
//! | [`clip`] | steps are held to a norm, fixed or following a quantile |
//! | [`noise`] | differential privacy, the server's or each client's own; [`account`] says what it costs |
//! | [`compress`] | steps as fewer bytes, encoded and decoded; [`codec`] has the encodings |
//! | [`mask`] | secure aggregation: the server learns a sum of integers and nothing else; [`shamir`] has the shares |
//! | [`robust`] | rules that survive lying clients |
//! | [`lose`] | clients that never answer, or too late |
//! | [`order`] | which orders make sense, and with which methods |
//! | `chain` | [`Way`]: the links at work, in a round of the loop |

pub mod account;
pub mod attack;
mod chain;
pub mod clip;
pub mod codec;
pub mod compress;
pub mod lose;
pub mod mask;
pub mod noise;
pub mod order;
pub mod robust;
pub mod shamir;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Collected;
use super::brief::Job;
use super::reply::{PartKind, Reply};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::{Named, Params, Role};
pub use chain::Way;

/// One link of the way (`[[federated.way]]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum LinkConfig {
    /// Some clients lie, to test what defends against them.
    Attack(attack::Attack),
    /// A client's step is held to a norm.
    Clip(clip::Clip),
    /// Gaussian noise, for differential privacy; needs a clip before it.
    Noise(noise::Noise),
    /// Steps travel as fewer bytes.
    Compress(compress::Compress),
    /// Secure aggregation: the server sees the sum alone.
    Mask(mask::Mask),
    /// The server puts replies together by a rule that survives lying clients.
    Robust(robust::Robust),
    /// Clients that never answer, or too late.
    Drop(lose::Lose),
}

impl LinkConfig {
    /// The link itself.
    pub fn link(&self) -> &dyn Link {
        match self {
            LinkConfig::Attack(link) => link,
            LinkConfig::Clip(link) => link,
            LinkConfig::Noise(link) => link,
            LinkConfig::Compress(link) => link,
            LinkConfig::Mask(link) => link,
            LinkConfig::Robust(link) => link,
            LinkConfig::Drop(link) => link,
        }
    }

    /// The name that a config gives it.
    pub fn kind(&self) -> &'static str {
        match self {
            LinkConfig::Attack(_) => "attack",
            LinkConfig::Clip(_) => "clip",
            LinkConfig::Noise(_) => "noise",
            LinkConfig::Compress(_) => "compress",
            LinkConfig::Mask(_) => "mask",
            LinkConfig::Robust(_) => "robust",
            LinkConfig::Drop(_) => "drop",
        }
    }
}

/// How much a link must see at once; with several processes that own whole leaves of the cohort, what may stay local.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Acts {
    /// One client's reply.
    Client,
    /// The sum of a leaf: sums of sums are sums.
    Leaf,
    /// The whole sum, or every reply.
    Whole,
}

/// What a client sends, and what the way keeps there for its next participation.
pub struct Parcel {
    /// The reply as it is by now.
    pub reply: Reply,
    /// The way's own vectors at this client, by name.
    pub kept: Named,
}

/// A number that the way tells of a round.
pub type Figure = (&'static str, f64);

/// Where a link works: its place in the chain, and the chain.
#[derive(Clone, Copy)]
pub struct Station<'a> {
    /// The link's place in the config, from 0.
    pub place: usize,
    /// The whole way.
    pub way: &'a Way<'a>,
    /// Randomness of this link in this exchange.
    pub key: Key,
}

impl Station<'_> {
    /// The name of something that this link keeps, on the server or at a client.
    pub fn name(&self, what: &str) -> String {
        name_at(self.place, what)
    }
}

/// What a link at a place calls what it keeps.
fn name_at(place: usize, what: &str) -> String {
    format!("way/{place}/{what}")
}

/// A link of the way. What is not written passes everything on.
pub trait Link: Sync {
    /// How much it must see.
    fn acts(&self) -> Acts;

    /// Whether its knobs leave everything as it is; then it is not there.
    fn idle(&self) -> bool;

    /// Refuses its own keys out of range.
    fn check(&self) -> Result<()>;

    /// What the server carries for it, by [`Station::name`].
    fn init(&self, _at: &Station<'_>) -> Result<Named> {
        Ok(Named::new())
    }

    /// On a client, before the reply leaves.
    fn leave(&self, _parcel: &mut Parcel, _job: &Job, _at: &Station<'_>) -> Result<()> {
        Ok(())
    }

    /// On the server, when everything is added up. A reason where the exchange comes to nothing.
    fn arrive(&self, _got: &mut Collected, _state: &mut Named, _at: &Station<'_>) -> Result<Option<String>> {
        Ok(None)
    }
}

/// The steps of a reply: what clipping, noise, compression and attacks touch; in it, the weights alone.
fn steps(reply: &mut Reply) -> impl Iterator<Item = &mut super::Part> {
    reply.parts.iter_mut().filter(|part| part.kind == PartKind::Delta)
}

/// Changes the weights of a vector in place, in layout order.
fn each_weight(params: &mut Params, mut change: impl FnMut(f32) -> f32) {
    let ranges = params.layout().ranges(Role::Weight);
    let data = params.data_mut();
    ranges.into_iter().for_each(|range| data[range].iter_mut().for_each(|w| *w = change(*w)));
}

/// The L2 norm over the weights, in f64.
fn norm_of(params: &Params) -> f64 {
    let squares = |range: std::ops::Range<usize>| params.data()[range].iter().map(|w| f64::from(*w).powi(2));
    params.layout().ranges(Role::Weight).into_iter().flat_map(squares).sum::<f64>().sqrt()
}

/// Refuses a number outside what it may be.
fn refuse_unless(fits: bool, link: &str, key: &str, value: f64, want: &str) -> Result<()> {
    match fits {
        true => Ok(()),
        false => Err(Error::input(format!("federated.way: {link}: {key} = {value}: {want}"))),
    }
}

#[cfg(test)]
mod tests;
