//! What the person sees while work goes on: a bar on a terminal, plain lines elsewhere. All on stderr.

use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use super::voice;
use crate::exec::{Event, Events, lock};

/// Shortest time between two plain lines of small units; rounds and epochs have a line each.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// After so long within a first unit a plain line says how it goes.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// Before this nothing is said about the time that is left.
const TOO_EARLY: Duration = Duration::from_millis(500);

/// Positions of the bar in a unit.
const FINE: f64 = 1000.0;

/// Listens to a run.
pub struct Progress {
    terminal: bool,
    quiet: bool,
    now: Mutex<Option<Work>>,
}

/// The piece of work at hand.
struct Work {
    name: String,
    unit: String,
    /// Units that an earlier run had done.
    first: u64,
    done: u64,
    /// The share of the unit at hand that is done.
    within: f64,
    total: u64,
    began: Instant,
    shown: Option<Instant>,
    bar: Option<ProgressBar>,
}

impl Work {
    /// Seconds left, once anything is known: what was done in this run, at its mean speed.
    fn left(&self) -> Option<f64> {
        left(self.began.elapsed(), self.done as f64 + self.within, self.first as f64, self.total as f64)
    }

    fn left_in_words(&self) -> String {
        self.left().map_or("time left unknown".into(), |s| format!("{} left", span(s)))
    }

    /// Whether a plain line is due at the end of a unit.
    fn due(&self) -> bool {
        matches!(self.unit.as_str(), "round" | "epoch")
            || self.done == self.total
            || self.shown.is_none_or(|at| at.elapsed() >= PLAIN_EVERY)
    }
}

/// Seconds left of `total` units when `at` are done, `first` of them by an earlier run; none while it is too early.
fn left(elapsed: Duration, at: f64, first: f64, total: f64) -> Option<f64> {
    let fresh = at - first;
    (fresh > 0.0 && elapsed >= TOO_EARLY).then(|| elapsed.as_secs_f64() / fresh * (total - at).max(0.0))
}

impl Progress {
    /// A bar if stderr is a terminal; with `quiet` only warnings.
    pub fn new(quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|t| t != "dumb");
        Progress { terminal, quiet, now: Mutex::new(None) }
    }

    fn begin(&self, name: &str, unit: &str, done: u64, total: u64) -> Work {
        let bar = (self.terminal && !self.quiet).then(|| bar(name, done, total));
        if bar.is_none() && done > 0 {
            self.line(&format!("{name}: going on after {unit} {done} of {total}"));
        }
        let (name, unit) = (name.to_string(), unit.to_string());
        Work { name, unit, first: done, done, within: 0.0, total, began: Instant::now(), shown: None, bar }
    }

    fn advance(&self, work: &mut Work, done: u64, figures: &[(&str, f64)]) {
        (work.done, work.within) = (done, 0.0);
        let figures: Vec<String> = figures.iter().map(|(name, value)| format!("{name} {value:.4}")).collect();
        let figures = figures.join("  ");
        match &work.bar {
            Some(bar) => {
                bar.set_position(done * FINE as u64);
                bar.set_message(figures);
            }
            None if work.due() => {
                work.shown = Some(Instant::now());
                let Work { name, unit, total, .. } = &work;
                let gap = if figures.is_empty() { "" } else { "  " };
                let left = if done < *total { format!("  {}", work.left_in_words()) } else { String::new() };
                self.line(&format!("{name} {unit} {done}/{total}{gap}{figures}{left}"));
            }
            None => {}
        }
    }

    /// A share of the unit at hand was done.
    fn part(&self, work: &mut Work, share: f64) {
        work.within = (work.within + share).min(1.0);
        match &work.bar {
            Some(bar) => bar.set_position(((work.done as f64 + work.within) * FINE) as u64),
            None if work.shown.is_none() && work.done == work.first && work.began.elapsed() >= FIRST_WORD => {
                work.shown = Some(Instant::now());
                let (at, percent) = (work.done + 1, 100.0 * work.within);
                let Work { name, unit, total, .. } = &work;
                self.line(&format!("{name} {unit} {at}/{total}: {percent:.0} % of it, {}", work.left_in_words()));
            }
            None => {}
        }
    }

    fn line(&self, text: &str) {
        if !self.quiet {
            voice::line(text);
        }
    }

    fn beside(&self, work: &Option<Work>, text: &str) {
        match work.as_ref().and_then(|w| w.bar.as_ref()) {
            Some(bar) => bar.suspend(|| voice::line(text)),
            None => voice::line(text),
        }
    }
}

