//! Multimodal language models behind one trait: LLaVA-1.5, SmolVLM, Qwen2.5-VL, MiniCPM-V 2.6, by their Hugging Face
//! folders.
//!
//! # Asking
//!
//! ```no_run
//! use fedllava::error::Result;
//! use fedllava::exec::Context;
//! use fedllava::model::chat::Message;
//! use fedllava::model::clip::Picture;
//! use fedllava::model::sample::Decoding;
//! use fedllava::model::vlm::{Ask, Opened};
//!
//! # fn main() -> Result<()> {
//! let cx = Context::cpu(2);
//! let vlm = Opened::open("SmolVLM-256M-Instruct".as_ref(), &cx)?.frozen()?;
//! let picture = Picture { height: 2, width: 2, pixels: vec![0; 12].into() };
//! let prompt = vlm.prepare(&[Message::about(1, "What is shown? (A) a cat (B) a dog")], &[picture])?;
//! let scores = vlm.next_logits(&[&prompt])?; // (1, vocabulary): the scores of the answer's first token
//! let ask = Ask { prompts: &[&prompt], keys: &[], decoding: &Decoding::greedy(20), cancel: &cx.cancel };
//! let written = vlm.answer(&ask, &mut |_, _| Ok(()))?;
//! let text = vlm.text(&written.tokens[0])?;
//! # let _ = (scores, text);
//! # Ok(())
//! # }
//! ```
//!
//! # Training
//!
//! Open a folder once; its tensors are shared and frozen. Ask for a [`Plan`](crate::model::lora::Plan) of a
//! [`LoraConfig`](crate::model::lora::LoraConfig): which adapters, in which flat layout. Every worker makes a
//! [`Learner`] of its own, with its own adapter values; samples come from any model of the folder.
//!
//! ```no_run
//! use fedllava::error::Result;
//! use fedllava::exec::Context;
//! use fedllava::key::Key;
//! use fedllava::model::chat::{Message, Role};
//! use fedllava::model::lora::LoraConfig;
//! use fedllava::model::vlm::Opened;
//! use fedllava::nn::optim::{AdamwConfig, Optimiser, OptimiserConfig};
//!
//! # fn main() -> Result<()> {
//! let opened = Opened::open("SmolVLM-256M-Instruct".as_ref(), &Context::cpu(2))?;
//! let plan = opened.plan(&LoraConfig::default())?;
//! let mut params = opened.fresh(&plan, Key::from_seed(1))?; // flat, what a federation exchanges
//! let learner = opened.learner(&plan, &params)?;
//! let talk = [Message::about(0, "Is the sky blue?"), Message::text(Role::Assistant, "Yes.")];
//! let sample = learner.vlm().sample(&talk, &[])?;
//! let mut adamw = Optimiser::new(&OptimiserConfig::Adamw(AdamwConfig::default()), plan.layout());
//! for step in 0..3 {
//!     let got = learner.gradients(&[&sample], Key::from_seed(step))?; // mean loss of all answer tokens, flat gradient
//!     adamw.step(params.data_mut(), &got.gradient, 1.0);
//!     learner.set(&params)?;
//! }
//! let judged = opened.merged(&plan, &params)?; // adapters folded into the weights: every fast path serves
//! # let _ = judged;
//! # Ok(())
//! # }
//! ```
//!
//! | file | what |
//! |---|---|
//! | this one | the trait, prompts, samples |
//! | `opened` | a folder, its family, its frozen tensors |
//! | `learner` | adapters as variables, losses and flat gradients |
//! | `run` | embeddings, logits, losses and answers, the same for all families |
//! | `save` | a folder with adapters folded in |
//! | `folder` | what the families but LLaVA read of a folder alike |
//! | `pixels` | 8-bit pictures resized as Pillow does, and as numbers |
//! | `llava`, `smolvlm`, `qwen2_5_vl`, `minicpmv` | one family each |

mod folder;
mod learner;
mod llava;
pub mod minicpmv;
mod need;
mod opened;
mod pixels;
pub mod qwen2_5_vl;
mod run;
mod save;
pub mod smolvlm;

#[cfg(test)]
mod golden;

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

pub use learner::{Gradient, Learner};
pub use need::TrainingNeed;
pub use opened::{Family, Opened};
pub use pixels::{PictureConfig, Pixels};

use crate::error::{Error, Result};
use crate::exec::Cancel;
use crate::key::Key;
use crate::model::chat::{Message, Part};
use crate::model::clip::Picture;
use crate::model::graph::Sink;
use crate::model::llama::{Likelihood, Llama, Places, Tokenizer, Written};
use crate::model::sample::Decoding;

/// A text with pictures, as a model reads it.
#[derive(Clone, Debug)]
pub struct Prompt {
    /// Tokens, every place of a picture filled.
    pub ids: Vec<u32>,
    /// Tokens whose embeddings the pictures' features replace, in order.
    pub slots: Vec<Range<usize>>,
    /// The pictures, preprocessed.
    pub pictures: Vec<Pixels>,
    /// Positions of the tokens where they do not just count on.
    pub places: Option<Places>,
    /// What the pictures are to the language model, `(places, hidden)`, where it was computed before.
    pub features: Option<Tensor>,
}

/// A token that is to be predicted from the state at a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Index of the token whose state predicts.
    pub at: u32,
    /// What is to be predicted.
    pub token: u32,
}

