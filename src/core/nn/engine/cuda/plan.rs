//! From a list of operations to steps, and the memory that they need.
//!
//! Batch norm, residual sum and rectifier become one pass wherever nobody looks at what lies between. Every other value
//! keeps a place of its own, and so does every gradient.

use crate::error::{Error, Result};
use crate::nn::net::{Net, Node, Op, ParamId};

/// The shape of a value for one sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub channels: usize,
    pub height: usize,
    pub width: usize,
}

impl Shape {
    pub fn pixels(self) -> usize {
        self.height * self.width
    }

    pub fn floats(self) -> usize {
        self.channels * self.pixels()
    }
}

/// A square window: side, step, border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
}

impl Window {
    /// Whether each output pixel sees the input pixel at its own place alone: then the columns are the input itself.
    pub fn is_point(self) -> bool {
        self == Window { kernel: 1, stride: 1, padding: 0 }
    }
}

/// A batch norm: its input, and γ, β, running mean, running variance.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    pub x: Node,
    pub params: [ParamId; 4],
}

/// One step of forward; backward walks them in reverse.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Conv {
        x: Node,
        out: Node,
        weight: ParamId,
        bias: Option<ParamId>,
        window: Window,
        groups: usize,
    },
    /// Sum of one or two values, each perhaps through batch norm, perhaps rectified.
    Fuse {
        terms: Vec<(Node, Option<usize>)>,
        relu: bool,
        out: Node,
    },
    /// The number is that of the memory which keeps the winners.
    MaxPool {
        x: Node,
        out: Node,
        window: Window,
        index: usize,
    },
    MeanPool {
        x: Node,
        out: Node,
        window: Window,
    },
    PlaneMean {
        x: Node,
        out: Node,
    },
    Subsample {
        x: Node,
        out: Node,
        stride: usize,
        before: usize,
    },
    Flatten {
        x: Node,
        out: Node,
    },
    Linear {
        x: Node,
        out: Node,
        weight: ParamId,
        bias: Option<ParamId>,
    },
    /// The number is that of the keys at this operation.
    Dropout {
        x: Node,
        out: Node,
        p: f32,
        number: usize,
    },
}

impl Step {
    /// The node that it computes.
    pub fn out(&self) -> Node {
        match *self {
            Step::Conv { out, .. }
            | Step::Fuse { out, .. }
            | Step::MaxPool { out, .. }
            | Step::MeanPool { out, .. }
            | Step::PlaneMean { out, .. }
            | Step::Subsample { out, .. }
            | Step::Flatten { out, .. }
            | Step::Linear { out, .. }
            | Step::Dropout { out, .. } => out,
        }
    }
}

/// Everything that does not change from step to step.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub steps: Vec<Step>,
    pub norms: Vec<Norm>,
    pub dropouts: usize,
    pub shapes: Vec<Shape>,
    /// Nodes that have a place.
    pub kept: Vec<bool>,
    /// Nodes with parameters upstream.
    pub depends: Vec<bool>,
    /// Nodes that may be read and seeded: taps and the output.
    pub visible: Vec<bool>,
    /// Outputs of max-poolings, whose winners are kept.
    pub pooled: Vec<Node>,
    /// Floats of the largest convolution's columns, for one sample.
    pub columns: usize,
    /// Threads of the largest launch, for one sample.
    pub elements: usize,
}

/// Most elements of a value: kernels count in 32 bits.
const MOST: usize = i32::MAX as usize;

