//! FEDIC: Shang, Lu, Cheung, Wang, *Federated Learning on Non-IID and Long-Tailed Data via Calibrated Distillation*,
//! ICME 2022; equations as its published code (`shangxinyi/FEDIC`, `main.py`) computes them.
//!
//! Clients train by cross-entropy. Then the server, from FedAvg's mean w̄ of their models, takes `steps` steps of Adam in
//! each of three stages:
//! (a) a copy of w̄ learns its balanced labelled set by cross-entropy; its logits are z_c;
//! (b) a [`gate`] learns there to mix the clients' logits z_k with z_c: `a_k = σ(v·z_k + b) / Σ_j σ(v·z_j + b)`,
//!     `ẑ = γ ⊙ Σ a_k z_k + β`, `G = σ(w·mean_k h_k + b_w)`, `out = G ẑ + (1 − G) z_c`, by cross-entropy;
//! (c) a student, from w̄, learns `μ KL(softmax(out / T) ‖ softmax(z / T))` on images without labels and
//!     `(1 − μ) CE` on the labelled set, each in a forward of its own; no T² appears.
//! The student is judged and starts the next round. The gate and the three Adams persist from round to round; those of
//! (a) and (c) add an L2 term to the gradient, that of (b) does not.
//!
//! The published code is written for 10 classes, 8 clients and a feature of 256; here the gate takes the network's
//! sizes and however many clients replied. Its server draws each batch anew without replacement; here batches are those
//! of shuffled passes. v = γ = 1, b = β = 0 at the start, and (w, b_w) uniform within 1/√features, as there.

mod gate;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::gate::{Gate, Student, TrainGate};
use crate::error::{Error, Result};
use crate::fl::brief::MODEL;
use crate::fl::reply::applied;
use crate::fl::{
    About, Algorithm, Bn, Brief, ClientId, Collect, Collected, Exchange, Feed, Job, Length, Loss, Moments, Named, Needs,
    Now, Objective, Outcome, Part, Reply, Rows, Slot, Step, Train, Who,
};
use crate::key::Purpose;
use crate::nn::optim::AdamConfig;
use crate::nn::{OptimiserConfig, Params};

const DISTIL: &str = "distil";
const CALIBRATED: &str = "calibrated";
const GATE: &str = "gate";
/// Whose moments are kept: the stages' own names.
const STAGES: [&str; 3] = ["calibrate", "ensemble", "student"];

/// Slots of the server's brief.
const MEAN: usize = 0;
const GATE_SENT: usize = 1;
const CALIBRATED_FOUND: usize = 2;
const GATE_FOUND: usize = 3;
const CLIENTS: usize = 4;

/// FEDIC's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Fedic {
    /// Adam steps of each of the server's three stages; 0 leaves FedAvg.
    pub steps: usize,
    /// Labelled images in a step; 0 for all.
    pub batch_size: usize,
    /// Images without labels in a step of the last stage; 0 for all.
    pub unlabelled_batch: usize,
    /// Learning rate of the three stages.
    pub lr: f32,
    /// L2 term of the first and the last stage.
    pub weight_decay: f32,
    /// T of the student's and the teacher's softmax, > 0.
    pub temperature: f32,
    /// μ, weight of the teacher against the labels, in [0, 1].
    pub mix: f32,
}

impl Default for Fedic {
    fn default() -> Self {
        Fedic {
            steps: 100,
            batch_size: 20,
            unlabelled_batch: 128,
            lr: 1e-3,
            weight_decay: 2e-4,
            temperature: 2.0,
            mix: 0.5,
        }
    }
}

impl Fedic {
    fn adam(&self, weight_decay: f32) -> OptimiserConfig {
        OptimiserConfig::Adam(AdamConfig { lr: self.lr, weight_decay, ..AdamConfig::default() })
    }

    fn labelled(&self) -> Feed {
        Feed { rows: Rows::Server, batch_size: self.batch_size, ..Feed::default() }
    }

