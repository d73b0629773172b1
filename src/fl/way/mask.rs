//! Secure aggregation: Bonawitz et al., *Practical Secure Aggregation for Privacy-Preserving Machine Learning*, CCS 2017,
//! Figure 4, played through in one process: the server sees a client's numbers under masks, and their sum in the clear.
//!
//! A client writes what it sends as integers, `round(weight · number · 2^fraction)` and the weight likewise, modulo
//! `2^bits`. To them it adds a mask of its own and, with every other client of the cohort, one that both draw from a key
//! they agree on: it adds, the other subtracts. Its own seed and its secret key lie in shares at the others. When all is
//! in, those who are still there give the server their shares: of the own seed of a client that answered, of the secret
//! key of one that did not. So every mask is taken off the sum, and the sum **is that of the integers, to the bit**, for
//! every pattern of dropouts that leaves `threshold` clients; with fewer it cannot be opened, and the round comes to
//! nothing. The mean differs from the plain one by the integers' rounding alone, at most half of `2^-fraction` a client
//! over their weights; where the products are such integers, by nothing.
//!
//! What is simulated: the protocol's numbers, not its safety ([`shamir`](super::shamir)); the server is honest and no
//! signatures are checked. Bytes counted are those of the masked numbers, not of the keys and shares (some hundred bytes
//! for each other client).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shamir::{agreed, joined, public, secret, shares};
use super::{Acts, Link, Parcel, Station, refuse_unless};
use crate::error::{Error, Result};
use crate::fl::aggregate::Sum;
use crate::fl::brief::Job;
use crate::fl::reply::{Part, Sealed};
use crate::fl::{ClientId, Collected};
use crate::key::{Key, Purpose};

/// The knobs of `mask`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mask {
    /// Share of the clients asked that must be there for the sum to be opened, in `(0.5, 1]`.
    pub threshold: f64,
    /// Bits of an integer, 16 to 64: sums are modulo two to this power. On the wire they are rounded up to whole bytes.
    pub bits: u32,
    /// Bits of them behind the point.
    pub fraction: u32,
}

impl Default for Mask {
    fn default() -> Self {
        Mask { threshold: 0.6, bits: 64, fraction: 32 }
    }
}

/// What one client of a protocol run holds.
struct Party {
    secret: u64,
    public: u64,
    seed: u64,
}

/// One run of the protocol among some clients.
pub struct Protocol {
    who: Vec<ClientId>,
    parties: Vec<Party>,
    threshold: usize,
    key: Key,
}

impl Protocol {
    /// Keys and seeds of the clients, each its own draw.
    pub fn new(who: &[ClientId], threshold: usize, key: Key) -> Self {
        let party = |client: &ClientId| {
            let mut rng = key.fold(Purpose::Client, u64::from(*client)).rng();
            let (own, seed) = (secret(&mut rng), secret(&mut rng));
            Party { secret: own, public: public(own), seed }
        };
        Protocol { who: who.to_vec(), parties: who.iter().map(party).collect(), threshold, key }
    }

    fn place(&self, client: ClientId) -> Result<usize> {
        let none = || Error::defect(format!("mask: client {client} is not of the cohort"));
        self.who.iter().position(|c| *c == client).ok_or_else(none)
    }

    /// Adds (or takes away) the stream of a seed.
    fn stream(words: &mut [u64], seed: u64, away: bool) {
        let mut rng = Key::from_seed(seed).fold(Purpose::Way, 0).rng();
        words.iter_mut().for_each(|w| *w = if away { w.wrapping_sub(rng.u64()) } else { w.wrapping_add(rng.u64()) });
    }

    /// A client's side: its integers under its masks.
    pub fn seal(&self, client: ClientId, words: &mut [u64]) -> Result<()> {
        let (own, me) = (self.place(client)?, &self.parties[self.place(client)?]);
        Self::stream(words, me.seed, false);
        for (other, party) in self.parties.iter().enumerate().filter(|(other, _)| *other != own) {
            Self::stream(words, agreed(me.secret, party.public), own > other);
        }
        Ok(())
    }

