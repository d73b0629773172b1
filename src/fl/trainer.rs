//! Local work: a compact network trained by a client on its own images.

use std::sync::Arc;

use super::aggregate::LEAF;
use super::brief::{Job, Outcome, Step, Term, Train};
use super::{Named, Reply};
use crate::error::{Error, Place, Result};
use crate::exec::{self, Context};
use crate::key::{Key, Purpose};
use crate::nn::{Backend, Batch, Interpreter, Layout, Mode, Net, Optimiser, Params, Role, loss};

/// Where images come from: fills a batch with the samples `ids`, augmented by a key or plain.
pub trait Images: Sync {
    /// Fills `x`, `y`, `ids` and `rows = [ids.len()]`.
    fn fill(&self, ids: &[u32], augment: Option<Key>, batch: &mut Batch) -> Result<()>;
}

/// What a worker hands to the loop for one job: the reply and what the client keeps.
pub type Returned = (Reply, Option<Named>);

/// Does the local work of a cohort.
pub trait Trainer: Sync {
    /// The parameters it trains.
    fn layout(&self) -> &Arc<Layout>;

    /// Runs all jobs. `reply` turns an outcome into what is sent, on the worker; `fold` receives in job order.
    /// At most [`LEAF`] replies are under way.
    fn run(
        &self,
        jobs: &[Job],
        cx: &Context,
        reply: &(dyn Fn(&Job, Outcome) -> Result<Returned> + Sync),
        fold: &mut (dyn FnMut(usize, Returned) -> Result<()> + Send),
    ) -> Result<()>;
}

/// Trains a compact network, one client a worker; where clients are fewer than threads, the rest works inside them.
pub struct CompactTrainer<'a> {
    /// The network.
    pub net: Arc<Net>,
    /// Who runs it.
    pub backend: Backend,
    /// The training images.
    pub images: &'a dyn Images,
    /// Who holds which image.
    pub clients: &'a [Vec<u32>],
}

impl Trainer for CompactTrainer<'_> {
    fn layout(&self) -> &Arc<Layout> {
        &self.net.layout
    }

    fn run(
        &self,
        jobs: &[Job],
        cx: &Context,
        reply: &(dyn Fn(&Job, Outcome) -> Result<Returned> + Sync),
        fold: &mut (dyn FnMut(usize, Returned) -> Result<()> + Send),
    ) -> Result<()> {
        let arena = |worker| Arena::new(&self.net, self.backend, cx, share(cx.threads, jobs.len(), worker));
        let job = |arena: &mut Arena, i: usize| {
            let job = &jobs[i];
            let samples = self.clients.get(job.client as usize).map_or(&[][..], Vec::as_slice);
            arena
                .run(job, samples, self.images, cx)
                .and_then(|outcome| reply(job, outcome))
                .at(|| format!("round {}, client {}", job.round, job.client))
        };
        exec::ordered(cx.threads, jobs.len(), LEAF, arena, job, fold)
    }
}

/// Threads for a worker's own kernels: where clients are fewer than cores, the rest is dealt out.
fn share(threads: usize, jobs: usize, worker: usize) -> usize {
    let workers = threads.clamp(1, jobs.max(1));
    (threads / workers + usize::from(worker < threads % workers)).max(1)
}

/// One worker's memory: an interpreter's workspace, a batch, parameters and gradients. Allocated once.
pub struct Arena {
    net: Arc<Net>,
    interpreter: Box<dyn Interpreter>,
    /// The batch at hand.
    pub batch: Batch,
    logits: Vec<f32>,
    seed: Vec<f32>,
    grads: Vec<f32>,
}

impl Arena {
    /// A workspace for `net` that may use `threads` threads of its own.
    pub fn new(net: &Arc<Net>, backend: Backend, cx: &Context, threads: usize) -> Result<Self> {
        Ok(Arena {
            net: net.clone(),
            interpreter: backend.workspace(net, cx, threads)?,
            batch: Batch::default(),
            logits: Vec::new(),
            seed: Vec::new(),
            grads: Vec::new(),
        })
    }

    fn run(&mut self, job: &Job, samples: &[u32], images: &dyn Images, cx: &Context) -> Result<Outcome> {
        let mut outcome = Outcome { params: job.model.clone(), samples: samples.len(), steps: 0, loss: 0.0 };
        for (i, step) in job.brief.steps.iter().enumerate() {
            match step {
                Step::Train(train) => {
                    let key = job.key.fold(Purpose::Step, i as u64);
                    self.train(job, train, samples, images, key, cx, &mut outcome)?;
                }
            }
        }
        Ok(outcome)
    }

