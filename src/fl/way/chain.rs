//! The links at work in one round.

use super::{Figure, LinkConfig, Parcel, Station, attack, noise, order};
use crate::error::{Place, Result};
use crate::fl::brief::Job;
use crate::fl::trainer::Returned;
use crate::fl::{ClientId, Collected, Exchange, FederatedConfig, Who};
use crate::key::{Key, Purpose};
use crate::nn::{Layout, Named};

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

    pub(super) fn station(&self, place: usize) -> Station<'_> {
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
    pub(super) fn attackers(&self, place: usize, attack: &attack::Attack) -> Vec<ClientId> {
        attack.attackers(self.clients, self.root.fold(Purpose::Way, place as u64))
    }

    /// A client's own randomness at a place, the same in every round.
    pub(super) fn own(&self, place: usize, client: ClientId) -> Key {
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