    /// What the holders of shares put together: `of` picks the secret of a party.
    fn recovered(&self, whose: usize, helpers: &[usize], of: impl Fn(&Party) -> u64, which: u64) -> Result<u64> {
        let mut rng = self.key.fold(Purpose::Item, whose as u64).fold(Purpose::Step, which).rng();
        let all = shares(of(&self.parties[whose]), self.parties.len(), self.threshold, &mut rng);
        let held: Vec<(u64, u64)> = helpers.iter().map(|&h| (h as u64 + 1, all[h])).collect();
        joined(&held, self.threshold)
    }

    /// The server's side: takes all masks off the sum of those in `answered`, with the shares of those in `helpers`, who
    /// are still there. Fewer helpers than the threshold are refused.
    pub fn open(&self, sum: &mut [u64], answered: &[ClientId], helpers: &[ClientId]) -> Result<()> {
        let places = |clients: &[ClientId]| clients.iter().map(|c| self.place(*c)).collect::<Result<Vec<_>>>();
        let (answered, helpers) = (places(answered)?, places(helpers)?);
        for place in 0..self.parties.len() {
            if answered.contains(&place) {
                Self::stream(sum, self.recovered(place, &helpers, |p| p.seed, 0)?, true);
                continue;
            }
            let lost = self.recovered(place, &helpers, |p| p.secret, 1)?;
            for &other in &answered {
                // What `other` added with the one that is gone, the other way round.
                Self::stream(sum, agreed(lost, self.parties[other].public), other < place);
            }
        }
        Ok(())
    }
}

impl Mask {
    /// Clients that must be there, of so many asked.
    pub fn least(&self, asked: usize) -> usize {
        ((self.threshold * asked as f64).ceil() as usize).clamp(1, asked.max(1))
    }

    fn protocol(&self, at: &Station<'_>) -> Protocol {
        let asked = &at.way.asked;
        let exchange = at.way.station(at.place).key;
        Protocol::new(asked, self.least(asked.len()), exchange)
    }

    /// A number as an integer modulo two to the power of 64; refused where the sum of `clients` such would not fit.
    fn integer(&self, value: f64, clients: usize) -> Result<u64> {
        let scaled = (value * 2f64.powi(self.fraction as i32)).round();
        if scaled.abs() * clients.max(1) as f64 >= 2f64.powi(self.bits as i32 - 1) {
            let (bits, fraction) = (self.bits, self.fraction);
            return Err(Error::data(format!(
                "{value} of {clients} clients does not fit into {bits} bits with {fraction} behind the point"
            ))
            .hint("give mask more bits or a smaller fraction, or put a clip before it"));
        }
        Ok(scaled as i64 as u64)
    }

    /// The integers of a part, and its weight's.
    fn integers(&self, part: &Part, clients: usize, words: &mut Vec<u64>) -> Result<()> {
        for value in part.data.data() {
            words.push(self.integer(part.weight * f64::from(*value), clients)?);
        }
        words.push(self.integer(part.weight, clients)?);
        Ok(())
    }

    /// An integer modulo two to the power of `bits` as the number that it was.
    fn number(&self, word: u64) -> f64 {
        let up = 64 - self.bits;
        (((word << up) as i64) >> up) as f64 * 2f64.powi(-(self.fraction as i32))
    }

    /// The sums of an opened sum.
    fn sums(&self, opened: Sealed) -> Vec<(crate::fl::Name, Sum)> {
        let mut words = opened.words.into_iter();
        let mut next = |n: usize| words.by_ref().take(n).map(|w| self.number(w)).collect::<Vec<f64>>();
        let sum = |(name, kind, layout): (_, _, std::sync::Arc<crate::nn::Layout>)| {
            let total = next(layout.len());
            let weight = next(1).into_iter().sum();
            (name, Sum::opened(kind, layout, total, weight))
        };
        opened.parts.into_iter().map(sum).collect()
    }
}

impl Link for Mask {
    fn acts(&self) -> Acts {
        Acts::Leaf
    }

    fn idle(&self) -> bool {
        false
    }

