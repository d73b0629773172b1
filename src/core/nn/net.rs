//! A compact network: one list of operations in SSA form, written once and run by every interpreter.
//!
//! [`NetBuilder`] appends operations, registers parameters under PyTorch's names and infers shapes; a [`Net`] is the
//! finished list. Node `i` is the value of operation `i`.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::params::{Layout, Params, Role};
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};

/// The value of an operation: its index in [`Net::ops`].
pub type Node = usize;

/// A parameter: its index in the layout's entries.
pub type ParamId = usize;

/// One operation. Shapes are per sample: `(C, H, W)` or `(F)`.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The images.
    Input,
    /// Cross-correlation as PyTorch's `Conv2d`; weight `(out, in/groups, k, k)`.
    Conv2d {
        /// Input node.
        x: Node,
        /// Weight.
        weight: ParamId,
        /// Bias `(out)`, if any.
        bias: Option<ParamId>,
        /// Step in both directions.
        stride: usize,
        /// Zeros on every side.
        padding: usize,
        /// Channel groups.
        groups: usize,
    },
    /// Batch norm over batch and space, eps [`BN_EPS`], momentum [`BN_MOMENTUM`].
    BatchNorm {
        /// Input node `(C, H, W)`.
        x: Node,
        /// γ `(C)`; the entries after it are β, running mean, running variance.
        weight: ParamId,
        /// β `(C)`.
        bias: ParamId,
        /// Running mean `(C)`, a buffer.
        mean: ParamId,
        /// Running variance `(C)`, a buffer; unbiased.
        var: ParamId,
    },
    /// `max(x, 0)`.
    Relu {
        /// Input node.
        x: Node,
    },
    /// `a + b`, equal shapes.
    Add {
        /// First summand.
        a: Node,
        /// Second summand.
        b: Node,
    },
    /// Maximum over windows; padding never wins. Overlap allowed. Ties: the first in row-major order gets the gradient.
    MaxPool {
        /// Input node.
        x: Node,
        /// Window side.
        kernel: usize,
        /// Step.
        stride: usize,
        /// Border on every side.
        padding: usize,
    },
    /// Mean over windows without padding.
    AvgPool {
        /// Input node.
        x: Node,
        /// Window side.
        kernel: usize,
        /// Step.
        stride: usize,
    },
    /// Mean over all positions: `(C, H, W)` → `(C)`.
    GlobalAvgPool {
        /// Input node.
        x: Node,
    },
    /// ResNet's option-A shortcut: every `stride`-th pixel, then `before`/`after` zero channels.
    Subsample {
        /// Input node.
        x: Node,
        /// Step.
        stride: usize,
        /// Zero channels before.
        before: usize,
        /// Zero channels after.
        after: usize,
    },
    /// `(C, H, W)` → `(C·H·W)`.
    Flatten {
        /// Input node.
        x: Node,
    },
    /// `x Wᵀ + b`; weight `(out, in)`.
    Linear {
        /// Input node `(in)`.
        x: Node,
        /// Weight.
        weight: ParamId,
        /// Bias `(out)`, if any.
        bias: Option<ParamId>,
    },
    /// Zeroes each element with probability `p` in training and scales the rest by 1/(1−p).
    Dropout {
        /// Input node.
        x: Node,
        /// Probability of a zero, `[0, 1)`.
        p: f32,
    },
    /// The loss of each row, `(1)`, found by an interpreter of its own: of a language model, whose logits stay inside.
    Loss {
        /// Input node: what names the row.
        x: Node,
        /// Of one row's forward pass.
        multiply_adds: u64,
    },
}

/// Batch norm's epsilon (PyTorch's default).
pub const BN_EPS: f32 = 1e-5;
/// Batch norm's momentum (PyTorch's default).
pub const BN_MOMENTUM: f32 = 0.1;

/// How a parameter starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Start {
    /// Everywhere this value.
    Constant(f32),
    /// Normal with this standard deviation.
    Normal(f32),
    /// Uniform in ±bound.
    Uniform(f32),
}

/// A finished network.
#[derive(Clone, Debug)]
pub struct Net {
    /// Published or descriptive name.
    pub name: String,
    /// The operations; operands come before their use.
    pub ops: Vec<Op>,
    /// Shape of each node's value, per sample.
    pub shapes: Vec<Vec<usize>>,
    /// The parameters.
    pub layout: Arc<Layout>,
    /// How each entry of the layout starts.
    pub starts: Vec<Start>,
    /// Named nodes for those who look inside: `feature` (what the head sees), `map` (last spatial map).
    pub taps: BTreeMap<String, Node>,
    /// The output: class scores, or a projection.
    pub logits: Node,
}

