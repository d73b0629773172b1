//! Where and how work runs: the [`Context`] every stage gets, cancellation, events, worker threads, and [`ranks`].

pub mod ranks;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once};

use candle_core::{DType, Device};

use crate::error::{Error, Result};
pub use ranks::Ranks;

/// What a stage needs to know about the machine and its caller. Nothing asks a global.
#[derive(Clone)]
pub struct Context {
    /// Where candle tensors live.
    pub device: Device,
    /// What candle computes in; master weights are f32 whatever it says.
    pub dtype: DType,
    /// Worker threads, at least 1. Results do not depend on it.
    pub threads: usize,
    /// Asked at every local step.
    pub cancel: Cancel,
    /// Who hears about progress.
    pub events: Arc<dyn Events>,
    /// The processes that work together; this one alone by default.
    pub ranks: Ranks,
}

impl Context {
    /// CPU, f32, this many threads, nobody listening.
    pub fn cpu(threads: usize) -> Self {
        Context {
            device: Device::Cpu,
            dtype: DType::F32,
            threads: threads.max(1),
            cancel: Cancel::default(),
            events: Arc::new(Silent),
            ranks: Ranks::default(),
        }
    }

    /// The context of a piece of work that is the share `by` of the unit at hand (above 1 where it is several units).
    pub fn part(&self, by: f64) -> Self {
        Context { events: Arc::new(Scaled { to: self.events.clone(), by }), ..self.clone() }
    }
}

/// A request to stop, shared by everything that runs.
#[derive(Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Asks everything to stop at its next step.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// The flag, for a signal handler.
    pub fn flag(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }

    /// [`Error::stopped`] after a request, otherwise nothing.
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Relaxed) { Err(Error::stopped()) } else { Ok(()) }
    }
}

