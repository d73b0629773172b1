//! SmolVLM, SmolVLM2 and Idefics3 (Laurençon et al., *Building and better understanding vision-language models*, 2024;
//! Marafioti et al., *SmolVLM*, 2025): pictures in tiles, a SigLIP tower, pixel shuffle and one linear layer, a Llama.

mod config;
mod tiles;

use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;

pub use config::SmolVlmConfig;
pub use tiles::Tiling;

use super::folder::{Speech, around};
use super::opened::Maker;
use super::pixels::{PictureConfig, Pixels, Planes, slots};
use super::{Family, Prompt, Vlm};
use crate::error::Result;
use crate::model::chat::{IMAGE, Message};
use crate::model::clip::Picture;
use crate::model::layers::Linear;
use crate::model::llama::{Llama, LlamaConfig, Names, Tokenizer};
use crate::model::lora::Modules;
use crate::model::siglip::{Rounding, Siglip, grid};
use crate::model::weights::{Scope, Source};

/// Before and after every part of a picture.
const AROUND: &str = "<fake_token_around_image>";
/// Before the picture as a whole.
const GLOBAL: &str = "<global-img>";

/// What a folder holds beside its tensors.
#[derive(Clone)]
pub(super) struct Kit(Arc<Inner>);

struct Inner {
    config: SmolVlmConfig,
    tiling: Tiling,
    /// Tokens of a tile.
    places: usize,
    speech: Speech,
    modules: Modules,
}

impl Kit {
    pub fn open(folder: &Path, how: &PictureConfig) -> Result<Self> {
        let config = SmolVlmConfig::read(folder)?;
        let mut tiling = Tiling::open(folder)?;
        tiling.split = how.split.unwrap_or(tiling.split);
        tiling.longest = how.longest_edge.unwrap_or(tiling.longest).max(1);
        let side = config.places(tiling.tile)?;
        let speech = Speech::open(folder, config.text.vocab_size, IMAGE)?;
        speech.agree(IMAGE, config.image_token)?;
        [AROUND, GLOBAL].into_iter().try_for_each(|mark| speech.token(mark).map(drop))?;
        let modules = Modules { renamed: Vec::new(), body: "model.text_model".into() };
        Ok(Kit(Arc::new(Inner { config, tiling, places: side * side, speech, modules })))
    }
}

impl Maker for Kit {
    fn make(&self, source: &dyn Source) -> Result<Arc<dyn Vlm>> {
        let (root, c) = (Scope::root(source), &self.0.config);
        let (input, output) = (c.vision.hidden_size * c.scale * c.scale, c.text.hidden_size);
        let names = Names { body: "model.text_model".into(), head: "lm_head".into() };
        let connector = root.pp("model.connector.modality_projection.proj");
        Ok(Arc::new(SmolVlm {
            tower: Siglip::load(&root.pp("model.vision_model"), &c.vision)?,
            connector: Linear::load(&connector, input, output, 0.02, false)?,
            llm: Llama::load(&root, &c.text, &names)?,
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
struct SmolVlm {
    kit: Kit,
    tower: Siglip,
    connector: Linear,
    llm: Llama,
}

impl Inner {
    /// What stands for a picture of so many rows and columns of tiles, none: one tile.
    fn spelled(&self, [rows, columns]: [usize; 2]) -> String {
        let part = |mark: &str| format!("{AROUND}{mark}{}", IMAGE.repeat(self.places));
        let mut text = String::new();
        for row in 1..=rows {
            (1..=columns).for_each(|column| text += &part(&format!("<row_{row}_col_{column}>")));
            text.push('\n');
        }
        if rows > 0 {
            text.push('\n');
        }
        text + &part(GLOBAL) + AROUND
    }
}

impl Vlm for SmolVlm {
    fn family(&self) -> Family {
        Family::SmolVlm
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
        IMAGE
    }

    fn write(&self, messages: &[Message], open: bool) -> Result<String> {
        self.kit.0.speech.chat.write(messages, open)
    }

    fn read(&self, text: &str, pictures: &[Picture]) -> Result<Prompt> {
        let kit = &self.kit.0;
        let pieces = around(text, IMAGE, IMAGE, pictures.len())?;
        let (mut spelled, mut seen, mut counts) = (pieces[0].to_string(), Vec::new(), Vec::new());
        for (picture, rest) in pictures.iter().zip(&pieces[1..]) {
            let cut = kit.tiling.cut(&Planes::of(picture)?)?;
            spelled += &kit.spelled(cut.grid);
            spelled += rest;
            counts.push(cut.tiles.len() * kit.places);
            seen.push(cut.pixels(&kit.tiling, self.llm.device())?);
        }
        let ids = kit.speech.tokenizer.encode(&spelled)?;
        let slots = slots(&ids, kit.config.image_token, &counts, IMAGE)?;
        Ok(Prompt { ids, slots, pictures: seen, places: None, features: None })
    }

    fn see(&self, pictures: &[Pixels]) -> Result<Tensor> {
        let all: Vec<&Tensor> = pictures.iter().flat_map(|p| &p.tensors).collect();
        let pixels = Tensor::cat(&all, 0)?;
        let (c, (tiles, _, height, width)) = (&self.kit.0.config, pixels.dims4()?);
        let p = c.vision.patch_size;
        let (rows, columns) = (height / p, width / p);
        // What is left over beyond the last whole patch is not seen.
        let seen = pixels.narrow(2, 0, rows * p)?.narrow(3, 0, columns * p)?;
        let apart = seen.reshape(&[tiles, 3, rows, p, columns, p])?.permute([0, 2, 4, 1, 3, 5])?;
        let patches = apart.reshape((tiles, rows * columns, 3 * p * p))?;
        let states = self.tower.forward(&patches, &grid(c.vision.side(), [rows, columns], Rounding::Idefics3))?;
        self.connector.forward(&shuffled(&states, [rows, columns], c.scale)?.flatten(0, 1)?)
    }
}

/// Pixel shuffle: `(n, rows · columns, width)` → `(n, rows · columns / s², width · s²)`; a place holds the features of
/// its s × s patches, row by row.
fn shuffled(states: &Tensor, [rows, columns]: [usize; 2], s: usize) -> Result<Tensor> {
    let (n, _, width) = states.dims3()?;
    let apart = states.reshape(&[n, rows / s, s, columns / s, s, width])?.permute([0, 1, 3, 2, 4, 5])?;
    Ok(apart.reshape((n, rows * columns / (s * s), width * s * s))?)
}
