//! MiniCPM-V 2.6 (Yao et al., *MiniCPM-V: a GPT-4V level MLLM on your phone*, 2024), the model of FedMLLM: pictures in
//! slices of any shape, a SigLIP tower, a resampler, a Qwen2. Arithmetic and texts follow its published code; samples to
//! learn from are those of FedMLLM's.

mod config;
mod resampler;
mod slices;

#[cfg(test)]
mod tests;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use candle_core::Tensor;

pub use config::MiniCpmConfig;
pub use slices::Slicing;

use super::folder::{Speech, around};
use super::opened::Maker;
use super::pixels::{PictureConfig, Pixels, Planes};
use super::{Family, Prompt, Sample, Target, Vlm, counted};
use crate::error::{Error, Result};
use crate::model::chat::{Message, Role};
use crate::model::clip::Picture;
use crate::model::llama::{Llama, LlamaConfig, Names, Tokenizer};
use crate::model::lora::Modules;
use crate::model::siglip::{Rounding, Siglip, grid};
use crate::model::weights::{Scope, Source};
use resampler::Resampler;

/// Stands for a picture in a written conversation.
const MARK: &str = "(<image>./</image>)";
/// Before and behind the tokens of a picture and of a slice.
const TAGS: [&str; 4] = ["<image>", "</image>", "<slice>", "</slice>"];
/// Ends of an answer.
const ENDS: [&str; 2] = ["<|im_end|>", "<|endoftext|>"];

/// What a folder holds beside its tensors.
#[derive(Clone)]
pub(super) struct Kit(Arc<Inner>);

struct Inner {
    config: MiniCpmConfig,
    slicing: Slicing,
    speech: Speech,
    /// Tokens of [`TAGS`].
    tags: [u32; 4],
    /// The first of [`ENDS`].
    end: u32,
    modules: Modules,
}

impl Kit {
    pub fn open(folder: &Path, how: &PictureConfig) -> Result<Self> {
        let mut config = MiniCpmConfig::read(folder)?;
        let slicing = config::slicing(folder, how)?;
        let speech = Speech::open(folder, config.text.vocab_size, MARK)?;
        let named = |mark| speech.token(mark);
        let tags = [named(TAGS[0])?, named(TAGS[1])?, named(TAGS[2])?, named(TAGS[3])?];
        let end = named(ENDS[0])?;
        config.stop = ENDS.iter().filter_map(|m| speech.tokenizer.id(m)).collect();
        if slicing.patch != config.vision.patch_size {
            return Err(Error::data("preprocessor_config.json and config.json speak of different patches"));
        }
        let modules = Modules { renamed: Vec::new(), body: "llm.model".into() };
        Ok(Kit(Arc::new(Inner { config, slicing, speech, tags, end, modules })))
    }
}

