//! K clients' parameters on a card, from `load` to `take`.

use std::ops::Range;
use std::sync::Arc;

use super::card::{Card, Memory};
use super::held::{Cut, Held};
use super::pass::Pass;
use super::plan::Plan;
use super::update::{self, Moves, Stacks};
use super::workspace::Workspace;
use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::interpreter::Mode;
use crate::nn::net::{Net, Node};
use crate::nn::optim::{Optimiser, OptimiserConfig};
use crate::nn::params::{Named, Params, Role};
use crate::nn::session::{Input, Pull, Session, Training};

/// A session whose lanes share every launch: parameters, gradients, moments and values of K clients stay on the card.
pub struct Resident<C> {
    card: C,
    net: Arc<Net>,
    plan: Arc<Plan>,
    workspace: Workspace,
    /// What is only looked at: a workspace for one client, and whose parameters it has.
    frozen: Workspace,
    shown: Option<(Params, Memory)>,
    stacks: Stacks,
    lanes: Vec<Option<Moves>>,
    rows: Vec<usize>,
    /// Whether the last forward was of the classifier alone.
    stored: bool,
    /// Whether earlier parts and pulls are in the gradient.
    gathered: bool,
    /// Whether the step has earlier parts.
    parted: bool,
    held: Option<Held>,
}

impl<C: Card> Resident<C> {
    /// A session of `lanes` clients on a card.
    pub fn new(net: &Arc<Net>, mut card: C, lanes: usize) -> Result<Self> {
        let plan = Arc::new(Plan::new(net)?);
        let (workspace, frozen) = (Workspace::new(net, &plan), Workspace::new(net, &plan));
        let stacks = Stacks::new(&mut card, lanes, net.layout.len())?;
        let (lanes, rows) = ((0..lanes).map(|_| None).collect(), vec![0; lanes]);
        let (shown, held, stored, gathered, parted) = Default::default();
        let net = net.clone();
        Ok(Resident { card, net, plan, workspace, frozen, shown, stacks, lanes, rows, stored, gathered, parted, held })
    }

    /// The card.
    pub fn card(&self) -> &C {
        &self.card
    }

    /// Images `(n, C, H, W)` as bytes stay on the card, for [`Resident::forward_held`]. `table` has what each byte of a
    /// channel becomes, `crop` is the border of zeros around an image, in pixels.
    pub fn hold(&mut self, images: &[u8], table: &[[f32; 256]], crop: usize) -> Result<()> {
        if let Some(old) = self.held.take() {
            old.release(&mut self.card)?;
        }
        let shape = self.plan.shapes[0];
        self.held = Some(Held::new(&mut self.card, [shape.channels, shape.height, shape.width], images, table, crop)?);
        Ok(())
    }

    /// As [`Session::forward`], on images that lie on the card: `ids[k]` are client k's, cut as `cuts[k]` says.
    pub fn forward_held(&mut self, ids: &[&[u32]], cuts: &[&[Cut]], mode: Mode<&[Key]>) -> Result<()> {
        let rows: Vec<usize> = ids.iter().map(|ids| ids.len()).collect();
        let Some(mut held) = self.held.take() else { return Err(Error::defect("CUDA engine: no images are held")) };
        let done = self.run(&rows, mode, |pass, image| held.gather(pass, image, ids, cuts));
        self.held = Some(held);
        done
    }

