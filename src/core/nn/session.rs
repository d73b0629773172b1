//! Parameters at work: they live inside a session while clients train, so that a device never copies them step by step.
//!
//! Between [`Session::load`] and [`Session::take`] only batches and small arrays cross to the host. `K` clients may stand
//! side by side in as many lanes; on a CPU K is 1 in the loop, and each core has a session of its own.

mod plain;

pub use plain::Plain;

use std::ops::Range;

use super::interpreter::Mode;
use super::net::{Net, Node};
use super::optim::OptimiserConfig;
use super::params::{Named, Params, Ranges};
use crate::error::Result;
use crate::key::Key;

/// What a network is shown.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// Images `(rows, C, H, W)`.
    Images(&'a [f32]),
    /// Stored features `(rows, features)`: the classifier alone runs.
    Features(&'a [f32]),
}

/// What acts on whole parameter vectors in a local step; `A` says where its vector comes from.
#[derive(Clone, Debug)]
pub enum Pull<A> {
    /// `μ/2 ‖w − to‖²` over the weights, or over some ranges.
    Proximal {
        /// μ ≥ 0.
        mu: f32,
        /// The anchor.
        to: A,
        /// Where it acts; all weights if none.
        over: Option<Ranges>,
    },
    /// `coefficient · ⟨w, of⟩` over the weights: adds a constant to the gradient.
    Linear {
        /// Factor.
        coefficient: f32,
        /// The added vector.
        of: A,
    },
}

/// How a lane's parameters are trained.
#[derive(Clone, Debug)]
pub struct Training {
    /// The optimiser, fresh but for `moments`.
    pub optimiser: OptimiserConfig,
    /// What moves; all weights if none.
    pub trained: Option<Ranges>,
    /// What pulls at the parameters in every step.
    pub pulls: Vec<Pull<Params>>,
    /// The optimiser's state to go on from, as [`Optimiser::state`] gives it; empty for a fresh one.
    pub moments: Named,
}

/// A place where the parameters of one or several clients are trained.
pub trait Session: Send {
    /// The network.
    fn net(&self) -> &Net;

    /// Clients side by side.
    fn lanes(&self) -> usize;

    /// Puts parameters into lane `k`, to be trained so.
    fn load(&mut self, k: usize, params: Params, training: &Training) -> Result<()>;

    /// Runs the network of every lane on its rows; `rows[k] = 0` leaves lane `k` out, in `step` too.
    fn forward(&mut self, input: Input<'_>, rows: &[usize], mode: Mode<&[Key]>) -> Result<()>;

    /// A node's value after `forward`, `(rows of all lanes, shape of the node…)`.
    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()>;

    /// Some of lane `k`'s parameters.
    fn peek(&mut self, k: usize, range: Range<usize>, out: &mut Vec<f32>) -> Result<()>;

    /// The gradient of `Σ ⟨seed, value(node)⟩`, kept inside.
    fn backward(&mut self, seeds: &[(Node, &[f32])]) -> Result<()>;

    /// Ends a part of a step that has several forwards: running statistics move as this one's batch says, and the
    /// gradient is added to that of the next `backward`.
    fn part(&mut self) -> Result<()>;

    /// Adds to lane `k`'s gradient.
    fn add(&mut self, k: usize, range: Range<usize>, gradient: &[f32]) -> Result<()>;

    /// Holds the norm of lane `k`'s gradient, over what is trained and after the pulls, to `most`: all of it is scaled
    /// by `min(1, most / (norm + 1e-6))` (`torch.nn.utils.clip_grad_norm_`), and the factor given back. `beside` is the
    /// squared norm of what is trained outside of the session.
    fn clip(&mut self, k: usize, most: f32, beside: f64) -> Result<f32>;

    /// Pulls, running statistics, then the optimiser's step of every lane with rows; `rates[k]` scales its rate.
    fn step(&mut self, rates: &[f32]) -> Result<()>;

    /// Lane `k`'s parameters and its optimiser's state as they are; the lane stays loaded.
    fn state(&mut self, k: usize) -> Result<(Params, Named)>;

    /// Lane `k`'s parameters, out of the session.
    fn take(&mut self, k: usize) -> Result<Params>;

    /// Values of nodes for other, frozen parameters: `outs[i]` gets `nodes[i]`'s, `(rows, shape of the node…)`.
    /// The lanes keep what `forward` left.
    fn look(
        &mut self,
        params: &Params,
        x: &[f32],
        rows: usize,
        mode: Mode,
        nodes: &[Node],
        outs: &mut [Vec<f32>],
    ) -> Result<()>;
}