impl Plan {
    /// Plans a network; one with an operation that this engine has not is refused.
    pub fn new(net: &Net) -> Result<Self> {
        let shape = |s: &Vec<usize>| match *s.as_slice() {
            [channels, height, width] => Ok(Shape { channels, height, width }),
            [channels] => Ok(Shape { channels, height: 1, width: 1 }),
            _ => Err(Error::defect(format!("{}: a value of shape {s:?}", net.name))),
        };
        let shapes = net.shapes.iter().map(shape).collect::<Result<Vec<_>>>()?;
        let nodes = net.ops.len();
        let mut visible = vec![false; nodes];
        net.taps.values().chain([&net.logits]).for_each(|&node| visible[node] = true);
        let (steps, norms, pooled) = Default::default();
        let elements = shapes.iter().map(|s| s.floats()).max().unwrap_or(0);
        let depends = vec![false; nodes];
        let kept = (0..nodes).map(|node| node == 0).collect();
        let mut plan = Plan { steps, norms, dropouts: 0, shapes, kept, depends, visible, pooled, columns: 0, elements };
        let mut consumers: Vec<Vec<Node>> = vec![Vec::new(); nodes];
        for (node, op) in net.ops.iter().enumerate() {
            operands(op).into_iter().for_each(|x| consumers[x].push(node));
        }
        let mut norm_of = vec![None; nodes];
        for node in 0..nodes {
            let op = &net.ops[node];
            let own = matches!(op, Op::Conv2d { .. } | Op::BatchNorm { .. } | Op::Linear { .. });
            plan.depends[node] = own || operands(op).iter().any(|&x| plan.depends[x]);
            if let Op::BatchNorm { x, weight, bias, mean, var } = *op {
                norm_of[node] = Some(plan.norms.len());
                plan.norms.push(Norm { x, params: [weight, bias, mean, var] });
            }
            let alone = |n: Node, by: fn(&Op) -> bool| {
                !plan.visible[n] && matches!(consumers[n].as_slice(), &[next] if by(&net.ops[next]))
            };
            let later = match op {
                Op::BatchNorm { .. } => alone(node, |op| matches!(op, Op::Relu { .. } | Op::Add { .. })),
                Op::Add { .. } => alone(node, |op| matches!(op, Op::Relu { .. })),
                _ => false,
            };
            if node > 0 && !later {
                plan.push(net, node, &norm_of)?;
                plan.kept[node] = true;
            }
        }
        Ok(plan)
    }

    fn push(&mut self, net: &Net, out: Node, norm_of: &[Option<usize>]) -> Result<()> {
        let norm = |n: Node| match net.ops[n] {
            Op::BatchNorm { x, .. } => (x, norm_of[n]),
            _ => (n, None),
        };
        // A norm that has a place of its own is read from there.
        let term = |n: Node| if self.kept[n] { (n, None) } else { norm(n) };
        self.steps.push(match net.ops[out] {
            Op::Input | Op::Loss { .. } => {
                return Err(Error::defect(format!("{}: {:?} has an interpreter of its own", net.name, net.ops[out])));
            }
            Op::Conv2d { x, weight, bias, stride, padding, groups } => {
                let w = &net.layout.entries()[weight].shape;
                let window = Window { kernel: w[2], stride, padding };
                if !window.is_point() {
                    let (channels, taps) = (self.shapes[x].channels / groups, w[2] * w[2]);
                    let threads = channels * self.shapes[out].pixels();
                    self.columns = self.columns.max(taps * threads);
                    self.elements = self.elements.max(threads);
                }
                Step::Conv { x, out, weight, bias, window, groups }
            }
            Op::BatchNorm { .. } => Step::Fuse { terms: vec![norm(out)], relu: false, out },
            Op::Add { a, b } => Step::Fuse { terms: vec![term(a), term(b)], relu: false, out },
            Op::Relu { x } => {
                let terms = match net.ops[x] {
                    Op::Add { a, b } if !self.kept[x] => vec![term(a), term(b)],
                    _ => vec![term(x)],
                };
                Step::Fuse { terms, relu: true, out }
            }
            Op::MaxPool { x, kernel, stride, padding } => {
                if kernel > 16 {
                    return Err(Error::input(format!(
                        "{}: max-pooling over {kernel} × {kernel}, at most 16",
                        net.name
                    )));
                }
                self.pooled.push(out);
                Step::MaxPool { x, out, window: Window { kernel, stride, padding }, index: self.pooled.len() - 1 }
            }
            Op::AvgPool { x, kernel, stride } => {
                Step::MeanPool { x, out, window: Window { kernel, stride, padding: 0 } }
            }
            Op::GlobalAvgPool { x } => Step::PlaneMean { x, out },
            Op::Subsample { x, stride, before, .. } => Step::Subsample { x, out, stride, before },
            Op::Flatten { x } => Step::Flatten { x, out },
            Op::Linear { x, weight, bias } => Step::Linear { x, out, weight, bias },
            Op::Dropout { x, p } => {
                self.dropouts += 1;
                Step::Dropout { x, out, p, number: self.dropouts - 1 }
            }
        });
        Ok(())
    }

