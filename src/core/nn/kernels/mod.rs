//! What the engine of compact networks and the language models share on a CPU: matrix products, attention, norms and
//! curves over plain slices, compiled for every instruction set ([`Isa`]: portable; AVX2 + FMA or AVX-512, chosen at run
//! time; NEON) or for Intel's matrix unit; spare memory, and crews of threads.
//!
//! Kernels know no network: nothing here imports anything else of [`nn`](super). Every sum has one order, whatever the
//! number of threads; another instruction set may round otherwise.

#[cfg(target_arch = "x86_64")]
pub(in crate::nn) mod amx;
#[cfg(not(target_arch = "x86_64"))]
#[path = "amx/absent.rs"]
mod amx;
pub mod attend;
pub mod attend_back;
pub mod back;
mod block;
#[cfg(test)]
pub(in crate::nn) mod check;
pub(in crate::nn) mod crew;
pub mod curves;
pub(in crate::nn) mod dense;
pub mod matrix;
pub mod norms;
mod panels;
mod peak;
pub mod resample;
pub(in crate::nn) mod simd;
pub mod spare;

pub use peak::{peak, sweep};
pub use simd::Isa;
