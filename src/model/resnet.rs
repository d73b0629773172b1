//! Residual networks: He, Zhang, Ren, Sun, *Deep residual learning for image recognition*, CVPR 2016.
//!
//! - [`Resnet8`]: CReFF (Shang et al., IJCAI 2022) and CLIP2FL (Shi et al., AAAI 2024). Names as in their code: `conv1`,
//!   `bn1`, `layer1.0.conv1`, `layer2.0.downsample.0`, `classifier`; CLIP2FL's extra layer is `add_mlp`.
//! - [`cifar`]: the 6n + 2 layers of the paper's section 4.2 with option A shortcuts; names as in akamaster's
//!   `pytorch_resnet_cifar10` (`layer1.0.conv1`, …, `linear`).
//! - [`Imagenet`]: ResNet-18 and ResNet-50 as in torchvision (`fc`; the stride of a bottleneck on its 3×3), and ResNet-10;
//!   with CLIP2FL's `add_mlp` too.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Head, finish};
use crate::error::{Error, Result};
use crate::nn::net::Start;
use crate::nn::{Net, NetBuilder, Node};

/// A network without settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Plain {}

/// A network for ImageNet: a 7×7 stem, max-pooling, four stages.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Imagenet {
    /// Width of CLIP2FL's extra linear layer (512), without activation, before the head. None: torchvision's.
    pub mlp: Option<usize>,
}

/// ResNet-8: a 3×3 stem and three stages of one basic block, projection shortcuts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Resnet8 {
    /// Channels of the first stage; the others have twice and four times as many. CReFF: 64.
    pub width: usize,
    /// Width of CLIP2FL's extra linear layer (512), without activation, before the head. None: CReFF.
    pub mlp: Option<usize>,
}

impl Default for Resnet8 {
    fn default() -> Self {
        Resnet8 { width: 64, mlp: None }
    }
}

impl Resnet8 {
    /// The network for images `(C, H, W)`.
    pub fn build(&self, [c, h, w]: [usize; 3], head: Head) -> Result<Net> {
        if self.width == 0 || self.mlp == Some(0) {
            return Err(Error::input("resnet8: width and mlp must be at least 1"));
        }
        let mut b = NetBuilder::new(c, h, w);
        let mut x = stem(&mut b, self.width, 3, 1, 1, fan_out)?;
        for stage in 0..3 {
            let (out, stride) = (self.width << stage, 1 + usize::from(stage > 0));
            x = basic(&mut b, x, &format!("layer{}.0", stage + 1), out, stride, fan_out, Shortcut::Projection)?;
        }
        b.tap("map", x);
        let mut feature = b.global_avg_pool(x)?;
        if let Some(width) = self.mlp {
            feature = b.linear(feature, "add_mlp", width)?;
        }
        let name = format!("resnet8-{}-{}-{}", self.width, 2 * self.width, 4 * self.width);
        finish(b, name, feature, head, "classifier")
    }
}

/// CIFAR ResNet with `depth` = 6n + 2 layers and widths 16, 32, 64.
pub fn cifar(depth: usize, [c, h, w]: [usize; 3], head: Head) -> Result<Net> {
    let mut b = NetBuilder::new(c, h, w);
    let mut x = stem(&mut b, 16, 3, 1, 1, fan_in)?;
    for stage in 0..3 {
        for block in 0..(depth.saturating_sub(2)) / 6 {
            let stride = 1 + usize::from(stage > 0 && block == 0);
            let name = format!("layer{}.{block}", stage + 1);
            x = basic(&mut b, x, &name, 16 << stage, stride, fan_in, Shortcut::OptionA)?;
        }
    }
    b.tap("map", x);
    let feature = b.global_avg_pool(x)?;
    b.tap("feature", feature);
    // The reference starts the classifier as the convolutions: normal with variance 2 / fan_in.
    let bias = Start::Uniform(1.0 / 8.0);
    let logits = b.linear_with(feature, head.name("linear"), head.outputs(), fan_in(64, 0, 1), Some(bias))?;
    b.finish(format!("resnet{depth}"), logits)
}

impl Imagenet {
    /// With one basic block a stage, as work on long tails uses it (Liu et al., CVPR 2019).
    pub fn resnet10(&self, input: [usize; 3], head: Head) -> Result<Net> {
        self.basic("resnet10", 1, input, head)
    }

