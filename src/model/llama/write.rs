//! Writing text: prefill once, then a token a step for every row that is not finished.

use std::time::{Duration, Instant};

use candle_core::Tensor;

use super::{Cache, Llama, Places};
use crate::error::{Error, Result};
use crate::exec::Cancel;
use crate::key::Key;
use crate::model::sample::Decoding;

/// Texts to continue, one a row.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// Embeddings `(rows, tokens, hidden)`, aligned at their ends.
    pub embeddings: Tensor,
    /// Tokens of padding at the start of each row.
    pub pads: Vec<usize>,
    /// What each row draws from.
    pub keys: Vec<Key>,
    /// Positions of each row's tokens where they do not just count on.
    pub places: Option<Vec<Places>>,
}

/// What was written.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// New tokens of each row, the one that ended it included.
    pub tokens: Vec<Vec<u32>>,
    /// Time for the prompts.
    pub prefill: Duration,
    /// Time for the new tokens.
    pub decode: Duration,
}

impl Llama {
    /// Continues each row until a token of `stop` or `max_new_tokens`; `heard(row, token)` is told of every token.
    pub fn write(
        &self,
        prompts: &Prompts,
        decoding: &Decoding,
        stop: &[u32],
        cancel: &Cancel,
        mut heard: impl FnMut(usize, u32) -> Result<()>,
    ) -> Result<Written> {
        decoding.check()?;
        let (rows, tokens, _) = prompts.embeddings.dims3()?;
        if prompts.pads.len() != rows || prompts.keys.len() != rows {
            return Err(Error::defect("write: a pad and a key for each row are needed"));
        }
        let mut cache = Cache::new(self.config(), prompts.pads.clone(), tokens + decoding.max_new_tokens)?;
        let mut written = Written { tokens: vec![Vec::new(); rows], ..Written::default() };
        let began = Instant::now();
        let mut hidden = self.hidden_at(&prompts.embeddings, prompts.places.as_deref(), Some(&mut cache))?;
        let mut alive: Vec<usize> = (0..rows).collect();
        for step in 0..decoding.max_new_tokens {
            cancel.check()?;
            let scores = self.last_logits(&hidden)?.to_vec2::<f32>()?;
            if step == 0 {
                written.prefill = began.elapsed();
            }
            let mut next = Vec::with_capacity(alive.len());
            let mut stay = Vec::with_capacity(alive.len());
            for (i, (&row, scores)) in alive.iter().zip(&scores).enumerate() {
                let token = decoding.pick(scores, prompts.keys[row], step)?;
                written.tokens[row].push(token);
                heard(row, token)?;
                if !stop.contains(&token) {
                    next.push(vec![token]);
                    stay.push(i);
                }
            }
            if stay.is_empty() || step + 1 == decoding.max_new_tokens {
                break;
            }
            if stay.len() < alive.len() {
                cache.keep(&stay)?;
                alive = stay.iter().map(|&i| alive[i]).collect();
            }
            hidden = self.hidden(&self.embed(&next)?, Some(&mut cache))?;
        }
        written.decode = began.elapsed().saturating_sub(written.prefill);
        Ok(written)
    }
}
