//! A whole run: configuration → data → stages → numbers on disk.

mod captioning;
mod experiment;
mod head;
mod outlook;
mod pretraining;
mod run;
mod personal;
mod sharing;
mod supplies;
mod through_llm;

pub use captioning::captioning;
pub use experiment::Experiment;
pub use outlook::{Outlook, Speeds, outlook};
pub use run::{Stages, run};
pub use sharing::Library;
