//! LLaVA-1.5 (Liu et al., *Improved baselines with visual instruction tuning*, 2024): a frozen CLIP tower, a two-layer
//! projector, a Llama. Loaded from its Hugging Face layout, as the Hub has it and as transformers 5 writes it.

pub mod config;
mod loss;
mod parts;
mod save;
mod score;
pub mod train;

#[cfg(test)]
mod golden;

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::{D, DType, Device, Tensor};

pub use crate::model::chat::{Chat, IMAGE, Role, Turn, vicuna};
pub use crate::model::llama::Likelihood;
pub use config::{LlavaConfig, Need};
pub use loss::Sample;
pub use parts::Parts;
pub use save::save;

use crate::error::{Error, Place, Result};
use crate::exec::{Cancel, Context, Event, available_memory};
use crate::fsx;
use crate::key::Key;
use crate::model::chat::{self, Message};
use crate::model::clip::config::Activation;
use crate::model::clip::{Picture, Preprocess, VisionTower};
use crate::model::layers::Linear;
use crate::model::llama::{Llama, Prompts, Tokenizer, Written};
use crate::model::sample::Decoding;
use crate::model::weights::{Scope, Source, Weights};

/// Two layers from the tower's width to the language model's.
#[derive(Clone, Debug)]
pub struct Projector {
    first: Linear,
    activation: Activation,
    second: Linear,
}

impl Projector {
    fn load(at: &Scope, config: &LlavaConfig) -> Result<Self> {
        let (input, output) = (config.layers.len() * config.vision.hidden_size, config.text.hidden_size);
        let std = config.text.initializer_range;
        Ok(Projector {
            first: Linear::load(&at.pp("linear_1"), input, output, std, config.projector_bias)?,
            activation: config.activation,
            second: Linear::load(&at.pp("linear_2"), output, output, std, config.projector_bias)?,
        })
    }

    /// Its tensors with their names.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut out = Vec::new();
        self.first.tensors("linear_1", &mut out);
        self.second.tensors("linear_2", &mut out);
        out
    }

    /// `(…, tower's width)` → `(…, hidden)`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.second.forward(&self.activation.forward(&self.first.forward(x)?)?)
    }
}

/// A question (or any text with [`IMAGE`] in it) about images.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// The whole prompt; the n-th [`IMAGE`] stands for the n-th image.
    pub prompt: &'a str,
    /// Rows of the image features given with it, one for each [`IMAGE`].
    pub images: Vec<usize>,
    /// What the answer draws from.
    pub key: Key,
}

/// The whole model with its tokenizer and image preprocessing.
pub struct Llava {
    folder: PathBuf,
    config: LlavaConfig,
    tower: VisionTower,
    projector: Projector,
    llm: Llama,
    tokenizer: Tokenizer,
    preprocess: Preprocess,
    chat: Chat,
    revision: OnceLock<String>,
}

impl Llava {
    /// Opens a folder in the Hugging Face layout; says what memory it takes before it takes it, and refuses on a CPU
    /// that has less free.
    pub fn open(folder: &Path, cx: &Context) -> Result<Self> {
        let config = LlavaConfig::read(folder)?;
        let need = config.need(cx.dtype, 1, config.text.max_position_embeddings);
        cx.events.on(Event::Note(&format!("{}: {need} of one text of full length", folder.display())));
        if cx.device.is_cpu() {
            need.check(available_memory()).at(|| folder.display().to_string())?;
        }
        let weights = Weights::open(folder)?;
        let parts = Parts::find(&weights.names()).at(|| folder.display().to_string())?;
        let tokenizer = Tokenizer::open(folder)?;
        let preprocess = Preprocess::open(folder)?;
        let source = weights.frozen(cx.dtype, &cx.device);
        Self::build(folder, &source, &parts, config, tokenizer, preprocess).at(|| folder.display().to_string())
    }

