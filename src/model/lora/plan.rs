//! Which modules of a model are trained: found by building the model once and hearing what it asks for.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use candle_core::Tensor;
use regex::Regex;

use super::source::{Modules, PREFIX};
use super::{Adapter, LoraConfig, Targets};
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};
use crate::model::weights::{Init, Source};
use crate::nn::params::{Layout, Params, Role};

/// A config's choice of modules.
pub(super) struct Wanted<'a> {
    config: &'a LoraConfig,
    pattern: Option<Regex>,
}

impl<'a> Wanted<'a> {
    pub fn new(config: &'a LoraConfig) -> Result<Self> {
        let pattern = match &config.targets {
            Targets::Names(_) => None,
            Targets::Pattern(text) => Some(
                Regex::new(&format!("^(?:{text})$"))
                    .map_err(|e| Error::input(format!("LoRA: targets = {text:?} is not a regular expression: {e}")))?,
            ),
        };
        Ok(Wanted { config, pattern })
    }

    /// Whether the linear layer at this path gets an adapter.
    fn adapts(&self, path: &str, modules: &Modules) -> bool {
        let inside = path.strip_prefix(modules.body.as_str()).and_then(|rest| rest.strip_prefix('.'));
        let layer = inside.and_then(|r| r.strip_prefix("layers.")).and_then(|r| r.split('.').next()?.parse().ok());
        let chosen = match (&self.pattern, &self.config.targets) {
            (Some(pattern), _) => pattern.is_match(path),
            (None, Targets::Names(names)) => {
                inside.is_some() && path.rsplit('.').next().is_some_and(|last| names.iter().any(|n| n == last))
            }
            (None, Targets::Pattern(_)) => false,
        };
        chosen && (self.config.layers.is_empty() || layer.is_some_and(|n| self.config.layers.contains(&n)))
    }

    /// The entry of `modules_to_save` that this tensor belongs to.
    fn saves(&self, path: &str) -> Option<&str> {
        let parts: Vec<&str> = path.split('.').collect();
        let before = &parts[..parts.len().saturating_sub(1)];
        let hit = |entry: &&String| before.windows(entry.split('.').count()).any(|w| w.join(".") == **entry);
        self.config.modules_to_save.iter().find(hit).map(String::as_str)
    }
}

/// A model's tensors and linear layers, as it asks for them.
pub struct Slots<'a> {
    base: &'a dyn Source,
    modules: &'a Modules,
    tensors: RefCell<BTreeMap<String, Vec<usize>>>,
    linear: RefCell<BTreeMap<String, (usize, usize)>>,
}

impl<'a> Slots<'a> {
    /// Over what is frozen.
    pub fn new(base: &'a dyn Source, modules: &'a Modules) -> Self {
        Slots { base, modules, tensors: RefCell::default(), linear: RefCell::default() }
    }
}

impl Source for Slots<'_> {
    fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.tensors.borrow_mut().insert(self.modules.path(name), shape.to_vec());
        self.base.tensor(name, shape, init)
    }

    fn adapter(&self, name: &str, inputs: usize, outputs: usize) -> Result<Option<Adapter>> {
        self.linear.borrow_mut().insert(self.modules.path(name), (inputs, outputs));
        Ok(None)
    }
}

/// What is trained of one model.
#[derive(Clone, Debug)]
pub struct Plan {
    config: LoraConfig,
    layout: Arc<Layout>,
    /// Names of the layout that are whole copies, with their names in memory.
    copies: BTreeSet<String>,
    body: String,
}

