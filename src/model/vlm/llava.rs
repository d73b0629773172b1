//! LLaVA-1.5 behind the trait; the model itself is [`crate::model::llava`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use candle_core::Tensor;

use super::opened::Maker;
use super::pixels::{Pixels, slots};
use super::{Family, Prompt, Vlm};
use crate::error::Result;
use crate::model::chat::{IMAGE, Message};
use crate::model::clip::{Picture, Preprocess};
use crate::model::llama::{Llama, LlamaConfig, Tokenizer};
use crate::model::llava::{Llava, LlavaConfig, Parts};
use crate::model::lora::Modules;
use crate::model::weights::Source;

/// What a folder holds beside its tensors.
pub(super) struct Kit {
    folder: PathBuf,
    config: LlavaConfig,
    parts: Parts,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    modules: Modules,
}

impl Kit {
    pub fn open(folder: &Path, names: &[&str]) -> Result<Self> {
        // A folder of another kind is known by its config before its tensors are looked for.
        let (config, parts) = (LlavaConfig::read(folder)?, Parts::find(names)?);
        let body = "model.language_model".to_string();
        let renamed = vec![
            (parts.text.body.clone(), body.clone()),
            (parts.text.head.clone(), "lm_head".into()),
            (parts.tower.clone(), "model.vision_tower".into()),
            (parts.projector.clone(), "model.multi_modal_projector".into()),
        ];
        Ok(Kit {
            folder: folder.to_path_buf(),
            config,
            parts,
            tokenizer: Tokenizer::open(folder)?,
            preprocess: Preprocess::open(folder)?,
            modules: Modules { renamed, body },
        })
    }
}

impl Maker for Kit {
    fn make(&self, source: &dyn Source) -> Result<Arc<dyn Vlm>> {
        let (config, tokenizer, preprocess) = (self.config.clone(), self.tokenizer.clone(), self.preprocess.clone());
        Ok(Arc::new(Llava::build(&self.folder, source, &self.parts, config, tokenizer, preprocess)?))
    }

    fn modules(&self) -> &Modules {
        &self.modules
    }

    fn text(&self) -> &LlamaConfig {
        &self.config.text
    }
}

impl Vlm for Llava {
    fn family(&self) -> Family {
        Family::Llava
    }

    fn llm(&self) -> &Llama {
        self.llm()
    }

    fn tokenizer(&self) -> &Tokenizer {
        self.tokenizer()
    }

    fn stop(&self) -> &[u32] {
        &self.config().stop
    }

    fn mark(&self) -> &str {
        IMAGE
    }

    fn write(&self, messages: &[Message], open: bool) -> Result<String> {
        self.written(messages, open)
    }

    fn read(&self, text: &str, pictures: &[Picture]) -> Result<Prompt> {
        let ids = self.tokens(text)?;
        let counts = vec![self.config().image_tokens(); pictures.len()];
        let slots = slots(&ids, self.config().image_token, &counts, IMAGE)?;
        let seen = |p: &Picture| {
            let tensor = self.preprocess().batch(std::slice::from_ref(p), self.device())?;
            Ok(Pixels { tensors: vec![tensor], grids: vec![[1, 1]] })
        };
        let pictures = pictures.iter().map(seen).collect::<Result<_>>()?;
        Ok(Prompt { ids, slots, pictures, places: None, features: None })
    }

    fn see(&self, pictures: &[Pixels]) -> Result<Tensor> {
        let all: Vec<&Tensor> = pictures.iter().flat_map(|p| &p.tensors).collect();
        Ok(self.image_features(&Tensor::cat(&all, 0)?)?.flatten(0, 1)?)
    }
}
