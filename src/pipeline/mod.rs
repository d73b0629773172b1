//! A whole run: configuration → data → stages → numbers on disk.
//!
//! | file | what |
//! |---|---|
//! | `run` | [`run()`]: the stages in order, each from what the one before left on disk |
//! | `experiment` | [`Experiment`]: what every stage shares, the benchmark, who holds what, the network |
//! | `pretraining`, `through_llm` | stage 1: the pool and its features; the LLaVA, its captions and features |
//! | `head` | where stage 2 starts |
//! | `made_of` | digests of what a run is made from, held against what is there |
//! | `supplies` | what a method may ask for besides clients' images |
//! | `personal` | what clients would use themselves |
//! | `sharing` | [`Library`]: what the runs of one process and of one cache share |
//! | `export` | a run's model with its card and the lines of PyTorch that load it |
//! | `reproduce` | an archived run once more, held against what it gave |
//! | `mllm` | a run whose task is a multimodal LLM |
//! | `ranks` | what other processes do for a run: they open it and serve its rounds |
//! | `captioning` | [`captioning()`]: a pool becomes annotations |
//!
//! Ctrl-C, SIGTERM, SIGHUP and SIGUSR1 stop cleanly; after `kill -9` the same command ends with the same bytes. Same seed, same
//! bytes, for any number of threads.

mod captioning;
mod experiment;
pub mod export;
mod head;
mod made_of;
mod mllm;
mod outlook;
mod pretraining;
mod run;
mod personal;
mod ranks;
pub mod reproduce;
mod said;
mod sharing;
mod supplies;
mod through_llm;

pub use captioning::captioning;
pub use experiment::{COMMIT, Experiment};
pub use mllm::Held;
pub use outlook::{Outlook, Speeds, outlook};
pub use ranks::Served;
pub use run::{Stages, finished, run};
pub use sharing::Library;
