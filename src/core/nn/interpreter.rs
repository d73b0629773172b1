//! What runs a [`Net`](super::Net): the seam between training loops and kernels.

use super::net::Node;
use crate::error::{Error, Result};
use crate::key::Key;

/// How batch norm and dropout behave. K is what dropout draws from: the clients' keys at the seam
/// ([`Interpreter::forward`]), one client's inside an interpreter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mode<K = Key> {
    /// Batch statistics; dropout masks from this.
    Train(K),
    /// Running statistics, no dropout.
    Eval,
    /// As `Eval`, for values alone: a backward pass is refused, so an interpreter may fold and forget.
    Infer,
}

impl Mode {
    /// As the seam wants it for one client.
    pub fn alone(&self) -> Mode<&[Key]> {
        match self {
            Mode::Train(key) => Mode::Train(std::slice::from_ref(key)),
            Mode::Eval => Mode::Eval,
            Mode::Infer => Mode::Infer,
        }
    }
}

impl Mode<&[Key]> {
    /// What client `k` alone does; a client without a key of its own is a defect.
    pub fn of(self, k: usize) -> Result<Mode> {
        Ok(match self {
            Mode::Train(keys) => {
                Mode::Train(*keys.get(k).ok_or_else(|| Error::defect(format!("client {k} of {} keys", keys.len())))?)
            }
            Mode::Eval => Mode::Eval,
            Mode::Infer => Mode::Infer,
        })
    }

    /// Refuses any number of keys but the clients'.
    pub fn check(self, clients: usize) -> Result<()> {
        match self {
            Mode::Train(keys) if keys.len() != clients => {
                Err(Error::defect(format!("{} keys for {clients} clients side by side", keys.len())))
            }
            _ => Ok(()),
        }
    }
}

/// One workspace for one network: its activations and gradients. Made once per worker and reused for every step.
///
/// Parameters stay outside, in the flat slice of [`Layout`](super::Layout) order; an interpreter packs what it
/// needs. Values are row-major `(rows, channels, height, width)` or `(rows, features)`, whatever it uses inside.
///
/// The client axis: `rows[k]` samples belong to client `k`, whose parameters are `params[k·P..(k+1)·P]`. Means,
/// batch-norm statistics and losses divide by `rows[k]`; `rows[k] = 0` leaves that client untouched. The interpreters
/// for one client refuse `rows.len() != 1`. In training there is a key for each client, `keys[k]`, and rows are counted
/// from each client's first: what a client gets, dropout included, is what it gets alone with its key.
pub trait Interpreter: Send {
    /// Runs the network on `x`, `(rows, C, H, W)`, and keeps what backward needs.
    fn forward(&mut self, params: &[f32], x: &[f32], rows: &[usize], mode: Mode<&[Key]>) -> Result<()>;

    /// Writes the running statistics that the last `forward` in [`Mode::Train`] produced into `params`
    /// (PyTorch's rule: momentum 0.1, unbiased variance).
    fn update_buffers(&mut self, params: &mut [f32]) -> Result<()>;

    /// The value of a tap or of the logits after `forward`, copied into `out` as `(rows, shape of the node…)`.
    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()>;

    /// Writes the gradients of `Σ ⟨seed, value(node)⟩` into `grads` (layout order), over what was there: 0 for buffers
    /// and for weights that no seed reaches. Works after a forward in [`Mode::Train`] and [`Mode::Eval`].
    fn backward(&mut self, params: &[f32], seeds: &[(Node, &[f32])], grads: &mut [f32]) -> Result<()>;
}

impl<I: Interpreter + ?Sized> Interpreter for Box<I> {
    fn forward(&mut self, params: &[f32], x: &[f32], rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        (**self).forward(params, x, rows, mode)
    }

    fn update_buffers(&mut self, params: &mut [f32]) -> Result<()> {
        (**self).update_buffers(params)
    }

    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()> {
        (**self).read(node, out)
    }

    fn backward(&mut self, params: &[f32], seeds: &[(Node, &[f32])], grads: &mut [f32]) -> Result<()> {
        (**self).backward(params, seeds, grads)
    }
}
