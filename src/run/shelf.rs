//! Finished stages kept between runs: arms that share a stage, and repeated runs, do it once.
//!
//! A stage lies below a digest of all that its numbers depend on, the program's own bytes included, so a changed
//! program never meets what another one computed, nor what another one began. It is verified when it is read, and laid
//! into the run's directory as if the stage had run there: the same model, the same records, the same bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Records, RunDir, SCHEMA, directory};
use crate::error::{Error, Result};
use crate::exec::{Event, Events};
use crate::fsx;

const FILES: [&str; 4] = ["model.safetensors", "done.json", "records.json", "inputs.json"];

/// The place of one stage with certain inputs.
pub struct Shelf {
    stage: &'static str,
    folder: PathBuf,
    inputs: Value,
}

/// `meta.json`: the digests of the other files.
#[derive(Serialize, Deserialize)]
struct Meta {
    schema: u32,
    digests: BTreeMap<String, String>,
}

impl Shelf {
    /// The place below `cache` for `stage` made from `inputs` by this very program.
    pub fn new(cache: &Path, stage: &'static str, inputs: Value) -> Result<Self> {
        let inputs = json!({ "program": program()?, "schema": SCHEMA, "stage": stage, "inputs": inputs });
        let digest = fsx::sha256(inputs.to_string().as_bytes());
        Ok(Shelf { stage, folder: cache.join(stage).join(&digest[..24]), inputs })
    }

    /// Lays the kept stage into a run, with its records and the manifest's facts; false when none is kept, or a damaged
    /// one, which is said and goes.
    pub fn give(&self, dir: &RunDir, events: &dyn Events) -> Result<bool> {
        if !self.folder.exists() {
            return Ok(false);
        }
        if let Err(e) = self.prove() {
            events.on(Event::Warning(&format!("{}: {} is run again", e.message(), self.stage)));
            std::fs::remove_dir_all(&self.folder).map_err(|e| Error::io("remove", &self.folder, e))?;
            return Ok(false);
        }
        let kept = directory::read_json(&self.folder.join("records.json"))?;
        let mut records = Records::open(&dir.file("metrics.jsonl"))?;
        records.cut(self.stage, 0)?;
        for record in kept["records"].as_array().into_iter().flatten() {
            records.append(record)?;
        }
        records.seal()?;
        let facts = kept["facts"].as_object().cloned().unwrap_or_default();
        dir.update_manifest(&facts.iter().map(|(k, v)| (k.as_str(), v.clone())).collect())?;
        for name in ["model.safetensors", "done.json"] {
            let bytes = fsx::read(&self.folder.join(name))?;
            fsx::write_atomic(&dir.file(&format!("{}/{name}", self.stage)), &bytes)?;
        }
        Ok(true)
    }

    /// Remembers in `dir` that the stage is begun by what this shelf is for, unless something of it is there already: a
    /// process that is killed between the end of the stage and [`Shelf::keep`] is made up for by the next one, and only if
    /// that would have computed the same.
    pub fn begin(&self, dir: &RunDir) -> Result<()> {
        let checkpoints =
            if self.stage == "finetune" { "checkpoints".into() } else { format!("{}/checkpoints", self.stage) };
        match dir.file(&checkpoints).exists() {
            true => Ok(()),
            false => fsx::write_atomic(&dir.file(&mark(self.stage)), self.name().as_bytes()),
        }
    }

    /// Whether a stage of `dir` waits to be kept somewhere.
    pub fn awaits(dir: &RunDir, stage: &str) -> bool {
        dir.file(&mark(stage)).exists()
    }

    fn name(&self) -> String {
        self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Refuses files that do not have their digests.
    fn prove(&self) -> Result<()> {
        let file = self.folder.join("meta.json");
        let read = |e: serde_json::Error| Error::data(format!("{}: {e}", file.display()));
        let meta: Meta = serde_json::from_value(directory::read_json(&file)?).map_err(read)?;
        for name in FILES {
            let path = self.folder.join(name);
            if meta.digests.get(name) != Some(&fsx::sha256_file(&path)?) {
                return Err(Error::data(format!("{} does not have the digest that meta.json gives", path.display())));
            }
        }
        Ok(())
    }

    /// Keeps the stage that `dir` has finished, with these of its manifest's facts, if all of it was computed by what this
    /// shelf is for ([`Shelf::begin`]).
    pub fn keep(&self, dir: &RunDir, facts: &[&str]) -> Result<()> {
        let mark = dir.file(&mark(self.stage));
        let own = mark.exists() && fsx::read_text(&mark)? == self.name();
        if own && !self.folder.exists() {
            self.keep_files(dir, facts)?;
        }
        Self::forget(dir, self.stage)
    }

    /// A stage of `dir` waits no longer.
    pub fn forget(dir: &RunDir, stage: &str) -> Result<()> {
        let mark = dir.file(&mark(stage));
        match std::fs::remove_file(&mark) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", &mark, e)),
            _ => Ok(()),
        }
    }

