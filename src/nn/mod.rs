//! What is differentiable: parameters, networks as operation lists, their interpreters, losses, optimisers.

pub mod backend;
pub mod batch;
pub mod dropout;
pub mod engine;
pub mod interpreter;
pub mod kernels;
pub mod loss;
pub mod net;
pub mod optim;
pub mod params;
pub mod sum;
pub mod tap;
pub mod weight;

pub use backend::Backend;
pub use batch::Batch;
pub use interpreter::{Interpreter, Mode};
pub use net::{Net, NetBuilder, Node};
pub use optim::{Optimiser, OptimiserConfig};
pub use params::{Layout, Params, Role};
pub use weight::Weight;
