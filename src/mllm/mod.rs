//! A multimodal large language model at work: what it is asked about images, who answers, what is kept of it, how its
//! answers are judged.

pub mod annotate;
pub mod ask;
pub mod captioner;
pub mod filter;
pub mod journal;
pub mod judge;
pub mod caption_loss;
pub mod prompt;
pub mod wording;

pub use annotate::{Captioning, Report};
pub use captioner::{Answer, Captioner, CaptionerConfig, Identity, Seen};
pub use judge::{JudgeConfig, Parser};
pub use prompt::Instruction;
pub use wording::{Prompts, Worded};