    fn check(&self) -> Result<()> {
        let Mask { threshold, bits, fraction } = *self;
        let fits = threshold > 0.5 && threshold <= 1.0;
        refuse_unless(fits, "mask", "threshold", threshold, "a share above one half, at most 1")?;
        refuse_unless((16..=64).contains(&bits), "mask", "bits", f64::from(bits), "choose 16 to 64")?;
        refuse_unless(fraction < bits - 1, "mask", "fraction", f64::from(fraction), "choose fewer than the bits")
    }

    fn leave(&self, parcel: &mut Parcel, job: &Job, at: &Station<'_>) -> Result<()> {
        let reply = &mut parcel.reply;
        let mut words = Vec::with_capacity(reply.parts.iter().map(|p| p.data.data().len() + 1).sum());
        for part in &reply.parts {
            self.integers(part, at.way.asked.len(), &mut words)?;
        }
        self.protocol(at).seal(job.client, &mut words)?;
        let modulus = u64::MAX >> (64 - self.bits);
        words.iter_mut().for_each(|w| *w &= modulus);
        let parts = reply.parts.drain(..).map(|p| (p.name, p.kind, p.data.layout().clone())).collect();
        reply.wire.sealed = Some(Sealed { parts, words, width: u64::from(self.bits.div_ceil(8)) });
        Ok(())
    }

    fn arrive(&self, got: &mut Collected, _: &mut crate::nn::Named, at: &Station<'_>) -> Result<Option<String>> {
        let (asked, least) = (at.way.asked.len(), self.least(at.way.asked.len()));
        if got.from.len() < least {
            let n = got.from.len();
            return Ok(Some(format!("{n} of {asked} clients answered, and their sum opens with {least} or more")));
        }
        if let Some(mut sealed) = got.sealed.take() {
            self.protocol(at).open(&mut sealed.words, &got.from, &got.from)?;
            got.sums.extend(self.sums(sealed));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sums of four clients' integers, opened after some dropped out before they sent, others after.
    #[test]
    fn the_sum_is_exact_under_every_pattern_of_dropouts_above_the_threshold_and_refused_below() {
        let who: Vec<ClientId> = vec![7, 2, 9, 4, 0];
        let key = Key::from_seed(3);
        let plain = |c: ClientId| [u64::from(c) * 1000 + 1, 0u64.wrapping_sub(u64::from(c)), 5];
        for threshold in [3, 4] {
            let protocol = Protocol::new(&who, threshold, key);
            for pattern in 0u32..1 << who.len() {
                let some = |bits: u32| -> Vec<ClientId> {
                    who.iter().enumerate().filter(|(i, _)| (bits >> i) & 1 == 1).map(|(_, c)| *c).collect()
                };
                let answered = some(pattern);
                // Every pattern of those who are still there among those who answered.
                let mut left = pattern;
                loop {
                    let (mut sum, mut want) = ([0u64; 3], [0u64; 3]);
                    for &client in &answered {
                        let mut words = plain(client);
                        protocol.seal(client, &mut words).unwrap();
                        assert_ne!(words, plain(client));
                        sum.iter_mut().zip(words).for_each(|(s, w)| *s = s.wrapping_add(w));
                        want.iter_mut().zip(plain(client)).for_each(|(s, w)| *s = s.wrapping_add(w));
                    }
                    let opened = protocol.open(&mut sum, &answered, &some(left));
                    match left.count_ones() as usize >= threshold {
                        true => assert_eq!((opened.unwrap(), sum), ((), want), "{answered:?} {:?}", some(left)),
                        false => assert!(opened.is_err()),
                    }
                    if left == 0 {
                        break;
                    }
                    left = (left - 1) & pattern;
                }
            }
        }
    }

    #[test]
    fn integers_of_any_width_are_the_numbers_that_they_were_and_what_does_not_fit_is_refused() {
        for (bits, fraction) in [(64, 32), (32, 16), (20, 8)] {
            let mask = Mask { bits, fraction, ..Mask::default() };
            let modulus = u64::MAX >> (64 - bits);
            for value in [0.0, 1.5, -1.5, -100.25, 511.0] {
                assert_eq!(mask.number(mask.integer(value, 1).unwrap() & modulus), value);
            }
            let e = mask.integer(2f64.powi((bits - fraction) as i32 - 2), 2).unwrap_err().to_string();
            assert!(e.contains("does not fit") && e.contains("clip"), "{e}");
        }
    }
}
