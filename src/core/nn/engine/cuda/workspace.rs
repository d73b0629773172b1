//! A network's workspace on a card, for K clients a launch.

use std::sync::Arc;

use super::arena::Arena;
use super::card::{Card, Memory};
use super::pass::{Pass, Rows, keys};
use super::plan::{Plan, Step};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::interpreter::{Interpreter, Mode};
use crate::nn::net::{Net, Node};

/// A workspace for one network: values and gradients of K clients side by side. Parameters lie beside it, `[K, P]`.
pub(super) struct Workspace {
    net: Arc<Net>,
    plan: Arc<Plan>,
    arena: Arena,
    rows: Rows,
    /// Whether the last forward had batch statistics and dropout.
    training: bool,
    /// Whether a backward may follow.
    kept: bool,
}

impl Workspace {
    pub fn new(net: &Arc<Net>, plan: &Arc<Plan>) -> Self {
        let (arena, rows) = Default::default();
        Workspace { net: net.clone(), plan: plan.clone(), arena, rows, training: false, kept: false }
    }

    fn pass<'a, C: Card>(&'a self, card: &'a mut C, params: Memory) -> Pass<'a, C> {
        let Workspace { net, plan, arena, rows, training, .. } = self;
        Pass { net, plan, card, arena, params, rows, training: *training }
    }

    /// `rows[k]` on the card, after a forward.
    pub fn counts(&self) -> Result<Memory> {
        self.arena.rows()
    }

    /// Makes ready for a batch of these rows.
    fn begin<C: Card>(&mut self, card: &mut C, rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        mode.check(rows.len())?;
        let (training, _) = keys(mode);
        for norm in self.plan.norms.iter().filter(|_| training) {
            if rows.iter().any(|n| n * self.plan.shapes[norm.x].pixels() == 1) {
                let name = &self.net.layout.entries()[norm.params[0]].name;
                return Err(Error::input(format!("{}: {name}: one value a channel in training", self.net.name))
                    .hint("use batches of at least two samples"));
            }
        }
        self.rows = Rows { of: rows.to_vec() };
        (self.training, self.kept) = (training, mode != Mode::Infer);
        self.arena.reserve(card, &self.plan, &self.net, rows.len(), self.rows.capacity().max(1))
    }

    /// Runs the network; `input` brings the images to their place.
    pub fn forward<C: Card>(
        &mut self,
        card: &mut C,
        params: Memory,
        rows: &[usize],
        mode: Mode<&[Key]>,
        input: impl FnOnce(&mut Pass<'_, C>, Memory) -> Result<()>,
    ) -> Result<()> {
        self.begin(card, rows, mode)?;
        let mut pass = self.pass(card, params);
        pass.count()?;
        let image = pass.value(0)?;
        input(&mut pass, image)?;
        if pass.rows.all() == 0 {
            return Ok(());
        }
        pass.forward(keys(mode).1)
    }

    /// Runs the classifier alone on stored features `(N, features)`.
    pub fn forward_stored<C: Card>(&mut self, card: &mut C, params: Memory, rows: &[usize], x: &[f32]) -> Result<()> {
        self.begin(card, rows, Mode::Eval)?;
        let plan = self.plan.clone();
        let step = &plan.steps[plan.head()?];
        let mut pass = self.pass(card, params);
        pass.count()?;
        if let &Step::Linear { x: feature, .. } = step {
            let value = pass.value(feature)?;
            pass.put(feature, x, value, false)?;
        }
        pass.forward_step(step, &[])
    }

    /// A tap's value or the output, after a forward.
    pub fn read<C: Card>(&mut self, card: &mut C, node: Node, out: &mut Vec<f32>) -> Result<()> {
        self.seen(node)?;
        // Nothing of the parameters is read.
        let params = Memory { id: 0, bytes: 0 };
        self.pass(card, params).get(node, out)
    }

    fn seen(&self, node: Node) -> Result<()> {
        match self.plan.visible.get(node) {
            Some(true) => Ok(()),
            _ => Err(Error::defect(format!("{}: node {node} is neither a tap nor the output", self.net.name))),
        }
    }

    /// Gradients of `Σ ⟨seed, value(node)⟩` into `grads`, `[K, P]`.
    pub fn backward<C: Card>(
        &mut self,
        card: &mut C,
        params: Memory,
        seeds: &[(Node, &[f32])],
        grads: Memory,
    ) -> Result<()> {
        if !self.kept {
            return Err(Error::defect(format!("{}: backward after a forward in Mode::Infer", self.net.name)));
        }
        seeds.iter().try_for_each(|seed| self.seen(seed.0))?;
        self.pass(card, params).backward(seeds, grads, 0)
    }

    /// The same of the classifier alone, after [`Workspace::forward_stored`].
    pub fn backward_stored<C: Card>(
        &mut self,
        card: &mut C,
        params: Memory,
        seeds: &[(Node, &[f32])],
        grads: Memory,
    ) -> Result<()> {
        let logits: Vec<(Node, &[f32])> = seeds.iter().copied().filter(|seed| seed.0 == self.net.logits).collect();
        self.pass(card, params).backward(&logits, grads, self.plan.head()?)
    }

    /// Moves running statistics as the last forward's batch says.
    pub fn update_buffers<C: Card>(&mut self, card: &mut C, params: Memory) -> Result<()> {
        self.pass(card, params).update_buffers()
    }
}

/// The engine at the interpreters' seam: parameters come from the host with every call and gradients go back. It is
/// what tests compare; training keeps parameters on the card, in a [`Resident`](super::Resident).
pub struct Engine<C> {
    card: C,
    net: Arc<Net>,
    workspace: Workspace,
    /// Parameters and gradients of K clients.
    stacks: Option<(Memory, Memory)>,
}

impl<C: Card> Engine<C> {
    /// A workspace on a card.
    pub fn new(net: &Arc<Net>, card: C) -> Result<Self> {
        let plan = Arc::new(Plan::new(net)?);
        Ok(Engine { card, net: net.clone(), workspace: Workspace::new(net, &plan), stacks: None })
    }

