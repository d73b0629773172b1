//! Who does the local work of an exchange: compact networks, a client a worker, or several side by side on a card.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, OnceLock};

use super::aggregate::LEAF;
use super::brief::{Brief, Job, Loss, Name, Rows, Step, Train};
use super::feed::{Data, Source};
use super::local::{Work, alike};
use super::objective::Column;
use super::reply::Outcome;
use super::way::attack::Flipped;
use super::{Named, Reply, local};
use crate::error::{Error, Place, Result};
use crate::exec::{self, Context};
use crate::nn::engine::cuda::split;
use crate::nn::{Backend, Classifier, Layout, Load, Net, Params, Samples, Session};

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
        reply: &Replies<'_>,
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

/// What makes a reply of an outcome, on the worker.
type Replies<'a> = dyn Fn(&Job, Outcome) -> Result<Returned> + Sync + 'a;

/// Makes a worker's place to train in, which may use so many threads of its own, for so many clients side by side.
type Sessions<'a> = Box<dyn Fn(&Context, usize, usize) -> Result<Box<dyn Session>> + Sync + 'a>;

/// Trains a network. On CPUs one client a worker; where clients are fewer than threads, the rest works inside them. On a
/// card as many clients side by side as its memory has room for.
pub struct CompactTrainer<'a> {
    /// The network.
    pub net: Arc<Net>,
    sessions: Sessions<'a>,
    /// What runs the network; none for sessions of the caller's making.
    backend: Option<Backend>,
    /// The training images.
    pub images: &'a dyn Samples,
    /// Who holds which image.
    pub clients: &'a [Vec<u32>],
    /// What else there is.
    pub supplies: Supplies<'a>,
    /// The training images with their labels flipped, for clients that attack so.
    flipped: OnceLock<Flipped<'a>>,
    idle: Mutex<Idle>,
    /// Lanes by pulls, rows and clients, as a card had room for them.
    fitting: Mutex<BTreeMap<(usize, usize, usize), usize>>,
}

/// Sessions between two exchanges, by their threads and lanes: memory stays warm from round to round.
type Idle = BTreeMap<(usize, usize), Vec<Box<dyn Session>>>;

/// A worker's session, given back when it ends.
struct Lent<'t> {
    session: Option<Box<dyn Session>>,
    /// Threads and lanes.
    shape: (usize, usize),
    idle: &'t Mutex<Idle>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(session) = self.session.take() {
            exec::lock(self.idle).entry(self.shape).or_default().push(session);
        }
    }
}

impl<'a> CompactTrainer<'a> {
    /// For clients that hold these images.
    pub fn new(net: Arc<Net>, backend: Backend, images: &'a dyn Samples, clients: &'a [Vec<u32>]) -> Self {
        let own = net.clone();
        let sessions = move |cx: &Context, threads, lanes| backend.session(&own, cx, threads, lanes);
        Self::made(net, Box::new(sessions), Some(backend), images, clients)
    }

    /// For clients that hold these samples, in sessions of the caller's making, of one client each.
    pub fn within(
        net: Arc<Net>,
        sessions: impl Fn(&Context, usize) -> Result<Box<dyn Session>> + Sync + 'a,
        images: &'a dyn Samples,
        clients: &'a [Vec<u32>],
    ) -> Self {
        Self::made(net, Box::new(move |cx, threads, _| sessions(cx, threads)), None, images, clients)
    }

    fn made(
        net: Arc<Net>,
        sessions: Sessions<'a>,
        backend: Option<Backend>,
        images: &'a dyn Samples,
        clients: &'a [Vec<u32>],
    ) -> Self {
        let (supplies, flipped, idle, fitting) = Default::default();
        CompactTrainer { net, sessions, backend, images, clients, supplies, flipped, idle, fitting }
    }

    /// With these supplies.
    pub fn with(mut self, supplies: Supplies<'a>) -> Self {
        self.supplies = supplies;
        self
    }

