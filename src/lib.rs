//! fedllava: multimodal-LLM-assisted federated learning on long-tailed, non-IID data.
//!
//! Modules stand in layers: each imports only modules above it in this list (`tests/layers.rs` enforces it).

pub mod error;
pub mod key;
pub mod fsx;
pub mod pickle;
pub mod exec;
pub mod nn;
pub mod data;
pub mod model;
pub mod mllm;
pub mod run;
pub mod fl;
pub mod stage;
pub mod config;
pub mod pipeline;
pub mod report;
pub mod cli;
