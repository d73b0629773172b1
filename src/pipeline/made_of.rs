//! What a run is made from: digests of all that its config names, in `manifest.json` under `inputs`, held against what
//! is there at every stage and every resumption.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::Experiment;
use crate::data::pool::Pool;
use crate::data::{self, Dataset};
use crate::error::{Error, Result};
use crate::exec::Context;
use crate::fsx::{self, Made};
use crate::model::hub;
use crate::run::{Origin, RunDir, checkpoint, directory};

/// Sections whose images are known by the digests of what was read of them.
const READ: [&str; 5] = ["data.", "server_set.", "partition.", "unlabelled.data", "pool.path"];

/// A data set by its pixels and labels; of images in files by the list, by their sizes or places, and by a sample of them.
const COVERS: &str =
    "labels and pixels; of images in files their names, sizes or places, and every byte of up to 1,000 of them";

/// Names of what a run is made from, with digests.
pub(super) type Inputs = BTreeMap<String, Made>;

impl Experiment {
    /// The labelled sets.
    pub(super) fn sets(&self) -> Inputs {
        let benchmark = &self.benchmark;
        let sets = [
            ("data: train", Some(&benchmark.train)),
            ("data: val", benchmark.val.as_ref()),
            ("data: test", Some(&benchmark.test)),
            ("server_set", self.server.as_ref()),
        ];
        let made = |set: &Dataset| Made { digest: set.digest.clone(), covers: COVERS };
        sets.into_iter().filter_map(|(name, set)| Some((name.to_string(), made(set?)))).collect()
    }

    /// Refuses a run that was made from other files; what is met for the first time is remembered.
    pub(super) fn prove_inputs(&self, dir: &RunDir, cx: &Context) -> Result<()> {
        let mut found = self.sets();
        let check = || cx.cancel.check();
        let begun =
            dir.file("finetune/done.json").exists() || !checkpoint::rounds(&dir.file("checkpoints"))?.is_empty();
        for input in self.config.inputs().into_iter().filter(|i| !READ.iter().any(|r| i.key.starts_with(r))) {
            let path = match input.key.as_str() {
                // Its rounds go on from their own checkpoints, whatever became of what they began with.
                "finetune.from" if begun => continue,
                "finetune.from" => Origin::find(&input.path)?.folder()?,
                _ => match data::resolve(&input.path) {
                    Ok(path) => path,
                    // An id that is not here yet is fetched when it is needed, and remembered then.
                    Err(e) => match hub::local(&input.path).filter(|_| input.id) {
                        Some(path) => path,
                        None if input.id && hub::is_id(&input.path) => continue,
                        None => return Err(e.context(input.key)),
                    },
                },
            };
            found.insert(input.key, fsx::made(&path, &check)?);
        }
        same(dir, &found)
    }

    /// The same of a pool, when it is read: the bytes of its images and what is said about them.
    pub(super) fn prove_pool(&self, dir: &RunDir, key: &str, pool: &Pool, cx: &Context) -> Result<()> {
        let texts: Vec<&Vec<String>> = pool.items.iter().map(|item| &item.texts).collect();
        let parts = [pool.digests(cx)?.join("\n"), json!(texts).to_string()];
        let made =
            Made { digest: fsx::sha256(parts.join("\n\n").as_bytes()), covers: "every image's bytes, and texts" };
        same(dir, &BTreeMap::from([(key.to_string(), made)]))
    }

    /// The same of images without labels.
    pub(super) fn prove_unlabelled(&self, dir: &RunDir, set: Option<&Dataset>) -> Result<()> {
        let made = set.map(|set| ("unlabelled".to_string(), Made { digest: set.digest.clone(), covers: COVERS }));
        same(dir, &made.into_iter().collect())
    }
}

/// Holds digests against those in the manifest, and adds those that it lacks.
pub(super) fn same(dir: &RunDir, found: &Inputs) -> Result<()> {
    let path = dir.file("manifest.json");
    let known = if path.exists() { directory::read_json(&path).unwrap_or_default() } else { Value::Null };
    let mut all = known["inputs"].as_object().cloned().unwrap_or_default();
    let (mut lines, mut new) = (Vec::new(), false);
    for (key, made) in found {
        match all.get(key).and_then(|entry| entry["digest"].as_str()) {
            Some(was) if was == made.digest => {}
            Some(was) => lines.push(format!("  {key}: {} there, {} now", short(was), short(&made.digest))),
            None => {
                all.insert(key.clone(), json!({ "digest": made.digest, "covers": made.covers }));
                new = true;
            }
        }
    }
    if !lines.is_empty() {
        let text = format!("{} was made from other files than those that its config names now:", dir.path().display());
        return Err(Error::data(format!("{text}\n{}", lines.join("\n")))
            .hint("bring them back, or begin anew in another directory, as in --set run.dir=runs/another"));
    }
    match new {
        true => dir.update_manifest(&[("inputs", Value::Object(all))].into()),
        false => Ok(()),
    }
}

/// Refuses to go on with what another device began: its sums round otherwise. `auto`, and `cpu` on a machine without
/// another, are one.
pub(super) fn same_device(dir: &RunDir, cx: &Context) -> Result<()> {
    let manifest = directory::read_json(&dir.file("manifest.json")).unwrap_or_default();
    let begun = ["finetune", "checkpoints", "pretrain"].iter().any(|name| dir.file(name).exists());
    let now = format!("{:?}", cx.device.location());
    match manifest["device"].as_str() {
        Some(was) if begun && was != now => {
            let at = dir.path().display();
            Err(Error::input(format!(
                "run.device: {at} was begun on {was}, and this is {now}, whose sums round otherwise"
            ))
            .hint("go on with the device that it had, or begin anew with --set run.dir=runs/another"))
        }
        _ => Ok(()),
    }
}

fn short(digest: &str) -> &str {
    digest.get(..12).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_that_has_begun_stays_on_its_device() {
        let at = tempfile::tempdir().unwrap();
        let dir = RunDir::open(at.path(), &toml::Table::from_iter([("schema".to_string(), 1.into())])).unwrap();
        dir.update_manifest(&[("device", json!("Cuda { gpu_id: 0 }"))].into()).unwrap();
        same_device(&dir, &Context::cpu(1)).unwrap();
        std::fs::create_dir(dir.file("checkpoints")).unwrap();
        let e = same_device(&dir, &Context::cpu(1)).unwrap_err().to_string();
        assert!(e.contains("was begun on Cuda { gpu_id: 0 }, and this is Cpu"), "{e}");
    }
}
