//! What the person sees while work goes on: a bar on a terminal, plain lines elsewhere. All on stderr.

use std::io::{IsTerminal, Write};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::exec::{Event, Events};

/// Shortest time between two plain lines, except the last of a piece of work.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// Listens to a run.
pub struct Progress {
    terminal: bool,
    quiet: bool,
    now: Mutex<Option<Work>>,
}

struct Work {
    name: String,
    unit: String,
    first: u64,
    total: u64,
    began: Instant,
    shown: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// A bar if stderr is a terminal; with `quiet` only warnings.
    pub fn new(quiet: bool) -> Self {
        Progress { terminal: std::io::stderr().is_terminal(), quiet, now: Mutex::new(None) }
    }

    fn begin(&self, name: &str, unit: &str, done: u64, total: u64) -> Work {
        let bar = (self.terminal && !self.quiet).then(|| {
            let bar = ProgressBar::new(total).with_position(done);
            let template = "{prefix:>9} {bar:24} {pos}/{len} {elapsed} · {eta} left  {msg}";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_prefix(name.to_string());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        if bar.is_none() && done > 0 {
            self.line(&format!("{name}: going on after {unit} {done} of {total}"));
        }
        Work { name: name.into(), unit: unit.into(), first: done, total, began: Instant::now(), shown: None, bar }
    }

    fn advance(&self, work: &mut Work, done: u64, figures: &[(&str, f64)]) {
        let figures: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        if let Some(bar) = &work.bar {
            bar.set_position(done);
            bar.set_message(figures.join("  "));
            return;
        }
        let due = work.shown.is_none_or(|at| at.elapsed() >= PLAIN_EVERY) || done == work.total;
        if !due {
            return;
        }
        work.shown = Some(Instant::now());
        let fresh = done.saturating_sub(work.first).max(1) as f64;
        let left = work.began.elapsed().as_secs_f64() / fresh * work.total.saturating_sub(done) as f64;
        let Work { name, unit, total, .. } = work;
        self.line(&format!("{name} {unit} {done}/{total}  {}  {} left", figures.join("  "), span(left)));
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            self.always(text);
        }
    }

    fn always(&self, text: &str) {
        // A closed stderr must not end a run.
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    fn beside(&self, work: &Option<Work>, text: &str) {
        match work.as_ref().and_then(|w| w.bar.as_ref()) {
            Some(bar) => bar.suspend(|| self.always(text)),
            None => self.always(text),
        }
    }
}

impl Events for Progress {
    fn on(&self, event: Event<'_>) {
        let mut now = self.now.lock().unwrap_or_else(|e| e.into_inner());
        match event {
            Event::Begin { name, unit, done, total } => *now = Some(self.begin(name, unit, done, total)),
            Event::Advance { done, figures } => {
                if let Some(work) = now.as_mut() {
                    self.advance(work, done, figures);
                }
            }
            Event::End => {
                if let Some(bar) = now.take().and_then(|w| w.bar) {
                    bar.finish();
                }
            }
            Event::Note(text) if !self.quiet => self.beside(&now, text),
            Event::Note(_) => {}
            Event::Warning(text) => self.beside(&now, &format!("warning: {text}")),
        }
    }
}

/// Seconds as `3 s`, `4 min`, `1 h 05 min`.
pub fn span(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}