    #[allow(clippy::too_many_arguments, reason = "one call site; a struct would only rename them")]
    fn train(
        &mut self,
        job: &Job,
        train: &Train,
        samples: &[u32],
        images: &dyn Images,
        key: Key,
        cx: &Context,
        outcome: &mut Outcome,
    ) -> Result<()> {
        let mut params = job.slot(train.from)?;
        let extras = SliceTerms::new(job, &train.terms)?;
        let mut optimiser = Optimiser::new(&train.optimiser, params.layout());
        let size = if train.batch_size == 0 { samples.len() } else { train.batch_size };
        let (mut total, mut seen) = (0.0, 0usize);
        let mut order = samples.to_vec();
        for epoch in 0..train.epochs {
            let key = key.fold(Purpose::Epoch, epoch as u64);
            order.copy_from_slice(samples);
            key.fold(Purpose::Shuffle, 0).rng().shuffle(&mut order);
            for (step, ids) in order.chunks(size.max(1)).enumerate() {
                cx.cancel.check()?;
                let key = key.fold(Purpose::Step, step as u64);
                images.fill(ids, Some(key.fold(Purpose::Augment, 0)), &mut self.batch)?;
                let data = params.data_mut();
                let mean = self.gradient(data, Mode::Train(key), |logits, y, classes, seed| {
                    loss::cross_entropy(logits, y, classes, 1.0, seed)
                });
                let mean = mean.at(|| format!("local epoch {epoch}, step {step}"))?;
                extras.add(data, &mut self.grads);
                self.interpreter.update_buffers(data)?;
                optimiser.step(data, &self.grads, train.rate);
                total += mean * ids.len() as f64;
                seen += ids.len();
                outcome.steps += 1;
            }
        }
        // A rectifier turns NaN into 0, so the loss alone may look well.
        if let Some(at) = first_not_finite(params.data()) {
            let entries = params.layout().entries();
            let name = entries.iter().find(|e| e.range().contains(&at)).map_or("", |e| e.name.as_str());
            return Err(diverged(&format!("{name} is {}", params.data()[at])));
        }
        outcome.loss = total / seen.max(1) as f64;
        outcome.params = params;
        Ok(())
    }

    /// Forward and backward of the batch at hand for an objective on the logits; the gradient is in
    /// [`Arena::grads`]. The objective gets logits `(rows, classes)`, labels, classes, and adds its gradient.
    pub fn gradient(
        &mut self,
        params: &[f32],
        mode: Mode,
        objective: impl FnOnce(&[f32], &[u32], usize, &mut [f32]) -> Result<f64>,
    ) -> Result<f64> {
        let (node, classes) = (self.net.logits, self.net.outputs());
        self.interpreter.forward(params, &self.batch.x, &self.batch.rows, mode.alone())?;
        self.interpreter.read(node, &mut self.logits)?;
        self.seed.clear();
        self.seed.resize(self.logits.len(), 0.0);
        let value = objective(&self.logits, &self.batch.y, classes, &mut self.seed)?;
        if !value.is_finite() {
            return Err(diverged(&format!("the loss is {value}")));
        }
        self.grads.resize(params.len(), 0.0);
        self.interpreter.backward(params, &[(node, &self.seed)], &mut self.grads)?;
        Ok(value)
    }

    /// The last gradient, in layout order.
    pub fn grads(&self) -> &[f32] {
        &self.grads
    }

    /// Moves the running statistics of the last training forward into `params`.
    pub fn update_buffers(&mut self, params: &mut [f32]) -> Result<()> {
        self.interpreter.update_buffers(params)
    }

    /// A node's value in evaluation mode for the batch at hand, `(rows, shape of the node…)`.
    pub fn evaluate(&mut self, params: &[f32], node: usize) -> Result<&[f32]> {
        self.interpreter.forward(params, &self.batch.x, &self.batch.rows, Mode::Infer)?;
        self.interpreter.read(node, &mut self.logits)?;
        Ok(&self.logits)
    }
}

/// Where the first NaN or infinity is. By chunks without an early end, so that vector registers do the usual case.
fn first_not_finite(data: &[f32]) -> Option<usize> {
    const CHUNK: usize = 1024;
    let finite = |chunk: &[f32]| chunk.iter().fold(true, |all, v| all & v.is_finite());
    let from = CHUNK * data.chunks(CHUNK).position(|chunk| !finite(chunk))?;
    data[from..].iter().position(|v| !v.is_finite()).map(|at| from + at)
}

fn diverged(how: &str) -> Error {
    Error::input(format!("training diverged: {how}")).hint("lower the learning rate of this stage's optimiser")
}

/// Terms whose gradient is a loop over slices.
struct SliceTerms {
    ranges: Vec<std::ops::Range<usize>>,
    proximal: Vec<(f32, Params)>,
    linear: Vec<(f32, Params)>,
}

impl SliceTerms {
    fn new(job: &Job, terms: &[Term]) -> Result<Self> {
        let mut out = SliceTerms { ranges: job.model.layout().ranges(Role::Weight), proximal: vec![], linear: vec![] };
        for term in terms {
            match term {
                Term::CrossEntropy => {}
                Term::Proximal { mu, to } => out.proximal.push((*mu, job.slot(*to)?)),
                Term::Linear { coefficient, of } => out.linear.push((*coefficient, job.slot(*of)?)),
            }
        }
        Ok(out)
    }

    fn add(&self, params: &[f32], grads: &mut [f32]) {
        for range in &self.ranges {
            let (p, g) = (&params[range.clone()], &mut grads[range.clone()]);
            for (mu, anchor) in &self.proximal {
                for ((g, p), a) in g.iter_mut().zip(p).zip(&anchor.data()[range.clone()]) {
                    *g += mu * (p - a);
                }
            }
            for (coefficient, vector) in &self.linear {
                g.iter_mut().zip(&vector.data()[range.clone()]).for_each(|(g, v)| *g += coefficient * v);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{first_not_finite, share};

    #[test]
    fn the_first_value_that_is_no_number_is_found() {
        let mut data = vec![1.0; 3000];
        assert_eq!(first_not_finite(&data), None);
        for at in [2999, 1024, 1023, 0] {
            data[at] = if at % 2 == 0 { f32::NAN } else { f32::NEG_INFINITY };
            assert_eq!(first_not_finite(&data), Some(at));
        }
    }

    #[test]
    fn every_core_is_used_when_clients_are_few() {
        for threads in 1..10 {
            for jobs in 1..12 {
                let workers = threads.min(jobs);
                assert_eq!((0..workers).map(|w| share(threads, jobs, w)).sum::<usize>(), threads);
            }
        }
        assert_eq!((share(1, 0, 0), share(0, 3, 0)), (1, 1));
    }
}
