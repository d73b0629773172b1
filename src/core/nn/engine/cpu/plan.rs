//! From a list of operations to steps over fixed regions of memory.
//!
//! Batch norm, residual sum and rectifier become one pass wherever nobody looks at what lies between; a rectifier
//! right behind a convolution happens in the convolution. Every value gets its own region, with the border that its
//! convolutions need, and so does every gradient.

use super::conv::{Algorithm, Conv, Shape};
use super::map::Map;
use super::pooling::Window;
use super::regions::Region;
use crate::nn::kernels::Isa;
use crate::nn::net::{Net, Node, Op, ParamId};

/// Samples of the largest block of a segment.
pub(super) const RING: usize = 8;

/// Samples of a block of a segment whose convolutions take so many at once: a power of two, so that blocks do not wrap
/// around a ring.
pub(super) fn block_of(at_once: usize) -> usize {
    1 << at_once.clamp(1, RING).ilog2()
}

/// Where a value or gradient lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    pub map: Map,
    pub region: Region,
    /// Of a ring, used by one block after the other: the samples of a block in training. It has room for [`RING`].
    pub ring: Option<usize>,
}

impl Spot {
    /// First float of a sample in the region.
    pub fn at(&self, image: usize, training: bool) -> usize {
        let place = match self.ring {
            Some(block) if training => image % block,
            // Without batch statistics a segment is longer than in training, and so may be its blocks.
            Some(_) => image % RING,
            None => image,
        };
        self.map.image() * place
    }
}

/// A batch norm.
#[derive(Debug)]
pub(super) struct Norm {
    /// Its input.
    pub x: Node,
    /// γ, β, running mean, running variance.
    pub params: [ParamId; 4],
    /// Mean, 1/σ, unbiased variance, and the scale and shift that they make: `5·cp` floats.
    pub state: Region,
    /// Per sample two sums a channel, in doubles.
    pub partial: Region,
}

/// One step of forward; backward walks them in reverse.
#[derive(Debug)]
pub(super) enum PlanStep {
    Conv(Box<ConvStep>),
    /// Statistics of a batch norm whose input is no convolution's.
    Stats {
        norm: usize,
    },
    /// Sum of one or two values, each perhaps through batch norm, perhaps rectified.
    Fuse {
        terms: Vec<(Node, Option<usize>)>,
        relu: bool,
        out: Node,
        /// In inference, the convolution (its step) that computes all of it.
        whole: Option<usize>,
    },
    MaxPool {
        x: Node,
        out: Node,
        window: Window,
        index: Spot,
    },
    AvgPool {
        x: Node,
        out: Node,
        window: Window,
    },
    GlobalMean {
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
    Dropout {
        x: Node,
        out: Node,
        p: f32,
        mask: Spot,
    },
}

impl PlanStep {
    /// Whether the step needs something of the whole batch.
    pub fn ends_segment(&self) -> bool {
        match self {
            PlanStep::Fuse { terms, .. } => terms.iter().any(|t| t.1.is_some()),
            PlanStep::Linear { .. } => true,
            _ => false,
        }
    }
}

/// A convolution and its packed weights.
#[derive(Debug)]
pub(super) struct ConvStep {
    pub x: Node,
    pub out: Node,
    pub conv: Conv,
    pub weight: ParamId,
    pub bias: Option<ParamId>,
    pub relu: bool,
    pub packed: Region,
    pub packed_back: Region,
    pub packed_grad: Region,
    /// Per sample one sum a channel, in doubles: the bias's gradient.
    pub partial: Region,
    /// Batch norms that read the output.
    pub norms: Vec<usize>,
    /// The batch norm that inference folds into the weights.
    pub fold: Option<usize>,
    /// Where inference writes at once.
    pub into: Option<WholeSum>,
}

/// The sum that a convolution computes with its batch norm in inference.
#[derive(Debug)]
pub(super) struct WholeSum {
    /// The sum.
    pub out: Node,
    /// Its pixels' places.
    pub to: Vec<u32>,
    /// The other term and its pixels' places.
    pub skip: Option<(Node, Vec<u32>)>,
    /// Whether the sum is rectified.
    pub relu: bool,
}

/// A region's size in floats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    per_image: usize,
    fixed: usize,
}

impl Size {
    /// Floats for so many samples.
    pub fn of(&self, images: usize) -> usize {
        self.per_image * images + self.fixed
    }
}

/// Everything that does not change from step to step.
#[derive(Debug)]
pub(super) struct Plan {
    pub steps: Vec<PlanStep>,
    pub norms: Vec<Norm>,
    pub values: Vec<Option<Spot>>,
    pub grads: Vec<Option<Spot>>,
    pub sizes: Vec<Size>,
    /// Where workers compute between two values, and the floats that each has there.
    pub scratch: (Region, usize),
}

