//! The rooms that everything stands on, compiled by themselves: fully optimised in tests too, and not again when a room
//! above them changes. [`fedllava`](https://docs.rs/fedllava) gives them out under the same names.
//!
//! Modules stand in layers: each imports only modules above it in this list (`tests/layers.rs` enforces it).

pub mod error;
pub mod key;
pub mod fsx;
pub mod exec;
pub mod nn;