/// A conversation whose last answer is to be learnt.
#[derive(Clone, Debug)]
pub struct Sample {
    /// All of it.
    pub prompt: Prompt,
    /// The answer.
    pub targets: Vec<Target>,
}

/// Prompts to answer.
#[derive(Clone, Copy)]
pub struct Ask<'a> {
    /// One a row.
    pub prompts: &'a [&'a Prompt],
    /// What each draws from; empty where nothing is drawn.
    pub keys: &'a [Key],
    /// How the answers are written.
    pub decoding: &'a Decoding,
    /// Asked at every token.
    pub cancel: &'a Cancel,
}

/// A multimodal language model with its tokenizer and picture preprocessing.
pub trait Vlm: Send + Sync {
    /// Which kind it is.
    fn family(&self) -> Family;

    /// The language model inside.
    fn llm(&self) -> &Llama;

    /// The tokenizer.
    fn tokenizer(&self) -> &Tokenizer;

    /// Tokens that end an answer.
    fn stop(&self) -> &[u32];

    /// What stands for a picture in a written conversation.
    fn mark(&self) -> &str;

    /// The text of a conversation in the model's own form; `open` ends it where the model answers.
    fn write(&self, messages: &[Message], open: bool) -> Result<String>;

    /// Reads a written conversation: the n-th [mark](Vlm::mark) stands for the n-th picture.
    fn read(&self, text: &str, pictures: &[Picture]) -> Result<Prompt>;

    /// Pictures as the language model sees them, `(places, hidden)`, in the order of a prompt's slots.
    fn see(&self, pictures: &[Pixels]) -> Result<Tensor>;

    /// A conversation that the model is to go on.
    fn prepare(&self, messages: &[Message], pictures: &[Picture]) -> Result<Prompt> {
        counted(messages, pictures)?;
        self.read(&self.write(messages, true)?, pictures)
    }

    /// A conversation whose last message is the answer to be learnt, its end mark included. What comes behind the end
    /// mark is left out.
    fn sample(&self, messages: &[Message], pictures: &[Picture]) -> Result<Sample> {
        counted(messages, pictures)?;
        run::sample(self, messages, pictures)
    }

    /// A written prompt and the text that is to follow it, end mark included.
    fn sample_written(&self, prompt: &str, answer: &str, pictures: &[Picture]) -> Result<Sample> {
        run::sample_written(self, prompt, answer, pictures)
    }

    /// Computes what the pictures are to the language model and keeps it in the prompt instead of their pixels: for
    /// towers that are frozen, so that a sample that is learnt from several times goes through the tower once.
    fn look(&self, prompt: &mut Prompt) -> Result<()> {
        if prompt.features.is_none() && !prompt.pictures.is_empty() {
            prompt.features = Some(self.see(&prompt.pictures)?.detach());
            prompt.pictures.clear();
        }
        Ok(())
    }

    /// Embeddings of a prompt, `(1, tokens, hidden)`.
    fn embed(&self, prompt: &Prompt) -> Result<Tensor> {
        run::embed(self, prompt)
    }

    /// Final hidden states of a prompt, normed, `(tokens, hidden)`.
    fn hidden(&self, prompt: &Prompt) -> Result<Tensor> {
        run::hidden(self, prompt)
    }

    /// Scores after every token of a prompt, f32 `(tokens, vocabulary)`.
    fn logits(&self, prompt: &Prompt) -> Result<Tensor> {
        run::logits(self, prompt)
    }

    /// Scores of the token that follows each prompt, f32 `(prompts, vocabulary)`: those of an option's letter are an
    /// answer's probabilities.
    fn next_logits(&self, prompts: &[&Prompt]) -> Result<Tensor> {
        run::next_logits(self, prompts)
    }

    /// Mean cross-entropy of all targets of a batch, in nats; a scalar that candle differentiates. With a sink the
    /// gradients of the language model's adapters come to it; unless it keeps, layers are computed again on the way back.
    fn loss(&self, samples: &[&Sample], sink: Option<&Arc<Sink>>) -> Result<Tensor> {
        run::loss(self, samples, sink)
    }

    /// Answers prompts side by side; `heard(row, token)` is told of every token.
    fn answer(&self, ask: &Ask, heard: &mut dyn FnMut(usize, u32) -> Result<()>) -> Result<Written> {
        run::answer(self, ask, heard)
    }

    /// How likely each of `answers` is after a written prompt with pictures; the end mark does not count.
    fn likelihoods(&self, text: &str, pictures: &[Picture], answers: &[String]) -> Result<Vec<Likelihood>> {
        run::likelihoods(self, text, pictures, answers)
    }

    /// The text of an answer's tokens.
    fn text(&self, tokens: &[u32]) -> Result<String> {
        Ok(self.tokenizer().decode(tokens)?.trim().to_string())
    }
}

/// Refuses messages with more or fewer pictures than are given.
fn counted(messages: &[Message], pictures: &[Picture]) -> Result<()> {
    let places: usize = messages.iter().map(Message::pictures).sum();
    let empty = messages.iter().any(|m| m.parts.iter().all(|p| matches!(p, Part::Text(t) if t.is_empty())));
    if places != pictures.len() {
        return Err(Error::input(format!(
            "the conversation has places for {places} pictures, {} are given",
            pictures.len()
        )));
    }
    if messages.is_empty() || empty {
        return Err(Error::input("a conversation without a message, or with an empty one"));
    }
    Ok(())
}
