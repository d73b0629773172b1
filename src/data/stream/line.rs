//! Lots of pictures under way: those asked for first, then those that will be, in the order of the hints.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::Ask;
use crate::error::{Error, Result};
use crate::exec::{Cancel, lock};

/// How long a wait goes before it looks whether it should stop.
const GLANCE: Duration = Duration::from_millis(50);
/// A hint that so many questions passed over is forgotten: whoever gave it has stopped.
const PATIENCE: u64 = 256;

/// A picture's planes, or why there are none.
type Made = Result<Vec<u8>>;

/// Pictures that are asked for together.
pub(super) struct Lot {
    pub asks: Vec<Ask>,
    next: AtomicUsize,
    made: Mutex<(Vec<Option<Made>>, usize)>,
    all: Condvar,
}

impl Lot {
    fn new(asks: &[Ask]) -> Arc<Self> {
        let none = (0..asks.len()).map(|_| None).collect();
        let made = Mutex::new((none, asks.len()));
        Arc::new(Lot { asks: asks.to_vec(), next: AtomicUsize::new(0), made, all: Condvar::new() })
    }

    /// A picture that nobody works on yet; it is the caller's now.
    pub fn claim(&self) -> Option<usize> {
        // Many may look at a lot that is used up: the count stays small.
        let free = self.next.load(Ordering::Relaxed) < self.asks.len();
        free.then(|| self.next.fetch_add(1, Ordering::Relaxed)).filter(|&i| i < self.asks.len())
    }

    pub fn put(&self, i: usize, made: Made) {
        let mut all = lock(&self.made);
        all.0[i] = Some(made);
        all.1 -= 1;
        if all.1 == 0 {
            self.all.notify_all();
        }
    }

    /// Waits for the pictures that others work on.
    pub fn finish(&self, cancel: &Cancel) -> Result<Vec<Made>> {
        let mut all = lock(&self.made);
        while all.1 > 0 {
            cancel.check()?;
            all = self.all.wait_timeout(all, GLANCE).unwrap_or_else(|e| e.into_inner()).0;
        }
        let missing = || Err(Error::defect("a picture was taken twice"));
        Ok(all.0.iter_mut().map(|made| made.take().unwrap_or_else(missing)).collect())
    }
}

/// What is under way, and the memory of pictures that are done with.
pub(super) struct Line {
    state: Mutex<State>,
    moved: Condvar,
    limit: usize,
    spare: Mutex<Vec<Vec<u8>>>,
}

#[derive(Default)]
struct State {
    /// Asked for, some pictures perhaps not begun.
    asked: VecDeque<Arc<Lot>>,
    /// Hinted at, with the number of questions before.
    hints: VecDeque<(Arc<Lot>, u64)>,
    /// Pictures in the hints.
    ahead: usize,
    questions: u64,
    closed: bool,
}

impl Line {
    /// Hints hold up to `limit` pictures.
    pub fn new(limit: usize) -> Self {
        Line { state: Mutex::default(), moved: Condvar::new(), limit, spare: Mutex::default() }
    }

    /// Adds a lot that will be asked for, where there is room.
    pub fn hint(&self, asks: &[Ask]) {
        let mut state = lock(&self.state);
        let now = state.questions;
        while state.hints.front().is_some_and(|(_, at)| now - at > PATIENCE)
            && let Some((old, _)) = state.hints.pop_front()
        {
            state.ahead -= old.asks.len();
        }
        if asks.is_empty() || state.ahead + asks.len() > self.limit {
            return;
        }
        state.ahead += asks.len();
        state.hints.push_back((Lot::new(asks), now));
        self.moved.notify_all();
    }

    /// The lot of these pictures, begun or not; it goes before all hints.
    pub fn ask(&self, asks: &[Ask]) -> Arc<Lot> {
        let mut state = lock(&self.state);
        state.questions += 1;
        let known = state.hints.iter().position(|(lot, _)| lot.asks == asks);
        let lot = match known.and_then(|i| state.hints.remove(i)) {
            Some((lot, _)) => {
                state.ahead -= lot.asks.len();
                lot
            }
            None => Lot::new(asks),
        };
        state.asked.push_back(lot.clone());
        self.moved.notify_all();
        lot
    }

    /// The next picture to work on; waits for one. None when the line is closed or the run is stopped.
    pub fn next(&self, cancel: &Cancel) -> Option<(Arc<Lot>, usize)> {
        let mut state = lock(&self.state);
        while !state.closed && cancel.check().is_ok() {
            while let Some(lot) = state.asked.front().cloned() {
                if let Some(i) = lot.claim() {
                    return Some((lot, i));
                }
                state.asked.pop_front();
            }
            let hinted = state.hints.iter().find_map(|(lot, _)| Some((lot.clone(), lot.claim()?)));
            if hinted.is_some() {
                return hinted;
            }
            state = self.moved.wait_timeout(state, GLANCE).unwrap_or_else(|e| e.into_inner()).0;
        }
        None
    }

    /// Sends the workers home.
    pub fn close(&self) {
        lock(&self.state).closed = true;
        self.moved.notify_all();
    }

    /// Memory of a picture that is done with, or none yet.
    pub fn spare(&self) -> Vec<u8> {
        lock(&self.spare).pop().unwrap_or_default()
    }

    /// Pictures' memory that waits for its next use.
    #[cfg(test)]
    pub fn spares(&self) -> usize {
        lock(&self.spare).len()
    }

    /// Takes back a picture's memory.
    pub fn keep(&self, planes: Vec<u8>) {
        let mut spare = lock(&self.spare);
        if spare.len() < self.limit.max(64) {
            spare.push(planes);
        }
    }
}