    fn run(
        &mut self,
        rows: &[usize],
        mode: Mode<&[Key]>,
        input: impl FnOnce(&mut Pass<'_, C>, Memory) -> Result<()>,
    ) -> Result<()> {
        self.begin(rows)?;
        self.stored = false;
        self.workspace.forward(&mut self.card, self.stacks.params, rows, mode, input)
    }

    fn begin(&mut self, rows: &[usize]) -> Result<()> {
        if rows.len() != self.lanes.len() {
            let (net, lanes) = (&self.net.name, self.lanes.len());
            return Err(Error::defect(format!("{net}: rows of {} clients in {lanes} lanes", rows.len())));
        }
        if let Some(k) = (0..rows.len()).find(|&k| rows[k] > 0 && self.lanes[k].is_none()) {
            return Err(Error::defect(format!("session: lane {k} of {} is empty", rows.len())));
        }
        self.rows = rows.to_vec();
        Ok(())
    }

    fn lane(&self, k: usize) -> Result<&Moves> {
        let lane = self.lanes.get(k).and_then(Option::as_ref);
        lane.ok_or_else(|| Error::defect(format!("session: lane {k} of {} is empty", self.lanes.len())))
    }

    fn params(&mut self, k: usize) -> Result<Params> {
        let (params, p) = (self.stacks.params, self.net.layout.len());
        Params::new(self.net.layout.clone(), self.stacks.read(&mut self.card, params, k, 0..p)?)
    }

    /// Makes the gradient whole: the step's earlier parts, then the pulls.
    fn gather(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.gathered, true) {
            return Ok(());
        }
        if std::mem::take(&mut self.parted) {
            self.stacks.whole(&mut self.card)?;
        }
        if self.stored {
            let head = self.net.head();
            let inside = |t: &Range<usize>| head.iter().any(|h| h.start <= t.start && t.end <= h.end);
            let lanes = self.lanes.iter().zip(&self.rows).filter(|(_, rows)| **rows > 0);
            if lanes.filter_map(|(lane, _)| lane.as_ref()).any(|lane| !lane.trained.iter().all(inside)) {
                return Err(Error::defect("session: stored features train the classifier alone"));
            }
        }
        self.stacks.pull(&mut self.card, &self.lanes, self.workspace.counts()?)
    }

    /// Parameters to look at, on the card.
    fn show(&mut self, params: &Params) -> Result<Memory> {
        let p = self.net.layout.len();
        if params.data().len() != p {
            return Err(Error::defect(format!("{}: {} parameters, expected {p}", self.net.name, params.data().len())));
        }
        let memory = match &self.shown {
            Some((known, memory)) if std::ptr::eq(known.data(), params.data()) => return Ok(*memory),
            Some((_, memory)) => *memory,
            None => self.card.allocate(4 * p)?,
        };
        self.card.write(memory, 0, bytemuck::cast_slice(params.data()))?;
        self.shown = Some((params.clone(), memory));
        Ok(memory)
    }
}

impl<C: Card> Session for Resident<C> {
    fn net(&self) -> &Net {
        &self.net
    }

    fn lanes(&self) -> usize {
        self.lanes.len()
    }

    fn load(&mut self, k: usize, params: Params, training: &Training) -> Result<()> {
        let (p, lanes) = (self.net.layout.len(), self.lanes.len());
        if params.data().len() != p || k >= lanes {
            let name = &self.net.name;
            return Err(Error::defect(format!("{name}: {} parameters into lane {k} of {lanes}", params.data().len())));
        }
        let weights = self.net.layout.ranges(Role::Weight);
        let trained = training.trained.clone().unwrap_or_else(|| weights.clone());
        let mut optimiser = Optimiser::for_ranges(&training.optimiser, trained.clone(), p);
        if !training.moments.is_empty() {
            optimiser.restore(&training.moments)?;
        }
        let (steps, moments) = optimiser.moments();
        let of = |pull: &Pull<Params>| match *pull {
            Pull::Proximal { mu, .. } => (1, mu),
            Pull::Linear { coefficient, .. } => (2, coefficient),
        };
        let pulls = training.pulls.iter().map(of).collect();
        let moves = Moves { optimiser: training.optimiser.clone(), trained, steps, pulls };
        self.stacks.load(&mut self.card, k, &params, &moves, moments, &training.pulls, &weights)?;
        self.lanes[k] = Some(moves);
        Ok(())
    }

