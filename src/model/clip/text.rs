//! The text tower: a causal transformer, read at the end-of-text token.

use candle_core::Tensor;

use super::config::TextConfig;
use super::layers::{Encoder, LayerNorm, Shape};
use crate::error::{Error, Result};
use crate::model::weights::{Init, Scope};

/// A text transformer under published names (`embeddings.…`, `encoder.layers.…`, `final_layer_norm`).
pub struct TextTower {
    config: TextConfig,
    token: Tensor,
    position: Tensor,
    encoder: Encoder,
    final_norm: LayerNorm,
}

impl TextTower {
    /// Loads the tower below `at`, for example `text_model`.
    pub fn load(at: &Scope, config: &TextConfig) -> Result<Self> {
        config.check()?;
        let width = config.hidden_size;
        let embeddings = at.pp("embeddings");
        let std = Init::Normal(0.02 * config.initializer_factor);
        let shape = Shape {
            width,
            inner: config.intermediate_size,
            layers: config.num_hidden_layers,
            heads: config.num_attention_heads,
            activation: config.hidden_act,
            eps: config.layer_norm_eps,
            factor: config.initializer_factor,
        };
        Ok(TextTower {
            config: config.clone(),
            token: embeddings.tensor("token_embedding.weight", &[config.vocab_size, width], std)?,
            position: embeddings.tensor("position_embedding.weight", &[config.max_position_embeddings, width], std)?,
            encoder: Encoder::load(&at.pp("encoder"), &shape)?,
            final_norm: LayerNorm::load(&at.pp("final_layer_norm"), width, config.layer_norm_eps)?,
        })
    }

    /// Its shape.
    pub fn config(&self) -> &TextConfig {
        &self.config
    }

    /// The normalised state of each text's end token, `(n, hidden)`.
    ///
    /// Attention is causal, so what follows the end token cannot change its state: texts are cut after the last end
    /// token of the batch, and shorter ones filled up. Padded and unpadded ids give the same features.
    pub fn pooled(&self, ids: &[Vec<u32>]) -> Result<Tensor> {
        let ends: Vec<usize> = ids.iter().map(|text| self.end(text)).collect::<Result<_>>()?;
        let (n, t) = (ids.len(), ends.iter().max().map_or(0, |e| e + 1));
        if n == 0 || t > self.config.max_position_embeddings {
            return Err(Error::input(format!(
                "CLIP text tower: {n} texts of up to {t} tokens; at least 1 and at most {} fit",
                self.config.max_position_embeddings
            )));
        }
        let (device, width) = (self.token.device(), self.config.hidden_size);
        let flat: Vec<u32> = ids.iter().flat_map(|text| (0..t).map(|i| text.get(i).copied().unwrap_or(0))).collect();
        let tokens = self.token.index_select(&Tensor::from_vec(flat, n * t, device)?, 0)?.reshape((n, t, width))?;
        let x = tokens.broadcast_add(&self.position.narrow(0, 0, t)?)?;
        let last = self.encoder.forward(&x, self.encoder.depth(), true)?;
        let rows: Vec<u32> = ends.iter().enumerate().map(|(i, e)| (i * t + e) as u32).collect();
        let ended = last.reshape((n * t, width))?.index_select(&Tensor::from_vec(rows, n, device)?, 0)?;
        self.final_norm.forward(&ended)
    }

    /// Where a text is read: its first end token, or its highest id under the rule of old configs (`eos_token_id` 2).
    fn end(&self, text: &[u32]) -> Result<usize> {
        if let Some(bad) = text.iter().find(|id| **id as usize >= self.config.vocab_size) {
            return Err(Error::data(format!("token {bad} in a vocabulary of {}", self.config.vocab_size))
                .hint("the tokenizer belongs to another model"));
        }
        let eos = match self.config.eos_token_id {
            2 => text.iter().copied().max().unwrap_or(0),
            eos => eos,
        };
        // transformers' argmax over an absent token falls on the first position; a text without its end is a mistake.
        text.iter().position(|id| *id == eos).ok_or_else(|| {
            Error::data(format!("a text of {} tokens has no end token {eos}", text.len()))
                .hint("the tokenizer belongs to another model, or texts were cut without keeping their end")
        })
    }
}
