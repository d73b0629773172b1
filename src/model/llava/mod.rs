//! LLaVA-1.5 (Liu et al., *Improved baselines with visual instruction tuning*, 2024): a frozen CLIP tower, a two-layer
//! projector, a Llama. Loaded from its Hugging Face layout, as the Hub has it and as transformers 5 writes it.

pub mod chat;
pub mod config;

#[cfg(test)]
mod golden;

use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};

pub use chat::{IMAGE, Role, Turn, vicuna};
pub use config::{LlavaConfig, Need};

use crate::error::{Error, Place, Result};
use crate::exec::{Cancel, Context, Event};
use crate::fsx;
use crate::key::Key;
use crate::model::clip::config::Activation;
use crate::model::clip::{Picture, Preprocess, VisionTower};
use crate::model::layers::Linear;
use crate::model::llama::{Cache, Llama, Names, Prompts, Tokenizer, Written};
use crate::model::sample::Decoding;
use crate::model::weights::{self, Scope, Source, Weights};

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

/// Where the parts of a LLaVA lie in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Parts {
    /// The language model.
    pub text: Names,
    /// The tower, up to `embeddings`.
    pub tower: String,
    /// The projector.
    pub projector: String,
}

impl Default for Parts {
    /// The Hub's names.
    fn default() -> Self {
        Parts {
            text: Names { body: "language_model.model".into(), head: "language_model.lm_head".into() },
            tower: "vision_tower.vision_model".into(),
            projector: "multi_modal_projector".into(),
        }
    }
}

impl Parts {
    /// Finds the naming scheme among a checkpoint's tensors: the Hub's, transformers 5's files, or its modules'.
    pub fn find(names: &[&str]) -> Result<Self> {
        let first = |what: &str, choices: &[&str], tail: &str| -> Result<String> {
            let there = |c: &&&str| names.binary_search(&format!("{c}{tail}").as_str()).is_ok();
            choices.iter().find(there).map(|c| c.to_string()).ok_or_else(|| {
                let tried: Vec<String> = choices.iter().map(|c| format!("{c}{tail}")).collect();
                Error::data(format!("no {what} among the weights")).hint(format!("looked for {}", tried.join(", ")))
            })
        };
        let bodies = ["language_model.model", "model.language_model", "language_model"];
        let towers =
            ["vision_tower.vision_model", "vision_tower", "model.vision_tower.vision_model", "model.vision_tower"];
        let projectors = ["multi_modal_projector", "model.multi_modal_projector"];
        let body = first("language model", &bodies, ".embed_tokens.weight")?;
        // A tied head is not in the file.
        let head =
            first("head", &["language_model.lm_head", "lm_head"], ".weight").unwrap_or_else(|_| "lm_head".into());
        Ok(Parts {
            text: Names { body, head },
            tower: first("image tower", &towers, ".embeddings.class_embedding")?,
            projector: first("projector", &projectors, ".linear_1.weight")?,
        })
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

/// How likely an answer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of its probability.
    pub log: f64,
    /// Its tokens.
    pub tokens: usize,
}

fn log_softmax(scores: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::log_softmax(scores, D::Minus1)?)
}

/// Writes a folder in the Hugging Face layout that [`Llava::open`] and transformers read: config, weights by published
/// name (`tensors`), image preprocessing, and the tokenizer's files, copied from the folder `tokenizer`.
pub fn save<'t>(
    folder: &Path,
    config: &LlavaConfig,
    tensors: impl IntoIterator<Item = (&'t String, &'t Tensor)>,
    preprocess: &Preprocess,
    tokenizer: &Path,
) -> Result<()> {
    fsx::create_dir(folder)?;
    for name in ["tokenizer.json", "tokenizer.model", "tokenizer_config.json", "added_tokens.json"] {
        if tokenizer.join(name).is_file() {
            fsx::write_atomic(&folder.join(name), &fsx::read(&tokenizer.join(name))?)?;
        }
    }
    fsx::write_atomic(&folder.join("preprocessor_config.json"), preprocess.to_json()?.as_bytes())?;
    weights::save(tensors, &folder.join("model.safetensors"))?;
    let json = |value: &serde_json::Value| {
        serde_json::to_string_pretty(value).map_err(|e| Error::defect(format!("config.json: {e}")))
    };
    let generation = serde_json::json!({ "eos_token_id": config.stop });
    fsx::write_atomic(&folder.join("generation_config.json"), json(&generation)?.as_bytes())?;
    // Last: a folder with a config.json is complete.
    fsx::write_atomic(&folder.join("config.json"), json(&config.to_json()?)?.as_bytes())
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
}

