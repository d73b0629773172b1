//! A model's folder: which family it is, its frozen tensors, and the models made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;

use super::learner::Learner;
use super::need::TrainingNeed;
use super::{Vlm, llava, smolvlm};
use crate::error::{Error, Place, Result};
use crate::exec::{Context, lock};
use crate::fsx;
use crate::key::Key;
use crate::model::llava::revision_of;
use crate::model::llama::LlamaConfig;
use crate::model::lora::{Adapted, Dropout, LoraConfig, Modules, Plan, Slots, read, write};
use crate::model::weights::{Init, Source, Weights};
use crate::nn::params::Params;

/// The kinds of model that are served, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LLaVA-1.5.
    Llava,
    /// SmolVLM and Idefics3.
    SmolVlm,
}

impl Family {
    /// By `config.json`.
    pub fn of(config: &Value) -> Result<Self> {
        match config["model_type"].as_str() {
            Some("llava") => Ok(Family::Llava),
            Some("smolvlm" | "idefics3") => Ok(Family::SmolVlm),
            other => Err(Error::data(format!("model_type {} is not supported", other.unwrap_or("(none)")))
                .hint("llava, smolvlm and idefics3 are; llava_llama is converted at llava-hf on the Hub")),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llava => "LLaVA-1.5",
            Family::SmolVlm => "SmolVLM",
        }
    }
}

/// What a family makes of a folder's tensors; tokenizer and settings are read once.
pub(super) trait Maker: Send + Sync {
    /// A model from tensors.
    fn make(&self, source: &dyn Source) -> Result<Arc<dyn Vlm>>;
    /// Its names.
    fn modules(&self) -> &Modules;
    /// Its language model's shape.
    fn text(&self) -> &LlamaConfig;
}

/// Tensors of a folder, read when they are first asked for and then shared.
struct Shared {
    weights: Weights,
    dtype: DType,
    device: Device,
    read: Mutex<BTreeMap<String, Tensor>>,
}

impl Source for Shared {
    fn tensor(&self, name: &str, shape: &[usize], _: Init) -> Result<Tensor> {
        let known = lock(&self.read).get(name).cloned();
        if let Some(tensor) = known.filter(|t| t.dims() == shape) {
            return Ok(tensor);
        }
        let tensor = self.weights.get(name, shape, self.dtype, &self.device)?;
        lock(&self.read).insert(name.to_string(), tensor.clone());
        Ok(tensor)
    }
}

/// An open folder.
pub struct Opened {
    folder: PathBuf,
    family: Family,
    base: Shared,
    maker: Box<dyn Maker>,
}

impl Opened {
    /// Opens a folder in the Hugging Face layout; what it holds is told by its `config.json`. Tensors are read in the
    /// context's type onto its device when a model is made.
    pub fn open(folder: &Path, cx: &Context) -> Result<Self> {
        let place = || folder.display().to_string();
        let family = Family::of(&fsx::read_json(&folder.join("config.json"))?).at(place)?;
        let weights = Weights::open(folder)?;
        let names = weights.names();
        let maker: Box<dyn Maker> = match family {
            Family::Llava => Box::new(llava::Kit::open(folder, &names).at(place)?),
            Family::SmolVlm => Box::new(smolvlm::Kit::open(folder, &names).at(place)?),
        };
        let base = Shared { weights, dtype: cx.dtype, device: cx.device.clone(), read: Mutex::default() };
        Ok(Opened { folder: folder.to_path_buf(), family, base, maker })
    }

