//! The plain session: parameters on the host, any interpreter.

use std::ops::Range;

use super::{Input, Pull, Session, Training};
use crate::error::{Error, Result};
use crate::exec::Context;
use crate::key::Key;
use crate::nn::Backend;
use crate::nn::classifier::Classifier;
use crate::nn::engine::cohort::Cohort;
use crate::nn::interpreter::{Interpreter, Mode};
use crate::nn::net::{Net, Node};
use crate::nn::optim::Optimiser;
use crate::nn::params::{Named, Params, Ranges, Role};

impl Backend {
    /// A session of `lanes` clients for one worker, which may use `threads` threads of its own.
    pub fn session(self, net: &std::sync::Arc<Net>, cx: &Context, threads: usize, lanes: usize) -> Result<Plain> {
        let one = || self.workspace(net, cx, threads);
        let interpreter: Box<dyn Interpreter> = match lanes {
            1 => one()?,
            _ => Box::new(Cohort::new(net, (0..lanes).map(|_| one()).collect::<Result<Vec<_>>>()?)),
        };
        let (net, frozen) = (net.as_ref().clone(), one()?);
        let classifier = net.classifier();
        let stack = Stack::Many(Vec::new());
        let (grads, parts, loaded) = (Vec::new(), Vec::new(), (0..lanes).map(|_| None).collect());
        let rows = vec![0; lanes];
        Ok(Plain { net, classifier, interpreter, frozen, stack, grads, parts, loaded, rows, stored: None })
    }
}

/// The plain session, on any [`Interpreter`].
pub struct Plain {
    net: Net,
    classifier: Option<Classifier>,
    interpreter: Box<dyn Interpreter>,
    frozen: Box<dyn Interpreter>,
    stack: Stack,
    /// `[K, P]`.
    grads: Vec<f32>,
    /// The sum of the gradients of this step's earlier parts, `[K, P]`; empty where there are none.
    parts: Vec<f32>,
    loaded: Vec<Option<Lane>>,
    rows: Vec<usize>,
    /// Features and logits of the last forward on stored features.
    stored: Option<(Vec<f32>, Vec<f32>)>,
}

/// The parameters of all lanes, `[K, P]`; one lane's are a value that moves in and out without a copy.
enum Stack {
    One(Params),
    Many(Vec<f32>),
}

impl Stack {
    fn all(&self) -> &[f32] {
        match self {
            Stack::One(params) => params.data(),
            Stack::Many(all) => all,
        }
    }

    fn all_mut(&mut self) -> &mut [f32] {
        match self {
            Stack::One(params) => params.data_mut(),
            Stack::Many(all) => all,
        }
    }
}

struct Lane {
    optimiser: Optimiser,
    trained: Ranges,
    pulls: Vec<Pull<Params>>,
}

impl Plain {
    fn size(&self) -> usize {
        self.net.layout.len()
    }

    fn lane(&self, k: usize) -> Result<&Lane> {
        let lane = self.loaded.get(k).and_then(Option::as_ref);
        lane.ok_or_else(|| Error::defect(format!("session: lane {k} of {} is empty", self.loaded.len())))
    }

    fn params(&self, k: usize) -> Result<Params> {
        let p = self.size();
        match &self.stack {
            Stack::One(params) => Ok(params.clone()),
            Stack::Many(all) => Params::new(self.net.layout.clone(), &all[k * p..(k + 1) * p]),
        }
    }

    fn classifier(&self) -> Result<&Classifier> {
        let none = || Error::defect(format!("{}: stored features need a linear classifier", self.net.name));
        self.classifier.as_ref().ok_or_else(none)
    }

    /// Logits of stored features, lane by lane.
    fn forward_stored(&mut self, features: &[f32], rows: &[usize]) -> Result<()> {
        let (classifier, p) = (self.classifier()?.clone(), self.size());
        if features.len() != rows.iter().sum::<usize>() * classifier.features {
            let (rows, d) = (rows.iter().sum::<usize>(), classifier.features);
            return Err(Error::defect(format!("session: {} values for ({rows}, {d}) features", features.len())));
        }
        let (mut logits, mut own, mut first) = (Vec::new(), Vec::new(), 0);
        for (k, &n) in rows.iter().enumerate().filter(|(_, n)| **n > 0) {
            let params = &self.stack.all()[k * p..(k + 1) * p];
            classifier.logits(params, &features[first * classifier.features..][..n * classifier.features], &mut own);
            logits.extend_from_slice(&own);
            first += n;
        }
        self.stored = Some((features.to_vec(), logits));
        Ok(())
    }

    fn backward_stored(&mut self, seeds: &[(Node, &[f32])]) -> Result<()> {
        let (classifier, p) = (self.classifier()?.clone(), self.size());
        let Some((features, _)) = &self.stored else { return Ok(()) };
        for k in 0..self.rows.len() {
            classifier.ranges().into_iter().for_each(|r| self.grads[k * p + r.start..k * p + r.end].fill(0.0));
        }
        for (_, seed) in seeds.iter().filter(|(node, _)| *node == self.net.logits) {
            let mut first = 0;
            for (k, &n) in self.rows.iter().enumerate().filter(|(_, n)| **n > 0) {
                let h = &features[first * classifier.features..][..n * classifier.features];
                let d = &seed[first * classifier.classes..][..n * classifier.classes];
                classifier.gradient(h, d, &mut self.grads[k * p..(k + 1) * p]);
                first += n;
            }
        }
        Ok(())
    }

