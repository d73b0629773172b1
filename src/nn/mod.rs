//! What is differentiable: parameters, networks as operation lists, their interpreters, losses, optimisers.

pub mod backend;
pub mod batch;
pub mod classifier;
pub mod dropout;
pub mod engine;
pub mod interpreter;
pub mod kernels;
pub mod loss;
pub mod net;
pub mod optim;
pub mod params;
pub mod samples;
pub mod session;
pub mod sum;
pub mod tap;
pub mod weight;

pub use backend::Backend;
pub use batch::Batch;
pub use classifier::Classifier;
pub use interpreter::{Interpreter, Mode};
pub use net::{Net, NetBuilder, Node};
pub use optim::{Optimiser, OptimiserConfig, Schedule};
pub use params::{Layout, Named, Params, Ranges, Role};
pub use samples::{Samples, View};
pub use session::{Input, Pull, Session};
pub use weight::Weight;