    /// Which kind it is.
    pub fn family(&self) -> Family {
        self.family
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the frozen tensors are in.
    pub fn dtype(&self) -> DType {
        self.base.dtype
    }

    /// What names this model: the commit of a Hub snapshot, or a digest of its files.
    pub fn revision(&self) -> Result<String> {
        revision_of(&self.folder)
    }

    /// The language model's shape.
    pub fn text(&self) -> &LlamaConfig {
        self.maker.text()
    }

    /// The model as it lies in the folder, for asking.
    pub fn frozen(&self) -> Result<Arc<dyn Vlm>> {
        self.maker.make(&self.base).at(|| self.folder.display().to_string())
    }

    /// What a LoRA config trains of this model.
    pub fn plan(&self, config: &LoraConfig) -> Result<Plan> {
        let slots = Slots::new(&self.base, self.maker.modules());
        let model = self.maker.make(&slots).at(|| self.folder.display().to_string())?;
        let tied = model.llm().config().tie_word_embeddings;
        if tied && config.modules_to_save.iter().any(|m| m == "embed_tokens" || m == "lm_head") {
            return Err(Error::input("LoRA: modules_to_save names an embedding that is also the model's head")
                .hint("this model ties both; train adapters alone"));
        }
        Plan::new(config, slots)
    }

    /// Fresh values: nothing changes at first.
    pub fn fresh(&self, plan: &Plan, key: Key) -> Result<Params> {
        let modules = self.maker.modules();
        plan.fresh(key, &|path| {
            let read = lock(&self.base.read);
            let found = read.iter().find(|(stored, _)| modules.path(stored) == path);
            let (_, tensor) = found.ok_or_else(|| Error::defect(format!("LoRA: {path} was not read")))?;
            Ok(tensor.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.flatten_all()?.to_vec1::<f32>()?)
        })
    }

    /// A model whose adapters are variables with these values.
    pub fn learner(&self, plan: &Plan, params: &Params) -> Result<Learner> {
        let (tensors, vars) = self.variables(plan, params)?;
        let dropout = Arc::new(Dropout::new(plan.config().dropout));
        let vlm = self.adapted(plan, &tensors, Some(dropout.clone()))?;
        Ok(Learner::new(vlm, plan.clone(), vars, dropout))
    }

    /// The model with adapters of these values folded into its weights: for judging and for a folder of its own.
    pub fn merged(&self, plan: &Plan, params: &Params) -> Result<Arc<dyn Vlm>> {
        let (tensors, _) = self.variables(plan, params)?;
        let whole = |(name, tensor): (&String, &Tensor)| {
            let dtype = if plan.copies().contains(name) { self.base.dtype } else { DType::F32 };
            Ok((name.clone(), tensor.detach().to_dtype(dtype)?))
        };
        let tensors = tensors.iter().map(whole).collect::<Result<_>>()?;
        self.adapted(plan, &tensors, None)
    }

    fn adapted(&self, plan: &Plan, tensors: &BTreeMap<String, Tensor>, beside: Option<Arc<Dropout>>) -> Result<Arc<dyn Vlm>> {
        let modules = self.maker.modules();
        let source = Adapted { base: &self.base, modules, tensors, scale: plan.config().scale(), beside };
        self.maker.make(&source).at(|| self.folder.display().to_string())
    }

    fn variables(&self, plan: &Plan, params: &Params) -> Result<(BTreeMap<String, Tensor>, Vec<Var>)> {
        if params.layout() != plan.layout() {
            return Err(Error::defect("adapter values of another layout"));
        }
        let (mut tensors, mut vars) = (BTreeMap::new(), Vec::new());
        for entry in plan.layout().entries() {
            let values = &params.data()[entry.range()];
            let var = Var::from_tensor(&Tensor::from_slice(values, entry.shape.as_slice(), &self.base.device)?)?;
            tensors.insert(entry.name.clone(), var.as_tensor().clone());
            vars.push(var);
        }
        Ok((tensors, vars))
    }

    /// All linear layers by their paths in memory.
    fn linear(&self) -> Result<BTreeSet<String>> {
        let any = LoraConfig { targets: crate::model::lora::Targets::Pattern(".*".into()), ..LoraConfig::default() };
        Ok(self.plan(&any)?.adapted().into_iter().map(String::from).collect())
    }

    /// An adapter folder that PEFT wrote for this model.
    pub fn adapter(&self, folder: &Path) -> Result<(Plan, Params)> {
        let (saved, known) = (read(folder)?, self.linear()?);
        let plan = self.plan(&saved.config_for(&known)?)?;
        let params = saved.params(&plan, &known)?;
        Ok((plan, params))
    }

    /// Writes an adapter folder that PEFT reads.
    pub fn save_adapter(&self, folder: &Path, plan: &Plan, params: &Params) -> Result<()> {
        write(folder, plan, params, &self.folder.display().to_string())
    }

    /// What training takes of memory, for batches of `rows` samples of `tokens` tokens.
    pub fn need(&self, plan: &Plan, rows: usize, tokens: usize) -> TrainingNeed {
        let elements: usize = self.base.weights.names().iter().filter_map(|n| self.base.weights.shape(n)).map(|s| s.iter().product::<usize>()).sum();
        TrainingNeed::new(self.text(), elements as u64, self.base.dtype, plan.layout().len() as u64, rows, tokens)
    }
}
