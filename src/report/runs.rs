//! Run directories as they lie on disk: what is finished, what is not, and what each says of itself.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::keys::{self, Keys};
use crate::error::{Error, Result};
use crate::fsx;
use crate::run::Records;
use crate::run::directory::read_json;

/// Beside the arms of an experiment: their order, and the contrasts between them.
pub const EXPERIMENT: &str = "experiment.json";

/// Folders below a given path are searched so deep.
const DEPTH: usize = 8;

/// A run with an `eval.json`.
#[derive(Clone, Debug)]
pub struct Run {
    /// Its directory, as it was found.
    pub dir: PathBuf,
    /// Its directory's name; a folder `seed-3` belongs to what is above it.
    pub name: String,
    /// The root of its randomness.
    pub seed: u64,
    /// What its config says, but for the keys that reach no number.
    pub keys: Keys,
    /// What it wrote at the end.
    pub eval: Value,
    /// The stages, in the run's own order.
    pub stages: Vec<Stage>,
    /// Digest of the images it was judged on; empty where it does not say.
    pub test: String,
}

/// What a run says of one of its stages.
#[derive(Clone, Debug, PartialEq)]
pub struct Stage {
    /// Its key in `eval.json`.
    pub name: String,
    /// How a table calls it.
    pub label: String,
    /// Its place among the stages.
    pub order: i64,
    /// Whether a teacher saw the benchmark's own labels.
    pub oracle: bool,
    /// What it had that a plain baseline lacks.
    pub extras: Vec<String>,
    /// Images trained on up to here, each as often as it was seen.
    pub image_steps: u64,
    /// The sections and keys of the config that reach its numbers; `None` where the run does not say: all.
    pub reads: Option<Vec<String>>,
    /// Figures that it wants shown beside the accuracy: name in `eval.json`, head. Empty: those of a classifier.
    pub columns: Vec<(String, String)>,
    /// The figures, by their names in `eval.json`.
    pub figures: Value,
    /// Recorded rounds behind `last10`.
    pub rounds: Option<u64>,
}

/// All that lies below some paths.
#[derive(Debug, Default)]
pub struct Found {
    /// Finished runs, in the order of the paths, of an experiment's arms, of names.
    pub runs: Vec<Run>,
    /// Runs without an `eval.json`, and those whose later stages are missing; with what is known of them.
    pub unfinished: Vec<(PathBuf, String)>,
    /// Directories that were named more than once; each counts once.
    pub twice: Vec<PathBuf>,
    /// Runs of an earlier version, whose stages go by their keys.
    pub old: usize,
    /// Experiment files and what is in them.
    pub experiments: Vec<(PathBuf, Value)>,
    seen: BTreeSet<PathBuf>,
    /// Whether runs under way count as far as they are.
    running: bool,
}

impl Found {
    /// Reads every run below these paths. A path without a finished run is an error.
    pub fn below(paths: &[PathBuf]) -> Result<Found> {
        let mut found = Found::default();
        for path in paths {
            let before = (found.runs.len(), found.unfinished.len(), found.twice.len());
            if !path.exists() {
                return Err(Error::input(format!("{} does not exist", path.display()))
                    .hint("name a run's directory, such as runs/demo"));
            }
            found.walk(path, 0)?;
            if (found.runs.len(), found.twice.len()) == (before.0, before.2) {
                let stopped: Vec<String> = found.unfinished[before.1..].iter().map(in_words).collect();
                let error = Error::input(format!("{} holds no finished run (no eval.json)", path.display()));
                return Err(match stopped.is_empty() {
                    true => error.hint("name a run's directory, such as runs/demo"),
                    false => error.hint(format!("unfinished: {}; `fedllava resume` goes on", stopped.join(", "))),
                });
            }
        }
        Ok(found)
    }

    /// The same with runs that are under way, as far as they are; that there is none is no error.
    pub fn running(paths: &[PathBuf]) -> Result<Found> {
        let mut found = Found { running: true, ..Found::default() };
        for path in paths {
            if !path.exists() {
                return Err(Error::input(format!("{} does not exist", path.display()))
                    .hint("name a run's directory, such as runs/demo"));
            }
            found.walk(path, 0)?;
        }
        Ok(found)
    }

