//! CCVR: Luo, Chen, Hu, Zhang, Liang, Feng, *No Fear of Heterogeneity: Classifier Calibration for Federated Learning
//! with Non-IID Data*, NeurIPS 2021, Algorithm 1.
//!
//! Training is FedAvg's. Before the model is judged, every client sends moments of its features by class (model in
//! evaluation mode), the server pools them (equations 3 and 4), draws M Gaussian features a class, and fine-tunes the
//! model's own classifier on them:
//!
//! - `μ_c = Σ_k n_ck μ_ck / n_c`;
//! - `Σ_c = Σ_k (n_ck − 1)/(n_c − 1) Σ_ck + Σ_k n_ck/(n_c − 1) μ_ck μ_ckᵀ − n_c/(n_c − 1) μ_c μ_cᵀ`, 0 for one image;
//! - `h = μ_c + L ε`, `L Lᵀ = Σ_c + 1e-6 I`.
//!
//! The calibrated classifier is judged and exported, and never returns to the clients. The paper calibrates once, after
//! the last round; here it happens whenever the model is judged (`federated.eval_every`), so that every figure is of a
//! calibrated model. Defaults are those of a published port (gzhu-hcai/LongTailLib): M = 2000, 10 epochs, SGD 1e-3,
//! momentum 0.9, weight decay 1e-5, its clients' batch size.
//!
//! What leaves a client: for each class that it holds n_ck, `Σ h` and the upper triangle of `Σ h hᵀ`. They say what
//! count, mean and covariance say, no more and no less, but add up, so the server can do with their sums alone:
//! `Σ_c = (Σ h hᵀ − n_c μ_c μ_cᵀ)/(n_c − 1)` is the equation above. They are f32: a covariance is known to about 1e-7 of
//! the mean square, and directions that vary less are drawn as if they did not vary (see [`Gaussian::factor`]).

mod moments;

use std::borrow::Cow;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::moments::{Gaussian, pooled};
use self::moments::{Moments, numbers};
use super::check_server;
use crate::error::{Error, Result};
use crate::exec;
use crate::fl::{
    About, Algorithm, Bn, Brief, ClientId, Collect, Collected, Cost, Exchange, Feed, Job, Length, Measure, Named,
    Needs, Now, Order, Outcome, Part, Reply, Rows, Sizes, Slot, Step, Train, Who,
};
use crate::fsx::bound;
use crate::key::Purpose;
use crate::nn::optim::SgdConfig;
use crate::nn::{OptimiserConfig, Params, View};

const MOMENTS: Exchange = Exchange { name: "moments", who: Who::All, collect: Collect::Sum };
const CALIBRATE: Exchange = Exchange { name: "calibrate", who: Who::Server { jobs: 1 }, collect: Collect::Each };

/// The calibrated classifier in the state, in a round in which it is judged.
const HEAD: &str = "head";

/// Most features that anybody draws for a class.
const SAMPLES: usize = 100_000;

/// Images of a look; the moments do not depend on it.
const LOOK: usize = 128;

/// CCVR's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ccvr {
    /// Features drawn for each class.
    pub samples: usize,
    /// Passes over them.
    pub epochs: usize,
    /// Features in a step; 0 takes `federated.batch_size`.
    pub batch_size: usize,
    /// Added to the diagonal of every covariance, > 0.
    pub ridge: f64,
    /// The server's optimiser.
    pub optimiser: OptimiserConfig,
}

impl Default for Ccvr {
    fn default() -> Self {
        let sgd = SgdConfig { lr: 1e-3, momentum: 0.9, weight_decay: 1e-5, nesterov: false };
        Ccvr { samples: 2000, epochs: 10, batch_size: 0, ridge: 1e-6, optimiser: OptimiserConfig::Sgd(sgd) }
    }
}

