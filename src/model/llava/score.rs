//! How likely answers are: a multimodal model as a classifier over class names.

use candle_core::Tensor;

use super::Llava;
use crate::error::Result;
use crate::model::llama::{Likelihood, behind};

impl Llava {
    /// How likely the model finds each of `answers` after a prompt about images `(n, image tokens, hidden)`. The
    /// prompt is read once. The end mark does not count.
    pub fn score(&self, prompt: &str, images: &Tensor, answers: &[String]) -> Result<Vec<Likelihood>> {
        let rows = answers.iter().map(|a| behind(prompt, a, |text| self.tokens(text))).collect::<Result<Vec<_>>>()?;
        self.llm.likelihoods(&self.embed(&self.tokens(prompt)?, images)?, None, &rows)
    }
}
