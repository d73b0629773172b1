//! A whole run: configuration → data → stages → numbers on disk.

mod experiment;
mod pretraining;
mod run;

pub use experiment::Experiment;
pub use run::{Stages, run};
