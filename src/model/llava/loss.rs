//! What a model is taught to say: instruction and answer as tokens, and the next-token loss of the answers.

use candle_core::{DType, Tensor};

use super::{Llava, Turn};
use crate::error::{Error, Result};

/// An instruction about an image with its answer, as the language model reads it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// Prompt, image places and answer; `(tokens,)`.
    pub ids: Vec<u32>,
    /// The first token of the answer.
    pub from: usize,
}

impl Llava {
    /// The answer that `instruction` got about an image, the end mark behind it. What the context does not hold is cut
    /// off.
    pub fn sample(&self, instruction: &str, answer: &str) -> Result<Sample> {
        let question = Turn::about_image(instruction);
        let asked = self.tokens(&self.prompt(std::slice::from_ref(&question), true)?)?;
        let told = self.prompt(&[question, Turn::answer(answer.trim())], false)?;
        let mut ids = self.tokens(told.trim_end())?;
        let end = self.tokenizer().eos();
        // A chat template may write the end mark itself.
        ids.extend(end.filter(|end| ids.last() != Some(end)));
        let from = asked.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        ids.truncate(self.config().text.max_position_embeddings);
        if from == 0 || from >= ids.len() {
            return Err(Error::data("an annotation has no token").hint("is the instruction longer than the context?"));
        }
        Ok(Sample { ids, from })
    }

    /// Mean cross-entropy of all answer tokens, in nats; sample i is about image i of `images`
    /// `(rows, image tokens, hidden)`. Rows are padded at their ends, where nothing is predicted. Differentiable with
    /// respect to the images (frozen layers are computed again on the way back) and to weights that train.
    pub fn answer_loss(&self, samples: &[&Sample], images: &Tensor) -> Result<Tensor> {
        let longest = samples.iter().map(|s| s.ids.len()).max().unwrap_or(0);
        let (mut at, mut answers) = (Vec::new(), Vec::new());
        for (i, sample) in samples.iter().enumerate() {
            at.extend((sample.from..sample.ids.len()).map(|p| (i * longest + p - 1) as u32));
            answers.extend_from_slice(&sample.ids[sample.from..]);
        }
        let x = match self.common_place(samples) {
            Some(place) => self.side_by_side(samples, place, longest, images)?,
            None => self.one_by_one(samples, longest, images)?,
        };
        let llm = self.llm();
        let hidden = if x.track_op() && !llm.trains() { llm.hidden_recomputed(&x)? } else { llm.hidden(&x, None)? };
        let hidden = hidden.flatten(0, 1)?.index_select(&Tensor::new(at, self.device())?, 0)?;
        let scores = llm.logits(&hidden)?.to_dtype(DType::F32)?;
        Ok(candle_nn::loss::cross_entropy(&scores, &Tensor::new(answers, self.device())?)?)
    }

    /// Where every sample has its one image, if that is the same token in all.
    fn common_place(&self, samples: &[&Sample]) -> Option<usize> {
        let image = self.config().image_token;
        let place = |s: &Sample| s.ids.iter().position(|id| *id == image);
        let first = place(samples.first()?)?;
        let places = self.config().image_tokens();
        let count = |s: &Sample| s.ids.iter().filter(|id| **id == image).count();
        samples.iter().all(|s| place(s) == Some(first) && count(s) == places).then_some(first)
    }

    /// The whole batch as text before, images, text behind: few operations, however many rows.
    fn side_by_side(&self, samples: &[&Sample], place: usize, longest: usize, images: &Tensor) -> Result<Tensor> {
        let behind = place + self.config().image_tokens();
        let before: Vec<Vec<u32>> = samples.iter().map(|s| s.ids[..place].to_vec()).collect();
        let filled = |s: &&Sample| {
            let mut row = s.ids[behind..].to_vec();
            row.resize(longest - behind, 0);
            row
        };
        let after: Vec<Vec<u32>> = samples.iter().map(filled).collect();
        let llm = self.llm();
        Ok(Tensor::cat(&[&llm.embed(&before)?, images, &llm.embed(&after)?], 1)?)
    }

    fn one_by_one(&self, samples: &[&Sample], longest: usize, images: &Tensor) -> Result<Tensor> {
        let row = |(i, sample): (usize, &&Sample)| {
            let x = self.embed(&sample.ids, &images.narrow(0, i, 1)?)?;
            Ok(x.pad_with_zeros(1, 0, longest - sample.ids.len())?)
        };
        let rows: Vec<Tensor> = samples.iter().enumerate().map(row).collect::<Result<_>>()?;
        Ok(Tensor::cat(&rows, 0)?)
    }
}