impl Net {
    /// Per-sample shape of the images, `(C, H, W)`.
    pub fn input_shape(&self) -> &[usize] {
        &self.shapes[0]
    }

    /// Width of the output: classes, or the dimension of a projection.
    pub fn outputs(&self) -> usize {
        self.shapes[self.logits][0]
    }

    /// A network of which only its rows' losses are known: rows are numbers `(1)`, all else is its interpreter's.
    pub fn of_losses(name: &str, layout: Arc<Layout>, starts: Vec<Start>, multiply_adds: u64) -> Net {
        let (ops, shapes) = (vec![Op::Input, Op::Loss { x: 0, multiply_adds }], vec![vec![1]; 2]);
        Net { name: name.to_string(), ops, shapes, layout, starts, taps: BTreeMap::new(), logits: 1 }
    }

    /// Whether its output is the loss of each row, not scores.
    pub fn gives_losses(&self) -> bool {
        matches!(self.ops[self.logits], Op::Loss { .. })
    }

    /// The node called `tap`.
    pub fn tap(&self, tap: &str) -> Result<Node> {
        self.taps.get(tap).copied().ok_or_else(|| {
            let names: Vec<&str> = self.taps.keys().map(String::as_str).collect();
            Error::defect(format!("{} has no tap {tap}; it has {}", self.name, names.join(", ")))
        })
    }

    /// The ranges of the last linear layer's parameters in the flat slice.
    pub fn head(&self) -> Vec<std::ops::Range<usize>> {
        match &self.ops[self.logits] {
            Op::Linear { weight, bias, .. } => {
                std::iter::once(weight).chain(bias).map(|&id| self.layout.entries()[id].range()).collect()
            }
            _ => Vec::new(),
        }
    }

    /// Names of the batch norms that see a map of one pixel: a batch of one image gives them no variance.
    pub fn norms_of_one_pixel(&self) -> impl Iterator<Item = &str> {
        let of = |op: &Op| match op {
            Op::BatchNorm { x, weight, .. } if self.shapes[*x].iter().skip(1).product::<usize>() == 1 => Some(*weight),
            _ => None,
        };
        self.ops.iter().filter_map(of).map(|weight| self.layout.entries()[weight].name.as_str())
    }

    /// Fresh parameters: each tensor from its own key, so that a changed head leaves the body's draw alone.
    pub fn init(&self, key: Key) -> Params {
        let mut data = vec![0.0f32; self.layout.len()];
        for (entry, start) in self.layout.entries().iter().zip(&self.starts) {
            let digest = entry.name.bytes().fold(0u64, |h, b| h.wrapping_mul(0x100_0000_01B3) ^ u64::from(b));
            let mut rng = key.fold(Purpose::Item, digest).rng();
            for value in &mut data[entry.range()] {
                *value = match *start {
                    Start::Constant(c) => c,
                    Start::Normal(std) => std * rng.normal() as f32,
                    Start::Uniform(bound) => bound * (2.0 * rng.f32() - 1.0),
                };
            }
        }
        let zeros = Params::zeros(self.layout.clone());
        Params::new(self.layout.clone(), data).unwrap_or(zeros)
    }

    /// Multiply-adds of one forward pass of one image (convolutions and linear layers).
    pub fn multiply_adds(&self) -> u64 {
        let of = |op: &Op, shape: &[usize]| -> usize {
            match op {
                Op::Conv2d { weight, .. } => {
                    let w = &self.layout.entries()[*weight].shape;
                    shape.iter().product::<usize>() * w[1] * w[2] * w[3]
                }
                Op::Linear { weight, .. } => self.layout.entries()[*weight].len(),
                Op::Loss { multiply_adds, .. } => *multiply_adds as usize,
                _ => 0,
            }
        };
        self.ops.iter().zip(&self.shapes).map(|(op, shape)| of(op, shape) as u64).sum()
    }
}

/// Builds a [`Net`]; every method returns the new node. A shape that does not fit is an error that names the tensor.
pub struct NetBuilder {
    ops: Vec<Op>,
    shapes: Vec<Vec<usize>>,
    layout: Layout,
    starts: Vec<Start>,
    taps: BTreeMap<String, Node>,
}