    fn keep_files(&self, dir: &RunDir, facts: &[&str]) -> Result<()> {
        static TURN: AtomicUsize = AtomicUsize::new(0);
        let turn = TURN.fetch_add(1, Ordering::Relaxed);
        fsx::sweep_stale(self.folder.parent().unwrap_or(Path::new(".")))?;
        let part = self.folder.with_extension(format!("part-{}-{turn}", std::process::id()));
        let own = |record: &Value| record["stage"].as_str() == Some(self.stage);
        let records: Vec<Value> = Records::read(&dir.file("metrics.jsonl"))?.into_iter().filter(own).collect();
        let manifest = directory::read_json(&dir.file("manifest.json"))?;
        let facts: Map<String, Value> = facts.iter().map(|f| (f.to_string(), manifest[*f].clone())).collect();
        let stage = |name: &str| fsx::read(&dir.file(&format!("{}/{name}", self.stage)));
        let contents = [
            stage("model.safetensors")?,
            stage("done.json")?,
            json!({ "records": records, "facts": facts }).to_string().into_bytes(),
            self.inputs.to_string().into_bytes(),
        ];
        let mut meta = Meta { schema: SCHEMA, digests: BTreeMap::new() };
        for (name, bytes) in FILES.iter().zip(&contents) {
            meta.digests.insert((*name).to_string(), fsx::sha256(bytes));
            fsx::write_atomic(&part.join(name), bytes)?;
        }
        let text = serde_json::to_string_pretty(&meta).map_err(|e| Error::defect(format!("meta.json: {e}")))?;
        fsx::write_atomic(&part.join("meta.json"), text.as_bytes())?;
        match std::fs::rename(&part, &self.folder) {
            // Another process kept the same stage meanwhile.
            Err(_) if self.folder.exists() => std::fs::remove_dir_all(&part).map_err(|e| Error::io("remove", &part, e)),
            Err(e) => Err(Error::io("rename to", &self.folder, e)),
            Ok(()) => Ok(()),
        }
    }
}

/// The file of a run that says where a stage is to be kept when it is finished.
fn mark(stage: &str) -> String {
    format!(".keep-{stage}")
}

/// SHA-256 of the running program, computed once.
pub fn program() -> Result<&'static str> {
    static DIGEST: OnceLock<String> = OnceLock::new();
    if let Some(digest) = DIGEST.get() {
        return Ok(digest);
    }
    let path = std::env::current_exe().map_err(|e| Error::environment(format!("the program's own file: {e}")))?;
    let digest = fsx::sha256_file(&path)?;
    Ok(DIGEST.get_or_init(|| digest))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::exec::Silent;
    use crate::nn::{Layout, Params, Role};

    fn layout() -> Arc<Layout> {
        let mut layout = Layout::default();
        layout.push("w", &[2], Role::Weight).unwrap();
        Arc::new(layout)
    }

    fn run(root: &Path, name: &str) -> RunDir {
        RunDir::open(&root.join(name), &toml::Table::new()).unwrap()
    }

    #[test]
    fn a_kept_stage_comes_back_with_its_bytes_and_other_inputs_find_nothing() {
        let root = tempfile::tempdir().unwrap();
        let (a, b, cache) = (run(root.path(), "a"), run(root.path(), "b"), root.path().join("cache"));
        let model = Params::new(layout(), vec![1.0, 2.0]).unwrap();
        let mut records = Records::open(&a.file("metrics.jsonl")).unwrap();
        records.add("pretrain", 1, "pool", &[("loss", 0.5)]).unwrap();
        records.add("other", 1, "pool", &[("loss", 0.7)]).unwrap();
        a.update_manifest(&BTreeMap::from([("pool", json!({ "images": 3 }))])).unwrap();
        a.finish("pretrain", &model, json!({})).unwrap();
        let shelf = Shelf::new(&cache, "pretrain", json!({ "seed": 1 })).unwrap();
        assert!(!shelf.give(&b, &Silent).unwrap());
        shelf.keep(&a, &["pool"]).unwrap();
        assert!(!shelf.folder.exists(), "who computed it is not known");
        let other = Shelf::new(&cache, "pretrain", json!({ "seed": 9 })).unwrap();
        other.begin(&a).unwrap();
        std::fs::create_dir(a.file("pretrain/checkpoints")).unwrap();
        shelf.begin(&a).unwrap();
        shelf.keep(&a, &["pool"]).unwrap();
        assert!(!shelf.folder.exists() && !Shelf::awaits(&a, "pretrain"), "another one began it");
        std::fs::remove_dir(a.file("pretrain/checkpoints")).unwrap();
        shelf.begin(&a).unwrap();
        assert!(Shelf::awaits(&a, "pretrain"));
        shelf.keep(&a, &["pool"]).unwrap();
        assert!(!Shelf::new(&cache, "pretrain", json!({ "seed": 2 })).unwrap().give(&b, &Silent).unwrap());
        assert!(shelf.give(&b, &Silent).unwrap());
        for name in ["pretrain/model.safetensors", "pretrain/done.json"] {
            assert_eq!(fsx::read(&a.file(name)).unwrap(), fsx::read(&b.file(name)).unwrap(), "{name}");
        }
        assert_eq!(Records::read(&b.file("metrics.jsonl")).unwrap().len(), 1);
        assert_eq!(directory::read_json(&b.file("manifest.json")).unwrap()["pool"]["images"], 3);
    }

    #[test]
    fn a_damaged_one_is_said_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let a = run(root.path(), "a");
        a.update_manifest(&BTreeMap::new()).unwrap();
        drop(Records::open(&a.file("metrics.jsonl")).unwrap());
        a.finish("pretrain", &Params::zeros(layout()), json!({})).unwrap();
        let shelf = Shelf::new(&root.path().join("cache"), "pretrain", json!({})).unwrap();
        shelf.begin(&a).unwrap();
        shelf.keep(&a, &[]).unwrap();
        std::fs::write(shelf.folder.join("model.safetensors"), b"junk").unwrap();
        let b = run(root.path(), "b");
        assert!(!shelf.give(&b, &Silent).unwrap() && !shelf.folder.exists() && !b.file("pretrain").exists());
        shelf.begin(&a).unwrap();
        shelf.keep(&a, &[]).unwrap();
        assert!(shelf.give(&b, &Silent).unwrap());
    }
}
