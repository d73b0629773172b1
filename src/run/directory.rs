//! The run directory: one configuration, one process, stages that are done or not.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::SCHEMA;
use crate::error::{Error, Result};
use crate::fsx;
use crate::nn::{Layout, Params};

/// Keys that may differ between a run and its resumption: they do not reach a number.
const FREE_KEYS: [&str; 6] = ["run.dir", "run.threads", "run.cache", "run.share", "run.name", "run.tolerate"];

/// An open run directory, locked against other processes.
pub struct RunDir {
    path: PathBuf,
    _lock: fsx::Lock,
}

/// What `done.json` of a stage says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// File version.
    pub schema: u32,
    /// SHA-256 of the stage's model, as [`Params::digest`].
    pub digest: String,
    /// Figures and notes of the stage.
    pub facts: Value,
}

impl RunDir {
    /// Creates the directory, or opens it to go on. Another configuration in it is refused with the difference shown.
    pub fn open(path: &Path, config: &toml::Table) -> Result<Self> {
        let lock = fsx::Lock::take(path)?;
        let file = path.join("config.toml");
        if file.exists() {
            let text = fsx::read_text(&file)?;
            let old: toml::Table =
                toml::from_str(&text).map_err(|e| Error::data(format!("{}: {}", file.display(), e.message())))?;
            refuse_newer(old.get("schema").and_then(toml::Value::as_integer), &file)?;
            refuse_difference(&old, config, path)?;
        } else {
            let text = toml::to_string_pretty(config).map_err(|e| Error::defect(format!("config.toml: {e}")))?;
            fsx::write_atomic(&file, text.as_bytes())?;
        }
        Ok(RunDir { path: path.to_path_buf(), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Writes a JSON file in it, whole or not at all.
    pub fn write_json(&self, name: &str, value: &Value) -> Result<()> {
        let text = serde_json::to_string_pretty(value).map_err(|e| Error::defect(format!("{name}: {e}")))?;
        fsx::write_atomic(&self.file(name), format!("{text}\n").as_bytes())
    }

    /// Updates `manifest.json`: `facts` are merged into what is there.
    pub fn update_manifest(&self, facts: &BTreeMap<&str, Value>) -> Result<()> {
        let path = self.file("manifest.json");
        let mut manifest = if path.exists() { read_json(&path)? } else { json!({ "schema": SCHEMA }) };
        if let Some(map) = manifest.as_object_mut() {
            map.extend(facts.iter().map(|(k, v)| ((*k).to_string(), v.clone())));
        }
        self.write_json("manifest.json", &manifest)
    }

    /// Writes a stage's model, then its `done.json`.
    pub fn finish(&self, stage: &str, model: &Params, facts: Value) -> Result<Done> {
        let metadata = BTreeMap::from([("stage".to_string(), stage.to_string())]);
        model.save(&self.file(&format!("{stage}/model.safetensors")), &metadata)?;
        let done = Done { schema: SCHEMA, digest: model.digest(), facts };
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

/// Reads a JSON file.
pub fn read_json(path: &Path) -> Result<Value> {
    serde_json::from_str(&fsx::read_text(path)?).map_err(|e| Error::data(format!("{}: {e}", path.display())))
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

fn refuse_difference(old: &toml::Table, new: &toml::Table, path: &Path) -> Result<()> {
    let (old, new) = (flat(old), flat(new));
    let mut lines = Vec::new();
    let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    for key in keys.into_iter().filter(|k| !FREE_KEYS.contains(&k.as_str())) {
        let (was, is) = (old.get(key), new.get(key));
        if was != is {
            let show = |v: Option<&String>| v.cloned().unwrap_or_else(|| "absent".to_string());
            lines.push(format!("  {key}: {} there, {} asked", show(was), show(is)));
        }
    }
    if lines.is_empty() {
        return Ok(());
    }
    Err(Error::input(format!("{} holds a run of another configuration:\n{}", path.display(), lines.join("\n")))
        .hint("choose another directory with --set run.dir=…, or delete this one"))
}

/// `section.key` → value as text.
fn flat(table: &toml::Table) -> BTreeMap<String, String> {
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

    #[test]
    fn another_configuration_is_refused_with_the_difference() {
        let dir = tempfile::tempdir().unwrap();
        drop(RunDir::open(dir.path(), &table("[run]\nseed = 1\nthreads = 2")).unwrap());
        assert!(RunDir::open(dir.path(), &table("[run]\nseed = 1\nthreads = 8")).is_ok(), "threads are free");
        let e = RunDir::open(dir.path(), &table("[run]\nseed = 2\nthreads = 2")).err().unwrap().to_string();
        assert!(e.contains("run.seed: 1 there, 2 asked"), "{e}");
    }

    #[test]
    fn a_newer_schema_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.toml"), "schema = 99\n").unwrap();
        let e = RunDir::open(dir.path(), &table("schema = 1")).err().unwrap();
        assert!(e.to_string().contains("schema 99"), "{e}");
    }

    #[test]
    fn a_finished_stage_is_read_back_and_a_changed_model_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path(), &table("schema = 1")).unwrap();
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
