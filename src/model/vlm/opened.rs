//! A model's folder: which family it is, its frozen tensors, and the models made of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use candle_core::{DType, Device, Tensor, Var};
use serde_json::Value;

use super::learner::Learner;
use super::need::TrainingNeed;
use super::{PictureConfig, Vlm, llava, minicpmv, qwen2_5_vl, smolvlm};
use crate::error::{Error, Place, Result};
use crate::exec::{Context, Event, available_memory, lock};
use crate::fsx;
use crate::key::Key;
use crate::model::llama::LlamaConfig;
use crate::model::llava::{Need, revision_of};
use crate::model::lora::{Adapted, Dropout, LoraConfig, Modules, Plan, Slots, read, write};
use crate::model::weights::{Init, Source, Weights, without_config};
use crate::nn::params::Params;

/// The kinds of model that are served, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// LLaVA-1.5.
    Llava,
    /// SmolVLM and Idefics3.
    SmolVlm,
    /// Qwen2.5-VL.
    Qwen25Vl,
    /// MiniCPM-V 2.6.
    MiniCpmV,
}

impl Family {
    /// By `config.json`.
    pub fn of(config: &Value) -> Result<Self> {
        match config["model_type"].as_str() {
            // Its own layouts are refused there, in words.
            Some("llava" | "llava_llama") | None => Ok(Family::Llava),
            Some("smolvlm" | "idefics3") => Ok(Family::SmolVlm),
            Some("qwen2_5_vl") => Ok(Family::Qwen25Vl),
            Some("minicpmv") => Ok(Family::MiniCpmV),
            Some(other) => Err(Error::data(format!("model_type \"{other}\" is not supported"))
                .hint("supported: llava, smolvlm, idefics3, qwen2_5_vl, minicpmv")),
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Family::Llava => "LLaVA-1.5",
            Family::SmolVlm => "SmolVLM",
            Family::Qwen25Vl => "Qwen2.5-VL",
            Family::MiniCpmV => "MiniCPM-V 2.6",
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

/// Tokens of a text, at most, whose keys and values are counted when a folder is opened: contexts are far longer.
const USUAL: usize = 4096;

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
        Self::open_with(folder, &PictureConfig::default(), cx)
    }

    /// As [`open`](Self::open), with pictures read otherwise than the folder says.
    pub fn open_with(folder: &Path, how: &PictureConfig, cx: &Context) -> Result<Self> {
        let place = || folder.display().to_string();
        let described = folder.join("config.json");
        let missing = |e: Error| if described.exists() { e } else { e.hint(without_config(folder)) };
        let family = Family::of(&fsx::read_json(&described).map_err(missing)?).at(place)?;
        let weights = Weights::open(folder)?;
        let names = weights.names();
        let maker: Box<dyn Maker> = match family {
            Family::Llava => Box::new(llava::Kit::open(folder, &names).at(place)?),
            Family::SmolVlm => Box::new(smolvlm::Kit::open(folder, how).at(place)?),
            Family::Qwen25Vl => Box::new(qwen2_5_vl::Kit::open(folder, &names, how).at(place)?),
            Family::MiniCpmV => Box::new(minicpmv::Kit::open(folder, how).at(place)?),
        };
        let elements = elements(&weights);
        let text = maker.text();
        let size = cx.dtype.size_in_bytes() as u64;
        let tokens = text.max_position_embeddings.min(USUAL);
        let cache = size * text.cache_per_token() * tokens as u64;
        let need = Need { parameters: elements, weights: size * elements, cache };
        cx.events.on(Event::Note(&format!("{}: {need} of one text of {tokens} tokens", folder.display())));
        if cx.device.is_cpu() {
            need.check(available_memory()).at(place)?;
        }
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
        self.adapted(plan, &self.constants(plan, params)?, None)
    }

    /// Adapter values that are not trained, whole copies in the base's type.
    pub(super) fn constants(&self, plan: &Plan, params: &Params) -> Result<BTreeMap<String, Tensor>> {
        let (tensors, _) = self.variables(plan, params)?;
        let whole = |(name, tensor): (&String, &Tensor)| {
            let dtype = if plan.copies().contains(name) { self.base.dtype } else { DType::F32 };
            Ok((name.clone(), tensor.detach().to_dtype(dtype)?))
        };
        tensors.iter().map(whole).collect()
    }

    /// The frozen tensors.
    pub(super) fn base(&self) -> &dyn Source {
        &self.base
    }

    /// How stored names become paths in memory.
    pub(super) fn modules(&self) -> &Modules {
        self.maker.modules()
    }

    /// Names and shapes of the folder's tensors.
    pub(super) fn stored(&self) -> Vec<(String, Vec<usize>)> {
        let weights = &self.base.weights;
        weights.names().into_iter().filter_map(|n| Some((n.to_string(), weights.shape(n)?))).collect()
    }

    fn adapted(
        &self,
        plan: &Plan,
        tensors: &BTreeMap<String, Tensor>,
        beside: Option<Arc<Dropout>>,
    ) -> Result<Arc<dyn Vlm>> {
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
        let trained = plan.layout().len() as u64;
        TrainingNeed::new(self.text(), elements(&self.base.weights), self.base.dtype, trained, rows, tokens)
    }
}

/// Numbers in a folder's tensors.
fn elements(weights: &Weights) -> u64 {
    let shapes = weights.names().into_iter().filter_map(|n| weights.shape(n));
    shapes.map(|s| s.iter().product::<usize>() as u64).sum()
}