    fn forward(&mut self, input: Input<'_>, rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        match input {
            Input::Images(x) => self.run(rows, mode, |pass, image| pass.put(0, x, image, false)),
            Input::Features(x) => {
                self.begin(rows)?;
                self.stored = true;
                self.workspace.forward_stored(&mut self.card, self.stacks.params, rows, x)
            }
        }
    }

    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()> {
        self.workspace.read(&mut self.card, node, out)
    }

    fn peek(&mut self, k: usize, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        self.lane(k)?;
        *out = self.stacks.read(&mut self.card, self.stacks.params, k, range)?;
        Ok(())
    }

    fn backward(&mut self, seeds: &[(Node, &[f32])]) -> Result<()> {
        self.gathered = false;
        let (card, params, grads) = (&mut self.card, self.stacks.params, self.stacks.grads);
        match self.stored {
            true => self.workspace.backward_stored(card, params, seeds, grads),
            false => self.workspace.backward(card, params, seeds, grads),
        }
    }

    fn part(&mut self) -> Result<()> {
        if !self.stored {
            self.workspace.update_buffers(&mut self.card, self.stacks.params)?;
        }
        let first = !std::mem::replace(&mut self.parted, true);
        self.stacks.part(&mut self.card, first)
    }

    fn add(&mut self, k: usize, range: Range<usize>, gradient: &[f32]) -> Result<()> {
        self.lane(k)?;
        self.stacks.add(&mut self.card, k, range, gradient)
    }

    fn clip(&mut self, k: usize, most: f32, beside: f64) -> Result<f32> {
        self.gather()?;
        self.lane(k)?;
        let norm = (beside + self.stacks.square(&mut self.card, k)?).sqrt();
        let by = (f64::from(most) / (norm + 1e-6)).min(1.0) as f32;
        if by < 1.0 {
            self.stacks.scale(&mut self.card, k, by)?;
        }
        Ok(if norm.is_finite() { by } else { f32::NAN })
    }

    fn step(&mut self, rates: &[f32]) -> Result<()> {
        self.gather()?;
        if !self.stored {
            self.workspace.update_buffers(&mut self.card, self.stacks.params)?;
        }
        let counts = self.workspace.counts()?;
        self.stacks.step(&mut self.card, &mut self.lanes, &self.rows, rates, counts)
    }

    fn state(&mut self, k: usize) -> Result<(Params, Named)> {
        let lane = self.lane(k)?.clone();
        let [first, second] = self.stacks.moments(&mut self.card, k, lane.optimiser.moments())?;
        let optimiser = Optimiser::from_moments(&lane.optimiser, lane.trained, lane.steps, [first, second]);
        Ok((self.params(k)?, optimiser.state(&self.net.layout)?))
    }

    fn take(&mut self, k: usize) -> Result<Params> {
        self.lane(k)?;
        let params = self.params(k)?;
        self.lanes[k] = None;
        Ok(params)
    }

    fn look(
        &mut self,
        params: &Params,
        x: &[f32],
        rows: usize,
        mode: Mode,
        nodes: &[Node],
        outs: &mut [Vec<f32>],
    ) -> Result<()> {
        let memory = self.show(params)?;
        let put = |pass: &mut Pass<'_, C>, image| pass.put(0, x, image, false);
        self.frozen.forward(&mut self.card, memory, &[rows], mode.alone(), put)?;
        nodes.iter().zip(outs).try_for_each(|(&node, out)| self.frozen.read(&mut self.card, node, out))
    }
}

/// How many clients stand side by side: of a cohort of `cohort` that train a network by batches of `rows` rows, as many
/// as fit into what is free on the card, with their optimiser's moments and `pulls` anchors each. A cohort that does not
/// fit is split ([`super::split`]); one client that does not fit is an error.
pub fn lanes<C: Card>(
    net: &Net,
    card: &C,
    optimiser: &OptimiserConfig,
    pulls: usize,
    cohort: usize,
    rows: usize,
) -> Result<usize> {
    let beside = update::bytes(net.layout.len(), optimiser, pulls, true);
    Plan::new(net)?.lanes_within(net, card.room()?, cohort, rows, beside)
}
