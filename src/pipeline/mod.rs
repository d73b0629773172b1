//! A whole run: configuration → data → stages → numbers on disk.

mod experiment;
mod pretraining;
mod run;
mod sharing;

pub use experiment::Experiment;
pub use run::{Stages, run};
pub use sharing::Library;