impl Llava {
    /// Opens a folder in the Hugging Face layout; says what memory it takes before it takes it.
    pub fn open(folder: &Path, cx: &Context) -> Result<Self> {
        let config = LlavaConfig::read(folder)?;
        let need = config.need(cx.dtype, 1, config.text.max_position_embeddings);
        cx.events.on(Event::Note(&format!("{}: {need} of one text of full length", folder.display())));
        let weights = Weights::open(folder)?;
        let parts = Parts::find(&weights.names()).at(|| folder.display().to_string())?;
        let tokenizer = Tokenizer::open(folder)?;
        let preprocess = Preprocess::open(folder)?;
        let source = weights.frozen(cx.dtype, &cx.device);
        Self::build(folder, &source, &parts, config, tokenizer, preprocess).at(|| folder.display().to_string())
    }

    /// Puts the parts together; refuses those that do not fit each other.
    pub fn build(
        folder: &Path,
        source: &dyn Source,
        parts: &Parts,
        config: LlavaConfig,
        tokenizer: Tokenizer,
        preprocess: Preprocess,
    ) -> Result<Self> {
        tokenizer.check_fits(config.text.vocab_size)?;
        if tokenizer.id(IMAGE).is_some_and(|id| id != config.image_token) {
            return Err(Error::data(format!(
                "the tokenizer's {IMAGE} is token {:?}, the model's is {}",
                tokenizer.id(IMAGE),
                config.image_token
            ))
            .hint("take tokenizer and weights from the same model"));
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

    /// What names these weights: the commit of a Hub snapshot, or the SHA-256 of `config.json` and all weight files.
    pub fn revision(&self) -> Result<String> {
        let named = self.folder.file_name().and_then(|n| n.to_str()).unwrap_or_default();
        let is_snapshot = self.folder.parent().and_then(Path::file_name).is_some_and(|p| p == "snapshots");
        if is_snapshot {
            return Ok(named.to_string());
        }
        let mut digests = fsx::sha256_file(&self.folder.join("config.json"))?;
        for path in Weights::open(&self.folder)?.paths() {
            digests.push_str(&fsx::sha256_file(path)?);
        }
        Ok(fsx::sha256(digests.as_bytes()))
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
            .hint("fewer images or a shorter text"));
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
        Ok(Prompts { embeddings: Tensor::cat(&aligned, 0)?, pads, keys })
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

    /// How likely the model finds each of `answers` after a prompt about images `(n, image tokens, hidden)`. The
    /// prompt is read once. The end mark does not count.
    pub fn score(&self, prompt: &str, images: &Tensor, answers: &[String]) -> Result<Vec<Likelihood>> {
        let ids = self.tokens(prompt)?;
        let mut rows = Vec::with_capacity(answers.len());
        for answer in answers {
            let whole = self.tokens(&format!("{prompt} {}", answer.trim()))?;
            match whole.strip_prefix(ids.as_slice()) {
                Some(rest) if !rest.is_empty() => rows.push(rest.to_vec()),
                _ => return Err(Error::input(format!("the answer {answer:?} changes the prompt's tokens"))),
            }
        }
        let longest = rows.iter().map(Vec::len).max().unwrap_or(0);
        let mut cache = Cache::new(self.llm.config(), vec![0], ids.len() + longest)?;
        let hidden = self.llm.hidden(&self.embed(&ids, images)?, Some(&mut cache))?;
        let first = log_softmax(&self.llm.last_logits(&hidden)?)?.squeeze(0)?.to_vec1::<f32>()?;
        cache.keep(&vec![0; rows.len()])?;
        // Short answers are filled up; nothing is read behind their ends.
        let filled: Vec<Vec<u32>> = rows.iter().map(|r| [r.clone(), vec![0; longest - r.len()]].concat()).collect();
        let hidden = self.llm.hidden(&self.llm.embed(&filled)?, Some(&mut cache))?;
        let later = log_softmax(&self.llm.logits(&hidden)?.to_dtype(DType::F32)?)?;
        let mut scores = Vec::with_capacity(rows.len());
        for (i, row) in rows.iter().enumerate() {
            let mut log = f64::from(first[row[0] as usize]);
            for (at, &token) in row.iter().enumerate().skip(1) {
                log += f64::from(later.get(i)?.get(at - 1)?.get(token as usize)?.to_scalar::<f32>()?);
            }
            scores.push(Likelihood { log, tokens: row.len() });
        }
        Ok(scores)
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
