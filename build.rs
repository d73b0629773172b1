//! What the program carries, as one archive; and the commit it is built from, for `manifest.json`.
#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::error::Error;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use zip::write::SimpleFileOptions;

/// Files and folders that `src/shipped.rs` gives out.
const SHIPPED: [&str; 7] = [
    "configs",
    "data/demo-captions.jsonl",
    "data/demo-clip",
    "data/demo-llava",
    "data/demo-mllm",
    "data/prompts",
    "data/published.toml",
];

/// What else goes into the program; nothing more makes cargo ask again.
const SOURCES: [&str; 4] = ["src", "Cargo.toml", "Cargo.lock", "build.rs"];

fn main() -> Result<(), Box<dyn Error>> {
    for path in SHIPPED.iter().chain(&SOURCES) {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rustc-env=FEDLLAVA_COMMIT={}", commit().unwrap_or_else(|| "unknown".into()));
    pack(&Path::new(&std::env::var("OUT_DIR")?).join("shipped.zip"))
}

/// Writes the archive, unless it is newer than everything in it.
fn pack(archive: &Path) -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    SHIPPED.iter().try_for_each(|path| walk(Path::new(path), &mut files))?;
    let changed = |path: &Path| -> std::io::Result<SystemTime> { path.metadata()?.modified() };
    let newest = files.iter().map(|f| changed(f)).collect::<Result<Vec<_>, _>>()?.into_iter().max();
    if archive.exists() && Some(changed(archive)?) > newest {
        return Ok(());
    }
    let mut zip = zip::ZipWriter::new(std::fs::File::create(archive)?);
    for file in files.iter().filter(|f| f.is_file()) {
        let name = file.to_str().ok_or("a file's name is no text")?.replace('\\', "/");
        zip.start_file(name, SimpleFileOptions::default())?;
        zip.write_all(&std::fs::read(file)?)?;
    }
    zip.finish()?;
    Ok(())
}

/// A path and everything below it, sorted; folders too, whose times tell of files that left.
fn walk(path: &Path, files: &mut Vec<PathBuf>) -> Result<(), Box<dyn Error>> {
    files.push(path.to_path_buf());
    if path.is_dir() {
        let mut inside = Vec::new();
        for entry in path.read_dir()? {
            inside.push(entry?.path());
        }
        inside.sort();
        inside.iter().try_for_each(|p| walk(p, files))?;
    }
    Ok(())
}

/// `HEAD` of the checkout that this folder is the root of, `-changed` where the sources differ from it.
fn commit() -> Option<String> {
    let root = Path::new(&git(&["rev-parse", "--show-toplevel"])?).canonicalize().ok()?;
    if root != Path::new(".").canonicalize().ok()? {
        return None;
    }
    let head = git(&["rev-parse", "HEAD"])?;
    let status: Vec<&str> = ["status", "--porcelain", "--"].into_iter().chain(SHIPPED).chain(SOURCES).collect();
    Some(if git(&status)?.is_empty() { head } else { format!("{head}-changed") })
}

/// What git says, if it is there and content.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok().filter(|o| o.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
}
