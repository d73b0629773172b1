//! fedllava: multimodal-LLM-assisted federated learning on long-tailed, non-IID data.
//!
//! Modules stand in layers: each imports only modules above it in this list (`tests/layers.rs` enforces it).

pub mod error;
pub mod exec;
pub mod fsx;
pub mod key;
pub mod model;
pub mod nn;
