//! Does what is missing of a sweep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::events::{One, Together};
use super::{State, Sweep};
use crate::config::sweep::Planned;
use crate::error::{Class, Error, Result};
use crate::exec::{Context, lock};
use crate::pipeline::{self, Library, Stages};

/// How often runs of other processes are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// What a pass over the queue did.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Runs that this process finished.
    pub finished: usize,
    /// Runs that were done before.
    pub before: usize,
    /// Runs that failed: name and error, in the plan's order.
    pub failed: Vec<(String, Error)>,
}

/// Runs that nobody has, those that are left to others, what happened.
struct Work {
    waiting: Vec<usize>,
    busy: Vec<usize>,
    outcome: Outcome,
    failed: Vec<(usize, Error)>,
    stopped: bool,
}

/// Runs of the sweep that `only` wants and nobody has done, `jobs` at once, each with its share of the threads. A run
/// that another process has is waited for; if that process dies, it is taken over. A failed run does not keep the
/// others from being done.
///
/// # Errors
/// [`Class::Stopped`] after a request to stop; what cannot be read. Failed runs are in the outcome.
pub fn run(sweep: &Sweep, jobs: usize, only: &dyn Fn(&str) -> bool, cx: &Context) -> Result<Outcome> {
    let wanted: Vec<usize> = (0..sweep.plan.runs.len()).filter(|&i| only(&sweep.name(&sweep.plan.runs[i]))).collect();
    let rounds = |i: &usize| sweep.plan.runs[*i].config.federated.rounds as u64;
    let (mut waiting, mut before) = (Vec::new(), Vec::new());
    for &i in &wanted {
        match sweep.state(&sweep.plan.runs[i])? {
            State::Done(_) => before.push(i),
            _ => waiting.push(i),
        }
    }
    let all = Together::begin(cx.events.clone(), before.iter().map(rounds).sum(), wanted.iter().map(rounds).sum());
    waiting.reverse();
    let outcome = Outcome { before: before.len(), ..Outcome::default() };
    let work = Mutex::new(Work { waiting, busy: Vec::new(), outcome, failed: Vec::new(), stopped: false });
    let (library, total) = (Library::default(), wanted.len());
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| worker(sweep, &work, jobs.max(1), total, &library, &all, cx));
        }
    });
    all.end();
    let mut work = work.into_inner().unwrap_or_else(|e| e.into_inner());
    if work.stopped {
        return Err(Error::stopped());
    }
    work.failed.sort_by_key(|(i, _)| *i);
    work.outcome.failed = work.failed.into_iter().map(|(i, e)| (sweep.name(&sweep.plan.runs[i]), e)).collect();
    Ok(work.outcome)
}

#[allow(clippy::too_many_arguments, reason = "what a worker shares with its like")]
fn worker(
    sweep: &Sweep,
    work: &Mutex<Work>,
    jobs: usize,
    total: usize,
    library: &Library,
    all: &Arc<Together>,
    cx: &Context,
) {
    let locked = || lock(work);
    loop {
        if cx.cancel.check().is_err() {
            locked().stopped = true;
            return;
        }
        let (next, others) = {
            let mut work = locked();
            let next = work.waiting.pop();
            (next, next.is_none() && !work.busy.is_empty())
        };
        let Some(i) = next else {
            if !others {
                return;
            }
            // Other processes have the rest: look again in a while.
            std::thread::sleep(LOOK);
            let mut work = locked();
            let mut again = std::mem::take(&mut work.busy);
            again.reverse();
            work.waiting.extend(again);
            continue;
        };
        let run = &sweep.plan.runs[i];
        let began = Instant::now();
        match one(sweep, run, jobs, library, all, cx) {
            Ok(Done::Busy) => locked().busy.push(i),
            Ok(Done::Elsewhere) => locked().outcome.before += 1,
            Ok(Done::Here) => {
                let mut work = locked();
                work.outcome.finished += 1;
                let n = work.outcome.finished + work.outcome.before + work.failed.len();
                drop(work);
                all.note(&format!("{n} of {total}: {} took {:.0} s", sweep.name(run), began.elapsed().as_secs_f64()));
            }
            Err(e) if e.class() == Class::Stopped => locked().stopped = true,
            Err(e) => {
                all.note(&format!("failed: {}: {}", sweep.name(run), e.message()));
                locked().failed.push((i, e));
            }
        }
    }
}

enum Done {
    /// By this process, now.
    Here,
    /// By another one, meanwhile.
    Elsewhere,
    /// Another one is at it.
    Busy,
}

fn one(
    sweep: &Sweep,
    run: &Planned,
    jobs: usize,
    library: &Library,
    all: &Arc<Together>,
    cx: &Context,
) -> Result<Done> {
    let Some(_claim) = sweep.claim(run)? else { return Ok(Done::Busy) };
    if matches!(sweep.state(run)?, State::Done(_)) {
        return Ok(Done::Elsewhere);
    }
    let mut own = cx.clone();
    own.threads = (cx.threads / jobs).max(1);
    own.events = Arc::new(One::new(all, sweep.name(run)));
    let outcome = catch_unwind(AssertUnwindSafe(|| pipeline::run(&run.config, Stages::All, library, &own)));
    outcome.map_err(|_| Error::defect(format!("{}: a panic", sweep.name(run))))??;
    Ok(Done::Here)
}