    fn lend(&self, shape: (usize, usize), cx: &Context) -> Result<Lent<'_>> {
        let known = exec::lock(&self.idle).get_mut(&shape).and_then(Vec::pop);
        let session = known.map_or_else(|| (self.sessions)(cx, shape.0, shape.1), Ok)?;
        Ok(Lent { session: Some(session), shape, idle: &self.idle })
    }

    /// Clients side by side in one session.
    fn lanes(&self, jobs: &[Job], cx: &Context) -> Result<usize> {
        let Some(backend) = self.backend.filter(|b| b.on_card()) else { return Ok(1) };
        let steps = jobs.iter().flat_map(|job| job.brief.steps.iter().map(move |step| (job, step)));
        let trains = steps.filter_map(|(job, step)| match step {
            Step::Train(train) => Some((train, self.rows(job, train))),
            Step::Measure(_) => None,
        });
        let trains: Vec<(&Train<'_>, usize)> = trains.collect();
        let Some((first, _)) = trains.first() else { return Ok(1) };
        let pulls = trains.iter().map(|(train, _)| train.pulls.len()).max().unwrap_or(0);
        let rows = trains.iter().map(|(_, rows)| *rows).max().unwrap_or(0);
        let clients = jobs.len().min(LEAF);
        if let Some(&known) = exec::lock(&self.fitting).get(&(pulls, rows, clients)) {
            return Ok(known);
        }
        // What idle sessions hold of the card is room too.
        exec::lock(&self.idle).clear();
        let lanes = backend.lanes(&self.net, cx, Load { optimiser: &first.optimiser, pulls, rows }, clients)?;
        exec::lock(&self.fitting).insert((pulls, rows, clients), lanes);
        Ok(lanes)
    }

    /// Rows of a training's batches at most.
    fn rows(&self, job: &Job, train: &Train<'_>) -> usize {
        let data = self.data(job);
        let held = |source: Option<Source<'_>>| source.map_or(0, |s| s.ids.len());
        let of = |rows: Rows| match rows {
            Rows::Own => data.own.ids.len(),
            Rows::Server => held(data.server),
            Rows::Unlabelled => held(data.unlabelled),
            // Stored features go through the classifier alone.
            Rows::Features(_) => 1,
        };
        train.feeds.iter().map(|feed| if feed.batch_size == 0 { of(feed.rows) } else { feed.batch_size }).sum()
    }

    /// Does the jobs of a group. Where one of several fails by itself, each is done alone, which shows whose fault it is.
    fn together(
        &self,
        lent: &mut Lent<'_>,
        jobs: &[Job],
        reply: &Replies<'_>,
        cx: &Context,
    ) -> Result<Vec<Result<Returned>>> {
        if lent.session.is_none() {
            lent.session = self.lend(lent.shape, cx)?.session.take();
        }
        let Some(session) = &mut lent.session else { return Err(Error::defect("no session")) };
        let data: Vec<Data<'_>> = jobs.iter().map(|job| self.data(job)).collect();
        let work: Vec<Work<'_>> = jobs.iter().zip(&data).map(|(job, data)| Work { job, data }).collect();
        let replies = || {
            let outcomes = local::work(session.as_mut(), &work, cx)?;
            jobs.iter().zip(outcomes).map(|(job, outcome)| reply(job, outcome)).collect::<Result<Vec<_>>>()
        };
        let place = || jobs.iter().map(Job::place).collect::<Vec<_>>().join("; ");
        match exec::caught(replies).at(place) {
            // Nobody else works in a session that was left in the middle of a step.
            Err(e) if e.is_isolated() => {
                lent.session = None;
                if jobs.len() == 1 {
                    return Ok(vec![Err(e)]);
                }
                let alone = jobs.iter().map(|job| self.together(lent, std::slice::from_ref(job), reply, cx));
                Ok(alone.collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
            }
            done => Ok(done?.into_iter().map(Ok).collect()),
        }
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
        reply: &Replies<'_>,
        fold: &mut (dyn FnMut(usize, Result<Returned>) -> Result<()> + Send),
    ) -> Result<()> {
        let lanes = self.lanes(jobs, cx)?;
        let briefs: Vec<&Brief> = jobs.iter().map(|job| &job.brief).collect();
        let groups = groups(&briefs, lanes);
        let workers = self.backend.map_or(cx.threads, |b| b.workers(cx.threads));
        exec::ordered(
            workers,
            groups.len(),
            LEAF / lanes,
            |worker| self.lend((share(workers, groups.len(), worker), lanes), cx),
            |lent: &mut Lent<'_>, g| self.together(lent, &jobs[groups[g].clone()], reply, cx),
            |g, all| groups[g].clone().zip(all).try_for_each(|(i, returned)| fold(i, returned)),
        )
    }
}

/// Jobs that are done side by side: neighbours with like briefs, at most `lanes`, as equally many as can be.
fn groups(briefs: &[&Brief], lanes: usize) -> Vec<Range<usize>> {
    if lanes <= 1 {
        return (0..briefs.len()).map(|i| i..i + 1).collect();
    }
    let (mut all, mut first) = (Vec::new(), 0);
    while first < briefs.len() {
        let same = briefs[first + 1..].iter().take_while(|brief| alike(briefs[first], brief)).count();
        for n in split(1 + same, lanes) {
            all.push(first..first + n);
            first += n;
        }
    }
    all
}

/// Threads for a worker's own kernels: where clients are fewer than cores, the rest is dealt out.
fn share(threads: usize, jobs: usize, worker: usize) -> usize {
    let workers = threads.clamp(1, jobs.max(1));
    (threads / workers + usize::from(worker < threads % workers)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::brief::Bn;

    #[test]
    fn side_by_side_are_neighbours_whose_steps_are_alike() {
        let brief =
            |bn, apart| Brief { slots: Vec::new(), steps: vec![Step::Train(Train { bn, apart, ..Train::default() })] };
        let (plain, running, apart) = (brief(Bn::Batch, false), brief(Bn::Running, false), brief(Bn::Batch, true));
        let sizes = |briefs: &[&Brief], lanes| {
            let all = groups(briefs, lanes);
            assert_eq!(all.iter().cloned().flatten().collect::<Vec<_>>(), (0..briefs.len()).collect::<Vec<_>>());
            all.iter().map(Range::len).collect::<Vec<_>>()
        };
        assert_eq!(sizes(&[&plain; 5], 1), [1; 5]);
        assert_eq!(sizes(&[&plain; 5], 3), [3, 2]);
        assert_eq!(sizes(&[&plain, &plain, &running, &plain], 8), [2, 1, 1]);
        assert_eq!(sizes(&[&apart, &apart], 8), [1, 1]);
        assert!(sizes(&[], 8).is_empty());
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
