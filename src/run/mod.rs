//! A run on disk: its directory, its records, its checkpoints.
//!
//! ```text
//! runs/<name>/
//!   config.toml      resolved, re-runnable       split.json     who holds what
//!   manifest.json    versions, seed, device      metrics.jsonl  one record a line
//!   <stage>/         model.safetensors and done.json, when the stage is done
//!   checkpoints/     round-000120/{model,server}.safetensors, meta.json
//!   metrics.seal     their length and digest at the last checkpoint or finished stage
//!   clients/         000017/round-000118.safetensors, what a client keeps
//!   eval.json        final numbers               metrics.csv    the same records as a table
//!   times.jsonl      seconds, time of day, peak memory: what may differ between equal runs
//!   events.out.tfevents.fedllava                 TensorBoard's file, with run.tensorboard
//! ```
//!
//! `metrics.jsonl` has a line per stage, round and split; `eval.json` the final numbers: `overall`, `many`, `medium`,
//! `few`, `per_class`, `confusion`, and `last10`, the mean of the last ten rounds, which is the number to quote; under
//! `facts.burden` what a client sent, received and computed in a round. Accuracies in files are shares, in tables percent.
//!
//! Nothing is believed because it lies there: JSON files have a digest of the rest in `seal`, records one beside them,
//! checkpoints, models and kept stages theirs, and all are asked whenever something is read back. A damaged checkpoint
//! gives way to the one before it, a damaged kept stage or cache is made again; anything else ends with the file's name.

pub mod archive;
pub mod checkpoint;
pub mod clients;
pub mod csv;
mod difference;
pub mod directory;
pub mod origin;
pub mod records;
pub mod seal;
pub mod shelf;
pub mod state;
pub mod tensorboard;
pub mod times;

pub use directory::RunDir;
pub use origin::Origin;
pub use records::Records;
pub use shelf::{Shelf, program};
pub use times::Times;

/// Version of every file that a run writes; a newer one is refused.
pub const SCHEMA: u32 = 1;
