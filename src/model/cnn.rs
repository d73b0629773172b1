//! The small CNN of pfl-research's CIFAR-10 benchmark (Granqvist et al., *pfl-research*, 2024; `simple_cnn`).
//!
//! conv 3×3 → 32, ReLU, conv 3×3 → 64, ReLU, max-pool 2, dropout ¼, fc 128, ReLU, dropout ½, fc; no padding. Its code
//! numbers the layers of a `Sequential` (1, 3, 8, 11); here they are `conv1`, `conv2`, `fc1`, `fc2`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Head;
use crate::error::{Error, Result};
use crate::nn::net::Start;
use crate::nn::{Net, NetBuilder};

/// The network's settings; the defaults are the benchmark's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Cnn {
    /// Dropout after the pooling, `[0, 1)`.
    pub dropout_map: f32,
    /// Dropout before the head, `[0, 1)`.
    pub dropout_feature: f32,
}

impl Default for Cnn {
    fn default() -> Self {
        Cnn { dropout_map: 0.25, dropout_feature: 0.5 }
    }
}

impl Cnn {
    /// Refuses shares that are none.
    pub fn check(&self) -> Result<()> {
        for (key, p) in [("dropout_map", self.dropout_map), ("dropout_feature", self.dropout_feature)] {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::input(format!("model.{key} = {p}: a share below 1, or 0 for none")));
            }
        }
        Ok(())
    }

    /// The network for images `(C, H, W)`.
    pub fn build(&self, [c, h, w]: [usize; 3], head: Head) -> Result<Net> {
        let mut b = NetBuilder::new(c, h, w);
        let mut x = NetBuilder::INPUT;
        for (name, inputs, out) in [("conv1", c, 32), ("conv2", 32, 64)] {
            let bias = Start::Uniform(1.0 / ((inputs * 9) as f32).sqrt());
            x = b.conv_with(x, name, out, 3, 1, 0, 1, xavier(inputs * 9, out * 9), Some(bias))?;
            x = b.relu(x);
        }
        x = b.max_pool(x, 2, 2, 0)?;
        b.tap("map", x);
        x = b.dropout(x, self.dropout_map)?;
        x = b.flatten(x);
        let inputs = b.shape(x)[0];
        let bias = Start::Uniform(1.0 / (inputs as f32).sqrt());
        x = b.linear_with(x, "fc1", 128, xavier(inputs, 128), Some(bias))?;
        x = b.relu(x);
        x = b.dropout(x, self.dropout_feature)?;
        b.tap("feature", x);
        let bias = Start::Uniform(1.0 / 128f32.sqrt());
        let (start, out) = (xavier(128, head.outputs()), head.outputs());
        let logits = b.linear_with(x, head.name("fc2"), out, start, Some(bias))?;
        b.finish("cnn", logits)
    }
}

/// Glorot's uniform start: ±√(6 / (fan in + fan out)).
fn xavier(fan_in: usize, fan_out: usize) -> Start {
    Start::Uniform((6.0 / (fan_in + fan_out) as f32).sqrt())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_count_is_the_published_one() {
        let net = Cnn::default().build([3, 32, 32], Head::Classes(10)).unwrap();
        assert_eq!(net.layout.weights(), 1_626_442);
    }
}
