//! The run directory: one configuration, one process, stages that are done or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use toml::Table;

use super::difference::{Difference, refuse_difference};
use super::{Records, SCHEMA, records, seal};
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::nn::{Layout, Params};

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
        Self::open_with(path, config, &Ok, &|_| Vec::new())
    }

    /// As [`RunDir::open`]; `whole` writes out the defaults of the config that is there: an earlier version may have
    /// known fewer keys. `idle` names keys of that config with which all that is done so far would be the same as with
    /// those asked.
    pub fn open_with(
        path: &Path,
        config: &Table,
        whole: &dyn Fn(Table) -> Result<Table>,
        idle: &dyn Fn(&Table) -> Vec<&'static str>,
    ) -> Result<Self> {
        refuse_inside(path)?;
        refuse_links(path)?;
        let made =
            path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).last().map(Path::to_path_buf);
        let lock = fsx::Lock::take(path)?;
        sweep(path)?;
        let file = path.join("config.toml");
        let fresh = !file.exists();
        let mut longer = false;
        if fresh {
            write_config(&file, config)?;
        } else {
            let old = written(&file, config, whole)?;
            let difference = refuse_difference(&old, config, &idle(&old), path)?;
            longer = difference == Difference::Longer;
            if difference == Difference::Idle {
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
        Ok(refuse_difference(&written(&file, config, whole)?, config, &[], path)? == Difference::None)
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
        let sources = facts.get(SOURCES).map(|new| joined(&manifest[SOURCES], new));
        if let Some(map) = manifest.as_object_mut() {
            map.extend(facts.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
            map.extend(sources.map(|all| (SOURCES.to_string(), all)));
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
        let hint = format!("delete the folder {} to do the stage again", self.file(stage).display());
        let done: Done =
            serde_json::from_value(read_json(&path)?).map_err(|e| Error::data(format!("{}: {e}", path.display())))?;
        refuse_newer(Some(i64::from(done.schema)), &path)?;
        let model = self.file(&format!("{stage}/model.safetensors"));
        let params = Params::load(&model, layout).map_err(|e| e.of_kept().hint(hint.clone()))?;
        if params.digest() != done.digest {
            let text = format!("{} is not the model that {} names", model.display(), path.display());
            return Err(Error::data(text).hint(hint));
        }
        Ok(Some((params, done)))
    }
}

/// Folders that a run writes to, below its own.
const FOLDERS: [&str; 6] = ["checkpoints", "pretrain", "pretrain/checkpoints", "finetune", "align", "adapter"];

/// Removes what a killed process left unfinished.
fn sweep(run: &Path) -> Result<()> {
    fsx::sweep(run)?;
    FOLDERS.iter().try_for_each(|folder| fsx::sweep(&run.join(folder)))?;
    let clients = run.join("clients");
    let of_each = if clients.is_dir() { fsx::list(&clients)? } else { Vec::new() };
    of_each.iter().try_for_each(|folder| fsx::sweep(folder))
}

/// The manifest's list of what was read, by source: what an earlier process read stays, where a later one found it kept.
const SOURCES: &str = "sources";

fn joined(old: &Value, new: &Value) -> Value {
    let all = [old, new].into_iter().flat_map(|list| list.as_array().into_iter().flatten());
    let by_name: BTreeMap<&str, &Value> = all.map(|s| (s["source"].as_str().unwrap_or_default(), s)).collect();
    json!(by_name.values().collect::<Vec<_>>())
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
        let done = read_json(&folder.join("done.json")).map_err(|e| e.of_kept().hint(again.clone()))?;
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

/// Refuses a link among what a run appends to and the folders that it writes to: it could lead anywhere. Files that are
/// written whole take a link's place.
fn refuse_links(path: &Path) -> Result<()> {
    let written = FOLDERS.iter().chain(&["clients", ".lock", "metrics.jsonl", "times.jsonl"]);
    match written.map(|name| path.join(name)).find(|own| own.is_symlink()) {
        None => Ok(()),
        Some(own) => Err(Error::environment(format!("{} is a link, and a run writes through none", own.display()))
            .hint("lay what it leads to in its place; run.dir itself may be a link")),
    }
}

/// The config that a directory was begun with, whole; an empty one only where that is what is `asked`.
fn written(file: &Path, asked: &Table, whole: &dyn Fn(Table) -> Result<Table>) -> Result<Table> {
    let damaged = |what: &str| {
        Error::data(format!("{}: {what}", file.display()))
            .hint("bring it back from a copy, or delete the run's directory to begin it anew")
    };
    let old: Table = toml::from_str(&fsx::read_text(file)?).map_err(|e| damaged(e.message()))?;
    if old.is_empty() && !asked.is_empty() {
        return Err(damaged("it is empty, and a run writes its whole config there"));
    }
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
    fn what_is_idle_may_change_and_is_written_and_a_reason_is_given_where_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let text = |every: usize| format!("[federated]\neval_every = {every}");
        drop(open(dir.path(), &text(1)).unwrap());
        let e = open(dir.path(), &text(5)).err().unwrap().to_string();
        assert!(e.contains("eval_every: 1 there, 5 asked (rounds are done"), "{e}");
        let idle = |_: &Table| vec!["federated.eval_every"];
        drop(RunDir::open_with(dir.path(), &table(&text(5)), &Ok, &idle).unwrap());
        assert!(std::fs::read_to_string(dir.path().join("config.toml")).unwrap().contains("eval_every = 5"));
    }

    #[test]
    fn what_a_killed_process_left_goes_clients_folders_included_and_an_empty_config_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        drop(open(dir.path(), "schema = 1").unwrap());
        let left = ["clients/000003/.part-a", "adapter/.part-b", "checkpoints/.part-round-000002/meta.json"];
        left.iter().for_each(|name| fsx::write_atomic(&dir.path().join(name), b"x").unwrap());
        drop(open(dir.path(), "schema = 1").unwrap());
        assert!(left.iter().all(|name| !dir.path().join(name).exists()));
        std::fs::write(dir.path().join("config.toml"), "").unwrap();
        let e = open(dir.path(), "schema = 1").err().unwrap();
        assert!(e.class() == crate::error::Class::Data && e.advice().is_some(), "{e}");
    }

    #[cfg(unix)]
    #[test]
    fn a_link_among_its_folders_is_refused_and_its_own_folder_may_be_one() {
        let dir = tempfile::tempdir().unwrap();
        let (run, other) = (dir.path().join("run"), dir.path().join("other"));
        [&run, &other].into_iter().for_each(|folder| std::fs::create_dir(folder).unwrap());
        std::os::unix::fs::symlink(&run, dir.path().join("link")).unwrap();
        drop(open(&dir.path().join("link"), "schema = 1").unwrap());
        for name in ["checkpoints", "clients", "finetune"] {
            std::os::unix::fs::symlink(&other, run.join(name)).unwrap();
            let e = open(&run, "schema = 1").err().unwrap().to_string();
            assert!(e.contains(name) && e.contains("is a link"), "{e}");
            std::fs::remove_file(run.join(name)).unwrap();
        }
    }

    #[test]
    fn what_an_earlier_process_read_stays_in_the_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let run = open(dir.path(), "schema = 1").unwrap();
        let add = |sources: Value| run.update_manifest(&[("sources", sources)].into()).unwrap();
        add(json!([{ "source": "b", "read": 8 }, { "source": "a", "read": 1 }]));
        add(json!([{ "source": "a", "read": 2 }]));
        let all = read_json(&run.file("manifest.json")).unwrap()["sources"].clone();
        assert_eq!(all, json!([{ "source": "a", "read": 2 }, { "source": "b", "read": 8 }]));
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
        let refused = || run.finished("pretrain", &layout).unwrap_err();
        assert!(refused().to_string().contains("pretrain to do the stage again"));
        std::fs::remove_file(run.file("pretrain/model.safetensors")).unwrap();
        let e = refused();
        assert!(e.class() == crate::error::Class::Data && e.to_string().contains("do the stage again"), "{e}");
    }
}
