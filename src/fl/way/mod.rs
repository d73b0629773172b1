//! What happens to updates on their way from clients to the server: a chain of links by config, in order.
//!
//! A link acts on a client's reply before it leaves ([`Link::leave`], on the worker that trained), on what has been added
//! up ([`Link::arrive`], on the server), or on both; [`Link::acts`] says how much it must see. A link whose knobs are
//! neutral is not there at all. Exchanges of the cohort alone travel: what every client says once (its size), and the
//! server's own work, do not.
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

pub mod account;
pub mod attack;
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

use super::brief::Job;
use super::reply::{PartKind, Reply};
use super::trainer::Returned;
use super::{ClientId, Collected, Exchange, FederatedConfig, Who};
use crate::error::{Error, Place, Result};
use crate::key::{Key, Purpose};
use crate::nn::{Layout, Named, Params, Role};

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

/// The way of updates in one round.
pub struct Way<'a> {
    links: Vec<(usize, &'a LinkConfig)>,
    /// Clients of the federation.
    pub clients: usize,
    /// Clients of a round.
    pub cohort: usize,
    /// What the server carries for the links.
    pub state: Named,
    /// Who was asked in the exchange at hand, those who will not answer included.
    pub asked: Vec<ClientId>,
    /// Whether the exchange at hand travels.
    travels: bool,
    root: Key,
    round: Key,
    exchange: Key,
}

impl<'a> Way<'a> {
    /// The links that do anything, in a round.
    pub fn new(config: &'a FederatedConfig, clients: usize, root: Key, round: usize, state: Named) -> Self {
        let links = config.way.iter().enumerate().filter(|(_, l)| !l.link().idle()).collect();
        let round = root.fold(Purpose::Round, round as u64);
        let (asked, travels) = (Vec::new(), false);
        Way { links, clients, cohort: config.cohort, state, asked, travels, root, round, exchange: round }
    }