/// Lays out `net` for an instruction set and so many workers; a lone one takes sample by sample.
pub(super) fn plan(net: &Net, isa: Isa, threads: usize, algorithm: Algorithm) -> Plan {
    let mut planner = Planner::new(net, isa, algorithm);
    for node in 0..net.ops.len() {
        planner.op(node);
    }
    if threads <= 1 {
        planner.rings();
    }
    planner.folds();
    planner.scratch(threads);
    planner.plan
}

struct Planner<'a> {
    net: &'a Net,
    isa: Isa,
    algorithm: Algorithm,
    consumers: Vec<Vec<Node>>,
    visible: Vec<bool>,
    /// Whether parameters lie upstream.
    depends: Vec<bool>,
    /// Batch norms and sums that happen inside a later pass.
    deferred: Vec<bool>,
    /// Batch norm of a node.
    norm_of: Vec<Option<usize>>,
    plan: Plan,
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

impl<'a> Planner<'a> {
    fn new(net: &'a Net, isa: Isa, algorithm: Algorithm) -> Self {
        let count = net.ops.len();
        let mut consumers = vec![Vec::new(); count];
        let mut depends = vec![false; count];
        for (node, op) in net.ops.iter().enumerate() {
            let own = matches!(op, Op::Conv2d { .. } | Op::BatchNorm { .. } | Op::Linear { .. });
            depends[node] = own || operands(op).iter().any(|&x| depends[x]);
            for x in operands(op) {
                consumers[x].push(node);
            }
        }
        let mut visible = vec![false; count];
        visible[net.logits] = true;
        net.taps.values().for_each(|&node| visible[node] = true);
        let plan = Plan {
            steps: Vec::new(),
            norms: Vec::new(),
            values: vec![None; count],
            grads: vec![None; count],
            sizes: Vec::new(),
            scratch: (0, 0),
        };
        let (deferred, norm_of) = (vec![false; count], vec![None; count]);
        Planner { net, isa, algorithm, consumers, visible, depends, deferred, norm_of, plan }
    }

    /// The only consumer of a node that nobody looks at.
    fn only(&self, node: Node) -> Option<Node> {
        match self.consumers[node].as_slice() {
            &[one] if !self.visible[node] => Some(one),
            _ => None,
        }
    }

    fn only_op(&self, node: Node) -> Option<&Op> {
        self.only(node).map(|n| &self.net.ops[n])
    }

    fn region(&mut self, per_image: usize, fixed: usize) -> Region {
        self.plan.sizes.push(Size { per_image, fixed });
        self.plan.sizes.len() - 1
    }

    fn spot(&mut self, map: Map) -> Spot {
        Spot { map, region: self.region(map.image(), 0), ring: None }
    }

    /// Gives a node its value and, when parameters lie upstream, its gradient.
    fn store(&mut self, node: Node, grad_border: usize) {
        let mut map = Map::new(&self.net.shapes[node], self.border(node));
        let raw = |n: &Node| matches!(self.net.ops[*n], Op::Conv2d { .. } | Op::Flatten { .. });
        if node == 0 && self.consumers[0].iter().all(raw) {
            map.cp = map.c;
        }
        self.plan.values[node] = Some(self.spot(map));
        if self.depends[node] {
            let grad = Map { border: grad_border, ..map };
            self.plan.grads[node] = Some(self.spot(grad));
        }
    }

    fn border(&self, node: Node) -> usize {
        let padding = |n: &Node| match self.net.ops[*n] {
            Op::Conv2d { padding, .. } => padding,
            _ => 0,
        };
        self.consumers[node].iter().map(padding).max().unwrap_or(0)
    }

    fn op(&mut self, node: Node) {
        match self.net.ops[node] {
            Op::Input => self.store(node, 0),
            Op::Conv2d { .. } => self.conv(node),
            Op::BatchNorm { x, weight, bias, mean, var } => self.norm(node, x, [weight, bias, mean, var]),
            Op::Relu { x } => self.relu(node, x),
            Op::Add { a, b } => {
                if matches!(self.only_op(node), Some(Op::Relu { .. })) {
                    self.deferred[node] = true;
                } else {
                    self.fuse(node, &[a, b], false);
                }
            }
            Op::MaxPool { x, kernel, stride, padding } => {
                self.store(node, 0);
                let index = self.spot(Map::new(&self.net.shapes[node], 0));
                let window = Window { kernel, stride, padding };
                self.plan.steps.push(PlanStep::MaxPool { x, out: node, window, index });
            }
            Op::AvgPool { x, kernel, stride } => {
                let window = Window { kernel, stride, padding: 0 };
                self.simple(node, PlanStep::AvgPool { x, out: node, window });
            }
            Op::GlobalAvgPool { x } => self.simple(node, PlanStep::GlobalMean { x, out: node }),
            Op::Subsample { x, stride, before, .. } => {
                self.simple(node, PlanStep::Subsample { x, out: node, stride, before });
            }
            Op::Flatten { x } => self.simple(node, PlanStep::Flatten { x, out: node }),
            Op::Linear { x, weight, bias } => self.simple(node, PlanStep::Linear { x, out: node, weight, bias }),
            // No engine is made for such a network.
            Op::Loss { .. } => {}
            Op::Dropout { x, p } => {
                let mask = self.spot(Map::new(&self.net.shapes[node], 0));
                self.simple(node, PlanStep::Dropout { x, out: node, p, mask });
            }
        }
    }

