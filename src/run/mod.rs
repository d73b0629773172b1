//! A run on disk: its directory, its records, its checkpoints.
//!
//! ```text
//! runs/<name>/
//!   config.toml      resolved, re-runnable       split.json     who holds what
//!   manifest.json    versions, seed, device      metrics.jsonl  one record a line
//!   <stage>/         model.safetensors and done.json, when the stage is done
//!   checkpoints/     round-000120/{model,server}.safetensors, meta.json
//!   clients/         000017/round-000118.safetensors, what a client keeps
//!   eval.json        final numbers               times.jsonl    seconds a round: what may differ between equal runs
//! ```

pub mod checkpoint;
pub mod clients;
pub mod directory;
pub mod records;
pub mod shelf;
pub mod state;

pub use directory::RunDir;
pub use records::Records;
pub use shelf::Shelf;

/// Version of every file that a run writes; a newer one is refused.
pub const SCHEMA: u32 = 1;