    /// The step of the classifier, which runs alone on stored features.
    pub fn head(&self) -> Result<usize> {
        let last = self.steps.len().saturating_sub(1);
        match self.steps.get(last) {
            Some(Step::Linear { .. }) => Ok(last),
            _ => Err(Error::defect("CUDA engine: stored features need a linear classifier")),
        }
    }

    /// Nodes whose gradient has a place.
    pub fn has_gradient(&self, node: Node) -> bool {
        self.kept[node] && self.depends[node]
    }

    /// Floats of the largest value at the seam, for one sample.
    pub fn staged(&self) -> usize {
        let seen = self.shapes.iter().enumerate().filter(|(node, _)| *node == 0 || self.visible[*node]);
        seen.map(|(_, shape)| shape.floats()).max().unwrap_or(0)
    }

    /// Channels of the widest batch norm.
    pub fn widest_norm(&self) -> usize {
        self.norms.iter().map(|norm| self.shapes[norm.x].channels).max().unwrap_or(0)
    }

    /// Bytes of values, gradients and what lies between, for so many clients of so many rows.
    pub fn bytes(&self, lanes: usize, rows: usize) -> usize {
        let values = (0..self.shapes.len()).filter(|&n| self.kept[n]).map(|n| 4 * self.shapes[n].floats());
        let grads = (0..self.shapes.len()).filter(|&n| self.has_gradient(n)).map(|n| 4 * self.shapes[n].floats());
        let winners = self.pooled.iter().map(|&n| self.shapes[n].floats());
        let sample = values.chain(grads).chain(winners).sum::<usize>() + 4 * (self.columns + self.staged());
        let norms: usize = self.norms.iter().map(|n| 4 * 5 * self.shapes[n.x].channels).sum();
        lanes * (rows * sample + norms + 8 * self.widest_norm() + 16 * self.dropouts + 8)
    }

    /// The memory rule: how many clients of `rows` rows, of at most `lanes`, stand side by side in `room` bytes, where each
    /// needs `beside` more for its parameters and what is kept beside them. Larger cohorts are split. None is an error.
    pub fn lanes_within(&self, net: &Net, room: usize, lanes: usize, rows: usize, beside: usize) -> Result<usize> {
        let each = self.bytes(1, rows).saturating_add(beside).max(1);
        // A part is left for the driver's own needs.
        let fit = (room - room / 16) / each;
        let counted = (MOST / (self.elements * rows).max(1)).min(MOST / net.layout.len().max(1));
        match fit.min(counted).min(lanes) {
            0 if lanes > 0 => Err(Error::environment(format!(
                "{}: one client of {rows} rows needs {} MiB on the card, and {} MiB are free",
                net.name,
                each >> 20,
                room >> 20
            ))
            .hint("use smaller batches or a smaller network")),
            lanes => Ok(lanes),
        }
    }

    /// Refuses more elements than kernels count.
    pub fn check(&self, net: &Net, lanes: usize, rows: usize) -> Result<()> {
        let sample = (self.elements * rows).max(net.layout.len());
        match sample.checked_mul(lanes) {
            Some(all) if all <= MOST => Ok(()),
            _ => {
                Err(Error::defect(format!("{}: {lanes} clients of {rows} rows are more than {MOST} values", net.name)))
            }
        }
    }
}

/// Sizes of the parts in which `count` clients stand side by side, `most` at once: as equal as can be.
pub fn split(count: usize, most: usize) -> Vec<usize> {
    let parts = count.div_ceil(most.max(1));
    (0..parts).map(|i| count / parts + usize::from(i < count % parts)).collect()
}

fn operands(op: &Op) -> Vec<Node> {
    match *op {
        Op::Input => vec![],
        Op::Add { a, b } => vec![a, b],
        Op::Conv2d { x, .. }
        | Op::BatchNorm { x, .. }
        | Op::Relu { x }
        | Op::MaxPool { x, .. }
        | Op::AvgPool { x, .. }
        | Op::GlobalAvgPool { x }
        | Op::Subsample { x, .. }
        | Op::Flatten { x }
        | Op::Linear { x, .. }
        | Op::Loss { x, .. }
        | Op::Dropout { x, .. } => vec![x],
    }
}