    fn pull(pull: &Pull<Params>, weights: &[Range<usize>], params: &[f32], grads: &mut [f32]) {
        match pull {
            Pull::Proximal { mu, to, over } => {
                for range in over.as_deref().unwrap_or(weights) {
                    let (p, g) = (&params[range.clone()], &mut grads[range.clone()]);
                    for ((g, p), a) in g.iter_mut().zip(p).zip(&to.data()[range.clone()]) {
                        *g += mu * (p - a);
                    }
                }
            }
            Pull::Linear { coefficient, of } => {
                for range in weights {
                    let g = &mut grads[range.clone()];
                    g.iter_mut().zip(&of.data()[range.clone()]).for_each(|(g, v)| *g += coefficient * v);
                }
            }
        }
    }
}

impl Session for Plain {
    fn net(&self) -> &Net {
        &self.net
    }

    fn lanes(&self) -> usize {
        self.loaded.len()
    }

    fn load(&mut self, k: usize, params: Params, training: &Training) -> Result<()> {
        let (p, lanes) = (self.size(), self.lanes());
        if params.data().len() != p || k >= lanes {
            let name = &self.net.name;
            return Err(Error::defect(format!("{name}: {} parameters into lane {k} of {lanes}", params.data().len())));
        }
        let trained = training.trained.clone().unwrap_or_else(|| self.net.layout.ranges(Role::Weight));
        let mut optimiser = Optimiser::for_ranges(&training.optimiser, trained.clone(), p);
        if !training.moments.is_empty() {
            optimiser.restore(&training.moments)?;
        }
        self.loaded[k] = Some(Lane { optimiser, trained, pulls: training.pulls.clone() });
        self.grads.resize(lanes * p, 0.0);
        match (&mut self.stack, lanes) {
            (stack, 1) => *stack = Stack::One(params),
            (Stack::Many(all), _) => {
                all.resize(lanes * p, 0.0);
                all[k * p..(k + 1) * p].copy_from_slice(params.data());
            }
            (Stack::One(_), _) => return Err(Error::defect("session: one value for several lanes")),
        }
        Ok(())
    }

    fn forward(&mut self, input: Input<'_>, rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        self.rows = rows.to_vec();
        match input {
            Input::Features(features) => self.forward_stored(features, rows),
            Input::Images(x) => {
                self.stored = None;
                self.interpreter.forward(self.stack.all(), x, rows, mode)
            }
        }
    }

    fn read(&mut self, node: Node, out: &mut Vec<f32>) -> Result<()> {
        match &self.stored {
            None => self.interpreter.read(node, out),
            Some((features, logits)) => {
                let value = if node == self.net.logits { logits } else { features };
                out.clone_from(value);
                Ok(())
            }
        }
    }

    fn peek(&mut self, k: usize, range: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        self.lane(k)?;
        let p = self.size();
        out.clear();
        out.extend_from_slice(&self.stack.all()[k * p..(k + 1) * p][range]);
        Ok(())
    }

    fn backward(&mut self, seeds: &[(Node, &[f32])]) -> Result<()> {
        match self.stored {
            Some(_) => self.backward_stored(seeds),
            None => self.interpreter.backward(self.stack.all(), seeds, &mut self.grads),
        }
    }

    fn part(&mut self) -> Result<()> {
        if self.stored.is_none() {
            self.interpreter.update_buffers(self.stack.all_mut())?;
        }
        self.parts.resize(self.grads.len(), 0.0);
        self.parts.iter_mut().zip(&self.grads).for_each(|(sum, g)| *sum += g);
        Ok(())
    }

    fn add(&mut self, k: usize, range: Range<usize>, gradient: &[f32]) -> Result<()> {
        let p = self.size();
        let own = &mut self.grads[k * p..(k + 1) * p][range];
        own.iter_mut().zip(gradient).for_each(|(g, v)| *g += v);
        Ok(())
    }

    fn step(&mut self, rates: &[f32]) -> Result<()> {
        let (p, weights) = (self.size(), self.net.layout.ranges(Role::Weight));
        self.grads.iter_mut().zip(&self.parts).for_each(|(g, sum)| *g += sum);
        self.parts.clear();
        let heads = self.stored.is_some().then(|| self.classifier.as_ref().map(Classifier::ranges)).flatten();
        let all = self.stack.all_mut();
        let present = |k: usize, rows: &[usize]| rows[k] > 0;
        for (k, lane) in self.loaded.iter().enumerate() {
            let Some(lane) = lane.as_ref().filter(|_| present(k, &self.rows)) else { continue };
            if let Some(heads) = &heads
                && !lane.trained.iter().all(|t| heads.iter().any(|h| h.start <= t.start && t.end <= h.end))
            {
                return Err(Error::defect("session: stored features train the classifier alone"));
            }
            for pull in &lane.pulls {
                Self::pull(pull, &weights, &all[k * p..(k + 1) * p], &mut self.grads[k * p..(k + 1) * p]);
            }
        }
        if self.stored.is_none() {
            self.interpreter.update_buffers(all)?;
        }
        for (k, lane) in self.loaded.iter_mut().enumerate() {
            if let Some(lane) = lane.as_mut().filter(|_| present(k, &self.rows)) {
                lane.optimiser.step(&mut all[k * p..(k + 1) * p], &self.grads[k * p..(k + 1) * p], rates[k]);
            }
        }
        Ok(())
    }

    fn state(&mut self, k: usize) -> Result<(Params, Named)> {
        let moments = self.lane(k)?.optimiser.state(&self.net.layout)?;
        Ok((self.params(k)?, moments))
    }

    fn take(&mut self, k: usize) -> Result<Params> {
        self.lane(k)?;
        let params = self.params(k)?;
        self.loaded[k] = None;
        if let Stack::One(_) = self.stack {
            self.stack = Stack::Many(Vec::new());
        }
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
        self.frozen.forward(params.data(), x, &[rows], mode.alone())?;
        nodes.iter().zip(outs).try_for_each(|(&node, out)| self.frozen.read(node, out))
    }
}
