//! The one voice of the program on stderr: clap's own styles, plain where stderr is no terminal or `NO_COLOR` is set.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::builder::Styles;
use clap::builder::styling::Style;

use crate::error::{Class, Error};
use crate::exec::lock;

/// The styles of help, errors and hints.
pub const STYLES: Styles = Styles::styled();

/// Whether the person asked for warnings and errors alone.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Warnings that were said: each is said once, however many arms meet it.
static WARNED: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// From now on warnings and errors only.
pub fn hush(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether [`say`] says nothing.
pub fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// A line of talk; nothing after [`hush`].
pub fn say(text: &str) {
    if !quiet() {
        line(text);
    }
}

/// The line of a warning, the first time it is given.
pub fn warning(text: &str) -> Option<String> {
    lock(&WARNED).insert(text.to_string()).then(|| format!("{} {text}", painted(STYLES.get_invalid(), "warning:")))
}

/// A hint on a line of its own.
pub fn hint(text: &str) {
    line(&format!("{} {text}", painted(STYLES.get_valid(), "hint:")));
}

/// An error with its hint.
pub fn error(e: &Error) {
    let text = e.to_string();
    let (message, advice) = text.split_once("\nhint: ").map_or((text.as_str(), None), |(m, h)| (m, Some(h)));
    match e.class() {
        Class::Stopped => line(message),
        _ => line(&format!("{} {message}", painted(STYLES.get_error(), "error:"))),
    }
    if let Some(advice) = advice {
        hint(advice);
    }
    if e.class() == Class::Defect {
        line("This is a mistake in fedllava. Please report it.");
    }
}

/// A line on stderr, colours kept where they can be seen. A closed stderr must not end a run.
pub fn line(text: &str) {
    let _ = writeln!(anstream::stderr(), "{text}");
}

fn painted(style: &Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_warning_is_said_once() {
        let first = warning("the disk is nearly full").unwrap();
        assert!(first.contains("warning:") && first.ends_with("the disk is nearly full"), "{first:?}");
        assert!(warning("the disk is nearly full").is_none());
        assert!(warning("another one").is_some());
    }
}