    /// What lives for one block of samples needs no room for the batch, and stays in the cache: the gradient between a
    /// convolution and its batch norm when backward takes both in one segment, and a rectified batch norm that only
    /// one convolution of its segment reads; backward computes that again from the batch norm's input.
    fn rings(&mut self) {
        let steps = &self.plan.steps;
        let segments: Vec<usize> = steps
            .iter()
            .scan(0, |segment, step| {
                *segment += usize::from(step.ends_segment());
                Some(*segment)
            })
            .collect();
        let conv = |s: &PlanStep| if let PlanStep::Conv(c) = s { Some(c.conv.images_per_pass()) } else { None };
        let block = |segment: usize| {
            let own = steps.iter().zip(&segments).filter(|s| *s.1 == segment);
            block_of(own.filter_map(|s| conv(s.0)).max().unwrap_or(1))
        };
        let (mut values, mut grads) = (Vec::new(), Vec::new());
        for (i, step) in steps.iter().enumerate() {
            let PlanStep::Fuse { terms, out, .. } = step else { continue };
            for &(node, _) in terms.iter().filter(|t| t.1.is_some() && self.only(t.0).is_some()) {
                let conv = steps.iter().position(|s| matches!(s, PlanStep::Conv(c) if c.out == node));
                if let Some(c) = conv.filter(|&c| segments[c] + 1 == segments[i]) {
                    grads.push((node, block(segments[c])));
                }
            }
            if let Some(r) = self.again(i).filter(|&r| segments[r] == segments[i]) {
                values.push((*out, block(segments[r])));
            }
        }
        for (spots, rings) in [(&mut self.plan.values, values), (&mut self.plan.grads, grads)] {
            for (node, block) in rings {
                if let Some(spot) = &mut spots[node] {
                    spot.ring = Some(block);
                    self.plan.sizes[spot.region] = Size { per_image: 0, fixed: RING * spot.map.image() };
                }
            }
        }
    }

    /// The only convolution that reads step `i`, if the step is a rectified batch norm: cheap to compute again.
    fn again(&self, i: usize) -> Option<usize> {
        let steps = &self.plan.steps;
        let PlanStep::Fuse { terms, relu: true, out, .. } = &steps[i] else { return None };
        let alone = matches!(terms.as_slice(), [(_, Some(_))]) && self.only(*out).is_some();
        let (r, made) = steps.iter().enumerate().filter(|_| alone).find_map(|(r, s)| match s {
            PlanStep::Conv(c) if c.x == *out => Some((r, c.out)),
            _ => None,
        })?;
        // Inference runs a convolution where its sum is made; a product of the whole batch must not come between.
        let sum = |s: &PlanStep| matches!(s, PlanStep::Fuse { terms, .. } if terms.iter().any(|t| t.0 == made));
        let end = steps.iter().position(sum).unwrap_or(r).max(r);
        (!steps[i..end].iter().any(|s| matches!(s, PlanStep::Linear { .. }))).then_some(r)
    }

    /// For inference: batch norm goes into the weights of the convolution before it, and where every term is ready by
    /// then, the last such convolution computes the whole sum.
    fn folds(&mut self) {
        for i in 0..self.plan.steps.len() {
            let PlanStep::Fuse { terms, relu, out, .. } = &self.plan.steps[i] else { continue };
            let (terms, relu, out) = (terms.clone(), *relu, *out);
            let mut folded = Vec::new();
            for (t, &(node, norm)) in terms.iter().enumerate() {
                let conv =
                    self.plan.steps.iter().position(|s| matches!(s, PlanStep::Conv(c) if c.out == node && !c.relu));
                if let (Some(conv), Some(norm), Some(_)) = (conv, norm, self.only(node)) {
                    folded.push((t, conv));
                    self.conv_step(conv, |c| c.fold = Some(norm));
                }
            }
            let ready = |t: usize| terms[t].1.is_none() || folded.iter().any(|f| f.0 == t);
            let Some(&(t, conv)) = folded.iter().max_by_key(|f| f.1) else { continue };
            if !(0..terms.len()).all(ready) {
                continue;
            }
            let places = |plan: &Plan, node: Node| plan.values[node].map(|s| s.map.places()).unwrap_or_default();
            let skip = (0..terms.len()).find(|&o| o != t).map(|o| (terms[o].0, places(&self.plan, terms[o].0)));
            let into = WholeSum { out, to: places(&self.plan, out), skip, relu };
            self.conv_step(conv, |c| c.into = Some(into));
            if let PlanStep::Fuse { whole, .. } = &mut self.plan.steps[i] {
                *whole = Some(conv);
            }
        }
    }

