//! Names the commit that the program is built from, for `manifest.json`.

#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::path::Path;
use std::process::Command;

/// What goes into the program; nothing else makes cargo ask again.
const SOURCES: [&str; 9] = [
    "src",
    "configs",
    "data/demo-clip",
    "data/demo-llava",
    "data/demo-captions.jsonl",
    "data/prompts",
    "Cargo.toml",
    "Cargo.lock",
    "build.rs",
];

fn main() {
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    println!("cargo::rustc-env=FEDLLAVA_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));
}

/// `HEAD` of the checkout that this folder is the root of, `-changed` where the sources differ from it.
fn commit() -> Option<String> {
    let root = Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()?;
    if root != Path::new(".").canonicalize().ok()? {
        return None;
    }
    let head = git(&["rev-parse", "HEAD"])?;
    let status: Vec<&str> = ["status", "--porcelain", "--"].into_iter().chain(SOURCES).collect();
    Some(if git(&status)?.is_empty() { head } else { format!("{head}-changed") })
}

/// What git says, if it is there and content.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
}
