//! Networks: compact ones as operation lists, the frozen giants as candle code under their published names.

pub mod graph;
pub mod layers;
pub mod llama;
pub mod sample;
