//! The plain session: parameters on the host, any interpreter.

use std::ops::Range;

use super::{Input, Pull, Session, Training};
use crate::error::{Error, Result};
use crate::key::Key;
use crate::nn::classifier::Classifier;
use crate::nn::interpreter::{Interpreter, Mode};
use crate::nn::net::{Net, Node};
use crate::nn::optim::Optimiser;
use crate::nn::params::{Named, Params, Ranges, Role};

impl Plain {
    /// A session of `lanes` clients in which `interpreter` runs what is trained, and `frozen` what is only looked at.
    pub fn new(net: Net, interpreter: Box<dyn Interpreter>, frozen: Box<dyn Interpreter>, lanes: usize) -> Plain {
        let classifier = net.classifier();
        let stack = Stack::Many(Vec::new());
        let (grads, parts, loaded) = (Vec::new(), Vec::new(), (0..lanes).map(|_| None).collect());
        let rows = vec![0; lanes];
        let (stored, gathered) = (None, false);
        Plain { net, classifier, interpreter, frozen, stack, grads, parts, gathered, loaded, rows, stored }
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
    /// Whether earlier parts and pulls are in the gradient.
    gathered: bool,
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

    /// Makes the gradient whole: the step's earlier parts, then the pulls.
    fn gather(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.gathered, true) {
            return Ok(());
        }
        let (p, weights) = (self.size(), self.net.layout.ranges(Role::Weight));
        self.grads.iter_mut().zip(&self.parts).for_each(|(g, sum)| *g += sum);
        self.parts.clear();
        let heads = self.stored.is_some().then(|| self.classifier.as_ref().map(Classifier::ranges)).flatten();
        let all = self.stack.all();
        for (k, lane) in self.loaded.iter().enumerate() {
            let Some(lane) = lane.as_ref().filter(|_| self.rows[k] > 0) else { continue };
            if let Some(heads) = &heads
                && !lane.trained.iter().all(|t| heads.iter().any(|h| h.start <= t.start && t.end <= h.end))
            {
                return Err(Error::defect("session: stored features train the classifier alone"));
            }
            for pull in &lane.pulls {
                Self::pull(pull, &weights, &all[k * p..(k + 1) * p], &mut self.grads[k * p..(k + 1) * p]);
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

/// The sum of squares, in f64, by lanes in a fixed order.
fn square(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; 8];
    for chunk in values.chunks(8) {
        lanes.iter_mut().zip(chunk).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
    }
    lanes.iter().sum()
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
        self.gathered = false;
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

    fn clip(&mut self, k: usize, most: f32, beside: f64) -> Result<f32> {
        self.gather()?;
        let (p, trained) = (self.size(), self.lane(k)?.trained.clone());
        let own = &mut self.grads[k * p..(k + 1) * p];
        let norm = (beside + trained.iter().map(|r| square(&own[r.clone()])).sum::<f64>()).sqrt();
        let by = (f64::from(most) / (norm + 1e-6)).min(1.0) as f32;
        if by < 1.0 {
            trained.into_iter().for_each(|r| own[r].iter_mut().for_each(|g| *g *= by));
        }
        Ok(if norm.is_finite() { by } else { f32::NAN })
    }

    fn step(&mut self, rates: &[f32]) -> Result<()> {
        self.gather()?;
        let p = self.size();
        let all = self.stack.all_mut();
        if self.stored.is_none() {
            self.interpreter.update_buffers(all)?;
        }
        for (k, lane) in self.loaded.iter_mut().enumerate() {
            if let Some(lane) = lane.as_mut().filter(|_| self.rows[k] > 0) {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::exec::Context;
    use crate::nn::Backend;
    use crate::nn::net::{NetBuilder, Start};
    use crate::nn::optim::{OptimiserConfig, SgdConfig};

    fn net() -> Arc<Net> {
        let mut b = NetBuilder::new(3, 8, 8);
        let x = b.conv(NetBuilder::INPUT, "conv", 8, 3, 1, 1, Start::Normal(0.3)).unwrap();
        let x = b.batch_norm(x, "norm").unwrap();
        let x = b.relu(x);
        let x = b.global_avg_pool(x).unwrap();
        let x = b.linear(x, "fc", 3).unwrap();
        Arc::new(b.finish("small", x).unwrap())
    }

    /// One step of plain SGD with rate 1 from zero pulls: what it moved by, which is the gradient; and the clip's factor.
    fn moved(backend: Backend, trained: Option<Ranges>, clip: Option<(f32, f64)>) -> (Vec<f32>, f32) {
        let net = net();
        let mut session = backend.session(&net, &Context::cpu(1), 1, 1).unwrap();
        let start = net.init(Key::from_seed(3));
        let optimiser = OptimiserConfig::Sgd(SgdConfig { lr: 1.0, ..SgdConfig::default() });
        let pulls = vec![Pull::Proximal { mu: 0.5, to: Params::zeros(net.layout.clone()), over: None }];
        let training = Training { optimiser, trained, pulls, moments: Named::new() };
        session.load(0, start.clone(), &training).unwrap();
        let x: Vec<f32> = (0..5 * 192).map(|i| (i as f32 * 0.7).sin()).collect();
        let keys = [Key::from_seed(1)];
        session.forward(Input::Images(&x), &[5], Mode::Train(&keys[..])).unwrap();
        let seed: Vec<f32> = (0..15).map(|i| (i as f32).cos()).collect();
        session.backward(&[(net.logits, &seed)]).unwrap();
        let by = clip.map_or(1.0, |(most, beside)| session.clip(0, most, beside).unwrap());
        session.step(&[1.0]).unwrap();
        let end = session.take(0).unwrap();
        let weights = net.layout.ranges(Role::Weight);
        let moved = weights.into_iter().flat_map(|r| r.map(|i| start.data()[i] - end.data()[i]));
        (moved.collect(), by)
    }

    fn norm(values: &[f32]) -> f64 {
        values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
    }

    /// torch.nn.utils.clip_grad_norm_: `g · min(1, most / (‖g‖ + 1e-6))`, the norm over all that is trained.
    #[test]
    fn a_gradient_that_is_too_long_keeps_its_direction_and_a_short_one_its_bytes() {
        for backend in [Backend::Cpu, Backend::Candle] {
            for trained in [None, Some(net().head())] {
                let (free, _) = moved(backend, trained.clone(), None);
                let n = norm(&free);
                assert!(n > 0.1);
                let (held, by) = moved(backend, trained.clone(), Some((0.1, 0.0)));
                let want = 0.1 / (n + 1e-6);
                assert!((f64::from(by) / want - 1.0).abs() < 1e-5 && (norm(&held) - 0.1).abs() < 1e-5, "{by} {want}");
                assert!(held.iter().zip(&free).all(|(h, f)| (h - f * by).abs() < 1e-5));
                // What is trained outside has its part in the norm.
                let (_, beside) = moved(backend, trained.clone(), Some((0.1, 3.0 * n * n)));
                assert!((f64::from(beside) / (0.1 / (2.0 * n)) - 1.0).abs() < 1e-4);
                let (long, by) = moved(backend, trained, Some((2.0 * n as f32, 0.0)));
                assert_eq!((long, by), (free, 1.0));
            }
        }
    }
}