    /// Puts the parts together, with the chat template that lies in the folder; refuses those that do not fit each other.
    pub fn build(
        folder: &Path,
        source: &dyn Source,
        parts: &Parts,
        config: LlavaConfig,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
    ) -> Result<Self> {
        tokenizer.check_fits(config.text.vocab_size)?;
        let same = "take tokenizer and weights from the same model";
        match tokenizer.id(IMAGE) {
            Some(id) if id == config.image_token => {}
            Some(id) => {
                let own = config.image_token;
                let what = format!("the tokenizer's {IMAGE} is token {id}, the model's is {own}");
                return Err(Error::data(what).hint(same));
            }
            None => return Err(Error::data(format!("the tokenizer has no {IMAGE}")).hint(same)),
        }
        let (side, made) = (config.vision.image_size, preprocess.output(1, 1));
        if made != (side, side) {
            return Err(Error::data(format!(
                "the preprocessor makes images of {made:?}, the tower wants {side}×{side}"
            )));
        }
        let root = Scope::root(source);
        Ok(Llava {
            folder: folder.to_path_buf(),
            tower: VisionTower::load(&root.pp(&parts.tower), &config.vision)?,
            projector: Projector::load(&root.pp(&parts.projector), &config)?,
            llm: Llama::load(&root, &config.text, &parts.text)?,
            config,
            tokenizer,
            preprocess,
            chat: Chat::open(folder)?,
            revision: OnceLock::new(),
        })
    }

    /// Its shape.
    pub fn config(&self) -> &LlavaConfig {
        &self.config
    }

    /// The language model.
    pub fn llm(&self) -> &Llama {
        &self.llm
    }

    /// The image tower.
    pub fn tower(&self) -> &VisionTower {
        &self.tower
    }