impl NetBuilder {
    /// Starts with images of shape `(channels, height, width)`; they are node 0.
    pub fn new(channels: usize, height: usize, width: usize) -> Self {
        NetBuilder {
            ops: vec![Op::Input],
            shapes: vec![vec![channels, height, width]],
            layout: Layout::default(),
            starts: Vec::new(),
            taps: BTreeMap::new(),
        }
    }

    /// The images.
    pub const INPUT: Node = 0;

    /// Per-sample shape of a node.
    pub fn shape(&self, node: Node) -> &[usize] {
        &self.shapes[node]
    }

    /// A square convolution without bias, started with `start`.
    #[allow(clippy::too_many_arguments, reason = "PyTorch's own list")]
    pub fn conv(
        &mut self,
        x: Node,
        name: &str,
        out: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        start: Start,
    ) -> Result<Node> {
        self.conv_with(x, name, out, kernel, stride, padding, 1, start, None)
    }

    /// A square convolution with groups and, if `bias` says how it starts, a bias.
    #[allow(clippy::too_many_arguments, reason = "PyTorch's own list")]
    pub fn conv_with(
        &mut self,
        x: Node,
        name: &str,
        out: usize,
        kernel: usize,
        stride: usize,
        padding: usize,
        groups: usize,
        start: Start,
        bias: Option<Start>,
    ) -> Result<Node> {
        let [c, h, w] = self.spatial(x, name)?;
        if groups == 0 || !c.is_multiple_of(groups) || !out.is_multiple_of(groups) {
            return Err(Error::defect(format!("conv {name}: {groups} groups do not divide {c} → {out} channels")));
        }
        let (oh, ow) = (pooled(h, kernel, stride, padding, name)?, pooled(w, kernel, stride, padding, name)?);
        let weight = self.param(format!("{name}.weight"), &[out, c / groups, kernel, kernel], Role::Weight, start)?;
        let bias = bias.map(|b| self.param(format!("{name}.bias"), &[out], Role::Weight, b)).transpose()?;
        Ok(self.push(Op::Conv2d { x, weight, bias, stride, padding, groups }, vec![out, oh, ow]))
    }

    /// Batch norm: γ 1, β 0, running mean 0, running variance 1.
    pub fn batch_norm(&mut self, x: Node, name: &str) -> Result<Node> {
        let [c, h, w] = self.spatial(x, name)?;
        let weight = self.param(format!("{name}.weight"), &[c], Role::Weight, Start::Constant(1.0))?;
        let bias = self.param(format!("{name}.bias"), &[c], Role::Weight, Start::Constant(0.0))?;
        let mean = self.param(format!("{name}.running_mean"), &[c], Role::Buffer, Start::Constant(0.0))?;
        let var = self.param(format!("{name}.running_var"), &[c], Role::Buffer, Start::Constant(1.0))?;
        Ok(self.push(Op::BatchNorm { x, weight, bias, mean, var }, vec![c, h, w]))
    }

    /// Rectifier.
    pub fn relu(&mut self, x: Node) -> Node {
        let shape = self.shapes[x].clone();
        self.push(Op::Relu { x }, shape)
    }

    /// Residual sum.
    pub fn add(&mut self, a: Node, b: Node) -> Result<Node> {
        if self.shapes[a] != self.shapes[b] {
            return Err(Error::defect(format!("add: {:?} and {:?}", self.shapes[a], self.shapes[b])));
        }
        let shape = self.shapes[a].clone();
        Ok(self.push(Op::Add { a, b }, shape))
    }

    /// Max pooling.
    pub fn max_pool(&mut self, x: Node, kernel: usize, stride: usize, padding: usize) -> Result<Node> {
        let [c, h, w] = self.spatial(x, "max-pool")?;
        let (oh, ow) =
            (pooled(h, kernel, stride, padding, "max-pool")?, pooled(w, kernel, stride, padding, "max-pool")?);
        if 2 * padding > kernel {
            return Err(Error::defect(format!("max-pool: padding {padding} exceeds half of the kernel {kernel}")));
        }
        Ok(self.push(Op::MaxPool { x, kernel, stride, padding }, vec![c, oh, ow]))
    }

    /// Average pooling without padding.
    pub fn avg_pool(&mut self, x: Node, kernel: usize, stride: usize) -> Result<Node> {
        let [c, h, w] = self.spatial(x, "avg-pool")?;
        let (oh, ow) = (pooled(h, kernel, stride, 0, "avg-pool")?, pooled(w, kernel, stride, 0, "avg-pool")?);
        Ok(self.push(Op::AvgPool { x, kernel, stride }, vec![c, oh, ow]))
    }

