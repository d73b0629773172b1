//! Models by their published names: compact networks as short operation lists, the frozen giants on candle.

pub mod chat;
pub mod clip;
pub mod cnn;
pub mod fused;
pub mod graph;
pub mod hub;
pub mod layers;
pub mod llama;
pub mod llava;
pub mod lora;
pub mod mlp;
pub mod resnet;
pub mod sample;
pub mod siglip;
pub mod view;
pub mod vlm;
pub mod weights;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Net, NetBuilder, Node};

/// What stands on the features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Head {
    /// A classifier of so many classes, under the name that the reference code gives it.
    Classes(usize),
    /// A linear layer of so many outputs called `projection`: pretraining trains it with the body and throws it away,
    /// and the body's tensors keep the names that the classifier's network knows.
    Projection(usize),
}

impl Head {
    /// Width of the last layer.
    pub fn outputs(self) -> usize {
        match self {
            Head::Classes(n) | Head::Projection(n) => n,
        }
    }

    /// The last layer's name, given what the reference code calls its classifier.
    pub fn name(self, classifier: &str) -> &str {
        match self {
            Head::Classes(_) => classifier,
            Head::Projection(_) => "projection",
        }
    }
}

/// Which compact network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ModelConfig {
    /// CReFF's and CLIP2FL's ResNet-8, any width.
    Resnet8(resnet::Resnet8),
    /// CIFAR ResNet-20, option A.
    Resnet20(resnet::Plain),
    /// CIFAR ResNet-56, option A.
    Resnet56(resnet::Plain),
    /// ImageNet ResNet-10.
    Resnet10(resnet::Imagenet),
    /// ImageNet ResNet-18.
    Resnet18(resnet::Imagenet),
    /// ImageNet ResNet-50.
    Resnet50(resnet::Imagenet),
    /// pfl-research's two-convolution network.
    Cnn(cnn::Cnn),
    /// Fully connected layers on the flattened image.
    Mlp(mlp::Mlp),
}

impl Default for ModelConfig {
    fn default() -> Self {
        ModelConfig::Resnet8(resnet::Resnet8::default())
    }
}

impl ModelConfig {
    /// Refuses sizes that no image could make right.
    pub fn check(&self) -> Result<()> {
        match self {
            ModelConfig::Cnn(c) => c.check(),
            ModelConfig::Resnet8(_) | ModelConfig::Mlp(_) => self.build([3, 32, 32], Head::Classes(2)).map(|_| ()),
            ModelConfig::Resnet10(c) | ModelConfig::Resnet18(c) | ModelConfig::Resnet50(c) => c.check(),
            ModelConfig::Resnet20(_) | ModelConfig::Resnet56(_) => Ok(()),
        }
    }

    /// The network for images of shape `(C, H, W)`. Taps: `feature` (what the head sees) and, where there is one,
    /// `map` (the last spatial map).
    pub fn build(&self, input: [usize; 3], head: Head) -> Result<Net> {
        let [c, h, w] = input;
        if c * h * w == 0 || head.outputs() == 0 {
            return Err(Error::input(format!("a network needs images and outputs, got {input:?} and {head:?}")));
        }
        match self {
            ModelConfig::Resnet8(config) => config.build(input, head),
            ModelConfig::Resnet20(_) => resnet::cifar(20, input, head),
            ModelConfig::Resnet56(_) => resnet::cifar(56, input, head),
            ModelConfig::Resnet10(config) => config.resnet10(input, head),
            ModelConfig::Resnet18(config) => config.resnet18(input, head),
            ModelConfig::Resnet50(config) => config.resnet50(input, head),
            ModelConfig::Cnn(config) => config.build(input, head),
            ModelConfig::Mlp(config) => config.build(input, head),
        }
    }
}

/// Puts the head with PyTorch's default start on `feature` and finishes the network.
fn finish(mut b: NetBuilder, name: String, feature: Node, head: Head, classifier: &str) -> Result<Net> {
    b.tap("feature", feature);
    let logits = b.linear(feature, head.name(classifier), head.outputs())?;
    b.finish(name, logits)
}
