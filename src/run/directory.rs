//! The run directory: one configuration, one process, stages that are done or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::Table;

use super::{Records, SCHEMA, records, seal};
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::nn::{Layout, Params};

/// Keys that may differ between a run and its resumption: they do not reach a number.
const FREE_KEYS: [&str; 8] = [
    "run.dir",
    "run.threads",
    "run.cache",
    "run.share",
    "run.tensorboard",
    "run.tolerate",
    "federated.checkpoint_every",
    "federated.keep_checkpoints",
];
/// The key that may grow: a run goes on with more rounds.
const ROUNDS: &str = "federated.rounds";
/// Keys that may change before the rounds are over, where no client could be left out so far: every round that is done is
/// the same with them.
const FAILURES: [&str; 2] = ["federated.on_failure", "federated.max_failures"];
/// What a run writes before it computes anything.
const FIRST: [&str; 8] = [
    "config.toml",
    "manifest.json",
    "split.json",
    "overlaps.json",
    super::tensorboard::FILE,
    ".keep-pretrain",
    ".keep-finetune",
    ".lock",
];
/// What says that the rounds are over.
const LAST: [&str; 5] = ["finetune/done.json", "align/done.json", "eval.json", "personal.json", "logits.safetensors"];

/// An open run directory, locked against other processes.
pub struct RunDir {
    path: PathBuf,
    /// The highest folder that was made for it.
    made: Option<PathBuf>,
    /// Whether its config was written now.
    fresh: bool,
    longer: bool,
    _lock: fsx::Lock,
}

/// What `done.json` of a stage says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// File version.
    pub schema: u32,
    /// SHA-256 of the stage's model, as [`Params::digest`].
    pub digest: String,
    /// SHA-256 of `model.safetensors`, for who does not read it; empty where an earlier version wrote this.
    #[serde(default)]
    pub file: String,
    /// Figures and notes of the stage.
    pub facts: Value,
}

impl RunDir {
    /// Creates the directory, or opens it to go on. Another configuration in it is refused with the difference shown;
    /// more rounds alone are none ([`RunDir::longer`]).
    pub fn open(path: &Path, config: &Table) -> Result<Self> {
        Self::open_with(path, config, &Ok)
    }

