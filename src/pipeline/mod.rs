//! A whole run: configuration → data → stages → numbers on disk.

mod captioning;
mod experiment;
mod head;
mod pretraining;
mod run;
mod personal;
mod said;
mod sharing;
mod supplies;
mod through_llm;

pub use captioning::captioning;
pub use experiment::Experiment;
pub use run::{Stages, run};
pub use sharing::Library;