impl Ccvr {
    /// The server's work: features drawn for every class somebody holds, and the classifier trained on them.
    fn calibration(&self, now: &Now<'_>) -> Result<Brief> {
        let got = now.got.get(1).ok_or_else(|| Error::defect("ccvr: no moments were asked for"))?;
        let (head, mut features, mut labels) = (now.head()?, Vec::new(), Vec::new());
        let classes: Vec<(u32, Gaussian)> = pooled(got, head.features)?.into_iter().collect();
        let key = now.key.fold(Purpose::Noise, 0);
        let n = bound::volume(&[classes.len(), self.samples, head.features]).unwrap_or(usize::MAX);
        features.try_reserve_exact(n).map_err(|_| no_room(self.samples, classes.len()))?;
        exec::ordered(
            now.cx.threads,
            classes.len(),
            now.cx.threads,
            |_| Ok(()),
            |_, i| {
                now.cx.cancel.check()?;
                let (class, gaussian) = &classes[i];
                Ok(gaussian.draw(self.samples, self.ridge, key.fold(Purpose::Item, u64::from(*class))))
            },
            |i, drawn: Vec<f32>| {
                features.extend(drawn);
                labels.extend(std::iter::repeat_n(classes[i].0 as f32, self.samples));
                Ok(())
            },
        )?;
        let batch_size = if self.batch_size == 0 { now.config.batch_size } else { self.batch_size };
        let train = Train {
            trained: Some(head.ranges()),
            feeds: vec![Feed { rows: Rows::Features(1), labels: Some(2), batch_size, ..Feed::default() }],
            length: Length::Epochs(self.epochs),
            optimiser: self.optimiser.clone(),
            ..Train::default()
        };
        let features = Params::tensor("features", &[labels.len(), head.features], features)?;
        let labels = Params::tensor("labels", &[labels.len()], labels)?;
        Ok(Brief::train(train, vec![Slot::Sent("features".into(), features), Slot::Sent("labels".into(), labels)]))
    }
}

fn no_room(samples: usize, classes: usize) -> Error {
    Error::environment(format!("ccvr: no memory for {samples} features of each of {classes} classes"))
        .hint("lower algorithm.samples")
}

impl Algorithm for Ccvr {
    fn about(&self) -> About {
        let leaves = "before the model is judged, of every class that the client holds: the number of images, the sum of \
            their features and of the features' products";
        About { paper: "Luo et al., No Fear of Heterogeneity: Classifier Calibration, NeurIPS 2021", leaves }
    }

    fn needs(&self) -> Needs {
        Needs { classifier: true, judged: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        check_server(&self.optimiser)?;
        if !(1..=SAMPLES).contains(&self.samples) {
            return Err(Error::input(format!("algorithm.samples = {}: 1 to {SAMPLES}", self.samples)));
        }
        if !(self.ridge.is_finite() && self.ridge > 0.0) {
            return Err(Error::input(format!("algorithm.ridge = {}: a number > 0", self.ridge)));
        }
        Ok(())
    }

    /// In a round in which the model is judged; clients outside the cohort pay all but training.
    fn cost(&self, sizes: &Sizes) -> Cost {
        let moments = sizes.held * numbers(sizes.features as usize) as u64;
        Cost { down: 2 * sizes.model, up: sizes.model + moments, extra: sizes.samples * sizes.forward }
    }

    fn exchanges(&self, _: &Named, now: &Now<'_>) -> Vec<Exchange> {
        if now.judged { vec![Exchange::TRAIN, MOMENTS, CALIBRATE] } else { vec![Exchange::TRAIN] }
    }

    fn brief(&self, _: &Params, _: &Named, exchange: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        if *exchange == MOMENTS {
            let feed = Feed { order: Order::Stored, view: View::Plain, batch_size: LOOK, ..Feed::default() };
            let what = Arc::new(Moments);
            return Ok(Brief::measure(vec![Measure { at: vec![0], feed, bn: Bn::Running, repeats: 1, what }], vec![]));
        }
        if *exchange == CALIBRATE {
            return self.calibration(now);
        }
        Ok(Brief::train(Brief::training(now), vec![]))
    }

    fn reply(&self, job: &Job, mut outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        let parts = match job.brief.steps.first() {
            Some(Step::Measure(_)) => {
                std::mem::take(&mut outcome.found).into_iter().map(|(name, data)| Part::value(name, data)).collect()
            }
            _ if job.server => vec![Part::value(HEAD, outcome.params.clone())],
            _ => {
                let weight = outcome.samples as f64;
                return Ok((Reply::model(job, outcome, weight), None));
            }
        };
        Ok((Reply::of(&outcome, parts), None))
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        if *exchange == MOMENTS {
            return Ok((model.clone(), state.clone()));
        }
        if *exchange == CALIBRATE {
            let (_, reply) = got.each.first().ok_or_else(|| Error::defect("ccvr: the server did no work"))?;
            let head = reply.part(HEAD)?.data.part(&now.head()?.ranges())?;
            return Ok((model.clone(), Named::from([(HEAD.to_string(), head)])));
        }
        Ok((got.moved(model, crate::fl::brief::MODEL, 1.0)?, Named::new()))
    }

    fn deploy<'m>(&self, model: &'m Params, state: &Named, _: &Now<'_>) -> Result<Cow<'m, Params>> {
        match state.get(HEAD) {
            Some(head) => Ok(Cow::Owned(model.patched(head)?)),
            None => Ok(Cow::Borrowed(model)),
        }
    }
}
