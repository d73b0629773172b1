//! Llama (Touvron et al., 2023) on candle tensors: the language model inside LLaVA, differentiable.
//!
//! Names and layout are the Hugging Face ones (`LlamaForCausalLM`). What runs where: [`Llama::hidden`] with a
//! [`Cache`] reads and writes text; without one it is the training pass; [`Llama::hidden_recomputed`] keeps one
//! activation a layer and carries the gradient through frozen weights to the input embeddings.

mod adapted;
mod attention;
pub mod bytes;
mod cache;
pub mod config;
mod direct;
pub mod karpathy;
mod likelihood;
mod protobuf;
mod rope;
pub mod sentencepiece;
mod stream;
pub mod tokenizer;
pub mod words;
mod write;

#[cfg(test)]
mod golden;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use cache::Cache;
pub use config::{LlamaConfig, SUPPORTED};
pub use likelihood::{Likelihood, behind};
pub use rope::{LinearScaling, Llama3Scaling, RopeScaling, Turns};
pub use stream::Stream;
pub use tokenizer::Tokenizer;
pub use write::{Prompts, Written};

use crate::error::{Error, Place, Result};
use crate::model::graph::{Sink, recomputed, recomputed_into};
use crate::model::layers::{Linear, RmsNorm};
use crate::model::weights::{Init, Scope};
use attention::{Attention, Positions};
use cache::LayerCache;

/// Where a Llama's tensors lie in a checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Names {
    /// Before `embed_tokens`, `layers` and `norm`.
    pub body: String,
    /// The head without `.weight`.
    pub head: String,
}

impl Default for Names {
    fn default() -> Self {
        Names { body: "model".into(), head: "lm_head".into() }
    }
}

/// The positions of a text's tokens where they do not just count on: Qwen2-VL's picture places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// Time, row and column of each token, padding not counted.
    pub axes: Vec<[u32; 3]>,
    /// What a token that is written at index i has in all three, less i.
    pub shift: i64,
}

/// Gated MLP with SiLU (Shazeer, 2020): `down(silu(gate x) · up x)`.
#[derive(Clone, Debug)]
struct Mlp {
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    fn load(at: &Scope, c: &LlamaConfig) -> Result<Self> {
        let (d, inner) = (c.hidden_size, c.intermediate_size);
        let part =
            |name: &str, input, output| Linear::load(&at.pp(name), input, output, c.initializer_range, c.mlp_bias);
        Ok(Mlp {
            gate: part("gate_proj", d, inner)?,
            up: part("up_proj", d, inner)?,
            down: part("down_proj", inner, d)?,
        })
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let gated = (self.gate.forward(x)?.silu()? * self.up.forward(x)?)?;
        self.down.forward(&gated)
    }
}

/// One decoder layer.
#[derive(Clone, Debug)]
struct Layer {
    before_attention: RmsNorm,
    attention: Attention,
    before_mlp: RmsNorm,
    mlp: Mlp,
}

impl Layer {
    fn load(at: &Scope, c: &LlamaConfig) -> Result<Self> {
        let norm = |name: &str| RmsNorm::load(&at.pp(name), c.hidden_size, c.rms_norm_eps);
        Ok(Layer {
            before_attention: norm("input_layernorm")?,
            attention: Attention::load(&at.pp("self_attn"), c)?,
            before_mlp: norm("post_attention_layernorm")?,
            mlp: Mlp::load(&at.pp("mlp"), c)?,
        })
    }

    fn forward(&self, x: &Tensor, at: &Positions, cache: Option<(&mut LayerCache, usize, usize)>) -> Result<Tensor> {
        if direct::serves(self, x) {
            return direct::forward(self, x, at, cache);
        }
        self.composed(x, at, cache)
    }

    /// As [`Llama::hidden_into`] by candle's operations.
    fn learn(self: &Arc<Self>, x: &Tensor, at: &Positions, sink: &Arc<Sink>) -> Result<Tensor> {
        if sink.keeps() {
            return self.forward(x, at, None);
        }
        let (layer, trained, at) = (self.clone(), self.trained(), at.clone());
        recomputed_into(x, trained, sink, move |x| layer.forward(x, &at, None))
    }