    /// As [`RunDir::open`]; `whole` writes out the defaults of the config that is there: an earlier version may have
    /// known fewer keys.
    pub fn open_with(path: &Path, config: &Table, whole: &dyn Fn(Table) -> Result<Table>) -> Result<Self> {
        refuse_inside(path)?;
        let made =
            path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).last().map(Path::to_path_buf);
        let lock = fsx::Lock::take(path)?;
        for folder in ["", "checkpoints", "pretrain", "pretrain/checkpoints", "finetune", "align"] {
            fsx::sweep(&path.join(folder))?;
        }
        let file = path.join("config.toml");
        let fresh = !file.exists();
        let mut longer = false;
        if fresh {
            write_config(&file, config)?;
        } else {
            let difference = refuse_difference(&written(&file, whole)?, config, path)?;
            longer = difference == Difference::Longer;
            if difference == Difference::Lenient {
                write_config(&file, config)?;
            }
        }
        Ok(RunDir { path: path.to_path_buf(), made, fresh, longer, _lock: lock })
    }

    /// Whether a directory that cannot be written to holds a run of this very configuration: it can only be looked at.
    pub fn rests(path: &Path, config: &Table, whole: &dyn Fn(Table) -> Result<Table>) -> Result<bool> {
        let file = path.join("config.toml");
        if !file.exists() || fsx::Lock::possible(path) {
            return Ok(false);
        }
        Ok(refuse_difference(&written(&file, whole)?, config, path)? == Difference::None)
    }

    /// Whether more rounds are asked than the directory's config has, and nothing else differs.
    pub fn longer(&self) -> bool {
        self.longer
    }

    /// Takes back what says that the rounds are over, and the records that `keep` does not want.
    pub fn extend(&mut self, config: &Table, keep: impl Fn(&Value) -> bool) -> Result<()> {
        for name in LAST {
            remove(&self.file(name))?;
        }
        if self.file("metrics.jsonl").exists() {
            Records::open(&self.file("metrics.jsonl"))?.retain(keep)?;
        }
        self.update_manifest(&[("complete", json!(false))].into())?;
        write_config(&self.file("config.toml"), config)?;
        self.longer = false;
        Ok(())
    }

    /// Whether something was computed here, or the run was there before.
    pub fn begun(&self) -> bool {
        !self.fresh
            || ["checkpoints", "pretrain", "finetune", "align"].iter().any(|n| self.file(n).exists())
            || std::fs::metadata(self.file("metrics.jsonl")).is_ok_and(|m| m.len() > 0)
    }

    /// Leaves nothing behind of a run that failed before it computed anything; one that has begun stays.
    pub fn abandon(self) -> Result<()> {
        if self.begun() {
            return Ok(());
        }
        let Some(top) = &self.made else {
            return FIRST.iter().try_for_each(|name| remove(&self.file(name)));
        };
        std::fs::remove_dir_all(&self.path).map_err(|e| Error::io("remove", &self.path, e))?;
        // Folders above it stay where something else is in them.
        for folder in self.path.ancestors().skip(1).take_while(|p| p.starts_with(top)) {
            if std::fs::remove_dir(folder).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a JSON file in it, sealed, whole or not at all.
    pub fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        let value = seal::seal(value);
        let text = serde_json::to_string_pretty(&value).map_err(|e| Error::defect(format!("{name}: {e}")))?;
        fsx::write_atomic(&self.file(name), format!("{text}\n").as_bytes())
    }

    /// Updates `manifest.json`: `facts` are merged into what is there. A damaged one is made again, and says so.
    pub fn update_manifest(&self, facts: &BTreeMap<&str, Value>) -> Result<()> {
        let path = self.file("manifest.json");
        let new = |remade: Option<String>| json!({ "schema": SCHEMA, "remade": remade });
        let mut manifest = match path.exists().then(|| read_json(&path)) {
            Some(Ok(manifest)) if manifest.is_object() => manifest,
            Some(Err(e)) => new(Some(e.message().to_string())),
            _ => json!({ "schema": SCHEMA }),
        };
        if let Some(map) = manifest.as_object_mut() {
            map.extend(facts.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
        }
        self.write_json("manifest.json", &manifest)
    }

    /// Writes a stage's model, then its `done.json`.
    pub fn finish(&self, stage: &str, model: &Params, facts: Value) -> Result<Done> {
        let metadata = BTreeMap::from([("stage".to_string(), stage.to_string())]);
        model.save(&self.file(&format!("{stage}/model.safetensors")), &metadata)?;
        let file = fsx::sha256_file(&self.file(&format!("{stage}/model.safetensors")))?;
        let done = Done { schema: SCHEMA, digest: model.digest(), file, facts };
        let value = serde_json::to_value(&done).map_err(|e| Error::defect(format!("done.json: {e}")))?;
        self.write_json(&format!("{stage}/done.json"), &value)?;
        Ok(done)
    }

    /// A finished stage's model, if the stage is done. A model that does not have its digest is refused.
    pub fn finished(&self, stage: &str, layout: &std::sync::Arc<Layout>) -> Result<Option<(Params, Done)>> {
        let path = self.file(&format!("{stage}/done.json"));
        if !path.exists() {
            return Ok(None);
        }
        let done: Done =
            serde_json::from_value(read_json(&path)?).map_err(|e| Error::data(format!("{}: {e}", path.display())))?;
        refuse_newer(Some(i64::from(done.schema)), &path)?;
        let model = self.file(&format!("{stage}/model.safetensors"));
        let params = Params::load(&model, layout)?;
        if params.digest() != done.digest {
            return Err(Error::data(format!("{} is not the model that {} names", model.display(), path.display()))
                .hint(format!("delete the folder {stage} to do the stage again")));
        }
        Ok(Some((params, done)))
    }
}

/// Reads a JSON file; one that has a seal must fit it.
pub fn read_json(path: &Path) -> Result<Value> {
    let value: Value = serde_json::from_str(&fsx::read_text(path)?).map_err(|e| {
        let hint = "delete it, and the run's command writes it again";
        Error::data(format!("{}: {e}", path.display())).hint(hint)
    })?;
    seal::prove(&value, path)?;
    Ok(value)
}

/// Refuses a finished run whose figures, records or models are not those that it finished with.
pub fn prove(dir: &Path) -> Result<()> {
    let eval = read_json(&dir.join("eval.json"))?;
    records::prove(&dir.join("metrics.jsonl"))?;
    for stage in ["pretrain", "finetune", "align"] {
        let (folder, entry) = (dir.join(stage), &eval["stages"][stage]);
        if entry.is_null() && !folder.join("done.json").exists() {
            continue;
        }
        let model = folder.join("model.safetensors");
        let again = format!("delete {} and eval.json: the same command does the stage again", folder.display());
        let done = read_json(&folder.join("done.json")).map_err(|e| e.hint(again.clone()))?;
        if !entry.is_null() && entry["digest"] != done["digest"] {
            let text = format!("{}: eval.json has figures of another model of {stage}", dir.display());
            return Err(Error::data(text).hint("delete eval.json, and the run's command writes it again"));
        }
        let expected = done["file"].as_str().filter(|file| !file.is_empty());
        if !model.exists() || expected.is_some_and(|file| fsx::sha256_file(&model).ok().as_deref() != Some(file)) {
            let state = if model.exists() { "is not the model that the run finished with" } else { "is gone" };
            return Err(Error::data(format!("{} {state}", model.display())).hint(again));
        }
    }
    Ok(())
}

/// Refuses a file of a later version of this program.
pub fn refuse_newer(schema: Option<i64>, path: &Path) -> Result<()> {
    match schema {
        Some(found) if found > i64::from(SCHEMA) => {
            Err(Error::data(format!("{}: schema {found}, and this program knows {SCHEMA}", path.display()))
                .hint("use the version of fedllava that wrote it, or a newer one"))
        }
        _ => Ok(()),
    }
}

/// Refuses a directory inside another run's: an earlier version put runs where seeds lie now, and reports would miss it.
fn refuse_inside(path: &Path) -> Result<()> {
    match path.parent() {
        Some(above) if ["config.toml", "manifest.json"].iter().all(|n| above.join(n).exists()) => {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            Err(Error::input(format!("{} is a run itself: {name} cannot lie in it", above.display()))
                .hint("an earlier version of fedllava may have put it there: move it elsewhere, or delete it"))
        }
        _ => Ok(()),
    }
}

/// The config that a directory was begun with, whole.
fn written(file: &Path, whole: &dyn Fn(Table) -> Result<Table>) -> Result<Table> {
    let old: Table = toml::from_str(&fsx::read_text(file)?)
        .map_err(|e| Error::data(format!("{}: {}", file.display(), e.message())))?;
    refuse_newer(old.get("schema").and_then(toml::Value::as_integer), file)?;
    whole(old).at(|| file.display().to_string())
}

fn write_config(file: &Path, config: &Table) -> Result<()> {
    let text = toml::to_string_pretty(config).map_err(|e| Error::defect(format!("config.toml: {e}")))?;
    fsx::write_atomic(file, text.as_bytes())
}

/// Removes a file, if it is there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, e)),
        _ => Ok(()),
    }
}

