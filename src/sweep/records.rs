//! Finished runs without their models: what a table reads, small enough for a repository.

use std::path::{Path, PathBuf};

use super::{State, Sweep};
use crate::config::sweep::Planned;
use crate::config::{Config, RunConfig};
use crate::error::{Error, Place, Result};
use crate::fsx;

/// The files of a record.
const FILES: [&str; 4] = ["config.toml", "eval.json", "manifest.json", "personal.json"];

/// The record of a run, if the sweep's folder of records has one of the very same config.
pub fn find(sweep: &Sweep, run: &Planned) -> Result<Option<PathBuf>> {
    if sweep.config.records.is_empty() {
        return Ok(None);
    }
    let dir = Path::new(&sweep.config.records).join(sweep.name(run));
    Ok((dir.join("eval.json").exists() && same(&dir, run)?).then_some(dir))
}

/// Whether the config in a directory is the run's, but for what does not reach a number.
pub fn same(dir: &Path, run: &Planned) -> Result<bool> {
    let file = dir.join("config.toml");
    if !file.exists() {
        return Ok(false);
    }
    let table = toml::from_str(&fsx::read_text(&file)?)
        .map_err(|e| Error::data(format!("{}: {}", file.display(), e.message())))?;
    let there = Config::from_table(table).at(|| file.display().to_string())?;
    Ok(essence(&there) == essence(&run.config))
}

/// A config without what does not reach a number.
fn essence(config: &Config) -> Config {
    let free = RunConfig::default();
    let run =
        RunConfig { dir: free.dir, threads: free.threads, cache: free.cache, share: free.share, ..config.run.clone() };
    Config { run, ..config.clone() }
}

/// Copies the finished runs' records to `folder`; gives how many, and how many runs are not finished.
pub fn write(sweep: &Sweep, folder: &Path) -> Result<(usize, usize)> {
    let (mut written, mut missing) = (0, 0);
    for run in &sweep.plan.runs {
        let State::Done(dir) = sweep.state(run)? else {
            missing += 1;
            continue;
        };
        let to = folder.join(sweep.name(run));
        for name in FILES.iter().filter(|name| dir.join(name).exists()) {
            fsx::write_atomic(&to.join(name), &fsx::read(&dir.join(name))?)?;
        }
        written += 1;
    }
    Ok((written, missing))
}
