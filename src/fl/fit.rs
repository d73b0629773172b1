//! The training loop, once: steps, schedule, shuffles, gradients, resumption. Clients, alignment and both pretrainings
//! call [`fit`].
//!
//! Plans stand side by side, one a client, in the first lanes of a [`Session`]. A lane that has no step left has no rows,
//! and nothing of it moves: side by side every client gets what it gets alone.

mod lane;

use std::collections::BTreeMap;
use std::ops::Range;

use lane::Lane;
pub(super) use lane::{diverged, first_not_finite};

use super::brief::{Bn, Loss, Train};
use super::feed::{Data, Stream};
use super::objective::{Here, Objective, Seen, Tap};
use crate::error::{Error, Place, Result};
use crate::exec::{self, Context, Event};
use crate::key::Key;
use crate::nn::{Input, Mode, Named, Net, Node, Params, Session, loss};

/// What one client trains.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// How.
    pub train: &'a Train<'a>,
    /// The parameters behind the brief's slots.
    pub slots: &'a [Params],
    /// On what.
    pub data: &'a Data<'a>,
    /// Randomness of this training.
    pub key: Key,
}

/// Where a training stands between two epochs.
#[derive(Clone, Default)]
pub struct Standing {
    /// Epochs done.
    pub epochs: usize,
    /// The parameters; those of `train.from` where there are none.
    pub params: Option<Params>,
    /// The optimiser's state.
    pub moments: Named,
    /// Vectors beside the network and their optimisers' states, where epochs were done.
    pub beside: Vec<(Params, Named)>,
}

/// What came out.
pub struct Fitted {
    /// The trained parameters.
    pub params: Params,
    /// The optimiser's state, where the plan keeps it.
    pub moments: Named,
    /// The trained vectors beside the network, and their optimisers' states where the plan keeps them.
    pub beside: Vec<(Params, Named)>,
    /// Steps taken.
    pub steps: usize,
    /// Mean loss over the rows seen; none without a step.
    pub loss: Option<f64>,
    /// Multiply-adds of all passes.
    pub multiply_adds: u64,
}

/// Hears of every finished epoch of the first plan.
pub trait Observer {
    /// `standing` makes a copy of where the training stands.
    fn epoch(&mut self, done: usize, standing: &mut dyn FnMut() -> Result<Standing>) -> Result<()>;
}

/// Nobody listens.
impl Observer for () {
    fn epoch(&mut self, _: usize, _: &mut dyn FnMut() -> Result<Standing>) -> Result<()> {
        Ok(())
    }
}