    fn station(&self, place: usize) -> Station<'_> {
        Station { place, way: self, key: self.exchange.fold(Purpose::Way, place as u64) }
    }

    /// What the server carries before the first round.
    pub fn init(&self) -> Result<Named> {
        let mut all = Named::new();
        for (place, link) in &self.links {
            all.extend(link.link().init(&self.station(*place)).at(|| link.kind())?);
        }
        Ok(all)
    }

    /// Refuses a model, or a method's first round, that the links cannot carry.
    pub fn accepts(&self, model: &Layout, exchanges: &[Exchange]) -> Result<()> {
        order::accepts(self, model, exchanges)
    }

    /// The links in force, with their places.
    pub fn links(&self) -> impl DoubleEndedIterator<Item = (usize, &'a LinkConfig)> + '_ {
        self.links.iter().copied()
    }

    /// Begins an exchange; those who will not answer are taken out of `who` and given back.
    pub fn begin(&mut self, exchange: &Exchange, number: usize, who: &mut Vec<ClientId>) -> Vec<ClientId> {
        self.travels = !self.links.is_empty() && exchange.who == Who::Cohort;
        if !self.travels {
            return Vec::new();
        }
        self.exchange = if number > 0 { self.round.fold(Purpose::Exchange, number as u64) } else { self.round };
        self.asked.clone_from(who);
        let silent = |client: &ClientId| {
            self.links.iter().any(|(place, link)| match link {
                LinkConfig::Drop(lose) => lose.silent(*client, self.round.fold(Purpose::Way, *place as u64)),
                _ => false,
            })
        };
        let (gone, stay): (Vec<ClientId>, Vec<ClientId>) = who.iter().copied().partition(|client| silent(client));
        *who = stay;
        gone
    }

    /// Whether a client's labels are flipped.
    pub fn flips(&self, client: ClientId) -> bool {
        self.links.iter().any(|(place, link)| match link {
            LinkConfig::Attack(attack) => attack.flips() && self.attackers(*place, attack).contains(&client),
            _ => false,
        })
    }

    /// Who attacks at this place: the same clients in every round.
    fn attackers(&self, place: usize, attack: &attack::Attack) -> Vec<ClientId> {
        attack.attackers(self.clients, self.root.fold(Purpose::Way, place as u64))
    }

    /// A client's own randomness at a place, the same in every round.
    fn own(&self, place: usize, client: ClientId) -> Key {
        self.root.fold(Purpose::Way, place as u64).fold(Purpose::Client, u64::from(client))
    }

    /// Whether replies must be kept one by one.
    pub fn compares(&self) -> bool {
        self.travels && self.links.iter().any(|(_, link)| matches!(link, LinkConfig::Robust(_)))
    }

    /// The norm to which steps are held before this place, in force now.
    pub fn norm(&self, place: usize) -> Option<f64> {
        let before = self.links.iter().filter(|(at, _)| *at < place);
        before.rev().find_map(|(at, link)| match link {
            LinkConfig::Clip(clip) => Some(clip.now(&self.state, *at)),
            _ => None,
        })
    }

    /// A client's side: what it returns goes through every link.
    pub fn leave(&self, job: &Job, (mut reply, keep): Returned) -> Result<Returned> {
        if !self.travels || job.server {
            return Ok((reply, keep));
        }
        for (_, link) in &self.links {
            if let LinkConfig::Noise(noise) = link {
                noise.admit(&mut reply, job)?;
            }
        }
        let own = |named: &Named, ours: bool| -> Named {
            let part = named.iter().filter(|(name, _)| name.starts_with("way/") == ours);
            part.map(|(name, params)| (name.clone(), params.clone())).collect()
        };
        let before = job.kept.as_deref();
        let mut parcel = Parcel { reply, kept: before.map(|kept| own(kept, true)).unwrap_or_default() };
        for (place, link) in &self.links {
            let station = Station { key: job.key.fold(Purpose::Way, *place as u64), ..self.station(*place) };
            link.link().leave(&mut parcel, job, &station).at(|| link.kind())?;
        }
        if parcel.kept.is_empty() {
            return Ok((parcel.reply, keep));
        }
        let mut all = keep.or_else(|| before.map(|kept| own(kept, false))).unwrap_or_default();
        all.extend(parcel.kept);
        Ok((parcel.reply, Some(all)))
    }

    /// The server's side, link by link backwards: a mask is opened before noise is added to what was under it. A reason
    /// where the exchange comes to nothing.
    pub fn arrive(&mut self, got: &mut Collected) -> Result<Option<String>> {
        if !self.travels {
            return Ok(None);
        }
        if got.replies == 0 {
            return Ok(Some("nobody answered".into()));
        }
        let mut state = self.state.clone();
        // What joins replies is undone first, whatever stands behind it.
        let joins = |link: &LinkConfig| matches!(link, LinkConfig::Mask(_) | LinkConfig::Robust(_));
        let (first, then): (Vec<_>, Vec<_>) = self.links().rev().partition(|(_, link)| joins(link));
        for (place, link) in first.into_iter().chain(then) {
            let lost = link.link().arrive(got, &mut state, &self.station(place)).at(|| link.kind())?;
            if lost.is_some() {
                return Ok(lost);
            }
        }
        self.state = state;
        Ok(None)
    }

    /// Why no round can follow, where none can.
    pub fn spent(&self) -> Result<Option<String>> {
        for (place, link) in &self.links {
            if let LinkConfig::Noise(noise) = link
                && let Some(why) = noise.spent(&self.station(*place))?
            {
                return Ok(Some(why));
            }
        }
        Ok(None)
    }

    /// What the way tells of the round; `lost` clients did not arrive.
    pub fn figures(&self, lost: usize) -> Result<Vec<Figure>> {
        let mut all = Vec::new();
        for (place, link) in &self.links {
            match link {
                LinkConfig::Noise(noise) => all.push((noise::EPSILON, noise.epsilon_now(&self.station(*place))?)),
                LinkConfig::Clip(clip) if clip.adapts() => all.push(("clip_norm", clip.now(&self.state, *place))),
                LinkConfig::Drop(_) => all.push(("lost", lost as f64)),
                _ => {}
            }
        }
        Ok(all)
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
