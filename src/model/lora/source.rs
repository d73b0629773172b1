//! Tensors and adapters for a model, over a frozen base.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::Tensor;

use super::adapter::{Adapter, Dropout};
use crate::error::{Error, Result};
use crate::model::weights::{Init, Source};

/// How a checkpoint's names become the module paths that PEFT writes, which are those of the classes in memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Modules {
    /// (beginning in the checkpoint, beginning in memory).
    pub renamed: Vec<(String, String)>,
    /// Module path of the language model's body, in memory; adapters chosen by name lie below it.
    pub body: String,
}

impl Modules {
    /// The module path, or tensor name, of a name in the checkpoint.
    pub fn path(&self, stored: &str) -> String {
        let begins = |from: &str| stored.strip_prefix(from).filter(|rest| rest.is_empty() || rest.starts_with('.'));
        let longest = self.renamed.iter().filter(|(from, _)| begins(from).is_some()).max_by_key(|(from, _)| from.len());
        match longest {
            Some((from, to)) => format!("{to}{}", &stored[from.len()..]),
            None => stored.to_string(),
        }
    }
}

/// A base with trained tensors in and beside it, by PEFT's names.
pub struct Adapted<'a> {
    /// What is frozen.
    pub base: &'a dyn Source,
    /// Its names.
    pub modules: &'a Modules,
    /// What is trained.
    pub tensors: &'a BTreeMap<String, Tensor>,
    /// alpha / rank.
    pub scale: f64,
    /// Beside the layers in training; folded into the weights otherwise.
    pub beside: Option<Arc<Dropout>>,
}

/// Before every name that PEFT writes.
pub(super) const PREFIX: &str = "base_model.model.";

impl Adapted<'_> {
    fn made(&self, module: &str) -> Result<Option<Adapter>> {
        let of = |part: &str| self.tensors.get(&format!("{PREFIX}{module}.lora_{part}.weight"));
        match (of("A"), of("B")) {
            (Some(a), Some(b)) => {
                let before = (PREFIX.len() + module.len()) as u64;
                let digest = module.bytes().fold(before, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
                Ok(Some(Adapter::new(a.clone(), b.clone(), self.scale, digest, self.beside.clone())))
            }
            (None, None) => Ok(None),
            _ => Err(Error::data(format!("adapter of {module}: only one of lora_A and lora_B is there"))),
        }
    }
}

impl Source for Adapted<'_> {
    fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        let path = self.modules.path(name);
        if let Some(whole) = self.tensors.get(&format!("{PREFIX}{path}")) {
            if whole.dims() != shape {
                let found = whole.dims();
                return Err(Error::data(format!("adapter: {path}: expected shape {shape:?}, found {found:?}")));
            }
            return Ok(whole.clone());
        }
        let tensor = self.base.tensor(name, shape, init)?;
        let module = path.strip_suffix(".weight").filter(|_| self.beside.is_none());
        match module.map(|m| self.made(m)).transpose()?.flatten() {
            Some(adapter) => adapter.folded(&tensor),
            None => Ok(tensor),
        }
    }

    fn adapter(&self, name: &str, inputs: usize, outputs: usize) -> Result<Option<Adapter>> {
        if self.beside.is_none() {
            return Ok(None);
        }
        let path = self.modules.path(name);
        let made = self.made(&path)?;
        let shape = |part: &str| self.tensors.get(&format!("{PREFIX}{path}.lora_{part}.weight")).map(|t| t.dims());
        if let (Some(&[_, a]), Some(&[b, _])) = (shape("A"), shape("B"))
            && (a, b) != (inputs, outputs)
        {
            return Err(Error::data(format!(
                "adapter of {path}: {a} inputs and {b} outputs, expected {inputs} and {outputs}"
            ))
            .hint("it was trained on another model"));
        }
        Ok(made)
    }
}
