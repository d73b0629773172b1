//! Interpreters of compact networks: candle's tensors ([`candle`], the oracle), our own engine on a CPU ([`cpu`]), the one
//! for CUDA ([`cuda`]), and clients side by side ([`cohort`]).

pub mod candle;
pub mod cohort;
pub mod cpu;
pub mod cuda;