impl Maker for Kit {
    fn make(&self, source: &dyn Source) -> Result<Arc<dyn Vlm>> {
        let (root, c) = (Scope::root(source), &self.0.config);
        let names = Names { body: "llm.model".into(), head: "llm.lm_head".into() };
        Ok(Arc::new(MiniCpmV {
            tower: Siglip::load(&root.pp("vpm"), &c.vision)?,
            resampler: Resampler::load(&root.pp("resampler"), c.queries, c.vision.hidden_size, c.text.hidden_size)?,
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
struct MiniCpmV {
    kit: Kit,
    tower: Siglip,
    resampler: Resampler,
    llm: Llama,
}

/// Which pictures are numbered in the text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Numbers {
    /// All: how the model is asked.
    All,
    /// Those in slices: how FedMLLM, as the published finetuning code, trains.
    Sliced,
}

impl Inner {
    /// What stands for picture number `k`.
    fn spelled(&self, k: usize, slices: Option<(usize, usize)>, numbers: Numbers) -> String {
        let places = |open: &str, close: &str| format!("{open}{}{close}", "<unk>".repeat(self.config.queries));
        let numbered = self.slicing.numbered && (numbers == Numbers::All || slices.is_some());
        let number = if numbered { format!("<image_id>{k}</image_id>") } else { String::new() };
        let rows = slices.map_or(Vec::new(), |(columns, rows)| vec![places(TAGS[2], TAGS[3]).repeat(columns); rows]);
        number + &places(TAGS[0], TAGS[1]) + &rows.join("\n")
    }

    /// Places between a tag that opens and one that closes.
    fn slots(&self, ids: &[u32]) -> Vec<Range<usize>> {
        let [open, close, slice, end] = self.tags;
        let starts = ids.iter().enumerate().filter(|(_, id)| [open, slice].contains(*id)).map(|(i, _)| i + 1);
        let ends = ids.iter().enumerate().filter(|(_, id)| [close, end].contains(*id)).map(|(i, _)| i);
        starts.zip(ends).map(|(from, to)| from..to).collect()
    }
}

impl MiniCpmV {
    fn read_numbered(&self, text: &str, pictures: &[Picture], numbers: Numbers) -> Result<Prompt> {
        let kit = &self.kit.0;
        let pieces = around(text, MARK, MARK, pictures.len())?;
        let (mut spelled, mut seen, mut wanted) = (pieces[0].to_string(), Vec::new(), 0);
        for (k, (picture, rest)) in pictures.iter().zip(&pieces[1..]).enumerate() {
            let (sizes, parts) = kit.slicing.cut(&Planes::of(picture)?)?;
            spelled += &kit.spelled(k, sizes.slices.map(|(grid, _)| grid), numbers);
            spelled += rest;
            wanted += parts.len();
            seen.push(kit.slicing.pixels(&parts, self.llm.device())?);
        }
        let ids = kit.speech.tokenizer.encode(&spelled)?;
        let slots = kit.slots(&ids);
        if slots.len() != wanted || slots.iter().any(|s| s.len() != kit.config.queries) {
            let (found, each) = (slots.len(), kit.config.queries);
            return Err(Error::input(format!(
                "the text has {found} places of pictures and slices, {wanted} of {each} tokens are given"
            ))
            .hint("the tags <image>, </image>, <slice> and </slice> stand for nothing else"));
        }
        Ok(Prompt { ids, slots, pictures: seen, places: None, features: None })
    }
}

impl Vlm for MiniCpmV {
    fn family(&self) -> Family {
        Family::MiniCpmV
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
        MARK
    }

    fn write(&self, messages: &[Message], open: bool) -> Result<String> {
        self.kit.0.speech.chat.write(messages, open)
    }

    fn read(&self, text: &str, pictures: &[Picture]) -> Result<Prompt> {
        self.read_numbered(text, pictures, Numbers::All)
    }

    /// As FedMLLM trains: only pictures in slices are numbered; the answer is learnt with the line's end before it, and
    /// the end mark is to be followed by itself.
    fn sample(&self, messages: &[Message], pictures: &[Picture]) -> Result<Sample> {
        counted(messages, pictures)?;
        if messages.last().is_none_or(|m| m.role != Role::Assistant) {
            return Err(Error::input("a conversation to learn from ends with an answer"));
        }
        let prompt = self.read_numbered(&self.write(messages, false)?, pictures, Numbers::Sliced)?;
        let (ids, context) = (&prompt.ids, self.llm.config().max_position_embeddings);
        let begin = self.kit.0.speech.tokenizer.encode_plain("<|im_start|>assistant")?;
        let from = ids.windows(begin.len().max(1)).rposition(|w| w == begin).map(|at| at + begin.len());
        let end = from.and_then(|from| Some(from + ids[from..].iter().position(|id| *id == self.kit.0.end)?));
        let (Some(from), Some(end)) = (from, end) else {
            return Err(Error::data("the chat template writes no <|im_start|>assistant or no <|im_end|>"));
        };
        if ids.len() > context {
            return Err(Error::data(format!(
                "a sample of {} tokens exceeds the model's context of {context}",
                ids.len()
            ))
            .hint("fewer slices, or a shorter text")
            .isolated());
        }
        let shifted = (from..=end).map(|i| Target { at: i as u32 - 1, token: ids[i] });
        let again = Target { at: end as u32, token: self.kit.0.end };
        let targets = shifted.chain([again]).collect();
        Ok(Sample { prompt, targets })
    }

    fn see(&self, pictures: &[Pixels]) -> Result<Tensor> {
        let all: Vec<(&Tensor, [usize; 2])> =
            pictures.iter().flat_map(|p| p.tensors.iter().zip(p.grids.iter().copied())).collect();
        let side = self.kit.0.config.vision.side();
        let mut seen = Vec::new();
        // Slices of one shape go together.
        for run in all.chunk_by(|a, b| a.1 == b.1) {
            let patches: Vec<&Tensor> = run.iter().map(|(t, _)| *t).collect();
            let states = self.tower.forward(&Tensor::stack(&patches, 0)?, &grid(side, run[0].1, Rounding::MiniCpm))?;
            seen.push(self.resampler.forward(&states, run[0].1)?.flatten(0, 1)?);
        }
        Ok(Tensor::cat(&seen, 0)?)
    }
}