    /// Mean over all positions.
    pub fn global_avg_pool(&mut self, x: Node) -> Result<Node> {
        let [c, _, _] = self.spatial(x, "average")?;
        Ok(self.push(Op::GlobalAvgPool { x }, vec![c]))
    }

    /// Option-A shortcut to `out` channels, half of the new ones on each side.
    pub fn subsample(&mut self, x: Node, stride: usize, out: usize) -> Result<Node> {
        let [c, h, w] = self.spatial(x, "shortcut")?;
        let before = out.saturating_sub(c) / 2;
        let after = out.saturating_sub(c) - before;
        let shape = vec![before + c + after, h.div_ceil(stride), w.div_ceil(stride)];
        Ok(self.push(Op::Subsample { x, stride, before, after }, shape))
    }

    /// To one row of features.
    pub fn flatten(&mut self, x: Node) -> Node {
        let n = self.shapes[x].iter().product();
        self.push(Op::Flatten { x }, vec![n])
    }

    /// A fully connected layer with PyTorch's default start: uniform ±1/√in for both weight and bias.
    pub fn linear(&mut self, x: Node, name: &str, out: usize) -> Result<Node> {
        let inputs: usize = self.shapes[x].iter().product();
        let start = Start::Uniform(1.0 / (inputs.max(1) as f32).sqrt());
        self.linear_with(x, name, out, start, Some(start))
    }

    /// A fully connected layer with chosen starts and, if `bias` says how it starts, a bias.
    pub fn linear_with(&mut self, x: Node, name: &str, out: usize, weight: Start, bias: Option<Start>) -> Result<Node> {
        let &[inputs] = self.shapes[x].as_slice() else {
            return Err(Error::defect(format!("linear {name}: expected (features), got {:?}", self.shapes[x])));
        };
        let weight = self.param(format!("{name}.weight"), &[out, inputs], Role::Weight, weight)?;
        let bias = bias.map(|b| self.param(format!("{name}.bias"), &[out], Role::Weight, b)).transpose()?;
        Ok(self.push(Op::Linear { x, weight, bias }, vec![out]))
    }

    /// Dropout with probability `p`.
    pub fn dropout(&mut self, x: Node, p: f32) -> Result<Node> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::defect(format!("dropout: p = {p} is not in [0, 1)")));
        }
        let shape = self.shapes[x].clone();
        Ok(self.push(Op::Dropout { x, p }, shape))
    }

    /// Names a node.
    pub fn tap(&mut self, name: &str, node: Node) {
        self.taps.insert(name.to_string(), node);
    }

    /// The finished network with `logits` as output, a node of shape `(F)`.
    pub fn finish(self, name: impl Into<String>, logits: Node) -> Result<Net> {
        let name = name.into();
        if self.shapes[logits].len() != 1 {
            return Err(Error::defect(format!(
                "{name}: the output has shape {:?}, not (features)",
                self.shapes[logits]
            )));
        }
        let NetBuilder { ops, shapes, layout, starts, taps } = self;
        Ok(Net { name, ops, shapes, layout: Arc::new(layout), starts, taps, logits })
    }

    fn param(&mut self, name: String, shape: &[usize], role: Role, start: Start) -> Result<ParamId> {
        let id = self.layout.push(name, shape, role)?;
        self.starts.push(start);
        Ok(id)
    }

    fn push(&mut self, op: Op, shape: Vec<usize>) -> Node {
        self.ops.push(op);
        self.shapes.push(shape);
        self.ops.len() - 1
    }

    fn spatial(&self, x: Node, name: &str) -> Result<[usize; 3]> {
        <[usize; 3]>::try_from(self.shapes[x].as_slice())
            .map_err(|_| Error::defect(format!("{name}: expected (C, H, W), got {:?}", self.shapes[x])))
    }
}

/// Output side of a window of `kernel` with this stride and padding.
fn pooled(side: usize, kernel: usize, stride: usize, padding: usize, name: &str) -> Result<usize> {
    if kernel == 0 || stride == 0 || side + 2 * padding < kernel {
        return Err(Error::defect(format!(
            "{name}: kernel {kernel}, stride {stride}, padding {padding} on side {side}"
        )));
    }
    Ok((side + 2 * padding - kernel) / stride + 1)
}