/// What a stage tells about its progress.
pub enum Event<'a> {
    /// A piece of work of `total` units begins, `done` of which are already there.
    Begin {
        /// What the person reads: `finetune`, `embed`.
        name: &'a str,
        /// The unit: `round`, `step`, `image`.
        unit: &'a str,
        /// Units done by an earlier run.
        done: u64,
        /// All units.
        total: u64,
    },
    /// So many units are done, with figures to show.
    Advance {
        /// Units done, earlier runs included.
        done: u64,
        /// Short names and values: `loss`, `accuracy`.
        figures: &'a [(&'a str, f64)],
    },
    /// So much more of the unit at hand is done, as a share of it: what moves inside a long round. May come from any
    /// worker.
    Part(f64),
    /// The piece of work is done.
    End,
    /// A remark that stays on the screen.
    Note(&'a str),
    /// Something the person should act on.
    Warning(&'a str),
}

/// Hears [`Event`]s.
pub trait Events: Send + Sync {
    /// Called from the thread that owns the stage; [`Event::Part`] from its workers too.
    fn on(&self, event: Event<'_>);
}

/// Passes events on, parts scaled: a job is a part of an exchange, an exchange of a round.
struct Scaled {
    to: Arc<dyn Events>,
    by: f64,
}

impl Events for Scaled {
    fn on(&self, event: Event<'_>) {
        self.to.on(match event {
            Event::Part(share) => Event::Part(share * self.by),
            other => other,
        });
    }
}

/// Nobody listens.
pub struct Silent;

impl Events for Silent {
    fn on(&self, _: Event<'_>) {}
}

/// Runs `count` jobs on `threads` scoped worker threads and hands each result to `fold` **in job order**.
///
/// Each worker makes one arena and keeps it; a one-thread rayon pool is installed in it, because candle's
/// matmul uses the current pool. A worker starts job `i` only when fewer than `window` jobs from the first unfolded
/// one on are under way, so memory holds at most `window` results, never all of them.
/// A panic in a job becomes an error; the first error in job order is returned.
pub fn ordered<A, T: Send>(
    threads: usize,
    count: usize,
    window: usize,
    arena: impl Fn(usize) -> Result<A> + Sync,
    job: impl Fn(&mut A, usize) -> Result<T> + Sync,
    fold: impl FnMut(usize, T) -> Result<()> + Send,
) -> Result<()> {
    let line = Line {
        next: AtomicUsize::new(0),
        state: Mutex::new(LineState { folded: 0, ready: Default::default(), failed: None, fold }),
        moved: Condvar::new(),
        window: window.max(1),
        count,
    };
    let work = |worker: usize| {
        let mut arena = match arena(worker) {
            Ok(arena) => arena,
            Err(e) => return line.fail(0, e),
        };
        while let Some(i) = line.take() {
            match caught(|| job(&mut arena, i)) {
                Ok(result) => line.put(i, result),
                Err(e) => line.fail(i, e),
            }
        }
    };
    let none = |e: &dyn std::fmt::Display| {
        Error::environment(format!("cannot start a worker thread: {e}")).hint("run.threads = 1 takes the fewest")
    };
    std::thread::scope(|scope| {
        for worker in 0..threads.clamp(1, count.max(1)) {
            let (work, line) = (&work, &line);
            let spawned =
                std::thread::Builder::new().spawn_scoped(scope, move || {
                    match rayon::ThreadPoolBuilder::new().num_threads(1).build() {
                        Ok(pool) => pool.install(|| work(worker)),
                        Err(e) => line.fail(0, none(&e)),
                    }
                });
            if let Err(e) = spawned {
                line.fail(0, none(&e));
            }
        }
    });
    match into_inner(line.state).failed {
        Some((_, e)) => Err(e),
        None => Ok(()),
    }
}

struct Line<T, F> {
    next: AtomicUsize,
    state: Mutex<LineState<T, F>>,
    moved: Condvar,
    window: usize,
    count: usize,
}

struct LineState<T, F> {
    folded: usize,
    ready: std::collections::BTreeMap<usize, T>,
    failed: Option<(usize, Error)>,
    fold: F,
}

impl<T, F: FnMut(usize, T) -> Result<()>> Line<T, F> {
    /// The next job, when the window allows it.
    fn take(&self) -> Option<usize> {
        let mut state = lock(&self.state);
        let i = self.next.fetch_add(1, Ordering::Relaxed);
        while state.failed.is_none() && i < self.count && i >= state.folded + self.window {
            state = self.moved.wait(state).unwrap_or_else(|e| e.into_inner());
        }
        (state.failed.is_none() && i < self.count).then_some(i)
    }

    fn put(&self, i: usize, result: T) {
        let mut state = lock(&self.state);
        state.ready.insert(i, result);
        loop {
            let at = state.folded;
            let Some(result) = state.ready.remove(&at) else { break };
            if state.failed.is_none()
                && let Err(e) = (state.fold)(at, result)
            {
                state.failed = Some((at, e));
            }
            state.folded += 1;
        }
        self.moved.notify_all();
    }

    fn fail(&self, i: usize, error: Error) {
        let mut state = lock(&self.state);
        if state.failed.as_ref().is_none_or(|(at, _)| i < *at) {
            state.failed = Some((i, error));
        }
        self.moved.notify_all();
    }
}

/// A poisoned lock only says that a worker panicked, which is reported on its own.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}

fn into_inner<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(|e| e.into_inner())
}

/// What `work` gives; its panic as an error.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let caught = catch_unwind(AssertUnwindSafe(work));
    caught.unwrap_or_else(|p| Err(Error::defect(format!("a worker panicked: {}", panic_text(&*p))).isolated()))
}

thread_local! {
    /// How many calls of [`tamed`] this thread is in.
    static TAMED: Cell<usize> = const { Cell::new(0) };
}

/// What a library makes of a file; where it panics over a damaged one, that is an error of the data, and nothing is
/// printed.
pub fn tamed<T>(read: impl FnOnce() -> T) -> Result<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if TAMED.try_with(Cell::get).unwrap_or(0) == 0 {
                before(panic);
            }
        }));
    });
    TAMED.with(|depth| depth.set(depth.get() + 1));
    let caught = catch_unwind(AssertUnwindSafe(read));
    TAMED.with(|depth| depth.set(depth.get() - 1));
    caught.map_err(|p| Error::data(format!("damaged: its reader gave up ({})", panic_text(&*p))))
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => (*text).to_string(),
        (_, Some(text)) => text.clone(),
        _ => "no message".to_string(),
    }
}

