//! Values that join candle's graph with a backward rule of our own.
//!
//! candle's fused operations have no backward and lose the gradient without an error, and its matmul computes a
//! gradient for *both* factors, frozen or not. A value computed outside of the graph and joined to it here has exactly
//! the backward that is written beside it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, CudaStorage, CustomOp1, Layout, Shape, Storage, Tensor, TensorId, Var};

use crate::error::Result;
use crate::exec::lock;

type Back = Box<dyn Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync>;

struct Joined {
    value: Tensor,
    back: Back,
}

impl CustomOp1 for Joined {
    fn name(&self) -> &'static str {
        "joined"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        // x · 1 + 0 copies the elements of any layout and no others.
        match &*storage {
            Storage::Cpu(s) => Ok((s.affine(layout, 1.0, 0.0)?, self.value.shape().clone())),
            _ => candle_core::bail!("joined: the value is not on the CPU as its argument is"),
        }
    }

    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        let (storage, layout) = self.value.storage_and_layout();
        match &*storage {
            Storage::Cuda(s) => Ok((s.affine(layout, 1.0, 0.0)?, self.value.shape().clone())),
            _ => candle_core::bail!("joined: the value is not on the GPU as its argument is"),
        }
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        (self.back)(grad).map(Some)
    }
}

/// `value`, computed from `x` outside of the graph, as a node whose gradient with respect to `x` is `back(gradient)`.
/// `value` is copied once.
pub fn with_backward(
    x: &Tensor,
    value: &Tensor,
    back: impl Fn(&Tensor) -> candle_core::Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    Ok(x.apply_op1(Joined { value: value.detach(), back: Box::new(back) })?)
}

/// `f(x)` without keeping what `f` computes inside: backward runs `f` again (activation recomputation; Chen et al.,
/// *Training deep nets with sublinear memory cost*, 2016). Only `x` gets a gradient: whatever else `f` uses is frozen.
pub fn recomputed(x: &Tensor, f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static) -> Result<Tensor> {
    let value = f(&x.detach())?;
    if !x.track_op() {
        return Ok(value);
    }
    let input = x.detach();
    with_backward(x, &value, move |grad| {
        let leaf = Var::from_tensor(&input)?;
        let again = f(leaf.as_tensor()).map_err(|e| candle_core::Error::Msg(e.to_string()))?;
        let mut grads = (again * grad)?.sum_all()?.backward()?;
        match grads.remove(leaf.as_tensor()) {
            Some(g) => Ok(g),
            None => candle_core::bail!("recomputed: the function lost the gradient of its argument"),
        }
    })
}

/// Gradients that recomputed functions give to leaves other than their argument, which candle's own store cannot hold.
/// Every backward adds; [`Sink::take`] empties it.
#[derive(Debug, Default)]
pub struct Sink {
    all: Mutex<HashMap<TensorId, Tensor>>,
    keeps: bool,
}

impl Sink {
    /// An empty one; `keeps` says whether functions keep what they compute instead of computing it again.
    pub fn new(keeps: bool) -> Self {
        Sink { all: Mutex::default(), keeps }
    }

    /// Whether what is computed on the way there is kept for the way back.
    pub fn keeps(&self) -> bool {
        self.keeps
    }

    /// The gradient of a leaf, if one has come.
    pub fn take(&self, leaf: &Tensor) -> Option<Tensor> {
        lock(&self.all).remove(&leaf.id())
    }

    /// Adds to the gradient of a leaf.
    pub fn add(&self, leaf: &Tensor, grad: Tensor) -> candle_core::Result<()> {
        let mut all = lock(&self.all);
        let sum = match all.remove(&leaf.id()) {
            Some(known) => (known + grad)?,
            None => grad,
        };
        all.insert(leaf.id(), sum);
        Ok(())
    }
}

