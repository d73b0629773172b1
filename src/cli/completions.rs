//! What a shell offers after `--set`, for config files and for kinds: read off the keys, so that it is never stale.

use std::ffi::OsStr;
use std::io::Write;
use std::path::Path;

use clap::builder::StyledStr;
use clap_complete::env::Shells;
use clap_complete::{ArgValueCompleter, CompletionCandidate, PathCompleter, Shell};

use crate::config::tree::{self, Form, Leaf, Node};
use crate::error::{Error, Result};

/// The variable by which a shell asks.
pub const ASKED: &str = "COMPLETE";

/// Prints what a shell reads at its start; it asks this program from then on.
pub fn print(shell: Shell) -> Result<()> {
    let mut text = Vec::new();
    if shell == Shell::Bash {
        // Bash takes a word apart at '=', and --set section.key=value would be three.
        text.extend_from_slice(b"COMP_WORDBREAKS=${COMP_WORDBREAKS//=}\n");
    }
    let shells = Shells::builtins();
    let name = shell.to_string();
    let Some(completer) = shells.completer(&name) else {
        return Err(Error::input(format!("no completions for {name}")));
    };
    let broken = |e: std::io::Error| Error::environment(format!("cannot print: {e}"));
    completer.write_registration(ASKED, "fedllava", "fedllava", "fedllava", &mut text).map_err(broken)?;
    match std::io::stdout().write_all(&text) {
        Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => Err(broken(e)),
        _ => Ok(()),
    }
}

/// Config files.
pub fn configs() -> ArgValueCompleter {
    ArgValueCompleter::new(
        PathCompleter::file().filter(|p: &Path| p.is_dir() || p.extension().is_some_and(|e| e == "toml")),
    )
}

/// Keys.
pub fn keys() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let leaves = tree::leaves();
        matching(leaves.iter().map(|l| (l.path.clone(), l.doc().to_string())), current)
    })
}

/// Sections.
pub fn sections() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        matching(tree::sections().iter().map(|k| (k.name.clone(), k.doc.clone())), current)
    })
}

/// `section.key=`, and behind it the values that are known.
pub fn set() -> ArgValueCompleter {
    ArgValueCompleter::new(|current: &OsStr| {
        let text = current.to_string_lossy();
        let leaves = tree::leaves();
        match text.split_once('=') {
            None => matching(leaves.iter().map(|l| (format!("{}=", l.path), l.doc().to_string())), current),
            Some((key, _)) => {
                let values = leaves.iter().find(|l| l.path == key).map(values).unwrap_or_default();
                matching(values.into_iter().map(|(value, doc)| (format!("{key}={value}"), doc)), current)
            }
        }
    })
}

/// The values that may stand at a key, where they can be counted.
fn values(leaf: &Leaf<'_>) -> Vec<(String, String)> {
    if !leaf.kinds.is_empty() {
        return leaf.kinds.iter().map(|k| (k.name.clone(), k.doc.clone())).collect();
    }
    match leaf.of.first().map(|o| &o.key.node) {
        Some(Node::Value(Form::Names(names))) => names.clone(),
        Some(Node::Value(Form::Switch)) => ["true", "false"].map(|v| (v.to_string(), String::new())).to_vec(),
        _ => Vec::new(),
    }
}

fn matching(all: impl Iterator<Item = (String, String)>, current: &OsStr) -> Vec<CompletionCandidate> {
    let begun = current.to_string_lossy();
    all.filter(|(name, _)| name.starts_with(begun.as_ref()))
        .map(|(name, doc)| {
            let help = (!doc.is_empty()).then(|| StyledStr::from(doc));
            CompletionCandidate::new(name).help(help)
        })
        .collect()
}