    /// Memory for the parameters of as many clients as there are, and for their gradients.
    fn stacks(&mut self, floats: usize, lanes: usize) -> Result<(Memory, Memory)> {
        let bytes = 4 * lanes * self.net.layout.len();
        if 4 * floats != bytes {
            let (net, p) = (&self.net.name, self.net.layout.len());
            return Err(Error::defect(format!("{net}: {floats} parameters for {lanes} clients of {p}")));
        }
        match self.stacks {
            Some(stacks) if stacks.0.bytes == bytes => Ok(stacks),
            old => {
                if let Some((params, grads)) = old {
                    self.card.release(params)?;
                    self.card.release(grads)?;
                }
                let stacks = (self.card.allocate(bytes)?, self.card.allocate(bytes)?);
                self.stacks = Some(stacks);
                Ok(stacks)
            }
        }
    }

    fn bring(&mut self, params: &[f32], lanes: usize) -> Result<(Memory, Memory)> {
        let stacks = self.stacks(params.len(), lanes)?;
        self.card.write(stacks.0, 0, bytemuck::cast_slice(params))?;
        Ok(stacks)
    }
}

impl<C: Card> Interpreter for Engine<C> {
    fn forward(&mut self, params: &[f32], x: &[f32], rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        let (params, _) = self.bring(params, rows.len())?;
        self.workspace.forward(&mut self.card, params, rows, mode, |pass, image| pass.put(0, x, image, false))
    }

    fn update_buffers(&mut self, params: &mut [f32]) -> Result<()> {
        let lanes = self.workspace.rows.of.len();
        let (memory, _) = self.bring(params, lanes)?;
        self.workspace.update_buffers(&mut self.card, memory)?;
        self.card.read(memory, 0, bytemuck::cast_slice_mut(params))
    }

    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()> {
        self.workspace.read(&mut self.card, node, out)
    }

    fn backward(&mut self, params: &[f32], seeds: &[(Node, &[f32])], grads: &mut [f32]) -> Result<()> {
        let (memory, own) = self.bring(params, self.workspace.rows.of.len())?;
        if grads.len() != params.len() {
            return Err(Error::defect(format!("{}: {} gradients of {}", self.net.name, grads.len(), params.len())));
        }
        self.workspace.backward(&mut self.card, memory, seeds, own)?;
        self.card.read(own, 0, bytemuck::cast_slice_mut(grads))
    }
}
