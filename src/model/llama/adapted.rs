//! A decoder layer that is trained through its adapters, on a CPU in f32: attention, rotations and the gated MLP as one
//! operation each, with a backward of their own, where the composed layer walks memory a dozen times (a test holds both
//! together).

use candle_core::{DType, Tensor};

use super::Layer;
use super::attention::Positions;
use crate::error::Result;
use crate::model::fused;

/// Whether [`forward`] may stand for a layer on `x` without a cache.
pub(super) fn serves(layer: &Layer, x: &Tensor, at: &Positions) -> bool {
    let whole = at.pads.is_empty() && at.past == 0;
    whole && x.device().is_cpu() && x.dtype() == DType::F32 && layer.linear().iter().any(|(_, l)| l.adapter().is_some())
}

/// `(rows, new, hidden)` → the same shape.
pub(super) fn forward(layer: &Layer, x: &Tensor, at: &Positions) -> Result<Tensor> {
    let (rows, new, _) = x.dims3()?;
    let (a, m) = (&layer.attention, &layer.mlp);
    let group = a.heads / a.kv_heads;
    let y = layer.before_attention.forward(x)?;
    let apart = |y: Tensor, heads: usize| y.reshape((rows, new, heads, a.head_dim));
    let q = at.turns.joined(&apart(a.q.forward(&y)?, a.heads)?)?;
    let k = at.turns.joined(&apart(a.k.forward(&y)?, a.kv_heads)?)?;
    let v = apart(a.v.forward(&y)?, a.kv_heads)?;
    // Every query head of a group meets a copy of its one key head.
    let shared = |y: Tensor| -> Result<Tensor> {
        let wide = (rows, new, a.heads * a.head_dim);
        if group == 1 {
            return Ok(y.reshape(wide)?);
        }
        let copies = y.unsqueeze(3)?.broadcast_as((rows, new, a.kv_heads, group, a.head_dim))?;
        Ok(copies.contiguous()?.reshape(wide)?)
    };
    let q = q.reshape((rows, new, a.heads * a.head_dim))?;
    let mixed = fused::attend(&q, &shared(k)?, &shared(v)?, a.heads, true)?;
    let x = (x + a.o.forward(&mixed)?)?;
    let y = layer.before_mlp.forward(&x)?;
    let gated = fused::swiglu(&m.gate.forward(&y)?, &m.up.forward(&y)?)?;
    Ok((x + m.down.forward(&gated)?)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use candle_core::{Device, Var};

    use super::*;
    use crate::key::Key;
    use crate::model::llama::{Llama, LlamaConfig, Names, Places};
    use crate::model::lora::{Adapted, Dropout, Modules};
    use crate::model::weights::{Init, Scope, Source, Trainable};

    fn wave(shape: &[usize], step: f32) -> Tensor {
        let n: usize = shape.iter().product();
        Tensor::from_vec((0..n).map(|i| (i as f32 * step + 0.3).sin()).collect(), shape, &Device::Cpu).unwrap()
    }

    struct Frozen(Trainable<'static>);

    impl Source for Frozen {
        fn tensor(&self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
            Ok(self.0.tensor(name, shape, init)?.detach())
        }
    }

    /// A model of `kv` key heads with adapters on all linear layers, and their variables.
    fn model(kv: usize) -> (Llama, Vec<Var>) {
        let config = LlamaConfig {
            vocab_size: 11,
            hidden_size: 36,
            intermediate_size: 50,
            num_hidden_layers: 1,
            num_attention_heads: 6,
            num_key_value_heads: kv,
            head_dim: 6,
            attention_bias: true,
            initializer_range: 0.3,
            rope_sections: vec![1, 1, 1],
            ..LlamaConfig::default()
        };
        let (mut tensors, mut vars) = (BTreeMap::new(), Vec::new());
        let shapes = [("self_attn.q_proj", 36, 36), ("self_attn.k_proj", 36, 6 * kv), ("self_attn.v_proj", 36, 6 * kv)];
        let more = [
            ("self_attn.o_proj", 36, 36),
            ("mlp.gate_proj", 36, 50),
            ("mlp.up_proj", 36, 50),
            ("mlp.down_proj", 50, 36),
        ];
        for (i, (name, input, output)) in shapes.into_iter().chain(more).enumerate() {
            for (part, shape) in [("A", [2, input]), ("B", [output, 2])] {
                let var = Var::from_tensor(&(wave(&shape, 0.37 + i as f32 * 0.11) * 0.3).unwrap()).unwrap();
                let name = format!("base_model.model.model.layers.0.{name}.lora_{part}.weight");
                tensors.insert(name, var.as_tensor().clone());
                vars.push(var);
            }
        }
        let base = Frozen(Trainable::fresh(Key::from_seed(4), &Device::Cpu));
        let modules = Modules { renamed: vec![], body: "model".into() };
        let beside = Some(Arc::new(Dropout::new(0.0)));
        let source = Adapted { base: &base, modules: &modules, tensors: &tensors, scale: 0.7, beside };
        (Llama::load(&Scope::root(&source), &config, &Names::default()).unwrap(), vars)
    }

    #[test]
    fn it_equals_the_composed_layer_in_value_and_in_every_gradient() {
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        for kv in [6, 2, 1] {
            let (model, vars) = model(kv);
            let x = Var::from_tensor(&wave(&[2, 7, 36], 0.83)).unwrap();
            let row = |by: u32| Places { axes: (0..7).map(|i| [i, i + by, 2 * i]).collect(), shift: 0 };
            for places in [None, Some([row(0), row(3)])] {
                let at = model.placed((0, 7), &[], &[], places.as_ref().map(|p| &p[..])).unwrap();
                let layer = &model.layers[0];
                assert!(serves(layer, x.as_tensor(), &at));
                let (a, b) = (forward(layer, &x, &at).unwrap(), layer.composed(&x, &at, None).unwrap());
                let seed = wave(&[2, 7, 36], 1.3);
                let grads = |y: &Tensor| (y * &seed).unwrap().sum_all().unwrap().backward().unwrap();
                let (ga, gb) = (grads(&a), grads(&b));
                let mut pairs = vec![(a, b)];
                for var in vars.iter().chain([&x]) {
                    pairs.push((ga.get(var).unwrap().clone(), gb.get(var).unwrap().clone()));
                }
                for (a, b) in pairs {
                    let (a, b) = (flat(&a), flat(&b));
                    let largest = b.iter().fold(0f32, |m, v| m.max(v.abs()));
                    assert!(largest > 0.0);
                    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() <= 2e-5 * largest), "{kv} key heads");
                }
            }
        }
    }
}
