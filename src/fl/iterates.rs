//! What a training keeps of its iterates beside the last: their mean, or the best of them on held-out images.

use super::brief::{Averaging, Stop, Train};
use super::feed::{Data, Stream};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::{Batch, Mode, Params, Session};

/// The iterates of one lane.
#[derive(Default)]
pub(super) struct Iterates<'a> {
    mean: Option<Mean>,
    judge: Option<Judge<'a>>,
    /// Of all looks.
    pub multiply_adds: u64,
}

/// A running sum of iterates.
struct Mean {
    of: Averaging,
    total: Vec<f64>,
    count: usize,
}

/// Who looks at iterates and keeps the best.
struct Judge<'a> {
    stop: &'a Stop,
    stream: Stream<'a>,
    best: Option<Best>,
}

struct Best {
    step: usize,
    hits: usize,
    params: Params,
}

impl<'a> Iterates<'a> {
    /// For a training that goes on after `at` steps; sums and bests do not outlive it.
    pub fn new(train: &'a Train<'_>, data: &Data<'a>, slots: &'a [Params], at: usize) -> Result<Self> {
        let every = train.average.map(|a| a.every).into_iter().chain(train.stop.as_ref().map(|s| s.every));
        if every.clone().any(|n| n == 0) {
            return Err(Error::defect("fit: iterates are looked at after every 0 steps"));
        }
        if every.clone().count() > 1 || (at > 0 && every.count() > 0) {
            return Err(Error::defect("fit: iterates are averaged or judged, not both, and never across a resumption"));
        }
        let judge = |stop: &'a Stop| {
            let stream = Stream::new(&stop.feed, data, slots, 0)?;
            match stream.stored() {
                true => Err(Error::defect("fit: early stopping looks at images")),
                false => Ok(Judge { stop, stream, best: None }),
            }
        };
        let mean = train.average.map(|of| Mean { of, total: Vec::new(), count: 0 });
        Ok(Iterates { mean, judge: train.stop.as_deref().map(judge).transpose()?, multiply_adds: 0 })
    }

    /// Looks at lane `k` after its step number `at`, from 1; whether training ends here.
    pub fn done(&mut self, k: usize, at: usize, session: &mut dyn Session) -> Result<bool> {
        if let Some(mean) = self.mean.as_mut().filter(|m| at > m.of.after && at.is_multiple_of(m.of.every)) {
            mean.add(&current(k, session)?);
        }
        let Some(judge) = self.judge.as_mut().filter(|j| at.is_multiple_of(j.stop.every)) else { return Ok(false) };
        let params = current(k, session)?;
        let (hits, rows) = judge.hits(&params, session)?;
        self.multiply_adds += rows as u64 * session.net().multiply_adds();
        if judge.best.as_ref().is_none_or(|best| hits > best.hits) {
            judge.best = Some(Best { step: at, hits, params });
        }
        Ok(judge.best.as_ref().is_some_and(|best| at - best.step >= judge.stop.patience))
    }

    /// The result of a training whose last iterate is `last`.
    pub fn result(&mut self, last: Params) -> Result<Params> {
        if let Some(mean) = self.mean.take().filter(|m| m.count > 0) {
            let data: Vec<f32> = mean.total.iter().map(|t| (t / mean.count as f64) as f32).collect();
            return Params::new(last.layout().clone(), data);
        }
        Ok(self.judge.take().and_then(|judge| judge.best).map_or(last, |best| best.params))
    }
}

impl Mean {
    fn add(&mut self, iterate: &Params) {
        self.total.resize(iterate.data().len(), 0.0);
        self.total.iter_mut().zip(iterate.data()).for_each(|(t, &v)| *t += f64::from(v));
        self.count += 1;
    }
}

impl Judge<'_> {
    /// Images told right, of how many.
    fn hits(&mut self, params: &Params, session: &mut dyn Session) -> Result<(usize, usize)> {
        let (logits, classes) = (session.net().logits, session.net().outputs());
        let (mut batch, mut out, mut hits, mut rows) = (Batch::default(), [Vec::new()], 0, 0);
        for at in 0..self.stream.batches() {
            // One order for all looks: only the parameters differ.
            let key = Key::from_seed(0);
            let ids = self.stream.ids(at, key, 0).to_vec();
            self.stream.fill(&ids, key, &mut batch)?;
            session.look(params, &batch.x, ids.len(), Mode::Infer, &[logits], &mut out)?;
            let top = |z: &[f32]| (0..z.len()).fold(0, |best, c| if z[c] > z[best] { c } else { best });
            hits += out[0].chunks(classes).zip(&batch.y).filter(|(z, y)| top(z) as u32 == **y).count();
            rows += ids.len();
        }
        Ok((hits, rows))
    }
}

/// Lane `k`'s parameters as they are.
fn current(k: usize, session: &mut dyn Session) -> Result<Params> {
    let (layout, mut data) = (session.net().layout.clone(), Vec::new());
    session.peek(k, 0..layout.len(), &mut data)?;
    Params::new(layout, data)
}
