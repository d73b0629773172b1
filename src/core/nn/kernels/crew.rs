//! A few threads that walk through the same list of phases, with a barrier between phases.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// One of the crew.
pub(in crate::nn) struct Worker<'a> {
    id: usize,
    count: usize,
    barrier: &'a Barrier,
}

impl Worker<'_> {
    /// Whether this worker does what is done once.
    pub fn first(&self) -> bool {
        self.id == 0
    }

    /// From 0, the caller's.
    pub fn id(&self) -> usize {
        self.id
    }

    /// Whether nobody else works.
    pub fn alone(&self) -> bool {
        self.count == 1
    }

    /// This worker's share of `0..n`: contiguous, and all shares together are `0..n`.
    pub fn share(&self, n: usize) -> Range<usize> {
        self.id * n / self.count..(self.id + 1) * n / self.count
    }

    /// Waits until every worker has come here; what they wrote before can be read after.
    pub fn meet(&self) {
        if self.count > 1 {
            self.barrier.wait(self.count);
        }
    }
}

/// A barrier that spins for a moment and then yields: phases take microseconds to milliseconds.
#[derive(Default)]
struct Barrier {
    arrived: AtomicUsize,
    generation: AtomicUsize,
    broken: AtomicBool,
}

impl Barrier {
    fn wait(&self, count: usize) {
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == count {
            self.arrived.store(0, Ordering::Release);
            self.generation.store(generation + 1, Ordering::Release);
            return;
        }
        let mut spins = 0u32;
        while self.generation.load(Ordering::Acquire) == generation {
            assert!(!self.broken.load(Ordering::Relaxed), "another worker panicked");
            spins += 1;
            if spins < 4096 {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

/// Runs `work` as `count` workers, the caller's thread being the first; as fewer where the machine has no more threads
/// (no result depends on it). A panic in one ends all.
pub(in crate::nn) fn run(count: usize, work: impl Fn(&Worker<'_>) + Sync) {
    let barrier = Barrier::default();
    let start = |id: usize, count: usize| {
        let worker = Worker { id, count, barrier: &barrier };
        let caught = catch_unwind(AssertUnwindSafe(|| work(&worker)));
        if let Err(panic) = caught {
            barrier.broken.store(true, Ordering::Relaxed);
            resume_unwind(panic);
        }
    };
    if count <= 1 {
        return start(0, 1);
    }
    let all = OnceLock::new();
    std::thread::scope(|scope| {
        let (start, all) = (&start, &all);
        let spawn = |id: &usize| {
            let id = *id;
            std::thread::Builder::new().spawn_scoped(scope, move || start(id, *all.wait())).is_ok()
        };
        let had = (1..count).take_while(spawn).count();
        start(0, *all.get_or_init(|| had + 1));
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[test]
    fn shares_cover_everything_once() {
        let seen = Mutex::new(vec![0; 17]);
        run(3, |w| {
            for i in w.share(17) {
                seen.lock().unwrap()[i] += 1;
            }
        });
        assert_eq!(*seen.lock().unwrap(), vec![1; 17]);
    }

    #[test]
    fn nobody_passes_a_barrier_before_all_have_come() {
        let arrived = AtomicUsize::new(0);
        run(4, |w| {
            for phase in 1..200 {
                arrived.fetch_add(1, Ordering::SeqCst);
                w.meet();
                assert!(arrived.load(Ordering::SeqCst) >= 4 * phase);
                w.meet();
            }
        });
    }
}