/// How an asked config differs from the one of a directory, where a run goes on all the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Difference {
    /// In nothing that reaches a number.
    None,
    /// In more rounds alone.
    Longer,
    /// In what becomes of clients that fail, before one could be left out.
    Lenient,
}

/// Refuses another configuration.
fn refuse_difference(old: &Table, new: &Table, path: &Path) -> Result<Difference> {
    let (old, new) = (flat(old), flat(new));
    let mut lines = Vec::new();
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys.into_iter().filter(|k| !FREE_KEYS.contains(&k.as_str())) {
        let (was, is) = (old.get(key), new.get(key));
        if was != is {
            let show = |v: Option<&String>| v.cloned().unwrap_or_else(|| "absent".to_string());
            lines.push((key, format!("  {key}: {} there, {} asked", show(was), show(is))));
        }
    }
    let number = |all: &BTreeMap<String, String>| all.get(ROUNDS).and_then(|n| n.parse::<u64>().ok());
    if lines.is_empty() {
        return Ok(Difference::None);
    }
    if lines.iter().all(|(key, _)| *key == ROUNDS) && number(&new) > number(&old) {
        return Ok(Difference::Longer);
    }
    let stopped = old.get(FAILURES[0]).is_some_and(|on| on.contains("stop"));
    if stopped && lines.iter().all(|(key, _)| FAILURES.contains(&key.as_str())) && !path.join(LAST[0]).exists() {
        return Ok(Difference::Lenient);
    }
    let lines: Vec<String> = lines.into_iter().map(|(_, line)| line).collect();
    Err(Error::input(format!("{} holds a run of another configuration:\n{}", path.display(), lines.join("\n")))
        .hint("choose another directory, as in --set run.dir=runs/another, or delete this one"))
}