    /// torchvision's ResNet-18.
    pub fn resnet18(&self, input: [usize; 3], head: Head) -> Result<Net> {
        self.basic("resnet18", 2, input, head)
    }

    fn basic(&self, name: &str, blocks: usize, input: [usize; 3], head: Head) -> Result<Net> {
        let (mut b, mut x) = imagenet_stem(input)?;
        for stage in 0..4 {
            for block in 0..blocks {
                let stride = 1 + usize::from(stage > 0 && block == 0);
                let name = format!("layer{}.{block}", stage + 1);
                x = basic(&mut b, x, &name, 64 << stage, stride, fan_out, Shortcut::Projection)?;
            }
        }
        self.end(b, x, name, head)
    }

    /// torchvision's ResNet-50.
    pub fn resnet50(&self, input: [usize; 3], head: Head) -> Result<Net> {
        let (mut b, mut x) = imagenet_stem(input)?;
        for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
            for block in 0..blocks {
                let stride = 1 + usize::from(stage > 0 && block == 0);
                x = bottleneck(&mut b, x, &format!("layer{}.{block}", stage + 1), 64 << stage, stride)?;
            }
        }
        self.end(b, x, "resnet50", head)
    }

    fn end(&self, mut b: NetBuilder, x: Node, name: &str, head: Head) -> Result<Net> {
        b.tap("map", x);
        let mut feature = b.global_avg_pool(x)?;
        if let Some(width) = self.mlp {
            feature = b.linear(feature, "add_mlp", width)?;
        }
        finish(b, name.to_string(), feature, head, "fc")
    }

    /// Refuses sizes that no image could make right.
    pub fn check(&self) -> Result<()> {
        match self.mlp {
            Some(0) => Err(Error::input("model.mlp must be at least 1")),
            _ => Ok(()),
        }
    }
}

/// How a block's input reaches its sum when shapes differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shortcut {
    /// Every second pixel and zero channels.
    OptionA,
    /// 1×1 convolution and batch norm.
    Projection,
}

/// A convolution's start from `(in, out, kernel)`.
type Init = fn(usize, usize, usize) -> Start;

/// Kaiming normal, fan in: variance 2 / (in·k²).
fn fan_in(inputs: usize, _: usize, kernel: usize) -> Start {
    Start::Normal((2.0 / (inputs * kernel * kernel) as f32).sqrt())
}

/// Kaiming normal, fan out: variance 2 / (out·k²).
fn fan_out(_: usize, out: usize, kernel: usize) -> Start {
    Start::Normal((2.0 / (out * kernel * kernel) as f32).sqrt())
}

fn stem(b: &mut NetBuilder, out: usize, kernel: usize, stride: usize, padding: usize, init: Init) -> Result<Node> {
    let start = init(b.shape(NetBuilder::INPUT)[0], out, kernel);
    let x = b.conv(NetBuilder::INPUT, "conv1", out, kernel, stride, padding, start)?;
    let x = b.batch_norm(x, "bn1")?;
    Ok(b.relu(x))
}

fn imagenet_stem([c, h, w]: [usize; 3]) -> Result<(NetBuilder, Node)> {
    let mut b = NetBuilder::new(c, h, w);
    let x = stem(&mut b, 64, 7, 2, 3, fan_out)?;
    let x = b.max_pool(x, 3, 2, 1)?;
    Ok((b, x))
}

/// Convolution (3×3 with padding 1, or 1×1) and batch norm.
fn conv_bn(
    b: &mut NetBuilder,
    x: Node,
    [conv, bn]: [&str; 2],
    [out, kernel, stride]: [usize; 3],
    init: Init,
) -> Result<Node> {
    let start = init(b.shape(x)[0], out, kernel);
    let x = b.conv(x, conv, out, kernel, stride, kernel / 2, start)?;
    b.batch_norm(x, bn)
}

fn shortcut(
    b: &mut NetBuilder,
    x: Node,
    name: &str,
    out: usize,
    stride: usize,
    init: Init,
    kind: Shortcut,
) -> Result<Node> {
    if stride == 1 && b.shape(x)[0] == out {
        return Ok(x);
    }
    match kind {
        Shortcut::OptionA => b.subsample(x, stride, out),
        Shortcut::Projection => {
            let names = [format!("{name}.downsample.0"), format!("{name}.downsample.1")];
            conv_bn(b, x, [&names[0], &names[1]], [out, 1, stride], init)
        }
    }
}