    /// From candle's operations.
    fn composed(&self, x: &Tensor, at: &Positions, cache: Option<(&mut LayerCache, usize, usize)>) -> Result<Tensor> {
        let x = (x + self.attention.forward(&self.before_attention.forward(x)?, at, cache)?)?;
        let y = self.mlp.forward(&self.before_mlp.forward(&x)?)?;
        Ok((x + y)?)
    }

    /// Its linear layers with their names.
    fn linear(&self) -> [(&'static str, &Linear); 7] {
        let (a, m) = (&self.attention, &self.mlp);
        [
            ("self_attn.q_proj", &a.q),
            ("self_attn.k_proj", &a.k),
            ("self_attn.v_proj", &a.v),
            ("self_attn.o_proj", &a.o),
            ("mlp.gate_proj", &m.gate),
            ("mlp.up_proj", &m.up),
            ("mlp.down_proj", &m.down),
        ]
    }

    /// Whatever of it is trained: its own tensors, and what stands beside its linear layers.
    fn trained(&self) -> Vec<Tensor> {
        let mut own = Vec::new();
        self.tensors("", &mut own);
        let own = own.into_iter().map(|(_, t)| t).filter(Tensor::track_op);
        own.chain(self.linear().iter().filter_map(|(_, l)| l.adapter()).flat_map(|a| a.trained())).collect()
    }

    fn tensors(&self, name: &str, out: &mut Vec<(String, Tensor)>) {
        self.before_attention.tensors(&format!("{name}.input_layernorm"), out);
        self.attention.tensors(&format!("{name}.self_attn"), out);
        self.before_mlp.tensors(&format!("{name}.post_attention_layernorm"), out);
        for (part, layer) in [("gate", &self.mlp.gate), ("up", &self.mlp.up), ("down", &self.mlp.down)] {
            layer.tensors(&format!("{name}.mlp.{part}_proj"), out);
        }
    }

    fn frozen(&self) -> Self {
        let mlp = Mlp { gate: self.mlp.gate.frozen(), up: self.mlp.up.frozen(), down: self.mlp.down.frozen() };
        Layer {
            before_attention: self.before_attention.frozen(),
            attention: self.attention.frozen(),
            before_mlp: self.before_mlp.frozen(),
            mlp,
        }
    }
}

/// The whole model. Cloning shares the tensors.
#[derive(Clone, Debug)]
pub struct Llama {
    config: LlamaConfig,
    names: Names,
    embedding: Tensor,
    layers: Vec<Arc<Layer>>,
    norm: RmsNorm,
    head: Linear,
    frequencies: Vec<f32>,
}

impl Llama {
    /// Takes every tensor from a source by its published name.
    pub fn load(root: &Scope, config: &LlamaConfig, names: &Names) -> Result<Self> {
        let config = config.clone().checked()?;
        let (vocab, d, at) = (config.vocab_size, config.hidden_size, root.pp(&names.body));
        let std = config.initializer_range;
        let embedding = at.pp("embed_tokens").tensor("weight", &[vocab, d], Init::Normal(std))?;
        let layers = (0..config.num_hidden_layers)
            .map(|i| Layer::load(&at.pp("layers").pp(i), &config).map(Arc::new))
            .collect::<Result<Vec<_>>>()?;
        let norm = RmsNorm::load(&at.pp("norm"), d, config.rms_norm_eps)?;
        let head = if config.tie_word_embeddings {
            Linear::new(embedding.clone(), None)
        } else {
            Linear::load(&root.pp(&names.head), d, vocab, std, false)?
        };
        let frequencies = config.rope_scaling.frequencies(config.rope_theta, config.head_dim);
        Ok(Llama { config, names: names.clone(), embedding, layers, norm, head, frequencies })
    }

    /// Its shape.
    pub fn config(&self) -> &LlamaConfig {
        &self.config
    }

