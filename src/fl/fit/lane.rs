//! One plan at work in its lane: where it is, the batch at hand, what it has trained.

use std::collections::BTreeMap;
use std::ops::Range;

use super::{Fitted, Plan, Standing};
use crate::error::{Error, Place, Result};
use crate::fl::brief::{Length, Loss, Name};
use crate::fl::feed::Stream;
use crate::fl::iterates::Iterates;
use crate::fl::objective::Beside;
use crate::key::{Key, Purpose};
use crate::nn::session::Training;
use crate::nn::{Batch, Named, Net, Optimiser, Params, Pull, Session};

/// One plan at work.
pub(super) struct Lane<'a> {
    pub k: usize,
    pub plan: Plan<'a>,
    pub streams: Vec<Stream<'a>>,
    pub counts: Vec<u32>,
    /// Batches of the first feed in an epoch.
    pub batches: usize,
    pub total: usize,
    /// Steps done, earlier ones included.
    pub at: usize,
    pub taken: usize,
    pub iterates: Iterates<'a>,
    pub beside: Vec<Beside>,
    pub optimisers: Vec<Optimiser>,
    pub witnesses: Vec<Params>,
    /// The batch at hand, and the rows of each feed in it.
    pub batch: Batch,
    pub scratch: Batch,
    pub feeds: Vec<Range<usize>>,
    /// Rows of the first feed in the step at hand.
    pub first_rows: usize,
    pub columns: BTreeMap<Name, Vec<f32>>,
    /// W and b, and their gradients beside what backward finds; empty unless tapped.
    pub head: [Vec<f32>; 2],
    pub d_head: [Vec<f32>; 2],
    pub key: Key,
    pub value: f64,
    pub seen: usize,
    pub multiply_adds: u64,
    pub forward_adds: u64,
}

impl<'a> Lane<'a> {
    pub fn new(k: usize, plan: Plan<'a>, from: Standing, net: &Net, session: &mut dyn Session) -> Result<Self> {
        let train = plan.train;
        let features = net.classifier().map_or(0, |c| c.features);
        let slot = |id: usize| {
            let slot = plan.slots.get(id).cloned();
            slot.ok_or_else(|| Error::defect(format!("fit: slot {id} of {}", plan.slots.len())))
        };
        let streams = train.feeds.iter().map(|feed| Stream::new(feed, plan.data, plan.slots, features));
        let streams = streams.collect::<Result<Vec<_>>>()?;
        let Some(feed) = streams.first() else { return Err(Error::defect("fit: no feed")) };
        if streams.iter().any(|s| s.stored() != feed.stored()) {
            return Err(Error::defect("fit: images and stored features in one forward"));
        }
        let batches = feed.batches();
        let total = match train.length {
            _ if batches == 0 => 0,
            Length::Epochs(epochs) => epochs * batches,
            Length::Steps(steps) => steps,
            Length::Passes(passes) => (passes * batches as f64).ceil() as usize,
        };
        let pulls = train.pulls.iter().map(|pull| resolved(pull, &slot)).collect::<Result<Vec<_>>>()?;
        let (optimiser, trained) = (train.optimiser.clone(), train.trained.clone());
        let training = Training { optimiser, trained, pulls, moments: from.moments };
        session.load(k, from.params.map_or_else(|| slot(train.from), Ok)?, &training)?;
        let (mut beside, mut optimisers) = (Vec::new(), Vec::new());
        for (i, &id) in train.beside.iter().enumerate() {
            let (values, moments) = match from.beside.get(i) {
                Some(known) => known.clone(),
                None => (slot(id)?, Named::new()),
            };
            let mut optimiser = Optimiser::new(&train.optimiser, values.layout());
            if !moments.is_empty() {
                optimiser.restore(&moments)?;
            }
            beside.push(Beside { gradient: vec![0.0; values.data().len()], values });
            optimisers.push(optimiser);
        }
        let witnesses = train.witnesses.iter().map(|&id| slot(id)).collect::<Result<Vec<_>>>()?;
        let counts = if matches!(train.loss, Loss::Open(_)) { plan.data.counts(net.outputs()) } else { Vec::new() };
        let forward_adds = if feed.stored() { (features * net.outputs()) as u64 } else { net.multiply_adds() };
        let at = from.epochs * batches;
        let iterates = Iterates::new(train, plan.data, plan.slots, at)?;
        let (batch, scratch, feeds, columns, head, d_head) = Default::default();
        let (key, taken, first_rows, value, seen, multiply_adds) = (plan.key, 0, 0, 0.0, 0, 0);
        #[rustfmt::skip]
        let lane = Lane { k, plan, streams, counts, batches, total, at, taken, iterates, beside, optimisers, witnesses,
            batch, scratch, feeds, first_rows, columns, head, d_head, key, value, seen, multiply_adds, forward_adds };
        Ok(lane)
    }

