//! Models: compact networks as operation lists, and frozen or trained giants on candle tensors.

pub mod adamw;
pub mod clip;
pub mod hub;
pub mod weights;
