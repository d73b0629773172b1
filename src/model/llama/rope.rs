//! Rotary position embeddings (Su et al., 2021) with the scalings that Llama checkpoints name.

use candle_core::{D, DType, Device, Tensor};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::config::number;
use crate::error::{Error, Result};
use crate::model::view::View;

/// How the frequencies are stretched for longer texts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum RopeScaling {
    /// As trained.
    #[default]
    None,
    /// Positions divided by a factor (Chen et al., 2023).
    Linear(LinearScaling),
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3(Llama3Scaling),
}

/// Positions are divided by `factor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinearScaling {
    /// At least 1.
    pub factor: f64,
}

/// Llama 3.1's four numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Llama3Scaling {
    /// What low frequencies are divided by.
    pub factor: f64,
    /// Wavelengths above `original / low_freq_factor` are low frequencies.
    pub low_freq_factor: f64,
    /// Wavelengths below `original / high_freq_factor` are high frequencies.
    pub high_freq_factor: f64,
    /// Context length of the training, in tokens.
    pub original_max_position_embeddings: f64,
}

impl RopeScaling {
    /// θ and scaling, from `rope_parameters` (transformers 5) or from `rope_theta` and `rope_scaling`.
    pub(super) fn from_json(config: &Value, default_theta: f64) -> Result<(f64, Self)> {
        let theta = number(config, "rope_theta", default_theta)?;
        let found = ["rope_parameters", "rope_scaling"].iter().filter_map(|n| config.get(*n)).find(|v| v.is_object());
        let Some(json) = found else { return Ok((theta, RopeScaling::None)) };
        let theta = number(json, "rope_theta", theta)?;
        if number(json, "partial_rotary_factor", 1.0)? != 1.0 {
            return Err(Error::data("rope: partial_rotary_factor other than 1 is not supported"));
        }
        let kind = json.get("rope_type").or_else(|| json.get("type")).and_then(Value::as_str).unwrap_or("default");
        let scaling = match kind {
            "default" | "mrope" => RopeScaling::None,
            "linear" => RopeScaling::Linear(LinearScaling { factor: positive(json, "factor")? }),
            "llama3" => RopeScaling::Llama3(Llama3Scaling {
                factor: positive(json, "factor")?,
                low_freq_factor: positive(json, "low_freq_factor")?,
                high_freq_factor: positive(json, "high_freq_factor")?,
                original_max_position_embeddings: positive(json, "original_max_position_embeddings")?,
            }),
            other => {
                return Err(Error::data(format!("rope: scaling \"{other}\" is not supported"))
                    .hint("supported: default, linear, llama3"));
            }
        };
        Ok((theta, scaling))
    }

    /// Qwen2-VL's `mrope_section`; empty where positions have one axis.
    pub(super) fn sections(config: &Value) -> Result<Vec<usize>> {
        let of = |n: &&str| config.get(*n).and_then(|v| v.get("mrope_section")).filter(|v| !v.is_null());
        let Some(list) = ["rope_parameters", "rope_scaling"].iter().find_map(of) else { return Ok(Vec::new()) };
        let numbers = list.as_array().map(|l| l.iter().map(|n| n.as_u64().map(|n| n as usize)).collect());
        numbers.flatten().ok_or_else(|| Error::data(format!("rope: mrope_section = {list} is no list of numbers")))
    }

    /// `rope_parameters` of transformers 5.
    pub(super) fn to_json(&self, theta: f64) -> Value {
        match self {
            RopeScaling::None => serde_json::json!({ "rope_type": "default", "rope_theta": theta }),
            RopeScaling::Linear(s) => {
                serde_json::json!({ "rope_type": "linear", "rope_theta": theta, "factor": s.factor })
            }
            RopeScaling::Llama3(s) => serde_json::json!({
                "rope_type": "llama3",
                "rope_theta": theta,
                "factor": s.factor,
                "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_position_embeddings,
            }),
        }
    }

    /// The angle a position adds to each pair of a head, `(head_dim / 2)`, in f32 as PyTorch has it.
    pub fn frequencies(&self, theta: f64, head_dim: usize) -> Vec<f32> {
        (0..head_dim / 2)
            .map(|i| {
                let plain = (1.0 / theta.powf((2 * i) as f64 / head_dim as f64)) as f32;
                match self {
                    RopeScaling::None => plain,
                    RopeScaling::Linear(s) => plain / s.factor as f32,
                    RopeScaling::Llama3(s) => s.stretch(f64::from(plain)) as f32,
                }
            })
            .collect()
    }
}

impl Llama3Scaling {
    fn stretch(&self, frequency: f64) -> f64 {
        let turns = self.original_max_position_embeddings * frequency / std::f64::consts::TAU;
        if turns < self.low_freq_factor {
            return frequency / self.factor;
        }
        if turns > self.high_freq_factor {
            return frequency;
        }
        let smooth = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor);
        (1.0 - smooth) * frequency / self.factor + smooth * frequency
    }
}

fn positive(json: &Value, name: &str) -> Result<f64> {
    let x = number(json, name, f64::NAN)?;
    if x > 0.0 { Ok(x) } else { Err(Error::data(format!("rope: {name} must be a positive number, found {x}"))) }
}

/// Cosines and sines of the positions of a batch, `(rows or 1, 1, tokens, head_dim / 2)`.
#[derive(Clone, Debug)]
pub struct Turns {
    cos: Tensor,
    sin: Tensor,
}

impl Turns {
    /// For rows whose tokens have these positions; one row serves all rows of a batch.
    pub fn new(frequencies: &[f32], positions: &[Vec<u32>], dtype: DType, device: &Device) -> Result<Self> {
        let tokens = positions.first().map_or(0, Vec::len);
        let angles: Vec<f32> =
            positions.iter().flatten().flat_map(|&p| frequencies.iter().map(move |f| p as f32 * f)).collect();
        Self::of(Tensor::from_vec(angles, (positions.len(), 1, tokens, frequencies.len()), device)?, dtype)
    }