/// Two 3×3 convolutions and the shortcut.
fn basic(
    b: &mut NetBuilder,
    x: Node,
    name: &str,
    out: usize,
    stride: usize,
    init: Init,
    kind: Shortcut,
) -> Result<Node> {
    let names: Vec<String> = ["conv1", "bn1", "conv2", "bn2"].iter().map(|n| format!("{name}.{n}")).collect();
    let y = conv_bn(b, x, [&names[0], &names[1]], [out, 3, stride], init)?;
    let y = b.relu(y);
    let y = conv_bn(b, y, [&names[2], &names[3]], [out, 3, 1], init)?;
    let side = shortcut(b, x, name, out, stride, init, kind)?;
    let sum = b.add(y, side)?;
    Ok(b.relu(sum))
}

/// 1×1, 3×3 with the stride, 1×1 to four times the width, and the shortcut.
fn bottleneck(b: &mut NetBuilder, x: Node, name: &str, width: usize, stride: usize) -> Result<Node> {
    let mut y = x;
    for (i, spec) in [[width, 1, 1], [width, 3, stride], [4 * width, 1, 1]].into_iter().enumerate() {
        let names = [format!("{name}.conv{}", i + 1), format!("{name}.bn{}", i + 1)];
        y = conv_bn(b, y, [&names[0], &names[1]], spec, fan_out)?;
        if i < 2 {
            y = b.relu(y);
        }
    }
    let side = shortcut(b, x, name, 4 * width, stride, fan_out, Shortcut::Projection)?;
    let sum = b.add(y, side)?;
    Ok(b.relu(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(net: Result<Net>) -> usize {
        net.unwrap().layout.weights()
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        let resnet8 = |width, mlp, classes| weights(Resnet8 { width, mlp }.build([3, 32, 32], Head::Classes(classes)));
        assert_eq!(resnet8(64, None, 10), 1_227_594);
        assert_eq!(resnet8(64, None, 100), 1_250_724);
        assert_eq!(resnet8(64, Some(512), 10), 1_361_738);
        assert_eq!(resnet8(64, Some(512), 100), 1_407_908);
        assert_eq!(resnet8(16, None, 10), 78_042);
        assert_eq!(weights(cifar(20, [3, 32, 32], Head::Classes(10))), 269_722);
        assert_eq!(weights(cifar(56, [3, 32, 32], Head::Classes(10))), 853_018);
        let (plain, clip2fl) = (Imagenet::default(), Imagenet { mlp: Some(512) });
        assert_eq!(weights(plain.resnet10([3, 224, 224], Head::Classes(1000))), 5_418_792);
        assert_eq!(weights(plain.resnet18([3, 224, 224], Head::Classes(1000))), 11_689_512);
        assert_eq!(weights(plain.resnet50([3, 224, 224], Head::Classes(1000))), 25_557_032);
        assert_eq!(weights(clip2fl.resnet50([3, 224, 224], Head::Classes(1000))), 25_070_120);
    }

    #[test]
    fn published_costs_are_met() {
        let macs = |net: Result<Net>| net.unwrap().multiply_adds() as f64 / 1e6;
        assert!((macs(Resnet8::default().build([3, 32, 32], Head::Classes(10))) - 195.0).abs() < 1.0);
        assert!((macs(Imagenet::default().resnet50([3, 224, 224], Head::Classes(1000))) - 4089.0).abs() < 1.0);
    }

    #[test]
    fn a_projection_leaves_the_bodys_names_alone() {
        let classes = Resnet8::default().build([3, 32, 32], Head::Classes(10)).unwrap();
        let projection = Resnet8::default().build([3, 32, 32], Head::Projection(96)).unwrap();
        let names = |net: &Net| net.layout.entries().iter().map(|e| e.name.clone()).collect::<Vec<_>>();
        let (a, b) = (names(&classes), names(&projection));
        assert_eq!(a[..a.len() - 2], b[..b.len() - 2]);
        assert_eq!(b[b.len() - 2..], ["projection.weight", "projection.bias"]);
        assert_eq!(a[a.len() - 2..], ["classifier.weight", "classifier.bias"]);
        assert!(a.contains(&"layer3.0.downsample.1.running_var".to_string()));
    }
}
