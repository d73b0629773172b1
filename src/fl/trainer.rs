//! Who does the local work of an exchange: compact networks, a client a worker.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, OnceLock};

use super::aggregate::LEAF;
use super::brief::{Brief, Job, Loss, Name, Step, Train};
use super::feed::{Data, Source};
use super::objective::Column;
use super::reply::Outcome;
use super::way::attack::Flipped;
use super::{Named, Reply, local};
use crate::error::{Error, Place, Result};
use crate::exec::{self, Context};
use crate::nn::session::Plain;
use crate::nn::{Backend, Classifier, Layout, Net, Params, Samples};

/// What a worker hands to the loop for one job: the reply and what the client keeps.
pub type Returned = (Reply, Option<Named>);

/// Does the local work of a cohort.
pub trait Trainer: Sync {
    /// The parameters it trains.
    fn layout(&self) -> &Arc<Layout>;

    /// Where the classifier is, if it trains one.
    fn classifier(&self) -> Option<Classifier> {
        None
    }

    /// What the run has besides clients' images.
    fn supplies(&self) -> &Supplies<'_>;

    /// Refuses a brief that it cannot do, before anything is trained.
    fn accepts(&self, _brief: &Brief) -> Result<()> {
        Ok(())
    }

    /// Runs all jobs. `reply` turns an outcome into what is sent, on the worker; `fold` receives in job order, a job
    /// that failed by itself ([`Error::is_isolated`]) as its error. At most [`LEAF`] replies are under way.
    fn run(
        &self,
        jobs: &[Job],
        cx: &Context,
        reply: &(dyn Fn(&Job, Outcome) -> Result<Returned> + Sync),
        fold: &mut (dyn FnMut(usize, Result<Returned>) -> Result<()> + Send),
    ) -> Result<()>;
}

/// What a method may ask for besides clients' images: each is there or not, and a method that needs it is refused.
#[derive(Clone, Default)]
pub struct Supplies<'a> {
    /// The server's labelled set.
    pub server: Option<Source<'a>>,
    /// The server's images without labels.
    pub unlabelled: Option<Source<'a>>,
    /// Numbers by training image.
    pub columns: BTreeMap<Name, Column>,
    /// A frozen text tower's unit features of the class names, `(classes, width)`.
    pub texts: Option<Params>,
}

impl Supplies<'_> {
    /// The column of a frozen teacher's logits, `(classes,)` an image.
    pub const TEACHER: &'static str = "teacher";
}

/// Makes a worker's place to train in, which may use so many threads of its own.
type Sessions<'a> = Box<dyn Fn(&Context, usize) -> Result<Plain> + Sync + 'a>;

/// Trains a network, one client a worker; where clients are fewer than threads, the rest works inside them.
pub struct CompactTrainer<'a> {
    /// The network.
    pub net: Arc<Net>,
    sessions: Sessions<'a>,
    /// The training images.
    pub images: &'a dyn Samples,
    /// Who holds which image.
    pub clients: &'a [Vec<u32>],
    /// What else there is.
    pub supplies: Supplies<'a>,
    /// The training images with their labels flipped, for clients that attack so.
    flipped: OnceLock<Flipped<'a>>,
    idle: Mutex<Idle>,
}

/// Sessions between two exchanges, by their threads: memory stays warm from round to round.
type Idle = BTreeMap<usize, Vec<Plain>>;

/// A worker's session, given back when it ends.
struct Lent<'t> {
    session: Option<Plain>,
    threads: usize,
    idle: &'t Mutex<Idle>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            exec::lock(self.idle).entry(self.threads).or_default().push(session);
        }
    }
}

impl<'a> CompactTrainer<'a> {
    /// For clients that hold these images.
    pub fn new(net: Arc<Net>, backend: Backend, images: &'a dyn Samples, clients: &'a [Vec<u32>]) -> Self {
        let own = net.clone();
        Self::within(net, move |cx, threads| backend.session(&own, cx, threads, 1), images, clients)
    }