    /// A stage's training; its Adam goes on where the last round's ended.
    fn stage(&self, number: usize, from: usize, weight_decay: f32, state: &Named) -> Train<'static> {
        Train {
            from,
            feeds: vec![self.labelled()],
            length: Length::Steps(self.steps),
            optimiser: self.adam(weight_decay),
            moments: Some(Moments { name: STAGES[number].into(), start: state.clone() }),
            into: CALIBRATED.into(),
            ..Train::default()
        }
    }

    fn stages(&self, clients: usize, state: &Named) -> Vec<Step> {
        let clients = CLIENTS..CLIENTS + clients;
        let open = |o: Arc<dyn Objective>| Loss::Open(vec![o]);
        let calibrate = self.stage(0, MEAN, self.weight_decay, state);
        // The calibrated network is frozen, and its own logits are z_c.
        let ensemble = Train {
            trained: Some(Vec::new()),
            beside: vec![GATE_SENT],
            bn: Bn::Running,
            witnesses: clients.clone().collect(),
            loss: open(Arc::new(TrainGate)),
            ..self.stage(1, CALIBRATED_FOUND, 0.0, state)
        };
        let unlabelled = Feed { rows: Rows::Unlabelled, batch_size: self.unlabelled_batch, ..Feed::default() };
        let student = Train {
            feeds: vec![unlabelled, self.labelled()],
            apart: true,
            witnesses: std::iter::once(CALIBRATED_FOUND).chain(clients).collect(),
            loss: open(Arc::new(Student { gate: GATE_FOUND, temperature: self.temperature, mix: self.mix })),
            into: MODEL.into(),
            ..self.stage(2, MEAN, self.weight_decay, state)
        };
        [calibrate, ensemble, student].into_iter().map(Step::Train).collect()
    }

    /// The server's own work: FedAvg's mean, the gate, and every client's model.
    fn distil(&self, model: &Params, state: &Named, now: &Now<'_>) -> Result<Brief> {
        let got = now.got.first().ok_or_else(|| Error::defect("fedic: no client has trained"))?;
        let mean = got.summed()?.moved(model, MODEL, 1.0)?;
        let gate = state.get(GATE).cloned().ok_or_else(|| Error::data("fedic: the state has no gate"))?;
        let mut slots = vec![
            Slot::Sent("mean".into(), mean),
            Slot::Sent(GATE.into(), gate),
            Slot::Found(CALIBRATED.into()),
            Slot::Found(GATE.into()),
        ];
        for (client, reply) in &got.each {
            let own = applied(reply.part(MODEL)?.data.clone(), model);
            slots.push(Slot::Sent(format!("client/{client}").into(), own));
        }
        Ok(Brief { steps: self.stages(got.each.len(), state), slots })
    }
}

/// Whether the server keeps what a step found under this name: the gate, and the moments of what a stage trains.
fn kept(name: &str) -> bool {
    match name.split_once('/') {
        None => name == GATE,
        Some((stage, rest)) => STAGES.contains(&stage) && (stage != STAGES[1] || rest.starts_with(GATE)),
    }
}

impl Algorithm for Fedic {
    fn about(&self) -> About {
        let leaves = "nothing; the server looks at each client's model by itself";
        About { paper: "Shang et al., FEDIC: Calibrated Distillation, ICME 2022", leaves }
    }

    fn needs(&self) -> Needs {
        Needs { server_set: true, unlabelled: true, classifier: true, each: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        let Fedic { lr, weight_decay, temperature, mix, .. } = *self;
        let finite = [lr, weight_decay, temperature].iter().all(|v| v.is_finite());
        if !(finite && lr >= 0.0 && weight_decay >= 0.0 && temperature > 0.0 && (0.0..=1.0).contains(&mix)) {
            let found = format!("lr {lr} ≥ 0, weight_decay {weight_decay} ≥ 0, temperature {temperature} > 0");
            return Err(Error::input(format!("algorithm (fedic): {found}, mix {mix} in [0, 1]")));
        }
        Ok(())
    }

    fn init(&self, _: &Params, now: &Now<'_>) -> Result<Named> {
        let head = now.head()?;
        let gate = Gate::start(head.classes, head.features, now.key.fold(Purpose::Init, 0))?;
        Ok(Named::from([(GATE.to_string(), gate)]))
    }

    fn exchanges(&self, _: &Named, _: &Now<'_>) -> Vec<Exchange> {
        let distil = Exchange { name: DISTIL, who: Who::Server { jobs: 1 }, collect: Collect::Each };
        vec![Exchange { collect: Collect::Each, ..Exchange::TRAIN }, distil]
    }

    fn brief(&self, model: &Params, state: &Named, exchange: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        match exchange.name {
            DISTIL => self.distil(model, state, now),
            _ => Ok(Brief::train(Brief::training(now), vec![])),
        }
    }

    fn reply(&self, job: &Job, mut outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        if job.exchange != DISTIL {
            let weight = outcome.samples as f64;
            return Ok((Reply::model(job, outcome, weight), None));
        }
        let found = std::mem::take(&mut outcome.found);
        let mut parts = vec![Part::value(MODEL, outcome.params.clone())];
        parts.extend(found.into_iter().filter(|(name, _)| kept(name)).map(|(name, data)| Part::value(name, data)));
        Ok((Reply::of(&outcome, parts), None))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        _: &Now<'_>,
    ) -> Result<(Params, Named)> {
        if exchange.name != DISTIL {
            // The server's own work starts from the clients' replies, which are steps from this model.
            return Ok((model.clone(), state.clone()));
        }
        let (_, reply) = got.each.first().ok_or_else(|| Error::defect("fedic: the server has done no work"))?;
        let others = reply.parts.iter().filter(|part| part.name != MODEL);
        let state = others.map(|part| (part.name.to_string(), part.data.clone())).collect();
        Ok((reply.part(MODEL)?.data.clone(), state))
    }
}

#[cfg(test)]
mod tests {
    use super::kept;

    #[test]
    fn the_server_keeps_the_gate_and_the_moments_of_what_is_trained() {
        for name in ["gate", "calibrate/first", "student/steps", "ensemble/gate/second"] {
            assert!(kept(name), "{name}");
        }
        // The second stage trains no weight of the network.
        for name in ["calibrated", "ensemble/first", "ensemble/steps"] {
            assert!(!kept(name), "{name}");
        }
    }
}
