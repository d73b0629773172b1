//! Adding replies up: f64, by position in the cohort, in leaves of 16, leaves in order.
//!
//! So a sum has the same bytes for any number of threads, and memory holds two leaves of replies (one under way, one
//! waiting to be added in a single pass), never the cohort. A leaf is 16 neighbours of the cohort, whoever of them answers:
//! so it can be added up by itself, on another [rank](super::ranks), and joined later.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::brief::Name;
use super::reply::{Part, PartKind, Reply, Sealed};
use super::{ClientId, Collect};
use crate::error::{Error, Result};
use crate::nn::sum::add_weighted;
use crate::nn::{Layout, Params, Role};

/// Replies added up in one partial sum; also the most that are under way at a time.
pub const LEAF: usize = 16;

/// A weighted sum of one named part.
pub struct Sum {
    kind: PartKind,
    layout: Arc<Layout>,
    total: Vec<f64>,
    /// Weights and vectors of the leaf at hand.
    leaf: Vec<(f64, Params)>,
    weight: f64,
}

impl Sum {
    fn new(part: &Part) -> Self {
        let (layout, total) = (part.data.layout().clone(), vec![0.0; part.data.data().len()]);
        Sum { kind: part.kind, layout, total, leaf: Vec::with_capacity(LEAF), weight: 0.0 }
    }

    fn add(&mut self, part: &Part) -> Result<()> {
        if *part.data.layout() != self.layout || part.kind != self.kind {
            return Err(Error::defect(format!("aggregation: replies disagree about part {}", part.name)));
        }
        self.leaf.push((part.weight, part.data.clone()));
        self.weight += part.weight;
        if self.leaf.len() == LEAF {
            self.close_leaf();
        }
        Ok(())
    }

    fn close_leaf(&mut self) {
        if self.leaf.is_empty() {
            return;
        }
        let weights: Vec<f64> = self.leaf.iter().map(|l| l.0).collect();
        let vectors: Vec<&[f32]> = self.leaf.iter().map(|l| l.1.data()).collect();
        add_weighted(&mut self.total, &weights, &vectors);
        self.leaf.clear();
    }

    /// Adds a leaf's own sum; `weights` are those in it, one by one.
    pub(super) fn join(&mut self, leaf: &Sum, weights: &[f64]) -> Result<()> {
        if leaf.layout != self.layout || leaf.kind != self.kind {
            return Err(Error::defect("aggregation: leaves disagree about a part"));
        }
        self.close_leaf();
        self.total.iter_mut().zip(&leaf.total).for_each(|(t, l)| *t += l);
        weights.iter().for_each(|w| self.weight += w);
        Ok(())
    }

    fn check(&self) -> Result<()> {
        if self.weight <= 0.0 {
            return Err(Error::data("aggregation: the weights of all replies are zero")
                .hint("the clients of this round hold no samples"));
        }
        Ok(())
    }

    /// The weighted mean, as a value or a step, in f64 and layout order.
    pub fn mean(&self) -> Result<Vec<f64>> {
        self.check()?;
        Ok(self.total.iter().map(|t| t / self.weight).collect())
    }

    /// The sum itself, in f64 and layout order, and the weight in it: for sums whose denominators are parts of their own.
    pub fn total(&self) -> (&[f64], f64) {
        (&self.total, self.weight)
    }

    /// The layout of the parts.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// Step or value.
    pub fn kind(&self) -> PartKind {
        self.kind
    }

    /// A sum as it was opened: numbers in layout order, and the weight in them.
    pub fn opened(kind: PartKind, layout: Arc<Layout>, total: Vec<f64>, weight: f64) -> Self {
        Sum { kind, layout, total, leaf: Vec::new(), weight }
    }

    /// Adds noise to every weight, in layout order, and divides by this from now on. Buffers stay.
    pub fn blur(&mut self, mut noise: impl FnMut() -> f64, weight: f64) {
        for range in self.layout.ranges(Role::Weight) {
            self.total[range].iter_mut().for_each(|t| *t += noise());
        }
        self.weight = weight;
    }
}

