//! A config, or its arms one after another; what an experiment's folder remembers of them, and how it goes on.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::report::{Output, show};
use super::{Changes, machine, ranks};
use crate::config::Config;
use crate::error::{Class, Error, Result};
use crate::exec::{Context, Event};
use crate::fsx;
use crate::pipeline::{self, Stages};
use crate::report;
use crate::run::directory::read_json;

/// The whole config of an experiment with arms, beside [`report::EXPERIMENT`].
const CONFIG: &str = "experiment.toml";
/// How deep runs lie below an experiment's folder: `<arm>/seed-7`, and a folder of experiments above.
const DEPTH: usize = 3;

/// Runs a config, or its arms one after another; a stop says how to go on.
pub fn arms(config: &Config, stages: Stages, cx: &Context) -> Result<()> {
    arms_of(config, &[config.run.seed], stages, cx)
}

/// The same for several seeds, one after another.
pub fn arms_of(config: &Config, seeds: &[u64], stages: Stages, cx: &Context) -> Result<()> {
    ranks::refuse_strangers()?;
    let library = pipeline::Library::default();
    let before = remember(config, seeds)?;
    let mut runs = Vec::new();
    for (i, &seed) in seeds.iter().enumerate() {
        let mut config = config.clone();
        config.run.seed = seed;
        let text = if seeds.len() > 1 { format!("seed {seed} ({} of {}) ", i + 1, seeds.len()) } else { String::new() };
        runs.extend(config.expand()?.into_iter().map(|(name, arm)| (format!("{text}{name}"), arm)));
    }
    for (i, (title, arm)) in runs.into_iter().enumerate() {
        if !title.is_empty() {
            cx.events.on(Event::Note(&format!("— {} —", title.trim())));
        }
        if let Err(e) = pipeline::run(&arm, stages, &library, cx) {
            // A start that failed must not say what the experiment is.
            if i == 0 && (e.class() == Class::Input || !Path::new(&arm.run.dir).exists()) {
                forget(config, before)?;
            }
            return Err(match e.class() {
                Class::Stopped => e.hint(format!("go on with: fedllava resume {}", quoted(&config.run.dir))),
                _ => e,
            });
        }
    }
    Ok(())
}

/// A path as a shell takes it.
pub fn quoted(path: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-~".contains(c);
    if path.chars().all(plain) { path.into() } else { format!("'{}'", path.replace('\'', r"'\''")) }
}

type Before = Vec<(PathBuf, Option<Vec<u8>>)>;

/// Writes what an experiment with arms is, and with which seeds; gives the files as they were.
fn remember(config: &Config, more: &[u64]) -> Result<Before> {
    if config.arms.is_empty() {
        return Ok(Vec::new());
    }
    let root = Path::new(&config.run.dir);
    let paths = [root.join(report::EXPERIMENT), root.join(CONFIG)];
    let old = |path: &PathBuf| if path.exists() { fsx::read(path).map(Some) } else { Ok(None) };
    let before: Before = paths.iter().map(|p| Ok((p.clone(), old(p)?))).collect::<Result<_>>()?;
    let mut seeds = seeds(&paths[0])?;
    seeds.extend(more);
    seeds.sort_unstable();
    seeds.dedup();
    let names: Vec<&String> = config.arms.iter().map(|a| &a.name).collect();
    let text = json!({ "arms": names, "contrasts": config.contrasts, "seeds": seeds }).to_string();
    let whole = toml::to_string_pretty(&config.to_table()?).map_err(|e| Error::defect(format!("{CONFIG}: {e}")))?;
    for ((path, old), text) in before.iter().zip([text, whole]) {
        // A finished experiment on a disk that cannot be written to is only looked at.
        if old.as_deref() != Some(text.as_bytes()) {
            fsx::write_atomic(path, text.as_bytes())?;
        }
    }
    Ok(before)
}

/// Puts the files back, and removes the folders that hold nothing else.
fn forget(config: &Config, before: Before) -> Result<()> {
    for (path, old) in before {
        match old {
            Some(bytes) => fsx::write_atomic(&path, &bytes)?,
            None => std::fs::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?,
        }
    }
    for folder in Path::new(&config.run.dir).ancestors().filter(|p| !p.as_os_str().is_empty()) {
        if std::fs::remove_dir(folder).is_err() {
            break;
        }
    }
    Ok(())
}

/// The seeds that an experiment was run with, as its file says.
fn seeds(file: &Path) -> Result<Vec<u64>> {
    let known = if file.exists() { read_json(file)? } else { Value::Null };
    Ok(known["seeds"].as_array().into_iter().flatten().filter_map(Value::as_u64).collect())
}

/// The same and those of its folders `<arm>/seed-7`: of several processes that began seeds at once the last wrote the
/// file. An arm with a seed of its own says nothing about the others.
pub fn all_seeds(config: &Config) -> Result<Vec<u64>> {
    let root = Path::new(&config.run.dir);
    let mut found = seeds(&root.join(report::EXPERIMENT))?;
    let own = |set: &toml::Table| set.get("run").and_then(|run| run.get("seed")).is_some();
    for folder in config.arms.iter().filter(|arm| !own(&arm.set)).map(|arm| root.join(&arm.name)).filter(|p| p.is_dir())
    {
        for run in fsx::list(&folder)? {
            let name = run.file_name().unwrap_or_default().to_string_lossy().into_owned();
            found.extend(name.strip_prefix("seed-").and_then(|n| n.parse::<u64>().ok()));
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// `resume`.
#[derive(Args)]
pub struct Resume {
    /// A run's directory, an experiment's, or a folder of them.
    run: PathBuf,
    #[command(flatten)]
    changes: Changes,
}

/// Goes on with the run that a directory holds, with all arms and seeds of an experiment, or with all runs below.
pub fn resume(r: &Resume, quiet: bool) -> Result<()> {
    let mut found = Vec::new();
    collect(&r.run, 0, &mut found)?;
    if found.is_empty() {
        return Err(Error::input(format!("{} holds no run (no config.toml)", r.run.display()))
            .hint("name a run's directory or an experiment's, such as runs/demo"));
    }
    for (dir, file) in &found {
        let set = vec![format!("run.dir={}", toml::Value::String(dir.to_string_lossy().into_owned()))];
        let (config, cx) = machine::open_set(&dir.join(file), set, &r.changes, quiet)?;
        if found.len() > 1 {
            cx.events.on(Event::Note(&dir.display().to_string()));
        }
        let mut seeds = if *file == CONFIG { all_seeds(&config)? } else { Vec::new() };
        if seeds.is_empty() {
            seeds.push(config.run.seed);
        }
        arms_of(&config, &seeds, Stages::All, &cx)?;
    }
    show(std::slice::from_ref(&r.run), &Output::default())
}

/// Runs and experiments at `path` or below, in name order.
fn collect(path: &Path, depth: usize, found: &mut Vec<(PathBuf, &'static str)>) -> Result<()> {
    for file in ["config.toml", CONFIG] {
        if path.join(file).exists() {
            found.push((path.into(), file));
            return Ok(());
        }
    }
    if depth < DEPTH && path.is_dir() {
        for child in fsx::list(path)?.into_iter().filter(|p| p.is_dir()) {
            collect(&child, depth + 1, found)?;
        }
    }
    Ok(())
}