    /// For clients that hold these samples, in sessions of the caller's making.
    pub fn within(
        net: Arc<Net>,
        sessions: impl Fn(&Context, usize) -> Result<Plain> + Sync + 'a,
        images: &'a dyn Samples,
        clients: &'a [Vec<u32>],
    ) -> Self {
        let (sessions, supplies, idle) = (Box::new(sessions), Supplies::default(), Mutex::default());
        CompactTrainer { net, sessions, images, clients, supplies, flipped: OnceLock::new(), idle }
    }

    /// With these supplies.
    pub fn with(mut self, supplies: Supplies<'a>) -> Self {
        self.supplies = supplies;
        self
    }

    fn lend(&self, threads: usize, cx: &Context) -> Result<Lent<'_>> {
        let known = exec::lock(&self.idle).get_mut(&threads).and_then(Vec::pop);
        let session = known.map_or_else(|| (self.sessions)(cx, threads), Ok)?;
        Ok(Lent { session: Some(session), threads, idle: &self.idle })
    }

    fn data(&self, job: &Job) -> Data<'_> {
        let ids = self.clients.get(job.client as usize).filter(|_| !job.server).map_or(&[][..], Vec::as_slice);
        let Supplies { server, unlabelled, columns, .. } = &self.supplies;
        let own = match job.flipped {
            true => Source { samples: self.flipped.get_or_init(|| Flipped::new(self.images, self.net.outputs())), ids },
            false => Source { samples: self.images, ids },
        };
        Data { own, server: *server, unlabelled: *unlabelled, columns }
    }
}

impl Trainer for CompactTrainer<'_> {
    fn layout(&self) -> &Arc<Layout> {
        &self.net.layout
    }

    fn classifier(&self) -> Option<Classifier> {
        self.net.classifier()
    }

    fn supplies(&self) -> &Supplies<'_> {
        &self.supplies
    }

    fn accepts(&self, brief: &Brief) -> Result<()> {
        let scores = |step: &Step| matches!(step, Step::Measure(_) | Step::Train(Train { loss: Loss::Open(_), .. }));
        match self.net.gives_losses() && brief.steps.iter().any(scores) {
            true => Err(Error::input("algorithm.kind: this method works on a classifier's scores, and there are none")
                .hint("with task.kind = \"mllm\" choose a method that works on parameters alone, such as fedavg or fedyogi")),
            false => Ok(()),
        }
    }

    fn run(
        &self,
        jobs: &[Job],
        cx: &Context,
        reply: &(dyn Fn(&Job, Outcome) -> Result<Returned> + Sync),
        fold: &mut (dyn FnMut(usize, Result<Returned>) -> Result<()> + Send),
    ) -> Result<()> {
        let session = |worker| self.lend(share(cx.threads, jobs.len(), worker), cx);
        let job = |lent: &mut Lent<'_>, i: usize| {
            let job = &jobs[i];
            if lent.session.is_none() {
                lent.session = self.lend(lent.threads, cx)?.session.take();
            }
            let Some(session) = &mut lent.session else { return Err(Error::defect("no session")) };
            let work = || local::work(session, job, &self.data(job), cx).and_then(|outcome| reply(job, outcome));
            match exec::caught(work).at(|| job.place()) {
                // Nobody else works in a session that was left in the middle of a step.
                Err(e) if e.is_isolated() => {
                    lent.session = None;
                    Ok(Err(e))
                }
                done => done.map(Ok),
            }
        };
        exec::ordered(cx.threads, jobs.len(), LEAF, session, job, fold)
    }
}

/// Threads for a worker's own kernels: where clients are fewer than cores, the rest is dealt out.
fn share(threads: usize, jobs: usize, worker: usize) -> usize {
    let workers = threads.clamp(1, jobs.max(1));
    (threads / workers + usize::from(worker < threads % workers)).max(1)
}

#[cfg(test)]
mod tests {
    use super::share;

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
