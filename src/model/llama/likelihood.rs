//! How likely texts are after a prompt: a language model as a classifier over answers.

use candle_core::{D, DType, Tensor};

use super::{Cache, Llama, Places};
use crate::error::{Error, Result};

/// How likely an answer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of its probability.
    pub log: f64,
    /// Its tokens.
    pub tokens: usize,
}

impl Llama {
    /// How likely each of `answers`, tokens, is after a prompt `(1, tokens, hidden)` whose positions may be its own. The
    /// prompt is read once. No end mark counts unless an answer has it.
    pub fn likelihoods(
        &self,
        prompt: &Tensor,
        places: Option<&[Places]>,
        answers: &[Vec<u32>],
    ) -> Result<Vec<Likelihood>> {
        if answers.iter().any(Vec::is_empty) {
            return Err(Error::input("an answer without a token"));
        }
        let longest = answers.iter().map(Vec::len).max().unwrap_or(0);
        let mut cache = Cache::new(self.config(), vec![0], prompt.dim(1)? + longest)?;
        let hidden = self.hidden_at(prompt, places, Some(&mut cache))?;
        let first = log_softmax(&self.last_logits(&hidden)?)?.squeeze(0)?.to_vec1::<f32>()?;
        cache.keep(&vec![0; answers.len()])?;
        // Short answers are filled up; nothing is read behind their ends.
        let filled: Vec<Vec<u32>> = answers.iter().map(|r| [r.clone(), vec![0; longest - r.len()]].concat()).collect();
        let hidden = self.hidden(&self.embed(&filled)?, Some(&mut cache))?;
        let later = log_softmax(&self.logits(&hidden)?.to_dtype(DType::F32)?)?;
        let mut scores = Vec::with_capacity(answers.len());
        for (i, row) in answers.iter().enumerate() {
            let mut log = f64::from(first[row[0] as usize]);
            for (at, &token) in row.iter().enumerate().skip(1) {
                log += f64::from(later.get(i)?.get(at - 1)?.get(token as usize)?.to_scalar::<f32>()?);
            }
            scores.push(Likelihood { log, tokens: row.len() });
        }
        Ok(scores)
    }
}

/// Tokens of `answer` behind `prompt`, a blank between them where the prompt has none; `encode` cuts texts. An answer
/// that changes the prompt's own tokens is refused.
pub fn behind(prompt: &str, answer: &str, encode: impl Fn(&str) -> Result<Vec<u32>>) -> Result<Vec<u32>> {
    let gap = if prompt.ends_with(char::is_whitespace) { "" } else { " " };
    let whole = encode(&format!("{prompt}{gap}{}", answer.trim()))?;
    match whole.strip_prefix(encode(prompt)?.as_slice()) {
        Some(rest) if !rest.is_empty() => Ok(rest.to_vec()),
        _ => Err(Error::input(format!("the answer {answer:?} changes the prompt's tokens"))),
    }
}

fn log_softmax(scores: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::log_softmax(scores, D::Minus1)?)
}