    /// Whether its weights are trained.
    pub fn trains(&self) -> bool {
        self.embedding.track_op()
    }

    /// What it computes in.
    pub fn dtype(&self) -> DType {
        self.embedding.dtype()
    }

    /// Where its tensors live.
    pub fn device(&self) -> &Device {
        self.embedding.device()
    }

    /// Embeddings of token ids: `(rows, tokens)` → `(rows, tokens, hidden)`. An id outside of the vocabulary is refused.
    pub fn embed(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let tokens = ids.first().map_or(0, Vec::len);
        if ids.iter().any(|row| row.len() != tokens) {
            return Err(Error::defect("embed: rows of different length"));
        }
        if let Some(id) = ids.iter().flatten().find(|&&id| id as usize >= self.config.vocab_size) {
            return Err(Error::data(format!("token {id} is outside of the vocabulary of {}", self.config.vocab_size))
                .hint("do the tokenizer and the model belong together?"));
        }
        let flat = Tensor::from_vec(ids.concat(), ids.len() * tokens, self.device())?;
        Ok(self.embedding.index_select(&flat, 0)?.reshape((ids.len(), tokens, self.config.hidden_size))?)
    }

    /// Final hidden states, normed: embeddings `(rows, new, hidden)` → the same shape.
    ///
    /// With a cache the new tokens follow those it holds, and it holds them afterwards.
    pub fn hidden(&self, x: &Tensor, cache: Option<&mut Cache>) -> Result<Tensor> {
        self.hidden_at(x, None, cache)
    }

    /// As [`hidden`](Self::hidden), with the new tokens' positions where they do not just count on.
    pub fn hidden_at(&self, x: &Tensor, places: Option<&[Places]>, cache: Option<&mut Cache>) -> Result<Tensor> {
        let (rows, new, _) = x.dims3().at(|| "language model: embeddings")?;
        self.fits(cache.as_ref().map_or(0, |c| c.tokens()) + new)?;
        let mut x = x.clone();
        match cache {
            None => {
                let at = self.placed((0, new), &[], &[], places)?;
                for (i, layer) in self.layers.iter().enumerate() {
                    x = layer.forward(&x, &at, None).at(|| format!("layer {i}"))?;
                }
            }
            Some(cache) => {
                cache.room(rows, new)?;
                let (past, capacity) = (cache.tokens(), cache.capacity());
                let at = self.placed((past, new), cache.pads(), cache.shifts(), places)?;
                if let Some(places) = places {
                    cache.shift(places.iter().map(|p| p.shift).collect())?;
                }
                for (i, (layer, held)) in self.layers.iter().zip(&mut cache.layers).enumerate() {
                    x = layer.forward(&x, &at, Some((held, past, capacity))).at(|| format!("layer {i}"))?;
                }
                cache.advance(new);
            }
        }
        self.norm.forward(&x)
    }

    /// As [`hidden`](Self::hidden) without a cache, keeping one activation a layer: backward computes each layer
    /// again. Only the embeddings `x` get a gradient; the weights are frozen.
    pub fn hidden_recomputed(&self, x: &Tensor) -> Result<Tensor> {
        let (_, new, _) = x.dims3().at(|| "language model: embeddings")?;
        self.fits(new)?;
        let at = self.placed((0, new), &[], &[], None)?;
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let (layer, at) = (layer.clone(), at.clone());
            x = recomputed(&x, move |x| layer.forward(x, &at, None)).at(|| format!("layer {i}"))?;
        }
        self.norm.forward(&x)
    }

