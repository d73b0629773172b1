//! A side of a comparison: which runs an argument names.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::runs::{Found, Run};
use crate::error::{Error, Result, closest};

/// One side: runs of one configuration, one a seed, and the stage that is looked at.
#[derive(Clone, Debug)]
pub struct Side {
    /// How it is called.
    pub name: String,
    /// The stage's key in `eval.json`.
    pub stage: String,
    /// Its runs in the seeds' order, at least one.
    pub runs: Vec<Run>,
}

impl Side {
    /// The side that an argument names: a run, a folder of seeds, or `folder/arm` for an arm's runs below a folder;
    /// `:stage` behind it chooses a stage, else it is the last one that has a model.
    pub fn named(argument: &str) -> Result<(Side, Vec<String>)> {
        let (path, stage) = match argument.rsplit_once(':') {
            Some((path, stage)) if !Path::new(argument).exists() => (path, Some(stage)),
            _ => (argument, None),
        };
        let (found, arm) = found(Path::new(path))?;
        let talk = found.talk();
        let chosen = |r: &Run| arm.as_ref().is_none_or(|a| r.name == *a);
        let names: BTreeSet<String> = found.runs.iter().map(|r| r.name.clone()).collect();
        let mut runs: Vec<Run> = found.runs.into_iter().filter(chosen).collect();
        runs.sort_by_key(|r| r.seed);
        let Some(first) = runs.first() else {
            let arm = arm.unwrap_or_default();
            let error = Error::input(format!("{path}: no run or arm of this name; there: {}", listed(&names)));
            return Err(match closest(&arm, names.iter().map(String::as_str)) {
                Some(near) => error.hint(format!("did you mean `{near}`?")),
                None => error,
            });
        };
        if runs.iter().any(|r| r.keys != first.keys) {
            return Err(Error::input(format!("{path} holds several configurations: {}", listed(&names)))
                .hint(format!("name one, such as {}/{}", path.trim_end_matches('/'), first.name)));
        }
        if let Some(w) = runs.windows(2).find(|w| w[0].seed == w[1].seed) {
            let (seed, a, b) = (w[0].seed, w[0].dir.display(), w[1].dir.display());
            return Err(Error::input(format!("{path} holds seed {seed} twice: {a}, {b}")).hint("name one of the two"));
        }
        Ok((Side { name: first.name.clone(), stage: stage_of(first, stage, path)?, runs }, talk))
    }

    /// Its first run.
    pub fn first(&self) -> &Run {
        &self.runs[0]
    }

    /// Its seeds, ascending.
    pub fn seeds(&self) -> Vec<u64> {
        self.runs.iter().map(|r| r.seed).collect()
    }

    /// How tables call its stage.
    pub fn label(&self) -> String {
        self.first().stage(&self.stage).map_or_else(|| self.stage.clone(), |s| s.label.clone())
    }

    /// A figure of the run of a seed.
    pub fn figure(&self, seed: u64, name: &str) -> Option<f64> {
        self.runs.iter().find(|r| r.seed == seed)?.stage(&self.stage)?.figure(name)
    }

    /// Fewest recorded rounds behind its mean of the last ones.
    pub fn last_rounds(&self) -> Option<u64> {
        self.runs.iter().map(|r| r.stage(&self.stage).and_then(|s| s.figure("last10").and(s.rounds))).min().flatten()
    }
}

fn listed(names: &BTreeSet<String>) -> String {
    names.iter().cloned().collect::<Vec<_>>().join(", ")
}

/// The runs below a path, or below the folder above it with the arm that its last part names.
fn found(path: &Path) -> Result<(Found, Option<String>)> {
    if path.exists() {
        return Ok((Found::below(&[path.to_path_buf()])?, None));
    }
    let (Some(folder), Some(arm)) = (path.parent(), path.file_name()) else {
        return Ok((Found::below(&[path.to_path_buf()])?, None));
    };
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    if !folder.is_dir() || folder == Path::new(".") {
        return Err(Error::input(format!("{} does not exist", path.display()))
            .hint("name a run, a folder of seeds, or folder/arm, such as runs/demo/scratch"));
    }
    Ok((Found::below(&[PathBuf::from(folder)])?, Some(arm.to_string_lossy().into_owned())))
}

fn stage_of(run: &Run, asked: Option<&str>, path: &str) -> Result<String> {
    let last = run.stages.iter().rev().find(|s| !s.digest().is_empty()).or(run.stages.last());
    let Some(name) = asked else { return Ok(last.map(|s| s.name.clone()).unwrap_or_default()) };
    if run.stage(name).is_some() {
        return Ok(name.into());
    }
    let names: Vec<&str> = run.stages.iter().map(|s| s.name.as_str()).collect();
    let error = Error::input(format!("{path} has no stage `{name}`; it has: {}", names.join(", ")));
    Err(match closest(name, names.iter().copied()) {
        Some(near) => error.hint(format!("did you mean `{near}`?")),
        None => error,
    })
}
