//! The adapter between an operation list and ordinary candle code: tap out, gradient in.
//!
//! A loss written on candle tensors (contrastive pretraining, a large language model behind the compact encoder)
//! sees the value of a tap as a variable; its gradient goes back into [`Interpreter::backward`](super::Interpreter).

use candle_core::{Device, Tensor, Var};

use crate::error::{Error, Result};

/// The value of `loss` at a tap's value `(rows, …)`, and its gradient in the same order.
///
/// A loss that does not depend on the tap is an error: candle loses gradients silently in some operations.
pub fn tap_gradient(
    value: &[f32],
    shape: &[usize],
    device: &Device,
    loss: impl FnOnce(&Tensor) -> Result<Tensor>,
) -> Result<(f64, Vec<f32>)> {
    let var = Var::from_tensor(&Tensor::from_slice(value, shape, device)?)?;
    let objective = loss(var.as_tensor())?;
    let store = objective.backward()?;
    let Some(gradient) = store.get(&var) else {
        return Err(Error::defect(
            "the loss does not depend on the tap: an operation without a backward is in its way",
        ));
    };
    let value = f64::from(objective.to_dtype(candle_core::DType::F32)?.to_scalar::<f32>()?);
    Ok((value, gradient.flatten_all()?.to_vec1::<f32>()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_of_a_square_is_twice_the_value() {
        let (loss, g) = tap_gradient(&[1.0, -3.0], &[1, 2], &Device::Cpu, |t| Ok(t.sqr()?.sum_all()?)).unwrap();
        assert_eq!((loss, g), (10.0, vec![2.0, -6.0]));
    }

    #[test]
    fn a_loss_that_ignores_the_tap_is_refused() {
        let gone = tap_gradient(&[1.0], &[1, 1], &Device::Cpu, |t| Ok(t.detach().sum_all()?));
        assert!(gone.unwrap_err().to_string().contains("does not depend"));
    }
}