    /// The training pass with adapters. If the `sink` does not keep, memory holds one activation a layer: backward
    /// computes each layer again, and the gradients of what is trained in it come to the sink; that of `x`, where it is
    /// tracked, to candle's own store. If it keeps, those of layers that candle composes come to its store too.
    pub fn hidden_into(&self, x: &Tensor, places: Option<&[Places]>, sink: &Arc<Sink>) -> Result<Tensor> {
        let (_, new, _) = x.dims3().at(|| "language model: embeddings")?;
        self.fits(new)?;
        let at = self.placed((0, new), &[], &[], places)?;
        let mut x = x.clone();
        let (mut i, all) = (0, &self.layers);
        while i < all.len() {
            let served = all[i..].iter().take_while(|layer| adapted::serves(layer, &x, &at)).count();
            let place = || format!("layer {i}");
            (x, i) = if all[i].trained().is_empty() && !x.track_op() {
                (all[i].forward(&x, &at, None).at(place)?, i + 1)
            } else if served > 0 {
                (adapted::trained(&all[i..i + served], &x, &at, sink).at(place)?, i + served)
            } else {
                (all[i].learn(&x, &at, sink).at(place)?, i + 1)
            };
        }
        self.norm.forward(&x)
    }

    /// Scores of the next token: hidden states `(…, hidden)` → `(…, vocabulary)`.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor> {
        self.head.forward(hidden).at(|| "head")
    }

    /// Scores after the last token of each row, f32 `(rows, vocabulary)`.
    pub fn last_logits(&self, hidden: &Tensor) -> Result<Tensor> {
        let last = hidden.dim(1)?.saturating_sub(1);
        Ok(self.logits(&hidden.narrow(1, last, 1)?.squeeze(1)?)?.to_dtype(DType::F32)?)
    }

    /// All tensors with their published names, in transformers' order.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let body = &self.names.body;
        let mut out = vec![(format!("{body}.embed_tokens.weight"), self.embedding.clone())];
        for (i, layer) in self.layers.iter().enumerate() {
            layer.tensors(&format!("{body}.layers.{i}"), &mut out);
        }
        self.norm.tensors(&format!("{body}.norm"), &mut out);
        if !self.config.tie_word_embeddings {
            self.head.tensors(&self.names.head, &mut out);
        }
        out
    }

    /// The same model without a tie to the graph, for writing text while it is trained; storage is shared.
    pub fn frozen(&self) -> Self {
        Llama {
            embedding: self.embedding.detach(),
            layers: self.layers.iter().map(|l| Arc::new(l.frozen())).collect(),
            norm: self.norm.frozen(),
            head: self.head.frozen(),
            ..self.clone()
        }
    }

    /// The positions of the tokens `past..past + new` of rows with padding; `places` has one entry a row.
    fn placed(
        &self,
        (past, new): (usize, usize),
        pads: &[usize],
        shifts: &[i64],
        places: Option<&[Places]>,
    ) -> Result<Positions> {
        let Some(places) = places else {
            return Positions::new(&self.frequencies, (past, new), pads, shifts, self.dtype(), self.device());
        };
        let sections = &self.config.rope_sections;
        let row = |(i, p): (usize, &Places)| -> Vec<[u32; 3]> {
            // Padding is seen by nobody.
            let before = std::iter::repeat_n([0; 3], pads.get(i).copied().unwrap_or(0));
            let known = before.chain(p.axes.iter().copied());
            known.chain(std::iter::repeat([0; 3])).skip(past).take(new).collect()
        };
        let rows: Vec<Vec<[u32; 3]>> = places.iter().enumerate().map(row).collect();
        let turns = match sections.is_empty() {
            true => {
                let first = |row: &Vec<[u32; 3]>| row.iter().map(|p| p[0]).collect();
                let rows: Vec<Vec<u32>> = rows.iter().map(first).collect();
                Turns::new(&self.frequencies, &rows, self.dtype(), self.device())?
            }
            false => Turns::by_axes(&self.frequencies, sections, &rows, self.dtype(), self.device())?,
        };
        Ok(Positions::turned(turns, past, pads))
    }

    fn fits(&self, tokens: usize) -> Result<()> {
        let context = self.config.max_position_embeddings;
        if tokens <= context {
            return Ok(());
        }
        Err(Error::input(format!("a sequence of {tokens} tokens exceeds the model's context of {context}"))
            .hint("shorten the text, use fewer images, or ask for fewer new tokens"))
    }
}
