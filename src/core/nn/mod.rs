//! What is differentiable: parameters, networks as operation lists, their interpreters, losses, optimisers.
//!
//! | file | what |
//! |---|---|
//! | [`params`] | parameters are values, and flat: names, shapes, roles, one slice of f32 |
//! | [`net`] | a compact network: one list of operations, run by every interpreter |
//! | [`interpreter`], [`backend`] | the seam between training loops and kernels; which one a config names |
//! | [`engine`] | the interpreters: `candle` by autograd, `cpu` by our kernels, `cuda` by those of a GPU, on which it has not run |
//! | [`kernels`] | products, convolutions and attention by the machine's instruction sets |
//! | [`session`] | parameters at work, several clients side by side |
//! | [`batch`], [`samples`] | a batch, and what fills it |
//! | [`loss`], [`optim`], [`outer_rate`], [`weight`] | losses in closed form; PyTorch's update rules; rates over rounds; the dynamic weight |
//! | [`classifier`] | the last linear layer by itself |
//! | [`dropout`], [`sum`] | masks that every interpreter shares; weighted sums in f64 |
//! | [`tap`] | between an operation list and ordinary candle code |

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
pub mod outer_rate;
pub mod params;
pub mod samples;
pub mod session;
pub mod sum;
pub mod tap;
pub mod weight;

pub use backend::{Backend, Load};
pub use batch::Batch;
pub use classifier::Classifier;
pub use interpreter::{Interpreter, Mode};
pub use net::{Net, NetBuilder, Node};
pub use optim::{Optimiser, OptimiserConfig, Schedule};
pub use outer_rate::{FirstRate, outer_cosine};
pub use params::{Layout, Named, Params, Ranges, Role};
pub use samples::{Samples, View};
pub use session::{Input, Pull, Session};
pub use weight::Weight;
