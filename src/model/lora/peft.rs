//! Adapters on disk, as PEFT 0.13 to 0.21 writes them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candle_core::{DType, Device};
use serde_json::{Value, json};

use super::source::PREFIX;
use super::{LoraConfig, Plan, Targets};
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::model::weights::Weights;
use crate::nn::params::Params;

/// An adapter folder as it lies there; which model's names it has is for the model to say.
pub struct Saved {
    settings: LoraConfig,
    weights: Weights,
}

/// Settings of PEFT that change what is computed and are not followed here, with the value that means "off".
fn unfollowed() -> [(&'static str, Value); 12] {
    [
        ("use_dora", false.into()),
        ("use_rslora", false.into()),
        ("fan_in_fan_out", false.into()),
        ("lora_bias", false.into()),
        ("bias", "none".into()),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("layer_replication", Value::Null),
        ("target_parameters", Value::Null),
        ("trainable_token_indices", Value::Null),
        ("use_qalora", false.into()),
        ("alora_invocation_tokens", Value::Null),
    ]
}

/// Opens an adapter folder.
pub fn read(folder: &Path) -> Result<Saved> {
    let path = folder.join("adapter_config.json");
    let place = || path.display().to_string();
    let json: Value = fsx::read_json(&path)?;
    let settings = settings(&json).at(place)?;
    let (safe, torch) = (folder.join("adapter_model.safetensors"), folder.join("adapter_model.bin"));
    let file = if safe.is_file() || !torch.is_file() { safe } else { torch };
    Ok(Saved { settings, weights: Weights::open(&file)? })
}

fn regex_escaped(path: &str) -> String {
    path.replace('.', "\\.")
}

fn settings(json: &Value) -> Result<LoraConfig> {
    let kind = json["peft_type"].as_str().unwrap_or("LORA");
    if kind != "LORA" {
        return Err(Error::data(format!("peft_type \"{kind}\": only LORA is read")));
    }
    for (key, off) in unfollowed() {
        let is = &json[key];
        if !is.is_null() && *is != off {
            return Err(Error::data(format!("{key} = {is} is not supported")).hint("plain LoRA adapters are read"));
        }
    }
    let number = |key: &str| json[key].as_f64().ok_or_else(|| Error::data(format!("{key} is not a number")));
    let names = |v: &Value| v.as_array().into_iter().flatten().filter_map(|n| n.as_str().map(String::from)).collect();
    Ok(LoraConfig {
        rank: number("r")? as usize,
        alpha: number("lora_alpha")?,
        dropout: json["lora_dropout"].as_f64().unwrap_or(0.0) as f32,
        modules_to_save: names(&json["modules_to_save"]),
        ..LoraConfig::default()
    })
}

impl Saved {
    /// Module paths with an adapter, by the file's own names.
    pub fn modules(&self) -> Vec<&str> {
        let inside = self.weights.names().into_iter().filter_map(|n| n.strip_prefix(PREFIX));
        inside.filter_map(|n| n.strip_suffix(".lora_A.weight")).collect()
    }

    /// The settings, `targets` a pattern that the file's modules match and no others, by their paths in memory; `known`
    /// are all linear layers of the model. Releases before transformers 4.52 had other paths: what is behind `layers`
    /// finds them.
    pub fn config_for(&self, known: &BTreeSet<String>) -> Result<LoraConfig> {
        let mut paths = BTreeSet::new();
        for module in self.modules() {
            paths.insert(regex_escaped(placed(module, known)?));
        }
        let targets = match paths.is_empty() {
            true => Targets::Names(Vec::new()),
            false => Targets::Pattern(paths.into_iter().collect::<Vec<_>>().join("|")),
        };
        Ok(LoraConfig { targets, ..self.settings.clone() })
    }

    /// The values in the layout of a plan; what one of both lacks is an error that names it.
    pub fn params(&self, plan: &Plan, known: &BTreeSet<String>) -> Result<Params> {
        let mut stored: BTreeMap<String, &str> = BTreeMap::new();
        for name in self.weights.names() {
            let inside = name.strip_prefix(PREFIX).unwrap_or(name);
            let own = [".lora_A.weight", ".lora_B.weight"].into_iter().find_map(|tail| {
                let module = inside.strip_suffix(tail)?;
                Some(placed(module, known).map(|m| format!("{PREFIX}{m}{tail}")))
            });
            let own = own.unwrap_or_else(|| Ok(copy_name(inside, plan)))?;
            stored.insert(own, name);
        }
        let layout = plan.layout();
        let mut params = Params::zeros(layout.clone());
        for entry in layout.entries() {
            let Some(name) = stored.remove(&entry.name) else {
                return Err(Error::data(format!("{}: no tensor {}", self.weights.folder().display(), entry.name)));
            };
            let tensor = self.weights.get(name, &entry.shape, DType::F32, &Device::Cpu)?;
            params.data_mut()[entry.range()].copy_from_slice(&tensor.flatten_all()?.to_vec1::<f32>()?);
        }
        match stored.values().next() {
            Some(name) => {
                Err(Error::data(format!("{}: {name} has no place in this model", self.weights.folder().display())))
            }
            None => Ok(params),
        }
    }
}

/// The plan's name of a whole copy that a file calls `inside`: PEFT writes it with and without its wrapper.
fn copy_name(inside: &str, plan: &Plan) -> String {
    let plain = inside.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
    let whole = format!("{PREFIX}{plain}");
    if plan.copies().contains(&whole) {
        return whole;
    }
    // Another beginning, the same module.
    let tail = |copy: &&String| {
        plan.config().modules_to_save.iter().any(|m| {
            let from = |n: &str| n.find(&format!("{m}.")).map(|at| n[at..].to_string());
            from(copy).is_some() && from(copy) == from(&plain)
        })
    };
    plan.copies().iter().find(tail).cloned().unwrap_or(whole)
}

/// The path in memory of a module that a file may call otherwise.
fn placed<'a>(module: &'a str, known: &'a BTreeSet<String>) -> Result<&'a str> {
    if known.contains(module) {
        return Ok(module);
    }
    let tail = module.find("layers.").map(|at| &module[at..]);
    // A tower has layers of the same names: only the part before them tells.
    let vision = |m: &str| ["vision", "visual", "vpm"].iter().any(|v| m.contains(v));
    let fits = |k: &&String| tail.is_some_and(|t| k.ends_with(&format!(".{t}"))) && vision(k) == vision(module);
    let mut all = known.iter().filter(fits);
    match (all.next(), all.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(Error::data(format!("the adapter's module {module} is not in this model"))
            .hint("was it trained on another model?")),
    }
}

/// Writes a folder that PEFT's `PeftModel.from_pretrained` reads over the model `base`.
pub fn write(folder: &Path, plan: &Plan, params: &Params, base: &str) -> Result<()> {
    if params.layout() != plan.layout() {
        return Err(Error::defect("an adapter of another layout is to be written"));
    }
    fsx::create_dir(folder)?;
    let c = plan.config();
    let save: Value = if c.modules_to_save.is_empty() { Value::Null } else { c.modules_to_save.clone().into() };
    let config = json!({
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": c.alpha,
        "lora_dropout": c.dropout,
        "modules_to_save": save,
        "peft_type": "LORA",
        "r": c.rank,
        "rank_pattern": {},
        "alpha_pattern": {},
        "target_modules": plan.adapted(),
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    let mark = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    params.save(&folder.join("adapter_model.safetensors"), &mark)?;
    let text = serde_json::to_string_pretty(&config).map_err(|e| Error::defect(format!("adapter_config.json: {e}")))?;
    // Last: a folder with its config is complete.
    fsx::write_atomic(&folder.join("adapter_config.json"), text.as_bytes())
}
