//! What runs a [`Net`](super::Net): the seam between training loops and kernels.

use super::net::Node;
use crate::error::Result;
use crate::key::Key;

/// How batch norm and dropout behave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode {
    /// Batch statistics; dropout masks from this key.
    Train(Key),
    /// Running statistics, no dropout.
    Eval,
    /// As `Eval`, for values alone: a backward pass is refused, so an interpreter may fold and forget.
    Infer,
}

/// One workspace for one network: its activations and gradients. Made once per worker and reused for every step.
///
/// Parameters stay outside, in the flat slice of [`Layout`](super::Layout) order; an interpreter packs what it
/// needs. Values are row-major `(rows, channels, height, width)` or `(rows, features)`, whatever it uses inside.
///
/// The client axis: `rows[k]` samples belong to client `k`, whose parameters are `params[k·P..(k+1)·P]`. Means,
/// batch-norm statistics and losses divide by `rows[k]`; `rows[k] = 0` leaves that client untouched. The interpreters
/// for one client refuse `rows.len() != 1`.
pub trait Interpreter: Send {
    /// Runs the network on `x`, `(rows, C, H, W)`, and keeps what backward needs.
    fn forward(&mut self, params: &[f32], x: &[f32], rows: &[usize], mode: Mode) -> Result<()>;

    /// Writes the running statistics that the last `forward` in [`Mode::Train`] produced into `params`
    /// (PyTorch's rule: momentum 0.1, unbiased variance).
    fn update_buffers(&mut self, params: &mut [f32]) -> Result<()>;

    /// The value of a tap or of the logits after `forward`, copied into `out` as `(rows, shape of the node…)`.
    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()>;

    /// Adds the gradients of `Σ ⟨seed, value(node)⟩` into `grads` (layout order; buffers' entries untouched).
    /// Works after a forward in [`Mode::Train`] and [`Mode::Eval`].
    fn backward(&mut self, params: &[f32], seeds: &[(Node, &[f32])], grads: &mut [f32]) -> Result<()>;
}
