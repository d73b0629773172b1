//! The engine for CUDA: K clients side by side in every launch.
//!
//! [`Resident`] is its session: parameters `[K, P]`, gradients, moments and values stay on the card from `load` to `take`.
//! [`Engine`] is the same behind the interpreters' seam. Products are strided batches over the clients; everything else
//! is our own kernels, plain `.cu` files in `kernels/`, whose layouts the head of `prelude.cu` states.
//!
//! What runs them is a [`Card`]: `Cuda` with the feature `cuda`, or [`Emulated`], a process in which the C++ compiler's
//! version of the very same files runs thread by thread; [`Counted`] runs nothing and counts. All that can be wrong without a GPU is so proven without one;
//! on a GPU **the engine has never run**. `run.engine = "cuda"` asks for it, `"cuda-strict"` for products in f32, and
//! `"emulated"` for the emulated card.
//!
//! Sums have one order, so the same seed gives the same bytes on the same card; beside the CPU engine results differ by
//! rounding alone.

mod arena;
mod backward;
mod card;
mod count;
#[cfg(feature = "cuda")]
mod driver;
mod emulated;
mod forward;
mod held;
pub mod kernels;
mod pass;
mod plan;
mod session;
#[cfg(test)]
mod tests;
mod update;
mod workspace;

pub use card::{Arg, Card, Matrix, Memory, Product, Work};
pub use count::{Cost, Counted};
#[cfg(feature = "cuda")]
pub use driver::{Cuda, Precision};
pub use emulated::Emulated;
pub use held::Cut;
pub use plan::split;
pub use session::{Resident, lanes};
pub use workspace::Engine;
