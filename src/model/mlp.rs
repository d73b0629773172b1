//! A multilayer perceptron on the flattened image: `fc1`, ReLU, …, head `fc`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Head, finish};
use crate::error::{Error, Result};
use crate::nn::{Net, NetBuilder};

/// The network's settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Mlp {
    /// Widths of the hidden layers; none gives a linear classifier.
    pub hidden: Vec<usize>,
}

impl Default for Mlp {
    fn default() -> Self {
        Mlp { hidden: vec![200, 200] }
    }
}

impl Mlp {
    /// The network for images `(C, H, W)`.
    pub fn build(&self, [c, h, w]: [usize; 3], head: Head) -> Result<Net> {
        if self.hidden.contains(&0) {
            return Err(Error::input("mlp: every hidden width must be at least 1"));
        }
        let mut b = NetBuilder::new(c, h, w);
        let mut x = b.flatten(NetBuilder::INPUT);
        for (i, &width) in self.hidden.iter().enumerate() {
            x = b.linear(x, &format!("fc{}", i + 1), width)?;
            x = b.relu(x);
        }
        finish(b, "mlp".to_string(), x, head, "fc")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_as_wide_as_asked() {
        let net = Mlp { hidden: vec![5, 4] }.build([1, 2, 3], Head::Classes(2)).unwrap();
        assert_eq!(net.layout.weights(), 6 * 5 + 5 + 5 * 4 + 4 + 4 * 2 + 2);
        assert_eq!(Mlp { hidden: vec![] }.build([1, 2, 3], Head::Classes(2)).unwrap().layout.weights(), 14);
    }
}