    fn scratch(&mut self, threads: usize) {
        let own = |step: &PlanStep| if let PlanStep::Conv(c) = step { c.conv.scratch() } else { 0 };
        let each = self.plan.steps.iter().map(own).max().unwrap_or(0).next_multiple_of(16);
        self.plan.scratch = (self.region(0, each * threads.max(1)), each);
    }

    fn conv_step(&mut self, step: usize, change: impl FnOnce(&mut ConvStep)) {
        if let PlanStep::Conv(conv) = &mut self.plan.steps[step] {
            change(conv);
        }
    }

    fn simple(&mut self, node: Node, step: PlanStep) {
        self.store(node, 0);
        self.plan.steps.push(step);
    }

    fn conv(&mut self, node: Node) {
        let Op::Conv2d { x, weight, bias, stride, padding, groups } = self.net.ops[node] else { return };
        let dims = &self.net.layout.entries()[weight].shape;
        let shape = Shape { inputs: dims[1] * groups, outputs: dims[0], kernel: dims[2], stride, padding, groups };
        let relu = match self.only(node) {
            Some(next) if matches!(self.net.ops[next], Op::Relu { .. }) => Some(next),
            _ => None,
        };
        let out = relu.unwrap_or(node);
        self.deferred[node] = relu.is_some();
        let (from, to) = (&self.net.shapes[x], &self.net.shapes[node]);
        let border = shape.grad_border([(from[1], to[1]), (from[2], to[2])]);
        self.store(out, if self.depends[x] { border } else { 0 });
        let (Some(xs), Some(ys), Some(gy)) = (self.plan.values[x], self.plan.values[out], self.plan.grads[out]) else {
            return;
        };
        let conv =
            Conv::new(shape, self.isa, xs.map, ys.map, gy.map, self.plan.grads[x].map(|g| g.map), self.algorithm);
        let step = ConvStep {
            x,
            out,
            weight,
            bias,
            relu: relu.is_some(),
            packed: self.region(0, conv.packed()),
            packed_back: self.region(0, conv.packed_back()),
            packed_grad: self.region(0, conv.packed_gradient()),
            partial: self.region(if bias.is_some() { 2 * ys.map.cp } else { 0 }, 0),
            norms: Vec::new(),
            fold: None,
            into: None,
            conv,
        };
        self.plan.steps.push(PlanStep::Conv(Box::new(step)));
    }

    fn norm(&mut self, node: Node, x: Node, params: [ParamId; 4]) {
        let Some(spot) = self.plan.values[x] else { return };
        let cp = spot.map.cp;
        let norm = Norm { x, params, state: self.region(0, 5 * cp), partial: self.region(4 * cp, 0) };
        self.plan.norms.push(norm);
        let id = self.plan.norms.len() - 1;
        self.norm_of[node] = Some(id);
        let producer = self.plan.steps.iter_mut().find_map(|step| match step {
            PlanStep::Conv(c) if c.out == x => Some(c),
            _ => None,
        });
        match producer {
            Some(conv) => conv.norms.push(id),
            None => self.plan.steps.push(PlanStep::Stats { norm: id }),
        }
        if matches!(self.only_op(node), Some(Op::Relu { .. } | Op::Add { .. })) {
            self.deferred[node] = true;
        } else {
            self.fuse_terms(node, vec![(x, Some(id))], false);
        }
    }

    fn relu(&mut self, node: Node, x: Node) {
        match self.net.ops[x] {
            Op::Conv2d { .. } if self.deferred[x] => {}
            Op::Add { a, b } if self.deferred[x] => self.fuse(node, &[a, b], true),
            _ => self.fuse(node, &[x], true),
        }
    }

    fn fuse(&mut self, node: Node, operands: &[Node], relu: bool) {
        let term = |&n: &Node| match self.net.ops[n] {
            Op::BatchNorm { x, .. } if self.deferred[n] => (x, self.norm_of[n]),
            _ => (n, None),
        };
        let terms = operands.iter().map(term).collect();
        self.fuse_terms(node, terms, relu);
    }

    fn fuse_terms(&mut self, node: Node, terms: Vec<(Node, Option<usize>)>, relu: bool) {
        self.store(node, 0);
        self.plan.steps.push(PlanStep::Fuse { terms, relu, out: node, whole: None });
    }
}
