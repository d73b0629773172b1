//! A multimodal large language model at work: what it is asked about images, who answers, what is kept of it.

pub mod ask;
pub mod captioner;
pub mod filter;
pub mod journal;
pub mod objective;
pub mod pool;
pub mod prompt;

pub use captioner::{Answer, Captioner, CaptionerConfig, Identity, Seen};
pub use pool::{Captioning, Report};
pub use prompt::Instruction;