/// `section.key` → value as text.
fn flat(table: &Table) -> BTreeMap<String, String> {
    fn walk(prefix: &str, value: &toml::Value, out: &mut BTreeMap<String, String>) {
        match value {
            toml::Value::Table(table) => {
                for (key, value) in table {
                    let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                    walk(&path, value, out);
                }
            }
            other => {
                out.insert(prefix.to_string(), other.to_string());
            }
        }
    }
    let mut out = BTreeMap::new();
    walk("", &toml::Value::Table(table.clone()), &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> toml::Table {
        toml::from_str(text).unwrap()
    }

    fn open(dir: &Path, text: &str) -> Result<RunDir> {
        RunDir::open(dir, &table(text))
    }

    #[test]
    fn another_configuration_is_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "[run]\nseed = 1\nthreads = 2").unwrap());
        assert!(open(dir.path(), "[run]\nseed = 1\nthreads = 8").is_ok(), "threads are free");
        let kept = "[run]\nseed = 1\n[federated]\ncheckpoint_every = 50\nkeep_checkpoints = 9";
        assert!(open(dir.path(), kept).is_ok(), "how often, and how many are kept");
        let e = open(dir.path(), "[run]\nseed = 2\nthreads = 2").err().unwrap().to_string();
        assert!(e.contains("run.seed: 1 there, 2 asked"), "{e}");
    }

    #[test]
    fn a_run_inside_another_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        open(dir.path(), "schema = 1").unwrap().update_manifest(&BTreeMap::new()).unwrap();
        let e = open(&dir.path().join("seed-7"), "schema = 1").err().unwrap().to_string();
        assert!(e.contains("is a run itself") && !dir.path().join("seed-7").exists(), "{e}");
    }

    #[test]
    fn a_run_that_stopped_at_a_client_goes_on_without_it_and_never_back() {
        let dir = tempfile::tempdir().unwrap();
        let text = |on: &str| format!("[federated]\nrounds = 2\non_failure = {on:?}");
        drop(open(dir.path(), &text("stop")).unwrap());
        drop(open(dir.path(), &text("skip")).unwrap());
        assert!(std::fs::read_to_string(dir.path().join("config.toml")).unwrap().contains("skip"));
        assert!(open(dir.path(), &text("stop")).is_err(), "somebody may have been left out");
        let done = tempfile::tempdir().unwrap();
        drop(open(done.path(), &text("stop")).unwrap());
        fsx::write_atomic(&done.path().join("finetune/done.json"), b"{}").unwrap();
        assert!(open(done.path(), &text("skip")).is_err());
    }

    #[test]
    fn more_rounds_are_no_other_configuration_and_fewer_are() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "[federated]\nrounds = 20").unwrap());
        let mut run = open(dir.path(), "[federated]\nrounds = 40").unwrap();
        assert!(run.longer());
        run.write_json("eval.json", &json!({})).unwrap();
        run.extend(&table("[federated]\nrounds = 40"), |_| true).unwrap();
        assert!(!run.longer() && !run.file("eval.json").exists());
        drop(run);
        assert!(open(dir.path(), "[federated]\nrounds = 20").is_err());
        assert!(open(dir.path(), "[federated]\nrounds = 60\ncohort = 3").is_err());
    }

    #[test]
    fn a_failed_start_leaves_nothing_and_a_begun_run_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runs/a/seed-7");
        open(&path, "schema = 1").unwrap().abandon().unwrap();
        assert!(!dir.path().join("runs").exists() && dir.path().exists());
        std::fs::create_dir_all(dir.path().join("runs/other")).unwrap();
        open(&path, "schema = 1").unwrap().abandon().unwrap();
        assert!(dir.path().join("runs/other").exists() && !dir.path().join("runs/a").exists());
        let run = open(&path, "schema = 1").unwrap();
        std::fs::create_dir(run.file("pretrain")).unwrap();
        run.abandon().unwrap();
        assert!(path.join("config.toml").exists());
        open(&path, "schema = 1").unwrap().abandon().unwrap();
        assert!(path.join("config.toml").exists(), "it was there before");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), "schema = 99\n").unwrap();
        let e = open(dir.path(), "schema = 1").err().unwrap();
        assert!(e.to_string().contains("schema 99"), "{e}");
    }

    #[test]
    fn a_finished_stage_is_read_back_and_a_changed_model_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let run = open(dir.path(), "schema = 1").unwrap();
        let mut layout = Layout::default();
        layout.push("w", &[3], crate::nn::Role::Weight).unwrap();
        let layout = std::sync::Arc::new(layout);
        assert!(run.finished("pretrain", &layout).unwrap().is_none());
        let model = Params::new(layout.clone(), vec![1.0, 2.0, 3.0]).unwrap();
        run.finish("pretrain", &model, json!({})).unwrap();
        assert_eq!(run.finished("pretrain", &layout).unwrap().unwrap().0.data(), model.data());
        Params::zeros(layout.clone()).save(&run.file("pretrain/model.safetensors"), &BTreeMap::new()).unwrap();
        assert!(run.finished("pretrain", &layout).is_err());
    }
}
