//! A multimodal large language model at work: what it is asked about images, who answers, what is kept of it.

pub mod annotate;
pub mod ask;
pub mod captioner;
pub mod filter;
pub mod journal;
pub mod caption_loss;
pub mod prompt;

pub use annotate::{Captioning, Report};
pub use captioner::{Answer, Captioner, CaptionerConfig, Identity, Seen};
pub use prompt::Instruction;