    /// For positions of three axes: the first `sections[0]` frequencies turn by the first axis, and so on.
    pub fn by_axes(
        frequencies: &[f32],
        sections: &[usize],
        positions: &[Vec<[u32; 3]>],
        dtype: DType,
        device: &Device,
    ) -> Result<Self> {
        let tokens = positions.first().map_or(0, Vec::len);
        let axes: Vec<usize> = sections.iter().enumerate().flat_map(|(a, &n)| std::iter::repeat_n(a, n)).collect();
        if axes.len() != frequencies.len() || axes.iter().any(|a| *a > 2) {
            return Err(Error::defect(format!("rope: sections {sections:?} of {} frequencies", frequencies.len())));
        }
        let mut angles = Vec::with_capacity(positions.len() * tokens * frequencies.len());
        for position in positions.iter().flatten() {
            angles.extend(frequencies.iter().zip(&axes).map(|(f, &axis)| position[axis] as f32 * f));
        }
        Self::of(Tensor::from_vec(angles, (positions.len(), 1, tokens, frequencies.len()), device)?, dtype)
    }

    fn of(angles: Tensor, dtype: DType) -> Result<Self> {
        Ok(Turns { cos: angles.cos()?.to_dtype(dtype)?, sin: angles.sin()?.to_dtype(dtype)? })
    }

    /// Turns `x` `(rows, heads, tokens, head_dim)`: pair i is elements i and i + head_dim/2.
    pub fn apply(&self, x: &Tensor) -> Result<Tensor> {
        if x.track_op() {
            return self.composed(x);
        }
        let (rows, ..) = self.cos.dims4()?;
        let axis = if rows == 1 { 0 } else { 1 };
        let flat = |t: &Tensor| if rows == 1 { t.squeeze(axis)?.squeeze(0) } else { t.squeeze(axis) };
        Ok(candle_nn::rotary_emb::rope(&x.contiguous()?, &flat(&self.cos)?, &flat(&self.sin)?)?)
    }

    /// Turns heads that lie token by token on a CPU in f32, `(rows, tokens, heads, head_dim)`, in place.
    pub(super) fn turn(&self, x: &mut [f32], head_dim: usize, heads: usize) -> Result<()> {
        const TOKENS: usize = 32;
        let (cos, sin) = (View::of(&self.cos)?, View::of(&self.sin)?);
        let (half, token) = (head_dim / 2, (heads * head_dim).max(1));
        let some = |(first, x): (usize, &mut [f32])| {
            for (i, x) in x.chunks_exact_mut(token).enumerate() {
                // One row of positions serves all rows.
                let at = (first * TOKENS + i) * half % cos.len().max(1);
                let (cos, sin) = (&cos[at..at + half], &sin[at..at + half]);
                for head in x.chunks_exact_mut(head_dim) {
                    let (low, high) = head.split_at_mut(half);
                    for i in 0..half {
                        let (a, b) = (low[i], high[i]);
                        low[i] = a * cos[i] - b * sin[i];
                        high[i] = b * cos[i] + a * sin[i];
                    }
                }
            }
        };
        match x.len() > 2 * TOKENS * token && rayon::current_num_threads() > 1 {
            true => x.par_chunks_mut(TOKENS * token).enumerate().for_each(some),
            false => x.chunks_mut(TOKENS * token).enumerate().for_each(some),
        }
        Ok(())
    }

    /// What turns back.
    pub(super) fn back(&self) -> Result<Turns> {
        Ok(Turns { cos: self.cos.clone(), sin: self.sin.neg()? })
    }

    fn composed(&self, x: &Tensor) -> Result<Tensor> {
        let half = x.dim(D::Minus1)? / 2;
        let (a, b) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
        let low = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(&self.sin)?)?;
        let high = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(&self.sin)?)?;
        Ok(Tensor::cat(&[low, high], D::Minus1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;
    use serde_json::json;

    #[test]
    fn both_forms_of_the_config_mean_the_same() {
        let new = json!({"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}});
        let old = json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}});
        let read = |v| RopeScaling::from_json(&v, 1e4).unwrap();
        assert_eq!(read(new), read(old.clone()));
        assert_eq!(read(old), (5e5, RopeScaling::Linear(LinearScaling { factor: 4.0 })));
    }

    #[test]
    fn an_unknown_scaling_is_refused_with_the_known_ones() {
        let e = RopeScaling::from_json(&json!({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}), 1e4);
        assert!(e.unwrap_err().to_string().contains("supported: default, linear, llama3"));
    }

    #[test]
    fn one_row_and_several_rows_of_positions_turn_the_same_in_both_ways() {
        let frequencies = RopeScaling::None.frequencies(1e4, 6);
        let dev = Device::Cpu;
        let data: Vec<f32> = (0..2 * 3 * 4 * 6).map(|i| (i as f32 * 0.37).sin()).collect();
        let x = Var::from_vec(data, (2, 3, 4, 6), &dev).unwrap();
        let one = Turns::new(&frequencies, &[vec![3, 4, 5, 6]], DType::F32, &dev).unwrap();
        let two = Turns::new(&frequencies, &[vec![3, 4, 5, 6], vec![3, 4, 5, 6]], DType::F32, &dev).unwrap();
        let flat = |t: Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let composed = flat(one.apply(x.as_tensor()).unwrap());
        for other in [&one, &two] {
            let fused = flat(other.apply(&x.as_tensor().detach()).unwrap());
            assert!(fused.iter().zip(&composed).all(|(a, b)| (a - b).abs() < 1e-6));
        }
    }
}
