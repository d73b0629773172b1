//! One line of progress for all runs that are under way.

use std::sync::{Arc, Mutex};

use crate::exec::{Event, Events, lock};

/// What all runs of a sweep tell together, in rounds.
pub struct Together {
    parent: Arc<dyn Events>,
    done: Mutex<u64>,
}

impl Together {
    /// Begins the line: `done` of `total` rounds are there.
    pub fn begin(parent: Arc<dyn Events>, done: u64, total: u64) -> Arc<Together> {
        parent.on(Event::Begin { name: "sweep", unit: "round", done, total });
        Arc::new(Together { parent, done: Mutex::new(done) })
    }

    /// The last word.
    pub fn end(&self) {
        self.parent.on(Event::End);
    }

    /// A remark beside the line.
    pub fn note(&self, text: &str) {
        self.parent.on(Event::Note(text));
    }

    fn add(&self, rounds: u64) {
        let mut done = lock(&self.done);
        *done += rounds;
        self.parent.on(Event::Advance { done: *done, figures: &[] });
    }
}

/// Hears one run of them: its rounds count, its warnings are said with its name.
pub struct One {
    all: Arc<Together>,
    name: String,
    /// Whether the federated rounds are under way, and how many are done.
    rounds: Mutex<Option<u64>>,
}

impl One {
    /// A run of this name.
    pub fn new(all: &Arc<Together>, name: String) -> One {
        One { all: all.clone(), name, rounds: Mutex::new(None) }
    }
}

impl Events for One {
    fn on(&self, event: Event<'_>) {
        let mut rounds = lock(&self.rounds);
        match event {
            Event::Begin { name: "finetune", done, .. } => {
                self.all.add(done);
                *rounds = Some(done);
            }
            Event::Advance { done, .. } => {
                if let Some(before) = rounds.as_mut() {
                    self.all.add(done.saturating_sub(*before));
                    *before = done;
                }
            }
            Event::Begin { .. } | Event::End => *rounds = None,
            Event::Warning(text) => self.all.parent.on(Event::Warning(&format!("{}: {text}", self.name))),
            _ => {}
        }
    }
}