/// What the server has after an exchange.
#[derive(Default)]
pub struct Collected {
    /// Weighted sums by part, for [`Collect::Sum`].
    pub sums: BTreeMap<Name, Sum>,
    /// All replies in cohort order, for [`Collect::Each`].
    pub each: Vec<(ClientId, Reply)>,
    /// The sum of sealed replies, modulo a power of two.
    pub sealed: Option<Sealed>,
    /// Whose replies were folded, in order.
    pub from: Vec<ClientId>,
    /// Replies folded.
    pub replies: usize,
    /// Mean training loss weighted by samples: numerator and denominator.
    pub loss: (f64, f64),
    /// Bytes from server to clients.
    pub bytes_down: u64,
    /// Bytes from clients to server.
    pub bytes_up: u64,
    /// Multiply-adds of all who replied.
    pub multiply_adds: u64,
}

impl Collected {
    /// Folds the next reply, in cohort order.
    pub fn fold(&mut self, client: ClientId, reply: Reply, how: Collect) -> Result<()> {
        self.replies += 1;
        self.from.push(client);
        self.bytes_up += reply.bytes_up();
        self.multiply_adds += reply.multiply_adds;
        if let Some(loss) = reply.loss {
            let n = reply.samples as f64;
            self.loss = (self.loss.0 + n * loss, self.loss.1 + n);
        }
        match how {
            Collect::Each => self.each.push((client, reply)),
            Collect::Sum => self.add_up(reply)?,
        }
        Ok(())
    }

    /// Adds the parts of a reply to the sums.
    pub fn add_up(&mut self, reply: Reply) -> Result<()> {
        for part in &reply.parts {
            self.sums.entry(part.name.clone()).or_insert_with(|| Sum::new(part)).add(part)?;
        }
        self.seal(reply.wire.sealed)
    }

    /// Adds integers under masks.
    pub(super) fn seal(&mut self, sealed: Option<Sealed>) -> Result<()> {
        match (&mut self.sealed, sealed) {
            (_, None) => {}
            (None, first) => self.sealed = first,
            (Some(sum), Some(next)) if sum.parts == next.parts && sum.words.len() == next.words.len() => {
                sum.words.iter_mut().zip(next.words).for_each(|(s, n)| *s = s.wrapping_add(n));
            }
            _ => return Err(Error::defect("aggregation: sealed replies disagree about their parts")),
        }
        Ok(())
    }

    /// The replies of [`Collect::Each`] added up, as [`Collect::Sum`] has them.
    pub fn summed(&self) -> Result<Collected> {
        let mut sum = Collected::default();
        self.each.iter().try_for_each(|(client, reply)| sum.fold(*client, reply.clone(), Collect::Sum))?;
        sum.close();
        Ok(sum)
    }

    /// Ends the leaf at hand.
    pub fn close(&mut self) {
        self.sums.values_mut().for_each(Sum::close_leaf);
    }

    /// Takes a part of one number out: its sum and the weight in it, both 0 where nobody sent it.
    pub fn take(&mut self, name: &str) -> Result<(f64, f64)> {
        for (_, reply) in &mut self.each {
            let found = reply.parts.iter().position(|p| p.name == name).map(|i| reply.parts.remove(i));
            found.map_or(Ok(()), |part| {
                self.sums.entry(part.name.clone()).or_insert_with(|| Sum::new(&part)).add(&part)
            })?;
        }
        let mut sum = self.sums.remove(name);
        sum.iter_mut().for_each(Sum::close_leaf);
        Ok(sum.map_or((0.0, 0.0), |sum| (sum.total.iter().sum(), sum.weight)))
    }

