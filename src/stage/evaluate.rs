//! Final numbers: what each stage's model does on the test set.

use std::collections::BTreeMap;
use std::sync::Arc;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

use super::Loaded;
use super::finetune::LAST;
use super::metrics::{Evaluation, mean_and_deviation};
use crate::data::{Dataset, Groups, Loader};
use crate::error::{Error, Result};
use crate::exec::Context;
use crate::fl::predict::predict;
use crate::fl::tau_norm::tau_normalised;
use crate::fsx;
use crate::model::clip::embed::Features;
use crate::model::clip::zeroshot::ZeroShot;
use crate::nn::{Backend, Net, Params};
use crate::run::{Records, RunDir, SCHEMA};

/// A labelled set behind a network.
pub struct Judge<'a> {
    /// The set.
    pub data: &'a Dataset,
    /// Its normalisation.
    pub loader: &'a Loader,
    /// Classes by frequency.
    pub groups: &'a Groups,
    /// Who runs the network.
    pub backend: Backend,
    /// τ of the classifier's normalisation at test time; 0 leaves it.
    pub tau_norm: f32,
}

impl Judge<'_> {
    /// Figures of a classifier.
    pub fn classifier(&self, net: &Arc<Net>, params: &Params, cx: &Context) -> Result<Evaluation> {
        let (logits, labels) = self.logits(net, params, cx)?;
        Ok(Evaluation::of(&logits, &labels, self.data.classes.len(), self.groups))
    }

    /// Figures of a projection into CLIP's text space, zero-shot over the class names.
    pub fn projection(
        &self,
        net: &Arc<Net>,
        params: &Params,
        zero_shot: &ZeroShot,
        cx: &Context,
    ) -> Result<Evaluation> {
        let (values, labels) = self.outputs(net, params, cx)?;
        let scores = zero_shot.logits(&Features::new(net.outputs(), values)?)?;
        Ok(Evaluation::of(&scores, &labels, self.data.classes.len(), self.groups))
    }

    /// A classifier's logits `(n, classes)`, its head repaired as `tau_norm` says, and the labels `(n,)`.
    pub fn logits(&self, net: &Arc<Net>, params: &Params, cx: &Context) -> Result<(Vec<f32>, Vec<u32>)> {
        self.outputs(net, &tau_normalised(net, params, self.tau_norm)?, cx)
    }

    /// The network's outputs `(n, outputs)` and the labels `(n,)`.
    fn outputs(&self, net: &Arc<Net>, params: &Params, cx: &Context) -> Result<(Vec<f32>, Vec<u32>)> {
        let images = Loaded { data: self.data, loader: self.loader };
        let ids: Vec<u32> = (0..self.data.len() as u32).collect();
        predict(net, self.backend, params, net.logits, &images, &ids, cx)
    }
}

/// A figure over the last recorded rounds of a stage.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Last {
    /// Its mean.
    pub mean: f64,
    /// Its deviation over these rounds.
    pub deviation: f64,
    /// How many rounds: ten, or as many as there are.
    pub rounds: usize,
}

/// A figure over the last ten recorded rounds of a stage on a split; `None` without rounds.
pub fn last_ten(records: &[Value], stage: &str, split: &str, figure: &str) -> Option<Last> {
    let of = |r: &&Value| r["stage"] == stage && r["split"] == split && r["round"].as_u64() > Some(0);
    let values: Vec<f64> = records.iter().filter(of).filter_map(|r| r[figure].as_f64()).collect();
    let last = &values[values.len().saturating_sub(LAST)..];
    mean_and_deviation(last).map(|(mean, deviation)| Last { mean, deviation, rounds: last.len() })
}

/// What a stage says of itself, for tables that know no stage by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Said {
    /// How a table calls it.
    pub label: String,
    /// Its place among a run's stages, ascending.
    pub order: i64,
    /// Whether a teacher saw the benchmark's own labels.
    pub oracle: bool,
    /// What it had that a plain baseline lacks.
    pub extras: Vec<String>,
    /// Images trained on up to here, each as often as it was seen.
    pub image_steps: u64,
    /// Sections and keys of the config that reach its numbers.
    pub reads: Vec<String>,
    /// Figures that a table shows beside the accuracy: name in the entry, head. Empty: those of a classifier.
    pub columns: Vec<(String, String)>,
}

/// One stage's entry in `eval.json`: figures of its model, and the mean of its last rounds.
pub fn entry(evaluation: &Evaluation, digest: &str, last: Option<Last>) -> Map<String, Value> {
    let mut entry = evaluation.to_json();
    entry.insert("digest".into(), digest.into());
    entry.insert("last10".into(), json!(last.map(|l| l.mean)));
    entry.insert("last10_deviation".into(), json!(last.map(|l| l.deviation)));
    entry.insert("last10_rounds".into(), json!(last.map_or(0, |l| l.rounds)));
    entry
}

/// Adds to an entry what its stage says of itself.
pub fn say(entry: &mut Map<String, Value>, said: &Said) {
    let Said { label, order, oracle, extras, image_steps, reads, columns } = said;
    let facts = json!({ "label": label, "order": order, "oracle": oracle, "extras": extras,
        "image_steps": image_steps, "reads": reads });
    entry.extend(facts.as_object().cloned().unwrap_or_default());
    if !columns.is_empty() {
        entry.insert("columns".into(), json!(columns));
    }
}

/// Writes `eval.json`: the final stage's figures at the top, every stage's below `stages`.
pub fn write(
    dir: &RunDir,
    stages: &BTreeMap<String, Map<String, Value>>,
    last_stage: &str,
    facts: Value,
) -> Result<()> {
    let mut eval = Map::from_iter([("schema".to_string(), json!(SCHEMA)), ("stage".to_string(), json!(last_stage))]);
    eval.extend(stages.get(last_stage).cloned().unwrap_or_default());
    eval.insert("stages".into(), json!(stages));
    eval.insert("facts".into(), facts);
    dir.write_json("eval.json", &Value::Object(eval))
}

/// The records of a run, none where it has no file yet.
pub fn records(dir: &RunDir) -> Result<Vec<Value>> {
    let path = dir.file("metrics.jsonl");
    if path.exists() { Records::read(&path) } else { Ok(Vec::new()) }
}

/// Writes logits `(n, classes)` and labels `(n,)` as safetensors.
pub fn write_logits(dir: &RunDir, name: &str, logits: &[f32], labels: &[u32], classes: usize) -> Result<()> {
    let broken = |e: safetensors::SafeTensorError| Error::defect(format!("{name}: {e}"));
    let shape = vec![labels.len(), classes];
    let logits = TensorView::new(Dtype::F32, shape, bytemuck::cast_slice(logits)).map_err(broken)?;
    let labels = TensorView::new(Dtype::U32, vec![labels.len()], bytemuck::cast_slice(labels)).map_err(broken)?;
    let bytes = safetensors::serialize([("logits", logits), ("labels", labels)], None).map_err(broken)?;
    fsx::write_atomic(&dir.file(name), &bytes)
}