    fn walk(&mut self, path: &Path, depth: usize) -> Result<()> {
        let (file, config) = (path.join("eval.json"), path.join("config.toml"));
        if file.exists() || config.exists() {
            let real = path.canonicalize().map_err(|e| Error::io("find", path, e))?;
            if !self.seen.insert(real) {
                self.twice.push(path.to_path_buf());
                return Ok(());
            }
        }
        if file.exists() {
            return self.add(path);
        }
        let experiment = path.join(EXPERIMENT);
        if experiment.exists() && !self.experiments.iter().any(|(p, _)| *p == experiment) {
            self.experiments.push((experiment.clone(), read_json(&experiment)?));
        }
        let before = (self.runs.len(), self.unfinished.len());
        if depth < DEPTH && path.is_dir() {
            children(path)?.iter().try_for_each(|child| self.walk(child, depth + 1))?;
        }
        if config.exists() && before == (self.runs.len(), self.unfinished.len()) {
            self.unfinished.push((path.to_path_buf(), state(path)?.unwrap_or_else(|| "no eval.json".into())));
            if self.running {
                self.runs.extend(Run::so_far(path)?);
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path) -> Result<()> {
        let run = Run::read(path)?;
        if let Some(state) = state(path)?.filter(|s| s != "done") {
            self.unfinished.push((path.to_path_buf(), format!("{state}; shown as far as it went")));
        }
        self.old += usize::from(run.stages.iter().any(|s| s.order >= UNSAID));
        self.runs.push(run);
        Ok(())
    }

    /// What a reader should know before the tables: runs that are not in them, or count once.
    pub fn talk(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if !self.unfinished.is_empty() {
            let names: Vec<String> = self.unfinished.iter().map(in_words).collect();
            lines.push(format!("unfinished runs: {}: {}", names.len(), names.join(", ")));
        }
        if !self.twice.is_empty() {
            let names: Vec<String> = self.twice.iter().map(|p| p.display().to_string()).collect();
            lines.push(format!("named more than once, counted once: {}", names.join(", ")));
        }
        lines
    }
}

fn in_words((path, state): &(PathBuf, String)) -> String {
    format!("{} ({state})", path.display())
}

/// What `manifest.json` says of a run's end; `None` without the file.
fn state(dir: &Path) -> Result<Option<String>> {
    let file = dir.join("manifest.json");
    if !file.exists() {
        return Ok(None);
    }
    Ok(read_json(&file)?["state"].as_str().map(String::from))
}

/// Places of stages whose run does not say one begin here.
const UNSAID: i64 = 1 << 32;

impl Run {
    /// Reads a run's directory.
    pub fn read(dir: &Path) -> Result<Run> {
        let eval = read_json(&dir.join("eval.json"))?;
        let (keys, seed) = keys::read(dir)?;
        let Some(seed) = seed.or(eval["facts"]["seed"].as_u64()) else {
            return Err(Error::data(format!("{}: no run.seed", dir.join("config.toml").display())));
        };
        let records = dir.join("metrics.jsonl");
        let records = if records.exists() { Records::read(&records)? } else { Vec::new() };
        let entries = eval["stages"].as_object().into_iter().flatten().enumerate();
        let mut stages: Vec<Stage> =
            entries.map(|(i, (name, entry))| Stage::read(name, entry, i as i64, &records)).collect();
        if stages.is_empty() {
            return Err(Error::data(format!("{}: no stages", dir.join("eval.json").display()))
                .hint("delete it, and the run's command writes it again"));
        }
        stages.sort_by_key(|s| s.order);
        let test = eval["facts"]["test"].as_str().map(String::from);
        let test = test.map_or_else(|| test_digest(dir), Ok)?;
        Ok(Run { dir: dir.to_path_buf(), name: name_of(dir), seed, keys, eval, stages, test })
    }

    /// A run under way, from its config and records: its last judged round; `None` before the first.
    pub fn so_far(dir: &Path) -> Result<Option<Run>> {
        let (keys, seed) = keys::read(dir)?;
        let records = dir.join("metrics.jsonl");
        let records = if records.exists() { Records::read(&records)? } else { Vec::new() };
        let mut names: Vec<&str> = Vec::new();
        for name in records.iter().filter_map(|r| r["stage"].as_str()) {
            if !names.contains(&name) && records.iter().any(|r| judged(r, name)) {
                names.push(name);
            }
        }
        let planned = keys.get("federated.rounds").map_or_else(String::new, |n| format!(" of {n}"));
        let stage = |(order, name): (usize, &&str)| {
            let tests: Vec<&Value> = records.iter().filter(|r| judged(r, name)).collect();
            let last = tests[tests.len().saturating_sub(10)..].iter().filter_map(|r| r["accuracy"].as_f64());
            let last: Vec<f64> = last.collect();
            let mut entry = tests.last().map_or(Value::Null, |r| (*r).clone());
            entry["overall"] = entry["accuracy"].take();
            entry["last10"] = json!(last.iter().sum::<f64>() / last.len().max(1) as f64);
            entry["label"] = json!(format!("{name}, round {}{planned}", entry["round"].take()));
            entry["order"] = json!(order);
            Stage::read(name, &entry, order as i64, &records)
        };
        let stages: Vec<Stage> = names.iter().enumerate().map(stage).collect();
        let (name, test) = (name_of(dir), test_digest(dir)?);
        let run = Run { dir: dir.into(), name, seed: seed.unwrap_or(0), keys, eval: Value::Null, stages, test };
        Ok((!run.stages.is_empty()).then_some(run))
    }

    /// A stage by its key.
    pub fn stage(&self, name: &str) -> Option<&Stage> {
        self.stages.iter().find(|s| s.name == name)
    }

    /// The federated method, as the config names it; empty where it does not.
    pub fn algorithm(&self) -> &str {
        self.keys.get("algorithm.kind").and_then(toml::Value::as_str).unwrap_or("")
    }

    /// The lines of `metrics.jsonl`; none without the file.
    pub fn records(&self) -> Result<Vec<Value>> {
        let path = self.dir.join("metrics.jsonl");
        if path.exists() { Records::read(&path) } else { Ok(Vec::new()) }
    }
}

impl Stage {
    fn read(name: &str, entry: &Value, found: i64, records: &[Value]) -> Stage {
        let texts = |v: &Value| v.as_array().map(|a| a.iter().filter_map(|t| t.as_str().map(String::from)).collect());
        let counted = || records.iter().filter(|r| judged(r, name)).count().min(10) as u64;
        Stage {
            name: name.into(),
            label: entry["label"].as_str().unwrap_or(name).into(),
            order: entry["order"].as_i64().unwrap_or(UNSAID + found),
            oracle: entry["oracle"].as_bool().unwrap_or(false),
            extras: texts(&entry["extras"]).unwrap_or_default(),
            image_steps: entry["image_steps"].as_u64().unwrap_or(0),
            reads: texts(&entry["reads"]),
            columns: serde_json::from_value(entry["columns"].clone()).unwrap_or_default(),
            figures: entry.clone(),
            rounds: entry["last10_rounds"].as_u64().or_else(|| Some(counted()).filter(|n| *n > 0)),
        }
    }

    /// A number of this stage, `/` between the names of nested ones: `overall`, `personal/mean`.
    pub fn figure(&self, name: &str) -> Option<f64> {
        self.figures.pointer(&format!("/{name}"))?.as_f64()
    }

    /// SHA-256 of the stage's model; empty for what is no model.
    pub fn digest(&self) -> &str {
        self.figures["digest"].as_str().unwrap_or("")
    }

    /// Whether a key of the config reaches this stage's numbers, as far as the run says.
    pub fn reads(&self, key: &str) -> bool {
        let within = |part: &String| key == part || key.strip_prefix(part.as_str()).is_some_and(|r| r.starts_with('.'));
        self.reads.as_ref().is_none_or(|parts| parts.iter().any(within))
    }
}

/// Whether a record is a test of a stage's model after a round.
pub fn judged(record: &Value, stage: &str) -> bool {
    record["stage"] == stage && record["split"] == "test" && record["round"].as_u64() > Some(0)
}

fn test_digest(dir: &Path) -> Result<String> {
    let file = dir.join("manifest.json");
    let manifest = if file.exists() { read_json(&file)? } else { Value::Null };
    Ok(manifest["test"]["digest"].as_str().unwrap_or("").into())
}

/// A run's directory name; a folder `seed-3` belongs to what is above it.
pub fn name_of(dir: &Path) -> String {
    let real = if dir.file_name().is_none() { dir.canonicalize().ok() } else { None };
    let parts = real.as_deref().unwrap_or(dir).iter().rev().map(|p| p.to_string_lossy());
    parts.into_iter().find(|p| !p.starts_with("seed-")).map_or_else(|| "run".into(), |p| p.into_owned())
}

/// Folders below a folder: in the order of its arms where it has some, else by name, `seed-10` after `seed-9`.
fn children(path: &Path) -> Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = fsx::list(path)?.into_iter().filter(|p| p.is_dir()).collect();
    let name = |p: &PathBuf| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    folders.sort_by_key(|p| {
        let name = name(p);
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_string();
        (stem.clone(), name[stem.len()..].parse::<u64>().unwrap_or(0), name)
    });
    let file = path.join(EXPERIMENT);
    if file.exists() {
        let arms = read_json(&file)?["arms"].clone();
        let place = |p: &PathBuf| arms.as_array().and_then(|a| a.iter().position(|arm| *arm == json!(name(p))));
        folders.sort_by_key(|p| place(p).unwrap_or(usize::MAX));
    }
    Ok(folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unfinished_runs_are_named_and_a_folder_given_twice_counts_once() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("a/seed-10/config.toml", "[run]\nseed = 10");
        write("a/seed-9/config.toml", "[run]\nseed = 9");
        write("a/seed-9/eval.json", r#"{"stages": {"x": {"overall": 0.5}}}"#);
        write("a/seed-10/manifest.json", r#"{"state": "stopped"}"#);
        let below = |p: &str| root.path().join(p);
        let found = Found::below(&[below("a"), below("a/seed-9")]).unwrap();
        assert_eq!((found.runs.len(), found.runs[0].name.as_str(), found.runs[0].seed), (1, "a", 9));
        let talk = found.talk().join("\n");
        assert!(talk.contains("unfinished runs: 1") && talk.contains("seed-10 (stopped)"), "{talk}");
        assert!(talk.contains("counted once"), "{talk}");
        let e = Found::below(&[below("a/seed-10")]).unwrap_err().to_string();
        assert!(e.contains("no finished run") && e.contains("stopped"), "{e}");
    }

    #[test]
    fn a_stage_reads_the_sections_it_names_and_all_where_it_names_none() {
        let stage = |entry: Value| Stage::read("x", &entry, 0, &[]);
        let some = stage(json!({ "reads": ["data", "run.engine"] }));
        assert!(some.reads("data.kind") && some.reads("run.engine") && !some.reads("dataset.kind"));
        assert!(stage(json!({})).reads("anything.at_all"));
    }
}
