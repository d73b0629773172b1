//! How likely answers are: a multimodal model as a classifier over class names.

use candle_core::{D, DType, Tensor};

use super::Llava;
use crate::error::{Error, Result};
use crate::model::llama::Cache;

/// How likely an answer is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Likelihood {
    /// Natural logarithm of its probability.
    pub log: f64,
    /// Its tokens.
    pub tokens: usize,
}

impl Llava {
    /// How likely the model finds each of `answers` after a prompt about images `(n, image tokens, hidden)`. The
    /// prompt is read once. The end mark does not count.
    pub fn score(&self, prompt: &str, images: &Tensor, answers: &[String]) -> Result<Vec<Likelihood>> {
        let ids = self.tokens(prompt)?;
        let gap = if prompt.ends_with(char::is_whitespace) { "" } else { " " };
        let mut rows = Vec::with_capacity(answers.len());
        for answer in answers {
            let whole = self.tokens(&format!("{prompt}{gap}{}", answer.trim()))?;
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
}

fn log_softmax(scores: &Tensor) -> Result<Tensor> {
    Ok(candle_nn::ops::log_softmax(scores, D::Minus1)?)
}
