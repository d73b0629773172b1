//! A model with its adapters folded in, as a folder of its own.

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::Tensor;

use super::Opened;
use crate::error::{Error, Place, Result};
use crate::fsx;
use crate::model::lora::{Adapted, Plan};
use crate::model::weights::{self, Init, Source};
use crate::nn::params::Params;

/// What is no weight file or index of one.
fn beside(name: &str) -> bool {
    let weights = [".safetensors", ".bin", ".index.json", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx"];
    !weights.iter().any(|w| name.ends_with(w)) && name != "config.json"
}

impl Opened {
    /// Writes the model with adapters of these values folded into its weights, as the folder it was opened from lies
    /// there: the same names in one f32 file, and whatever lies beside the weights.
    pub fn save_merged(&self, folder: &Path, plan: &Plan, params: &Params) -> Result<()> {
        if folder == self.folder() {
            return Err(Error::input(format!("{}: the model would overwrite itself", folder.display())));
        }
        let trained = self.constants(plan, params)?;
        let tensors = self.tensors(&trained, plan.config().scale())?;
        fsx::create_dir(folder)?;
        for path in fsx::list(self.folder())?.iter().filter(|p| p.is_file()) {
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if beside(&name) {
                fsx::write_atomic(&folder.join(&name), &fsx::read(path)?)?;
            }
        }
        weights::save(tensors.iter(), &folder.join("model.safetensors"))?;
        // Last: a folder with a config.json is complete.
        fsx::write_atomic(&folder.join("config.json"), &fsx::read(&self.folder().join("config.json"))?)
    }

    /// All of the folder's tensors by their stored names, the adapters folded in.
    fn tensors(&self, trained: &BTreeMap<String, Tensor>, scale: f64) -> Result<BTreeMap<String, Tensor>> {
        let (base, modules) = (self.base(), self.modules());
        let source = Adapted { base, modules, tensors: trained, scale, beside: None };
        let one = |(name, shape): (String, Vec<usize>)| {
            let tensor = source.tensor(&name, &shape, Init::Constant(0.0)).at(|| name.clone())?;
            Ok((name, tensor))
        };
        self.stored().into_iter().map(one).collect()
    }
}