    /// The sum of the part called `name`.
    pub fn sum(&self, name: &str) -> Result<&Sum> {
        self.sums.get(name).ok_or_else(|| Error::defect(format!("aggregation: no reply has a part {name}")))
    }

    /// `model + rate · mean step` in the weights, the mean value in the buffers.
    pub fn moved(&self, model: &Params, part: &str, rate: f64) -> Result<Params> {
        let sum = self.sum(part)?;
        sum.check()?;
        let mut next = model.clone();
        let layout = model.layout().clone();
        let data = next.data_mut();
        for entry in layout.entries() {
            for (value, total) in data[entry.range()].iter_mut().zip(&sum.total[entry.range()]) {
                let m = total / sum.weight;
                *value = match entry.role {
                    Role::Weight => (f64::from(*value) + rate * m) as f32,
                    Role::Buffer => m as f32,
                };
            }
        }
        Ok(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Arc<Layout> {
        let mut layout = Layout::default();
        layout.push("w", &[2], Role::Weight).unwrap();
        layout.push("running_mean", &[1], Role::Buffer).unwrap();
        Arc::new(layout)
    }

    fn reply(data: [f32; 3], weight: f64) -> Reply {
        let data = Params::new(layout(), data.to_vec()).unwrap();
        Reply {
            parts: vec![Part { name: "model".into(), kind: PartKind::Delta, data, weight }],
            samples: 1,
            loss: Some(0.0),
            multiply_adds: 0,
            wire: Default::default(),
        }
    }

    #[test]
    fn weights_move_by_the_mean_step_and_buffers_become_the_mean_value() {
        let mut got = Collected::default();
        got.fold(0, reply([1.0, 0.0, 10.0], 1.0), Collect::Sum).unwrap();
        got.fold(1, reply([5.0, -4.0, 2.0], 3.0), Collect::Sum).unwrap();
        got.close();
        let model = Params::new(layout(), vec![100.0, 200.0, 300.0]).unwrap();
        assert_eq!(got.moved(&model, "model", 1.0).unwrap().data(), &[104.0, 197.0, 4.0]);
        assert_eq!(got.moved(&model, "model", 0.5).unwrap().data(), &[102.0, 198.5, 4.0]);
    }

    #[test]
    fn leaves_add_up_to_the_plain_mean() {
        let mut got = Collected::default();
        for i in 0..40u16 {
            got.fold(u32::from(i), reply([f32::from(i), 1.0, 0.0], f64::from(i)), Collect::Sum).unwrap();
        }
        got.close();
        let mean = got.sum("model").unwrap().mean().unwrap();
        let want = (0..40).map(|i| f64::from(i * i)).sum::<f64>() / (0..40).map(f64::from).sum::<f64>();
        assert!((mean[0] - want).abs() < 1e-12 && mean[1] == 1.0);
    }

    #[test]
    fn replies_kept_one_by_one_add_up_to_the_same_bytes() {
        let (mut sum, mut each) = (Collected::default(), Collected::default());
        for i in 0..20u16 {
            let reply = reply([f32::from(i).sqrt(), 0.1, 0.3], f64::from(i) + 0.5);
            sum.fold(u32::from(i), reply.clone(), Collect::Sum).unwrap();
            each.fold(u32::from(i), reply, Collect::Each).unwrap();
        }
        sum.close();
        let (model, each) = (Params::zeros(layout()), each.summed().unwrap());
        let moved = |got: &Collected| got.moved(&model, "model", 1.0).unwrap().data().to_vec();
        assert_eq!(moved(&each), moved(&sum));
        assert_eq!((each.replies, each.bytes_up), (sum.replies, sum.bytes_up));
    }

    #[test]
    fn no_samples_at_all_is_an_error() {
        let mut got = Collected::default();
        got.fold(0, reply([1.0, 1.0, 1.0], 0.0), Collect::Sum).unwrap();
        got.close();
        assert!(got.moved(&Params::zeros(layout()), "model", 1.0).is_err());
    }
}
