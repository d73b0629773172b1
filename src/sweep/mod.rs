//! Many runs of one config: what is planned, what is done, who does the rest.
//!
//! | file | what |
//! |---|---|
//! | `queue` | the runs that are missing, several at once, beside other processes on the same files |
//! | `events` | one line of progress for all of them |
//! | `select` | a knob's value for each cell and seed, by validation |
//! | `records` | finished runs without their models, to be kept in a repository |
//! | `slurm` | the array script of a cluster |
//!
//! A run of a sweep is a directory that `fedllava run` could have made. Nothing but these directories says what is done:
//! the queue is a lock file for each run, held while its process lives.

mod events;
pub mod queue;
pub mod records;
pub mod select;
pub mod slurm;

use std::path::{Path, PathBuf};

use crate::config::sweep::{Plan, Planned};
use crate::config::{Config, SweepConfig};
use crate::error::{Error, Result};
use crate::fsx;
use crate::pipeline;
use crate::run::directory::read_json;

/// The folder of the lock files, below the sweep's.
const CLAIMS: &str = ".queue";

/// A config with a sweep, and where its runs lie.
pub struct Sweep {
    /// The folder of all runs.
    pub root: PathBuf,
    /// The `sweep` section.
    pub config: SweepConfig,
    /// All runs.
    pub plan: Plan,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Finished; where its figures lie, which is a record's folder where it was run elsewhere.
    Done(PathBuf),
    /// A living process has it.
    Running,
    /// It was stopped or killed, and goes on from its last checkpoint.
    Stopped,
    /// It ended with this error, and is tried again.
    Failed(String),
    /// It has not begun.
    Waiting,
}

impl Sweep {
    /// The runs of a config.
    pub fn open(config: &Config) -> Result<Sweep> {
        if !config.sweeps() && config.arms.is_empty() {
            return Err(Error::input("this config has no section [sweep]").hint(
                "write [sweep] with seeds, methods, cross = { \"longtail.imbalance\" = [10, 100] }, or use `fedllava run`",
            ));
        }
        Ok(Sweep { root: PathBuf::from(&config.run.dir), config: config.sweep.clone(), plan: config.plan()? })
    }

    /// A run's name below the sweep's folder: `fedprox,imbalance=10/seed-1`.
    pub fn name(&self, run: &Planned) -> String {
        let dir = Path::new(&run.config.run.dir);
        dir.strip_prefix(&self.root).unwrap_or(dir).to_string_lossy().into_owned()
    }

    /// How far a run is.
    pub fn state(&self, run: &Planned) -> Result<State> {
        let dir = PathBuf::from(&run.config.run.dir);
        if pipeline::finished(&dir)? && records::same(&dir, run)? {
            return Ok(State::Done(dir));
        }
        if let Some(record) = records::find(self, run)? {
            return Ok(State::Done(record));
        }
        let claim = self.claim_path(run);
        if claim.exists() && fsx::Lock::try_file(&claim)?.is_none() {
            return Ok(State::Running);
        }
        let manifest = dir.join("manifest.json");
        if !manifest.exists() {
            return Ok(State::Waiting);
        }
        let state = read_json(&manifest)?["state"].as_str().unwrap_or_default().to_string();
        Ok(match state.strip_prefix("failed: ") {
            Some(why) => State::Failed(why.to_string()),
            None => State::Stopped,
        })
    }

    /// Where the figures of finished runs lie, in the plan's order.
    pub fn done(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        for run in &self.plan.runs {
            if let State::Done(dir) = self.state(run)? {
                found.push(dir);
            }
        }
        Ok(found)
    }

    /// Takes a run for this process; none where a living one has it.
    fn claim(&self, run: &Planned) -> Result<Option<fsx::Lock>> {
        fsx::create_dir(&self.root.join(CLAIMS))?;
        fsx::Lock::try_file(&self.claim_path(run))
    }

    fn claim_path(&self, run: &Planned) -> PathBuf {
        self.root.join(CLAIMS).join(format!("{}.lock", self.name(run).replace('/', "~")))
    }
}