impl Plan {
    /// From what a model asked for while it was built. A choice that finds nothing is refused.
    pub fn new(config: &LoraConfig, slots: Slots) -> Result<Self> {
        config.check("lora")?;
        let wanted = Wanted::new(config)?;
        let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        let linear = slots.linear.into_inner();
        for (path, &(inputs, outputs)) in linear.iter().filter(|(p, _)| wanted.adapts(p, slots.modules)) {
            found.insert(format!("{PREFIX}{path}.lora_A.weight"), vec![config.rank, inputs]);
            found.insert(format!("{PREFIX}{path}.lora_B.weight"), vec![outputs, config.rank]);
        }
        if found.is_empty() && !matches!(&config.targets, Targets::Names(n) if n.is_empty()) {
            let last: BTreeSet<&str> = linear.keys().filter_map(|p| p.rsplit('.').next()).collect();
            let last: Vec<&str> = last.into_iter().collect();
            return Err(Error::input(format!("LoRA: {:?} names no linear layer of this model", config.targets))
                .hint(format!("their names end in {}", last.join(", "))));
        }
        let (mut copies, mut saved) = (BTreeSet::new(), BTreeSet::new());
        for (path, shape) in slots.tensors.into_inner() {
            if let Some(entry) = wanted.saves(&path) {
                saved.insert(entry.to_string());
                copies.insert(format!("{PREFIX}{path}"));
                found.insert(format!("{PREFIX}{path}"), shape);
            }
        }
        if let Some(absent) = config.modules_to_save.iter().find(|m| !saved.contains(*m)) {
            return Err(Error::input(format!("LoRA: modules_to_save: this model has no module {absent}")));
        }
        let mut layout = Layout::default();
        for (name, shape) in &found {
            layout.push(name.as_str(), shape, Role::Weight)?;
        }
        Ok(Plan { config: config.clone(), layout: Arc::new(layout), copies, body: slots.modules.body.clone() })
    }

    /// What it was made from.
    pub fn config(&self) -> &LoraConfig {
        &self.config
    }

    /// Names, as PEFT writes them, sorted, and shapes of what is trained.
    pub fn layout(&self) -> &Arc<Layout> {
        &self.layout
    }

    /// The whole copies among it (`modules_to_save`).
    pub fn copies(&self) -> &BTreeSet<String> {
        &self.copies
    }

    /// Module paths with an adapter, sorted.
    pub fn adapted(&self) -> Vec<&str> {
        let names = self.layout.entries().iter().filter_map(|e| e.name.strip_prefix(PREFIX));
        names.filter_map(|n| n.strip_suffix(".lora_A.weight")).collect()
    }

    /// Whether the tensor `name` takes part in every forward pass: what is trained of the language model, whatever of
    /// the way of pictures to it.
    pub fn always(&self, name: &str) -> bool {
        let head = name.split('.').any(|part| part == "lm_head");
        head || name
            .strip_prefix(PREFIX)
            .and_then(|n| n.strip_prefix(self.body.as_str()))
            .is_some_and(|n| n.starts_with('.'))
    }

    /// The layer of the language model that the tensor `name` belongs to, counted from 0; none elsewhere.
    pub fn layer(&self, name: &str) -> Option<usize> {
        let inside = name.strip_prefix(PREFIX)?.strip_prefix(self.body.as_str())?;
        inside.strip_prefix(".layers.")?.split('.').next()?.parse().ok()
    }

    /// Fresh values: A uniform in ±1/√inputs (PEFT's Kaiming start), B zero, so that nothing changes at first; whole
    /// copies as they are in `base` (by names in memory). Each A is drawn from a key of its own name.
    pub fn fresh(&self, key: Key, base: &dyn Fn(&str) -> Result<Vec<f32>>) -> Result<Params> {
        let mut data = vec![0f32; self.layout.len()];
        for entry in self.layout.entries() {
            let to = &mut data[entry.range()];
            let name = entry.name.strip_prefix(PREFIX).unwrap_or(&entry.name);
            if self.copies.contains(&entry.name) {
                let from = base(name)?;
                if from.len() != to.len() {
                    return Err(Error::defect(format!("LoRA: a copy of {name} of {} numbers", from.len())));
                }
                to.copy_from_slice(&from);
            } else if name.ends_with(".lora_A.weight") {
                let bound = 1.0 / (entry.shape[1] as f32).sqrt();
                let id = name
                    .bytes()
                    .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
                let mut rng = key.fold(Purpose::Item, id).rng();
                to.iter_mut().for_each(|v| *v = bound * (2.0 * rng.f32() - 1.0));
            }
        }
        Params::new(self.layout.clone(), data)
    }
}
