//! `archive`, `reproduce`, `export`: a run for others.

use std::path::PathBuf;

use clap::Args;

use super::{machine, put, say};
use crate::error::{Error, Result};
use crate::pipeline::export::{self, Export};
use crate::pipeline::reproduce;
use crate::run::archive as archives;
use crate::run::archive::Archive;

/// `archive`.
#[derive(Args)]
pub struct Pack {
    /// A finished run's directory.
    run: PathBuf,
    /// The archive to write: NAME.tar.zst.
    out: PathBuf,
}

/// Packs a run's config, split, digests and numbers.
pub fn archive(a: &Pack) -> Result<()> {
    if a.out.exists() {
        return Err(Error::input(format!("{} is there already", a.out.display())).hint("name another file"));
    }
    let names = archives::write(&a.run, &a.out)?;
    say(&format!("in it: {}; no images and no models", names.join(", ")));
    put(&a.out.display().to_string())
}

/// `reproduce`.
#[derive(Args)]
pub struct Reproduce {
    /// An archive that `fedllava archive` wrote.
    archive: PathBuf,
    /// Where to run it again [default: runs/reproduced/<archive>].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Only check that the archive is whole and what differs here; run nothing.
    #[arg(long)]
    check: bool,
    /// Worker threads; 0 takes every core. Results do not depend on it.
    #[arg(long, default_value_t = 0)]
    threads: usize,
    /// Where candle computes: cpu, auto, cuda, cuda:1 [default: as the run].
    #[arg(long)]
    device: Option<String>,
}

/// Runs an archived run again, and says whether every byte is the same.
pub fn reproduce(r: &Reproduce, quiet: bool) -> Result<()> {
    let archive = Archive::read(&r.archive)?;
    let stem = r.archive.file_name().unwrap_or_default().to_string_lossy();
    let stem = stem.strip_suffix(".tar.zst").unwrap_or(&stem);
    let dir = r.dir.clone().unwrap_or_else(|| PathBuf::from("runs/reproduced").join(stem));
    let mut config = reproduce::config(&archive, &dir)?;
    for line in reproduce::differs_here(&archive)? {
        say(&format!("differs: {line}; equal bytes cannot be expected for certain"));
    }
    if r.check {
        let manifest = archive.json("manifest.json")?;
        let told = |key: &str| manifest[key]["digest"].as_str().unwrap_or("unknown").to_string();
        return put(&format!(
            "whole: {} files of {}\ntest images {}\ntraining images {}",
            archive.files.len(),
            archive.run,
            told("test"),
            told("train")
        ));
    }
    config.run.threads = r.threads;
    if let Some(device) = &r.device {
        config.run.device = device.clone();
    }
    let cx = machine::context(&config, quiet)?;
    reproduce::again(&config, &cx)?;
    let equal = reproduce::compare(&archive, &dir)?;
    put(&format!("reproduced bit for bit: {}", equal.join(", ")))
}

/// `export`.
#[derive(Args)]
pub struct ExportArguments {
    /// A finished run's directory.
    run: PathBuf,
    /// The folder to write [default: <run>/export].
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Whose model: finetune or align [default: the last].
    #[arg(long)]
    stage: Option<String>,
}

/// Writes a run's model, its card, and how PyTorch loads it.
pub fn export(e: &ExportArguments) -> Result<()> {
    let export = Export::of(&e.run, e.stage.as_deref())?;
    let out = e.out.clone().unwrap_or_else(|| e.run.join("export"));
    export.write(&out)?;
    say(&format!("stage {} of {}", export.stage, e.run.display()));
    export::FILES.iter().try_for_each(|name| put(&out.join(name).display().to_string()))
}
