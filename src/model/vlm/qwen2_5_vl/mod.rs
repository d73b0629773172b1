//! Qwen2.5-VL (Bai et al., *Qwen2.5-VL technical report*, 2025): pictures of any size in patches, a tower with windows, a
//! Qwen2 whose positions have three axes.

mod config;
mod resize;
mod tower;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;

pub use config::{QwenVlConfig, TowerConfig};
pub use resize::Resize;

use super::folder::{Speech, around};
use super::opened::Maker;
use super::pixels::{PictureConfig, Pixels, Planes, slots};
use super::{Family, Prompt, Vlm};
use crate::error::{Error, Result};
use crate::model::chat::Message;
use crate::model::clip::Picture;
use crate::model::llama::{Llama, LlamaConfig, Names, Places, Tokenizer};
use crate::model::lora::Modules;
use crate::model::weights::{Scope, Source};
use tower::Tower;

/// Stands for a picture between its start and end marks.
const PAD: &str = "<|image_pad|>";

/// What a folder holds beside its tensors.
#[derive(Clone)]
pub(super) struct Kit(Arc<Inner>);

struct Inner {
    config: QwenVlConfig,
    resize: Resize,
    speech: Speech,
    names: Names,
    tower: String,
    modules: Modules,
}

impl Kit {
    pub fn open(folder: &Path, names: &[&str], how: &PictureConfig) -> Result<Self> {
        let config = QwenVlConfig::read(folder)?;
        let resize = Resize::open(folder, how)?;
        let v = &config.vision;
        if (resize.patch, resize.merge, resize.frames) != (v.patch_size, v.spatial_merge_size, v.temporal_patch_size) {
            return Err(Error::data("preprocessor_config.json and config.json speak of different patches"));
        }
        let speech = Speech::open(folder, config.text.vocab_size, PAD)?;
        speech.agree(PAD, config.image_token)?;
        let body = "model.language_model".to_string();
        // The Hub's names, or those in memory, which transformers 5 writes.
        let hub = names.iter().any(|n| n.starts_with("visual."));
        let (stored, tower) = if hub { ("model", "visual") } else { (body.as_str(), "model.visual") };
        let renamed = vec![(stored.to_string(), body.clone()), (tower.to_string(), "model.visual".to_string())];
        let names = Names { body: stored.into(), head: "lm_head".into() };
        let (tower, modules) = (tower.to_string(), Modules { renamed, body });
        Ok(Kit(Arc::new(Inner { config, resize, speech, names, tower, modules })))
    }
}

impl Maker for Kit {
    fn make(&self, source: &dyn Source) -> Result<Arc<dyn Vlm>> {
        let (root, kit) = (Scope::root(source), &self.0);
        Ok(Arc::new(QwenVl {
            tower: Tower::load(&root.pp(&kit.tower), &kit.config.vision)?,
            llm: Llama::load(&root, &kit.config.text, &kit.names)?,
            kit: self.clone(),
        }))
    }

    fn modules(&self) -> &Modules {
        &self.0.modules
    }

    fn text(&self) -> &LlamaConfig {
        &self.0.config.text
    }
}

/// The model.
struct QwenVl {
    kit: Kit,
    tower: Tower,
    llm: Llama,
}

/// Positions of `tokens` tokens of which `slots` are pictures of these merged grids: words count on in all three axes; a
/// picture's places have its start as time and start + row, start + column; what follows goes on behind the largest.
fn places(tokens: usize, slots: &[Range<usize>], cells: &[[usize; 2]]) -> Places {
    let (mut axes, mut next): (Vec<[u32; 3]>, usize) = (Vec::with_capacity(tokens), 0);
    let count = |axes: &mut Vec<[u32; 3]>, next: &mut usize, until: usize| {
        while axes.len() < until {
            axes.push([*next as u32; 3]);
            *next += 1;
        }
    };
    for (slot, &[rows, columns]) in slots.iter().zip(cells) {
        count(&mut axes, &mut next, slot.start);
        for (row, column) in (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c))) {
            axes.push([next, next + row, next + column].map(|p| p as u32));
        }
        next += rows.max(columns);
    }
    count(&mut axes, &mut next, tokens);
    Places { shift: next as i64 - tokens as i64, axes }
}

impl Vlm for QwenVl {
    fn family(&self) -> Family {
        Family::Qwen25Vl
    }

    fn llm(&self) -> &Llama {
        &self.llm
    }

    fn tokenizer(&self) -> &Tokenizer {
        &self.kit.0.speech.tokenizer
    }

    fn stop(&self) -> &[u32] {
        &self.kit.0.config.stop
    }

    fn mark(&self) -> &str {
        PAD
    }

    fn write(&self, messages: &[Message], open: bool) -> Result<String> {
        self.kit.0.speech.chat.write(messages, open)
    }

    fn read(&self, text: &str, pictures: &[Picture]) -> Result<Prompt> {
        let kit = &self.kit.0;
        let pieces = around(text, PAD, &format!("<|vision_start|>{PAD}<|vision_end|>"), pictures.len())?;
        let (mut spelled, mut seen, mut cells) = (pieces[0].to_string(), Vec::new(), Vec::new());
        for (picture, rest) in pictures.iter().zip(&pieces[1..]) {
            let pixels = kit.resize.pixels(&Planes::of(picture)?, self.llm.device())?;
            let cell = pixels.grids[0].map(|n| n / kit.resize.merge);
            spelled += &PAD.repeat(cell[0] * cell[1]);
            spelled += rest;
            cells.push(cell);
            seen.push(pixels);
        }
        let ids = kit.speech.tokenizer.encode(&spelled)?;
        let counts: Vec<usize> = cells.iter().map(|[r, c]| r * c).collect();
        let slots = slots(&ids, kit.config.image_token, &counts, PAD)?;
        if slots.iter().map(ExactSizeIterator::len).ne(counts) {
            return Err(Error::input("two pictures without a mark between them")
                .hint(format!("write <|vision_start|>{PAD}<|vision_end|> for each")));
        }
        let places = (!cells.is_empty()).then(|| places(ids.len(), &slots, &cells));
        Ok(Prompt { ids, slots, pictures: seen, places, features: None })
    }

    fn see(&self, pictures: &[Pixels]) -> Result<Tensor> {
        let all = pictures.iter().flat_map(|p| p.tensors.iter().zip(&p.grids));
        let seen: Vec<Tensor> = all.map(|(t, grid)| self.tower.forward(t, *grid)).collect::<Result<_>>()?;
        Ok(Tensor::cat(&seen, 0)?)
    }
}
