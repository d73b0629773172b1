//! BalanceFL: Shuai, Shen, Jiang, Zhao, Yan and Xing, *BalanceFL: Addressing Class Imbalance in Long-Tail Federated
//! Learning*, IPSN 2022. The server is FedAvg's; a client trains so that it could have had balanced data:
//!
//! `L = CE_P(W h̃ + b, y) + λ KD_A(z; t) − ω H_P(z)`
//!
//! P: the classes that the client holds, A: the others; each term's softmax is over its own classes alone. `h̃ = h +
//! δ`, `δ ~ N(0, Σ)` with probability `1 − n_y / max n`, Σ the mean covariance of the received model's features within
//! a class. `KD_A = mean_i −Σ_c softmax(t_i/T)_c log softmax(z_i/T)_c`, t the received model's logits. H: entropy of z.
//! Batches are balanced over the classes of the client.
//!
//! The published code differs where a key says so: it takes for P the classes of the *batch* (`present = "batch"`),
//! runs the received model with batch statistics (`teacher_bn = "batch"`; its line that sets evaluation mode is
//! commented out), and sums H over the batch (`entropy = "sum"`, the default here too, as ω = 0.002 belongs to the
//! sum). It draws its balanced batches with replacement, n images an epoch, each class with equal chances; here an
//! epoch has as many images, classes come in turn, and no image of a class again before all of them came. It deals 500
//! draws of δ out over and over; here every row has its own. Its network has no bias, and its optimiser (Adam 0.005,
//! beside which its file lists momentum 0.9 and decay 1e-4) is the `federated` section's affair.
//!
//! Without noise, balance, λ and ω, on clients that hold every class, it is FedAvg byte for byte.

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::fl::{
    About, Algorithm, Bn, Brief, ClientId, Cost, Exchange, Feed, Loss, Measure, Named, Needs, Now, Order, Sizes, Slot,
    Step,
};
use crate::nn::{Params, View};

mod noise;
mod terms;

use noise::Spread;
use terms::Balance;

const NOISE: &str = "noise";

/// Which classes count as present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Present {
    /// Those that the client holds.
    #[default]
    Client,
    /// Those in the batch.
    Batch,
}

/// What becomes of the entropies of a batch's rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Entropy {
    /// They are added.
    #[default]
    Sum,
    /// Their mean is taken.
    Mean,
}

/// What batch norm of the received model does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TeacherBn {
    /// Running statistics.
    #[default]
    Running,
    /// Batch statistics.
    Batch,
}

impl TeacherBn {
    fn bn(self) -> Bn {
        match self {
            TeacherBn::Running => Bn::Running,
            TeacherBn::Batch => Bn::Batch,
        }
    }
}

/// BalanceFL's knobs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct BalanceFl {
    /// Weight λ of the distillation over absent classes, ≥ 0.
    pub lambda: f32,
    /// Its temperature T, > 0.
    pub temperature: f32,
    /// Weight ω of the entropy, ≥ 0.
    pub entropy_weight: f32,
    /// Sum or mean over a batch.
    pub entropy: Entropy,
    /// Which classes count as present.
    pub present: Present,
    /// Whether batches are balanced over the client's classes.
    pub balanced: bool,
    /// Whether features get noise.
    pub feature_noise: bool,
    /// Batch norm of the received model, as teacher and for Σ.
    pub teacher_bn: TeacherBn,
}

impl Default for BalanceFl {
    fn default() -> Self {
        BalanceFl {
            lambda: 1.0,
            temperature: 2.0,
            entropy_weight: 0.002,
            entropy: Entropy::Sum,
            present: Present::Client,
            balanced: true,
            feature_noise: true,
            teacher_bn: TeacherBn::Running,
        }
    }
}

impl Algorithm for BalanceFl {
    fn about(&self) -> About {
        let paper = "Shuai et al., BalanceFL: Addressing Class Imbalance in Long-Tail Federated Learning, IPSN 2022";
        About { paper, leaves: "" }
    }

    fn needs(&self) -> Needs {
        Needs { classifier: true, ..Needs::default() }
    }

    fn check(&self) -> Result<()> {
        let weight = |v: f32| v.is_finite() && v >= 0.0;
        let (lambda, omega, t) = (self.lambda, self.entropy_weight, self.temperature);
        if !(weight(lambda) && weight(omega) && t.is_finite() && t > 0.0) {
            let message = format!("algorithm: lambda {lambda} ≥ 0, entropy_weight {omega} ≥ 0, temperature {t} > 0");
            return Err(Error::input(message));
        }
        Ok(())
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        let teacher = if self.lambda != 0.0 { sizes.epochs } else { 0 };
        let passes = teacher + u64::from(self.feature_noise);
        Cost { down: sizes.model, up: sizes.model, extra: passes * sizes.samples * sizes.forward }
    }

    fn brief(&self, _: &Params, _: &Named, _: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        let mut train = Brief::training(now);
        let batch_size = now.config.batch_size;
        if self.balanced {
            train.feeds[0].order = Order::Balanced;
        }
        if self.lambda != 0.0 {
            (train.witnesses, train.witness_bn) = (vec![0], self.teacher_bn.bn());
        }
        train.loss = Loss::Open(vec![Arc::new(self.objective())]);
        let mut brief = Brief::train(train, vec![]);
        if self.feature_noise {
            let feed = Feed { batch_size, view: View::Plain, ..Feed::default() };
            let what = Arc::new(Spread { name: NOISE });
            let measure = Measure { at: vec![0], feed, bn: self.teacher_bn.bn(), repeats: 1, what };
            brief.slots.push(Slot::Found(NOISE.into()));
            brief.steps.insert(0, Step::Measure(measure));
        }
        Ok(brief)
    }
}

impl BalanceFl {
    fn objective(&self) -> Balance {
        let noise = self.feature_noise.then_some(1);
        Balance { config: self.clone(), noise }
    }
}