/// As [`recomputed`], where `f` also depends on trained `leaves`: their gradients come to `sink` on the way back. The
/// function is computed again even where `x` itself is not tracked.
pub fn recomputed_into(
    x: &Tensor,
    leaves: Vec<Tensor>,
    sink: &Arc<Sink>,
    f: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    if leaves.is_empty() {
        return recomputed(x, f);
    }
    let value = f(&x.detach())?.detach();
    let (input, sink) = (x.detach(), sink.clone());
    // Something that is tracked must lead here, or backward never comes.
    let tracked = if x.track_op() { x.clone() } else { Var::from_tensor(x)?.as_tensor().clone() };
    with_backward(&tracked, &value, move |grad| {
        let leaf = Var::from_tensor(&input)?;
        let again = f(leaf.as_tensor()).map_err(|e| candle_core::Error::Msg(e.to_string()))?;
        let mut grads = (again * grad)?.sum_all()?.backward()?;
        for trained in &leaves {
            match grads.remove(trained) {
                Some(grad) => sink.add(trained, grad)?,
                None => candle_core::bail!("recomputed: the function lost the gradient of a trained tensor"),
            }
        }
        match grads.remove(leaf.as_tensor()) {
            Some(g) => Ok(g),
            None => candle_core::bail!("recomputed: the function lost the gradient of its argument"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn a_recomputed_function_has_the_value_and_the_gradient_of_the_plain_one() {
        let x = Var::new(&[[0.5f32, -1.0], [2.0, 0.25]], &Device::Cpu).unwrap();
        let w = Tensor::new(&[[1.0f32, 3.0], [-2.0, 0.5]], &Device::Cpu).unwrap();
        let f = move |x: &Tensor| Ok((x.matmul(&w)?.sqr()? * 0.5)?);
        let seed = Tensor::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let run = |y: Tensor| {
            let grads = (&y * &seed).unwrap().sum_all().unwrap().backward().unwrap();
            (y.to_vec2::<f32>().unwrap(), grads.get(x.as_tensor()).unwrap().to_vec2::<f32>().unwrap())
        };
        let double = (x.as_tensor() * 2.0).unwrap();
        let plain = run(f(&double).unwrap());
        assert_eq!(plain, run(recomputed(&double, f).unwrap()));
        assert!(plain.1.iter().flatten().all(|g| *g != 0.0));
    }

    #[test]
    fn a_trained_leaf_inside_gets_its_gradient_whether_the_argument_is_tracked_or_not() {
        let w = Var::new(&[[1.0f32, 3.0], [-2.0, 0.5]], &Device::Cpu).unwrap();
        let x = Var::new(&[[0.5f32, -1.0], [2.0, 0.25]], &Device::Cpu).unwrap();
        let inner = w.as_tensor().clone();
        let f = move |x: &Tensor| Ok(x.matmul(&inner)?.sqr()?);
        for x in [x.as_tensor().clone(), x.as_tensor().detach()] {
            let plain = f(&x).unwrap().sum_all().unwrap().backward().unwrap();
            let sink = Arc::new(Sink::new(false));
            let y = recomputed_into(&x, vec![w.as_tensor().clone()], &sink, f.clone()).unwrap();
            y.sum_all().unwrap().backward().unwrap();
            let (got, want) = (sink.take(w.as_tensor()).unwrap(), plain.get(w.as_tensor()).unwrap());
            assert_eq!(got.to_vec2::<f32>().unwrap(), want.to_vec2::<f32>().unwrap());
            assert!(sink.take(w.as_tensor()).is_none());
        }
    }

    #[test]
    fn a_value_that_is_a_view_joins_with_its_own_elements() {
        let x = Var::new(&[1.0f32, 2.0], &Device::Cpu).unwrap();
        let big = Tensor::arange(0f32, 6f32, &Device::Cpu).unwrap();
        let view = big.narrow(0, 3, 2).unwrap();
        let y = with_backward(x.as_tensor(), &view, |g| g * 7.0).unwrap();
        assert_eq!(y.to_vec1::<f32>().unwrap(), [3.0, 4.0]);
        let grads = y.sum_all().unwrap().backward().unwrap();
        assert_eq!(grads.get(x.as_tensor()).unwrap().to_vec1::<f32>().unwrap(), [7.0, 7.0]);
    }
}
