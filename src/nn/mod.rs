//! What is differentiable: parameters, networks as operation lists, their interpreters, losses, optimisers.

pub mod batch;
pub mod cpu;
pub mod dropout;
pub mod interpreter;
pub mod net;
pub mod params;

pub use batch::Batch;
pub use interpreter::{Interpreter, Mode};
pub use net::{Net, NetBuilder, Node};
pub use params::{Layout, Params, Role};
