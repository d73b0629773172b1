//! A multimodal LLM as a network whose parameters are its adapters and whose output is the loss of each row.
//!
//! A row is the number of a lesson. The gradient is found in `forward`, a group of `micro_batch` rows at a time, so that
//! memory holds one group's activations; `backward` scales the sum. That is right because the task's own loss, the mean
//! over rows, seeds every row alike; other seeds are refused.

use std::sync::Arc;

use super::lessons::Lessons;
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};
use crate::model::lora::Plan;
use crate::model::vlm::{Learner, Opened, Sample};
use crate::nn::net::Start;
use crate::nn::session::Plain;
use crate::nn::{Interpreter, Mode, Net, Node, Params, Session};

/// What every worker's model is made of.
pub struct School {
    /// The folder.
    pub opened: Opened,
    /// What is trained of it.
    pub plan: Plan,
    /// What clients hold.
    pub lessons: Lessons,
    /// Rows whose tokens share one mean.
    pub micro_batch: usize,
    /// Whether activations are computed again on the way back.
    pub recompute: bool,
}

impl School {
    /// The model as the loop sees it.
    pub fn net(&self) -> Net {
        net(&self.plan, self.lessons.multiply_adds)
    }

    /// A worker's place to train in.
    pub fn session(self: &Arc<Self>, net: &Net) -> Box<dyn Session> {
        let speaker = || Box::new(Speaker::new(self.clone()));
        Box::new(Plain::new(net.clone(), speaker(), speaker(), 1))
    }
}

/// Adapters as a network whose output is each row's loss.
pub fn net(plan: &Plan, multiply_adds: u64) -> Net {
    let layout = plan.layout().clone();
    let starts = vec![Start::Constant(0.0); layout.entries().len()];
    Net::of_losses("adapters", layout, starts, multiply_adds)
}

/// One worker's model; made when it is first used.
struct Speaker {
    school: Arc<School>,
    learner: Option<Learner>,
    /// The loss of each row of the last forward, and the sum of all rows' gradients.
    losses: Vec<f32>,
    sum: Vec<f32>,
}

impl Speaker {
    fn new(school: Arc<School>) -> Self {
        Speaker { school, learner: None, losses: Vec::new(), sum: Vec::new() }
    }

    /// Puts values into the model.
    fn set(&mut self, params: &[f32]) -> Result<()> {
        let params = Params::new(self.school.plan.layout().clone(), params)?;
        match &self.learner {
            Some(learner) => learner.set(&params),
            None => {
                let mut learner = self.school.opened.learner(&self.school.plan, &params)?;
                learner.recompute(self.school.recompute);
                self.learner = Some(learner);
                Ok(())
            }
        }
    }

    /// The loss of one group, and in training, with a key, its gradient.
    fn group(&mut self, samples: &[&Sample], key: Option<Key>) -> Result<f64> {
        let Some(learner) = &self.learner else { return Err(Error::defect("speaker: no model")) };
        let Some(key) = key else { return learner.loss(samples) };
        let got = learner.gradients(samples, key)?;
        let weight = samples.len() as f32;
        self.sum.iter_mut().zip(&got.gradient).for_each(|(sum, g)| *sum += weight * g);
        Ok(got.loss)
    }
}

impl Interpreter for Speaker {
    fn forward(&mut self, params: &[f32], x: &[f32], rows: &[usize], mode: Mode<&[Key]>) -> Result<()> {
        let [n] = *rows else { return Err(Error::defect(format!("speaker: {} clients side by side", rows.len()))) };
        mode.check(1)?;
        self.set(params)?;
        self.losses.clear();
        self.sum.clear();
        if let Mode::Train(_) = mode {
            self.sum.resize(params.len(), 0.0);
        }
        let school = self.school.clone();
        for (number, group) in x[..n].chunks(school.micro_batch).enumerate() {
            let samples = group.iter().map(|&id| school.lessons.sample(id as u32)).collect::<Result<Vec<_>>>()?;
            let refs: Vec<&Sample> = samples.iter().map(AsRef::as_ref).collect();
            let key = match mode.of(0)? {
                Mode::Train(key) => Some(key.fold(Purpose::Item, number as u64)),
                Mode::Eval | Mode::Infer => None,
            };
            let loss = self.group(&refs, key)?;
            self.losses.resize(self.losses.len() + refs.len(), loss as f32);
        }
        Ok(())
    }

    fn update_buffers(&mut self, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn read(&mut self, _: Node, out: &mut Vec<f32>) -> Result<()> {
        out.clone_from(&self.losses);
        Ok(())
    }

    fn backward(&mut self, _: &[f32], seeds: &[(Node, &[f32])], grads: &mut [f32]) -> Result<()> {
        if self.sum.len() != grads.len() {
            return Err(Error::defect("speaker: backward without a forward in training"));
        }
        let [(_, seed)] = seeds else { return Err(Error::defect("speaker: one output, other seeds")) };
        let by = seed.first().copied().unwrap_or(0.0);
        if seed.len() != self.losses.len() || seed.iter().any(|s| *s != by) {
            return Err(Error::defect("speaker: rows that weigh otherwise than alike"));
        }
        grads.iter_mut().zip(&self.sum).for_each(|(g, sum)| *g = by * sum);
        Ok(())
    }
}
