//! AdamW on named variables (Loshchilov and Hutter, *Decoupled weight decay regularization*, 2019), as PyTorch computes
//! it, and the usual schedule of learning rates.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Place, Result};

/// AdamW's constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Times the learning rate: what a weight loses a step. Tensors with fewer than two dimensions (gains, biases, the
    /// scale of cosines) do not decay, as in OpenAI's CLIP.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    /// CLIP's for vision transformers (Radford et al., 2021, table 18), with the weight decay of small models.
    fn default() -> Self {
        AdamWConfig { beta1: 0.9, beta2: 0.98, eps: 1e-6, weight_decay: 0.1 }
    }
}

struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// Variables with their moments.
pub struct AdamW {
    config: AdamWConfig,
    vars: BTreeMap<String, Var>,
    moments: BTreeMap<String, Moments>,
    steps: i32,
}

impl AdamW {
    /// Moments of zero. The variables are f32.
    pub fn new(vars: &BTreeMap<String, Var>, config: AdamWConfig) -> Result<Self> {
        if let Some((name, var)) = vars.iter().find(|(_, v)| v.dtype() != DType::F32) {
            return Err(Error::defect(format!("AdamW: {name} is {:?}, not f32", var.dtype())));
        }
        let moments = vars.iter().map(|(name, var)| {
            let zeros = vec![0.0; var.elem_count()];
            (name.clone(), Moments { first: zeros.clone(), second: zeros })
        });
        Ok(AdamW { config, moments: moments.collect(), vars: vars.clone(), steps: 0 })
    }

    /// One step with this learning rate. Every variable needs its gradient: a missing one is a broken graph.
    pub fn step(&mut self, grads: &BTreeMap<String, Vec<f32>>, learning_rate: f64) -> Result<()> {
        self.steps += 1;
        for (name, var) in &self.vars {
            let (grad, moments) = match (grads.get(name), self.moments.get_mut(name)) {
                (Some(grad), Some(moments)) if grad.len() == moments.first.len() => (grad, moments),
                _ => return Err(Error::defect(format!("AdamW: no gradient of {:?} for {name}", var.shape()))),
            };
            let mut values: Vec<f32> = var.flatten_all()?.to_vec1().at(|| name.clone())?;
            let decay = if var.rank() < 2 { 0.0 } else { self.config.weight_decay };
            update(&mut values, grad, moments, &self.config, (learning_rate, decay, self.steps));
            var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu)?.to_device(var.device())?)?;
        }
        Ok(())
    }
}

/// `torch.optim.AdamW`'s single-tensor arithmetic in f32, its scalars in f64.
fn update(values: &mut [f32], grad: &[f32], m: &mut Moments, c: &AdamWConfig, (lr, decay, step): (f64, f64, i32)) {
    let keep = (1.0 - lr * decay) as f32;
    let (beta1, beta2, eps) = (c.beta1 as f32, c.beta2 as f32, c.eps as f32);
    let (fresh1, fresh2) = ((1.0 - c.beta1) as f32, (1.0 - c.beta2) as f32);
    let size = (lr / (1.0 - c.beta1.powi(step))) as f32;
    let root = (1.0 - c.beta2.powi(step)).sqrt() as f32;
    let moments = m.first.iter_mut().zip(m.second.iter_mut());
    for ((value, g), (first, second)) in values.iter_mut().zip(grad).zip(moments) {
        *first = beta1 * *first + fresh1 * g;
        *second = beta2 * *second + fresh2 * g * g;
        *value = *value * keep - size * *first / (second.sqrt() / root + eps);
    }
}

/// Linear warm-up to the peak over `warmup` steps, then a half cosine to zero at `steps` (OpenCLIP's `cosine_lr`).
pub fn warmup_cosine(step: usize, steps: usize, warmup: usize, peak: f64) -> f64 {
    if step < warmup {
        return peak * (step + 1) as f64 / warmup as f64;
    }
    let (done, all) = ((step - warmup) as f64, steps.saturating_sub(warmup).max(1) as f64);
    0.5 * peak * (1.0 + (std::f64::consts::PI * (done / all).min(1.0)).cos())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: with constant gradients, both corrected moments equal the gradient and its square, so a step is the
    /// learning rate in the gradient's direction; the matrix decays first, the vector does not.
    #[test]
    fn the_first_steps_are_the_learning_rate_and_only_matrices_decay() {
        let device = Device::Cpu;
        let matrix = Var::new(&[[1.0f32, -2.0]], &device).unwrap();
        let vector = Var::new(&[1.0f32], &device).unwrap();
        let vars = BTreeMap::from([("m".to_string(), matrix), ("v".to_string(), vector)]);
        let mut adamw =
            AdamW::new(&vars, AdamWConfig { eps: 0.0, weight_decay: 0.5, ..AdamWConfig::default() }).unwrap();
        let grads = BTreeMap::from([("m".to_string(), vec![3.0, -0.1]), ("v".to_string(), vec![7.0])]);
        adamw.step(&grads, 0.1).unwrap();
        adamw.step(&grads, 0.1).unwrap();
        let m: Vec<f32> = vars["m"].flatten_all().unwrap().to_vec1().unwrap();
        let by_hand = |start: f32, direction: f32| (start * 0.95 - 0.1 * direction) * 0.95 - 0.1 * direction;
        assert!((m[0] - by_hand(1.0, 1.0)).abs() < 1e-5, "{m:?}");
        assert!((m[1] - by_hand(-2.0, -1.0)).abs() < 1e-5, "{m:?}");
        assert!((vars["v"].to_vec1::<f32>().unwrap()[0] - 0.8).abs() < 1e-5);
        assert!(adamw.step(&BTreeMap::new(), 0.1).is_err());
    }

    #[test]
    fn the_schedule_rises_to_its_peak_and_falls_to_zero() {
        let rate = |step| warmup_cosine(step, 110, 10, 2.0);
        assert_eq!(rate(0), 0.2);
        assert_eq!(rate(9), 2.0);
        assert_eq!(rate(10), 2.0);
        assert!((rate(60) - 1.0).abs() < 1e-12);
        assert!(rate(110).abs() < 1e-12);
    }
}