/// Trains every plan to its end, from where it stands.
pub fn fit(
    session: &mut dyn Session,
    plans: &[Plan<'_>],
    standing: Vec<Standing>,
    cx: &Context,
    observer: &mut dyn Observer,
) -> Result<Vec<Fitted>> {
    if plans.len() > session.lanes() || standing.len() != plans.len() {
        let (plans, lanes) = (plans.len(), session.lanes());
        return Err(Error::defect(format!("fit: {plans} plans in {lanes} lanes from {} states", standing.len())));
    }
    let net = session.net().clone();
    let mut lanes = Vec::with_capacity(plans.len());
    for (k, (plan, from)) in plans.iter().zip(standing).enumerate() {
        lanes.push(Lane::new(k, *plan, from, &net, session)?);
    }
    let mut work = Work::new(&net, plans, session.lanes())?;
    let left = lanes.iter().map(|lane| lane.total.saturating_sub(lane.at)).max().unwrap_or(0);
    while lanes.iter().any(|lane| lane.at < lane.total) {
        cx.cancel.check()?;
        let (before, batches) = (lanes[0].at, lanes[0].batches.max(1));
        let place = || format!("local epoch {}, step {}", before / batches, before % batches);
        exec::caught(|| work.step(&mut lanes, session)).at(place)?;
        cx.events.on(Event::Part(plans.len() as f64 / left as f64));
        if lanes[0].at > before && lanes[0].at.is_multiple_of(batches) {
            let done = lanes[0].at / batches;
            observer.epoch(done, &mut || lanes[0].standing(done, session))?;
        }
    }
    lanes.into_iter().map(|lane| lane.finish(session)).collect()
}

/// Arrays of a step, reused: values of taps and their gradients, rows of all lanes one after the other.
struct Work {
    nodes: BTreeMap<Tap, Node>,
    values: BTreeMap<Tap, Vec<f32>>,
    seeds: BTreeMap<Tap, Vec<f32>>,
    sizes: BTreeMap<Tap, usize>,
    seen: Vec<Seen>,
    net: Net,
    /// The session's lanes, of which the last may be empty.
    width: usize,
}

/// The nodes of some taps.
pub(super) fn nodes(net: &Net, taps: impl IntoIterator<Item = Tap>) -> Result<BTreeMap<Tap, Node>> {
    let mut nodes = BTreeMap::new();
    for tap in taps {
        let node = match tap {
            Tap::Logits => net.logits,
            Tap::Feature => net.tap("feature")?,
            Tap::Map => net.tap("map").or_else(|_| net.tap("feature"))?,
            Tap::Head => match net.classifier() {
                Some(_) => continue,
                None => return Err(Error::defect(format!("{}: the output is no linear classifier's", net.name))),
            },
        };
        nodes.insert(tap, node);
    }
    Ok(nodes)
}

impl Work {
    fn new(net: &Net, plans: &[Plan<'_>], width: usize) -> Result<Self> {
        let mut taps = Vec::new();
        for plan in plans {
            match &plan.train.loss {
                Loss::Task => taps.push(Tap::Logits),
                Loss::Open(all) => all.iter().for_each(|o| taps.extend_from_slice(o.taps())),
            }
        }
        let nodes = nodes(net, taps)?;
        let sizes = nodes.iter().map(|(&tap, &node)| (tap, net.shapes[node].iter().product())).collect();
        let (values, seeds, seen) = Default::default();
        Ok(Work { nodes, values, seeds, sizes, seen, net: net.clone(), width })
    }

    fn step(&mut self, lanes: &mut [Lane<'_>], session: &mut dyn Session) -> Result<()> {
        let train = lanes[0].plan.train;
        if train.apart && lanes.len() > 1 {
            return Err(Error::defect("fit: feeds apart, and several clients side by side"));
        }
        lanes.iter_mut().flat_map(|lane| &mut lane.beside).for_each(|b| b.gradient.fill(0.0));
        let parts = if train.apart { train.feeds.len() } else { 1 };
        for part in 0..parts {
            if part > 0 {
                session.part()?;
            }
            self.pass(lanes, train.apart.then_some(part), session)?;
        }
        lanes.iter_mut().filter(|lane| lane.at < lane.total).try_for_each(|lane| lane.clip(session))?;
        let mut rates: Vec<f32> = lanes.iter().map(|lane| lane.plan.train.rate.of(lane.at, lane.total)).collect();
        rates.resize(self.width, 0.0);
        session.step(&rates)?;
        for (lane, &rate) in lanes.iter_mut().zip(&rates).filter(|(lane, _)| lane.at < lane.total) {
            for (beside, optimiser) in lane.beside.iter_mut().zip(&mut lane.optimisers) {
                optimiser.step(beside.values.data_mut(), &beside.gradient, rate);
            }
            lane.at += 1;
            lane.taken += 1;
            if lane.iterates.done(lane.k, lane.at, session)? {
                lane.total = lane.at;
            }
        }
        Ok(())
    }

    /// Forward, losses and backward of the step's batch, or of one feed's part of it.
    fn pass(&mut self, lanes: &mut [Lane<'_>], only: Option<usize>, session: &mut dyn Session) -> Result<()> {
        lanes.iter_mut().try_for_each(|lane| lane.fill(only))?;
        let mut rows: Vec<usize> = lanes.iter().map(|lane| lane.batch.rows[0]).collect();
        rows.resize(self.width, 0);
        self.forward(lanes, &rows, session)?;
        let mut first = 0;
        for (lane, &n) in lanes.iter_mut().zip(&rows).filter(|(_, n)| **n > 0) {
            self.look(lane, session)?;
            let value = self.objective(lane, first..first + n, session)?;
            if !value.is_finite() {
                return Err(diverged(&format!("the loss is {value}")));
            }
            lane.value += value * lane.first_rows as f64;
            lane.seen += if only.unwrap_or(0) == 0 { lane.first_rows } else { 0 };
            let witnesses = lane.witnesses.len() as u64 * self.net.multiply_adds();
            lane.multiply_adds += n as u64 * (3 * lane.forward_adds + witnesses);
            first += n;
        }
        let seeds: Vec<(Node, &[f32])> =
            self.nodes.iter().map(|(tap, &node)| (node, self.seeds[tap].as_slice())).collect();
        session.backward(&seeds)?;
        for (lane, _) in lanes.iter().zip(&rows).filter(|(lane, n)| **n > 0 && !lane.d_head[0].is_empty()) {
            let ranges = self.net.classifier().map_or_else(Vec::new, |c| c.ranges());
            ranges.into_iter().zip(&lane.d_head).try_for_each(|(range, d)| session.add(lane.k, range, d))?;
        }
        Ok(())
    }

    fn forward(&mut self, lanes: &mut [Lane<'_>], rows: &[usize], session: &mut dyn Session) -> Result<()> {
        let bn = lanes[0].plan.train.bn;
        if lanes.iter().any(|lane| lane.plan.train.bn != bn) {
            return Err(Error::defect("fit: plans side by side disagree about batch norm"));
        }
        let mut keys: Vec<Key> = lanes.iter().map(|lane| lane.key).collect();
        keys.resize(self.width, lanes[0].key);
        let mode = if bn == Bn::Batch { Mode::Train(keys.as_slice()) } else { Mode::Eval };
        let stored = lanes[0].streams.first().is_some_and(Stream::stored);
        let together: Vec<f32>;
        let x = match lanes {
            [lane] => lane.batch.x.as_slice(),
            _ => {
                together = lanes.iter().flat_map(|lane| &lane.batch.x).copied().collect();
                &together
            }
        };
        session.forward(if stored { Input::Features(x) } else { Input::Images(x) }, rows, mode)?;
        for (&tap, &node) in &self.nodes {
            let value = self.values.entry(tap).or_default();
            session.read(node, value)?;
            let seed = self.seeds.entry(tap).or_default();
            seed.clear();
            seed.resize(value.len(), 0.0);
        }
        Ok(())
    }

    /// What the frozen networks say of the lane's batch.
    fn look(&mut self, lane: &Lane<'_>, session: &mut dyn Session) -> Result<()> {
        self.seen.resize_with(lane.witnesses.len(), Seen::default);
        let mode = if lane.plan.train.witness_bn == Bn::Batch { Mode::Train(lane.key) } else { Mode::Infer };
        let feature = self.nodes.get(&Tap::Feature).copied();
        let nodes: Vec<Node> = std::iter::once(self.net.logits).chain(feature).collect();
        let mut outs = [Vec::new(), Vec::new()];
        for (params, seen) in lane.witnesses.iter().zip(&mut self.seen) {
            session.look(params, &lane.batch.x, lane.batch.rows[0], mode, &nodes, &mut outs[..nodes.len()])?;
            std::mem::swap(&mut seen.logits, &mut outs[0]);
            std::mem::swap(&mut seen.feature, &mut outs[1]);
        }
        Ok(())
    }

    /// The loss of a lane's rows, its gradients added to the seeds.
    fn objective(&mut self, lane: &mut Lane<'_>, rows: Range<usize>, session: &mut dyn Session) -> Result<f64> {
        let classes = self.net.outputs();
        let objectives: Vec<&dyn Objective> = match &lane.plan.train.loss {
            Loss::Task => {
                let (z, d) = (rows.start * classes, rows.end * classes);
                let seed = &mut self.seeds.entry(Tap::Logits).or_default()[z..d];
                let values = &self.values[&Tap::Logits][z..d];
                return match self.net.gives_losses() {
                    true => loss::mean(values, seed),
                    false => loss::cross_entropy(values, &lane.batch.y, classes, 1.0, seed),
                };
            }
            Loss::Open(all) => all.iter().map(AsRef::as_ref).collect(),
        };
        let classifier = self.net.classifier();
        let heads = objectives.iter().any(|o| o.taps().contains(&Tap::Head));
        if let (true, Some(c)) = (heads, &classifier) {
            for (range, own) in c.ranges().into_iter().zip(&mut lane.head) {
                session.peek(lane.k, range, own)?;
            }
        }
        for (d, values) in lane.d_head.iter_mut().zip(&lane.head) {
            d.clear();
            d.resize(values.len(), 0.0);
        }
        let sizes = &self.sizes;
        let place = |tap: Tap| sizes.get(&tap).map(|s| rows.start * s..rows.end * s);
        let value = |tap: Tap| place(tap).map_or(&[][..], |r| &self.values[&tap][r]);
        let mut seeds: BTreeMap<Tap, &mut Vec<f32>> = self.seeds.iter_mut().map(|(t, s)| (*t, s)).collect();
        let mut seed = |tap: Tap| match (seeds.remove(&tap), place(tap)) {
            (Some(all), Some(r)) => &mut all[r],
            _ => Default::default(),
        };
        let [d_weight, d_bias] = &mut lane.d_head;
        let mut here = Here {
            y: &lane.batch.y,
            ids: &lane.batch.ids,
            feeds: &lane.feeds,
            classes,
            features: classifier.as_ref().map_or(0, |c| c.features),
            counts: &lane.counts,
            step: lane.at,
            steps: lane.total,
            batch: lane.at % lane.batches,
            batches: lane.batches,
            progress: lane.at as f32 / lane.total.saturating_sub(1).max(1) as f32,
            key: lane.key,
            network: 0,
            logits: value(Tap::Logits),
            feature: value(Tap::Feature),
            map: value(Tap::Map),
            head: (&lane.head[0], &lane.head[1]),
            d_logits: seed(Tap::Logits),
            d_feature: seed(Tap::Feature),
            d_map: seed(Tap::Map),
            d_head: (d_weight, d_bias),
            beside: &mut lane.beside,
            witnesses: &self.seen,
            slots: lane.plan.slots,
            columns: &lane.columns,
        };
        let mut value = 0.0;
        for objective in objectives {
            value += objective.add(&mut here)?;
        }
        Ok(value)
    }
}

#[cfg(test)]
mod tests;