/// Memory that a new process may take, in bytes, where the system tells (Linux).
pub fn available_memory() -> Option<u64> {
    kib("/proc/meminfo", "MemAvailable:")
}

/// The most memory that this process has held so far, in bytes, where the system tells (Linux).
pub fn peak_memory() -> Option<u64> {
    kib("/proc/self/status", "VmHWM:")
}

/// All memory of the machine, in bytes, where the system tells (Linux).
pub fn total_memory() -> Option<u64> {
    kib("/proc/meminfo", "MemTotal:")
}

/// The line `name … kB` of one of Linux's tables, in bytes.
fn kib(table: &str, name: &str) -> Option<u64> {
    let text = std::fs::read_to_string(table).ok()?;
    let line = text.lines().find(|l| l.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// `1.5 GiB`.
pub fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", units[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(threads: usize, window: usize) -> Vec<usize> {
        let mut seen = Vec::new();
        let job = |_: &mut (), i: usize| {
            std::thread::sleep(std::time::Duration::from_micros(((i * 37) % 11) as u64 * 50));
            Ok(i * i)
        };
        ordered(
            threads,
            40,
            window,
            |_| Ok(()),
            job,
            |_, v| {
                seen.push(v);
                Ok(())
            },
        )
        .unwrap();
        seen
    }

    #[test]
    fn results_are_folded_in_job_order_for_any_threads_and_window() {
        let want: Vec<usize> = (0..40).map(|i| i * i).collect();
        for (threads, window) in [(1, 1), (2, 16), (4, 2), (7, 100)] {
            assert_eq!(run(threads, window), want);
        }
    }

    #[test]
    fn no_more_than_the_window_is_ever_held() {
        let (alive, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let job = |_: &mut (), i: usize| {
            if i == 0 {
                std::thread::sleep(std::time::Duration::from_millis(30));
            }
            most.fetch_max(alive.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            Ok(())
        };
        ordered(
            4,
            64,
            8,
            |_| Ok(()),
            job,
            |_, ()| {
                alive.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            },
        )
        .unwrap();
        assert!(most.load(Ordering::SeqCst) <= 8);
    }

    #[test]
    fn parts_of_parts_are_shares_of_the_whole() {
        struct Sum(Mutex<f64>);
        impl Events for Sum {
            fn on(&self, event: Event<'_>) {
                if let Event::Part(share) = event {
                    *lock(&self.0) += share;
                }
            }
        }
        let sum = Arc::new(Sum(Mutex::new(0.0)));
        let round = Context { events: sum.clone(), ..Context::cpu(1) };
        for _exchange in 0..2 {
            let exchange = round.part(0.5);
            for _job in 0..4 {
                let job = exchange.part(0.25);
                (0..8).for_each(|_| job.events.on(Event::Part(0.125)));
            }
        }
        assert!((*lock(&sum.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn a_library_that_panics_over_a_file_is_an_error_of_the_data() {
        let e = tamed(|| -> u32 { panic!("expected ident") }).unwrap_err();
        assert!(e.class() == crate::error::Class::Data && e.to_string().contains("expected ident"), "{e}");
        assert_eq!(tamed(|| 3).unwrap(), 3);
    }

    #[test]
    fn a_panic_becomes_an_error_and_the_rest_stops() {
        let job = |_: &mut (), i: usize| if i == 3 { panic!("no such tensor") } else { Ok(()) };
        let e = ordered(2, 1000, 4, |_| Ok(()), job, |_, ()| Ok(())).unwrap_err();
        assert!(e.to_string().contains("no such tensor"), "{e}");
    }
}