/// A bar of fine steps, which shows units and the time that is left at the mean speed.
fn bar(name: &str, done: u64, total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total * FINE as u64).with_position(done * FINE as u64);
    let units = |state: &ProgressState, w: &mut dyn Write| {
        let all = state.len().unwrap_or(0) as f64 / FINE;
        let _ = write!(w, "{}/{all}", (state.pos() as f64 / FINE) as u64);
    };
    let first = done as f64;
    let rest = move |state: &ProgressState, w: &mut dyn Write| {
        let (at, all) = (state.pos() as f64 / FINE, state.len().unwrap_or(0) as f64 / FINE);
        let _ = match left(state.elapsed(), at, first, all) {
            Some(seconds) => write!(w, "{} left", span(seconds)),
            None => write!(w, "…"),
        };
    };
    let spent = |state: &ProgressState, w: &mut dyn Write| {
        let _ = write!(w, "{}", span(state.elapsed().as_secs_f64()));
    };
    let template = "{prefix:>9} {bar:16} {units} · {spent} · {rest}  {wide_msg}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style.with_key("units", units).with_key("spent", spent).with_key("rest", rest));
    bar.set_prefix(name.to_string());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

impl Events for Progress {
    fn on(&self, event: Event<'_>) {
        let mut now = lock(&self.now);
        match event {
            Event::Begin { name, unit, done, total } => *now = Some(self.begin(name, unit, done, total)),
            Event::Advance { done, figures } => {
                if let Some(work) = now.as_mut() {
                    self.advance(work, done, figures);
                }
            }
            Event::Part(share) => {
                if let Some(work) = now.as_mut() {
                    self.part(work, share);
                }
            }
            Event::End => {
                if let Some(bar) = now.take().and_then(|w| w.bar) {
                    bar.finish();
                }
            }
            Event::Note(text) if !self.quiet => self.beside(&now, text),
            Event::Note(_) => {}
            Event::Warning(text) => {
                if let Some(line) = voice::warning(text) {
                    self.beside(&now, &line);
                }
            }
        }
    }
}

/// Seconds as `3 s`, `4 min 05 s`, `1 h 05 min`.
pub fn span(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3600 => format!("{} min {:02} s", s / 60, s % 60),
        _ => format!("{} h {:02} min", s / 3600, s / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_goes_by_what_this_run_did() {
        let seconds = |s| Duration::from_secs(s);
        assert_eq!(left(seconds(10), 0.25, 0.0, 30.0), Some(1190.0), "a quarter of the first of 30 rounds");
        assert_eq!(left(seconds(10), 12.0, 10.0, 30.0), Some(90.0), "ten rounds were there already");
        assert_eq!(left(seconds(10), 30.0, 10.0, 30.0), Some(0.0));
        assert_eq!(left(seconds(10), 10.0, 10.0, 30.0), None, "nothing is done yet");
        assert_eq!(left(Duration::from_millis(5), 0.01, 0.0, 30.0), None, "too early to tell");
    }

    #[test]
    fn the_bar_moves_inside_a_unit_and_never_past_it() {
        let progress = Progress { terminal: false, quiet: true, now: Mutex::new(None) };
        progress.on(Event::Begin { name: "finetune", unit: "round", done: 0, total: 2 });
        (0..3).for_each(|_| progress.on(Event::Part(0.25)));
        let at = || lock(&progress.now).as_ref().map(|w| (w.done, w.within)).unwrap();
        assert_eq!(at(), (0, 0.75));
        (0..3).for_each(|_| progress.on(Event::Part(0.25)));
        assert_eq!(at(), (0, 1.0));
        progress.on(Event::Advance { done: 1, figures: &[] });
        assert_eq!(at(), (1, 0.0));
    }

    #[test]
    fn spans_are_said_in_their_two_largest_units() {
        assert_eq!([span(3.4), span(245.0), span(3900.0)], ["3 s", "4 min 05 s", "1 h 05 min"]);
    }
}