    /// Fills the batch for the next step, or `only` one feed's part of it; without rows once the plan is done.
    pub fn fill(&mut self, only: Option<usize>) -> Result<()> {
        self.feeds.clear();
        self.columns.clear();
        if self.at >= self.total {
            self.batch = Batch { rows: vec![0], ..Batch::default() };
            return Ok(());
        }
        let step = self.at;
        let epoch = self.plan.key.fold(Purpose::Epoch, (step / self.batches) as u64);
        let key = epoch.fold(Purpose::Step, (step % self.batches) as u64);
        // A later forward of the same step draws anew.
        self.key = only.filter(|&i| i > 0).map_or(key, |i| key.fold(Purpose::Item, i as u64));
        let paired = self.streams[0].ids(step, self.plan.key, 0).to_vec();
        self.first_rows = paired.len();
        for i in 0..self.streams.len() {
            let first = self.feeds.last().map_or(0, |r| r.end);
            let ids = match self.plan.train.feeds[i].order {
                _ if only.is_some_and(|feed| feed != i) => Vec::new(),
                crate::fl::brief::Order::Paired => paired.clone(),
                _ => self.streams[i].ids(step, self.plan.key, i as u64).to_vec(),
            };
            let key = key.fold(Purpose::Augment, i as u64);
            self.feeds.push(first..first + ids.len());
            if ids.is_empty() {
                continue;
            }
            match first {
                0 => self.streams[i].fill(&ids, key, &mut self.batch)?,
                _ => {
                    self.streams[i].fill(&ids, key, &mut self.scratch)?;
                    self.batch.append(&self.scratch);
                }
            }
            self.streams[i].join(&ids, self.plan.data.columns, &mut self.columns)?;
        }
        if only.is_none() {
            self.ahead(step + 1, epoch);
        }
        match only {
            Some(i) if self.feeds[i].is_empty() => Err(Error::defect(format!("fit: feed {i} has no images"))),
            _ => Ok(()),
        }
    }

    /// Says what the next step of the same epoch will see.
    fn ahead(&mut self, step: usize, epoch: Key) {
        let at = step % self.batches;
        if at == 0 || step >= self.total {
            return;
        }
        let key = epoch.fold(Purpose::Step, at as u64);
        let first = self.streams[0].ids(step, self.plan.key, 0).to_vec();
        for i in 0..self.streams.len() {
            let key = key.fold(Purpose::Augment, i as u64);
            if matches!(self.plan.train.feeds[i].order, crate::fl::brief::Order::Paired) {
                self.streams[i].ahead(&first, key);
            } else {
                let ids = self.streams[i].ids(step, self.plan.key, i as u64).to_vec();
                self.streams[i].ahead(&ids, key);
            }
        }
    }

    /// Holds the gradient's norm, over all that the lane trains, to the plan's limit.
    pub fn clip(&mut self, session: &mut dyn Session) -> Result<()> {
        let Some(most) = self.plan.train.clip else { return Ok(()) };
        let square = |b: &Beside| b.gradient.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>();
        let by = session.clip(self.k, most, self.beside.iter().map(square).sum())?;
        if !by.is_finite() {
            return Err(diverged("the gradient is not finite"));
        }
        self.beside.iter_mut().flat_map(|b| &mut b.gradient).for_each(|g| *g *= by);
        Ok(())
    }

    pub fn standing(&self, epochs: usize, session: &mut dyn Session) -> Result<Standing> {
        let (params, moments) = session.state(self.k)?;
        let beside = self.beside.iter().zip(&self.optimisers);
        let beside = beside.map(|(b, o)| Ok((b.values.clone(), o.state(b.values.layout())?)));
        Ok(Standing { epochs, params: Some(params), moments, beside: beside.collect::<Result<_>>()? })
    }

    pub fn finish(mut self, session: &mut dyn Session) -> Result<Fitted> {
        let moments = match self.plan.train.moments {
            Some(_) => session.state(self.k)?.1,
            None => Named::new(),
        };
        let params = self.iterates.result(session.take(self.k)?)?;
        if self.taken > 0 {
            refuse_not_finite(&params).at(|| format!("after {} local steps", self.at))?;
        }
        let loss = (self.taken > 0).then(|| self.value / self.seen.max(1) as f64);
        let keeps = self.plan.train.moments.is_some();
        let beside = self.beside.into_iter().zip(self.optimisers).map(|(Beside { values, .. }, optimiser)| {
            let state = if keeps { optimiser.state(values.layout())? } else { Named::new() };
            Ok((values, state))
        });
        let beside = beside.collect::<Result<_>>()?;
        let multiply_adds = self.multiply_adds + self.iterates.multiply_adds;
        Ok(Fitted { params, moments, beside, steps: self.taken, loss, multiply_adds })
    }
}

fn resolved(pull: &Pull<usize>, slot: &dyn Fn(usize) -> Result<Params>) -> Result<Pull<Params>> {
    Ok(match pull {
        Pull::Proximal { mu, to, over } => Pull::Proximal { mu: *mu, to: slot(*to)?, over: over.clone() },
        Pull::Linear { coefficient, of } => Pull::Linear { coefficient: *coefficient, of: slot(*of)? },
    })
}

/// Refuses a model with a NaN or an infinity: a rectifier turns NaN into 0, so the loss alone may look well.
fn refuse_not_finite(params: &Params) -> Result<()> {
    let Some(at) = first_not_finite(params.data()) else { return Ok(()) };
    let entries = params.layout().entries();
    let name = entries.iter().find(|e| e.range().contains(&at)).map_or("", |e| e.name.as_str());
    Err(diverged(&format!("{name} is {}", params.data()[at])))
}

/// Where the first NaN or infinity is. By chunks without an early end, so that vector registers do the usual case.
pub(crate) fn first_not_finite(data: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1024;
    let finite = |chunk: &[f32]| chunk.iter().fold(true, |all, v| all & v.is_finite());
    let from = CHUNK * data.chunks(CHUNK).position(|chunk| !finite(chunk))?;
    data[from..].iter().position(|v| !v.is_finite()).map(|at| from + at)
}

pub(crate) fn diverged(how: &str) -> Error {
    Error::input(format!("training diverged: {how}"))
        .isolated()
        .hint("lower the learning rate of this stage's optimiser")
}