    /// The projector.
    pub fn projector(&self) -> &Projector {
        &self.projector
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Images to pixels.
    pub fn preprocess(&self) -> &Preprocess {
        &self.preprocess
    }

    /// Where it runs.
    pub fn device(&self) -> &Device {
        self.llm.device()
    }

    /// The text of a conversation, in the model's own form; `open` ends it where the model answers.
    pub fn prompt(&self, turns: &[Turn], open: bool) -> Result<String> {
        self.chat.prompt(turns, open)
    }

    /// The text of messages, pictures where they stand between words, in the model's own form.
    pub fn written(&self, messages: &[Message], open: bool) -> Result<String> {
        self.chat.write(messages, open)
    }

    /// What names this model, as [`revision_of`] does. Computed once.
    pub fn revision(&self) -> Result<String> {
        if let Some(known) = self.revision.get() {
            return Ok(known.clone());
        }
        let revision = revision_of(&self.folder)?;
        Ok(self.revision.get_or_init(|| revision).clone())
    }

    /// What the tower sees, before the projector: pixels `(n, 3, S, S)` → `(n, image tokens, layers · width)`.
    pub fn tower_features(&self, pixels: &Tensor) -> Result<Tensor> {
        let state = |layer: &i64| self.tower.hidden_states(pixels, *layer, self.config.select);
        let states: Vec<Tensor> = self.config.layers.iter().map(state).collect::<Result<_>>()?;
        Ok(Tensor::cat(&states, D::Minus1)?)
    }

    /// Images as the language model sees them: pixels `(n, 3, S, S)` → `(n, image tokens, hidden)`.
    pub fn image_features(&self, pixels: &Tensor) -> Result<Tensor> {
        self.projector.forward(&self.tower_features(pixels)?)
    }

    /// Features of decoded images, `(n, image tokens, hidden)`.
    pub fn see(&self, images: &[Picture]) -> Result<Tensor> {
        self.image_features(&self.preprocess.batch(images, self.device())?)
    }

    /// Tokens of a prompt, every image token repeated for each place of an image.
    pub fn tokens(&self, prompt: &str) -> Result<Vec<u32>> {
        let places = self.config.image_tokens();
        let ids = self.tokenizer.encode(prompt)?;
        let widen = |id: u32| std::iter::repeat_n(id, if id == self.config.image_token { places } else { 1 });
        let wide: Vec<u32> = ids.iter().copied().flat_map(widen).collect();
        let context = self.config.text.max_position_embeddings;
        if wide.len() > context {
            let images = (wide.len() - ids.len()) / places.saturating_sub(1).max(1);
            return Err(Error::input(format!(
                "a prompt of {} tokens, {images} images of {places} among them, exceeds the model's context of {context}",
                wide.len()
            ))
            .hint("fewer images or a shorter text")
            .isolated());
        }
        Ok(wide)
    }

    /// Embeddings of widened tokens, `(1, tokens, hidden)`, with images `(n, image tokens, hidden)` in their places,
    /// in order. Differentiable with respect to the images.
    pub fn embed(&self, ids: &[u32], images: &Tensor) -> Result<Tensor> {
        let places = self.config.image_tokens();
        let is_image = |id: &u32| *id == self.config.image_token;
        let wanted = ids.iter().filter(|id| is_image(id)).count();
        let given = images.dim(0)?;
        if wanted != given * places {
            return Err(Error::input(format!(
                "the prompt has places for {} images, {given} are given",
                wanted as f64 / places.max(1) as f64
            ))
            .hint(format!("write {IMAGE} once for each image")));
        }
        let (mut parts, mut seen) = (Vec::new(), 0);
        for run in ids.chunk_by(|a, b| is_image(a) == is_image(b)) {
            if run.first().is_some_and(is_image) {
                let count = run.len() / places.max(1);
                parts.push(images.narrow(0, seen, count)?.reshape((1, run.len(), ()))?);
                seen += count;
            } else {
                parts.push(self.llm.embed(&[run.to_vec()])?);
            }
        }
        Ok(Tensor::cat(&parts, 1)?)
    }

    /// Several queries as one batch, aligned at their ends. `features` `(n, image tokens, hidden)` holds the images.
    pub fn prompts(&self, queries: &[Query], features: &Tensor) -> Result<Prompts> {
        let mut rows = Vec::with_capacity(queries.len());
        for query in queries {
            let images: Vec<Tensor> =
                query.images.iter().map(|&i| features.narrow(0, i, 1)).collect::<Result<_, _>>()?;
            let images = if images.is_empty() { features.narrow(0, 0, 0)? } else { Tensor::cat(&images, 0)? };
            rows.push(self.embed(&self.tokens(query.prompt)?, &images)?);
        }
        let lengths: Vec<usize> = rows.iter().map(|r| r.dim(1)).collect::<Result<_, _>>()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let pads: Vec<usize> = lengths.iter().map(|n| longest - n).collect();
        let aligned: Vec<Tensor> =
            rows.iter().zip(&pads).map(|(r, &pad)| r.pad_with_zeros(1, pad, 0)).collect::<Result<_, _>>()?;
        let keys = queries.iter().map(|q| q.key).collect();
        Ok(Prompts { embeddings: Tensor::cat(&aligned, 0)?, pads, keys, places: None })
    }

    /// Answers a batch of queries; `heard(query, token)` is told of every token.
    pub fn answer(
        &self,
        queries: &[Query],
        features: &Tensor,
        decoding: &Decoding,
        cancel: &Cancel,
        heard: impl FnMut(usize, u32) -> Result<()>,
    ) -> Result<Written> {
        let prompts = self.prompts(queries, features)?;
        self.llm.write(&prompts, decoding, &self.config.stop, cancel, heard)
    }

    /// The text of an answer's tokens.
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        Ok(self.tokenizer.decode(tokens)?.trim().to_string())
    }

    /// What the model computes in.
    pub fn dtype(&self) -> DType {
        self.llm.dtype()
    }
}

/// Files beside the weights that an answer depends on.
const BESIDE: [&str; 6] = [
    "generation_config.json",
    "tokenizer.json",
    "tokenizer.model",
    "added_tokens.json",
    "preprocessor_config.json",
    "special_tokens_map.json",
];

/// What names the model in a folder: the commit of a Hub snapshot, or the SHA-256 of its config, its weights, its
/// tokenizer, its image processor and its chat template.
pub fn revision_of(folder: &Path) -> Result<String> {
    let named = folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
    let is_snapshot = folder.parent().and_then(Path::file_name).is_some_and(|p| p == "snapshots");
    if is_snapshot {
        return Ok(named.to_string());
    }
    let mut digests = fsx::sha256_file(&folder.join("config.json"))?;
    for path in Weights::open(folder)?.paths() {
        digests.push_str(&fsx::sha256_file(path)?);
    }
    for name in BESIDE.iter().chain(&chat::FILES).filter(|name| folder.join(name).is_file()) {
        digests.push_str(&format!("{name} {}", fsx::sha256_file(&folder.join(name))?));
    }
    Ok(fsx::sha256(digests.as_bytes()))
}
