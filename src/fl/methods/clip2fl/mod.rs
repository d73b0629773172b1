//! CLIP2FL: Shi, Zheng, Yin, Lu, Xie and Qu, *CLIP-Guided Federated Learning on Heterogeneous and Long-Tailed Data*,
//! AAAI 2024, equations 1 and 8: [`super::creff`] with two additions.
//!
//! Client: `CE(z, y) + α T² mean_i KL(softmax(t_i / T) ‖ softmax(z_i / T))`, where t are CLIP's zero-shot logits, 100
//! times the cosine of image and class text, of the image without augmentation. Class gradients are of cross-entropy
//! alone. Server: the matching loss `+ η PCL` over the features of all classes, whoever holds them; PCL is supervised
//! contrast of each feature with the class texts of all others. With N = n · classes features, `s_ic = ⟨F_i, t_c⟩ / τ`,
//! texts of unit length and features as they are, its pairs are equal by class, so that
//! `PCL = mean_i −s_iy + log((n − 1) e^{s_iy} + n Σ_{c ≠ y} e^{s_ic})`: N × classes numbers in place of N × N.
//!
//! Defaults of the published code (shijiangming1/CLIP2FL) since May 2024: α 1, η 0.001; its first releases had 2 and 0.5.
//! There the feature is 512 wide, as CLIP's texts are, by a linear layer before the classifier; any network will do whose
//! feature is as wide as the texts. Each client runs CLIP itself there; here its logits are a column made once, which
//! comes to the same, since CLIP sees no augmentation. The client's cost leaves CLIP out.

mod contrast;

use std::borrow::Cow;
use std::sync::Arc;

use contrast::Contrast;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::creff::CReFF;
use crate::error::{Error, Result};
use crate::fl::{
    About, Algorithm, Brief, ClientId, Collected, Cost, Exchange, Here, Job, Loss, Named, Needs, Now, Objective,
    Outcome, Reply, Sizes, Supplies, Train,
};
use crate::nn::{Params, loss};

/// CLIP2FL's knobs: its own, then CReFF's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Clip2Fl {
    /// Weight α of the teacher on clients; 0 needs no teacher.
    pub alpha: f32,
    /// Temperature T of teacher and student.
    pub temperature: f32,
    /// Weight η of the texts on the server; 0 needs no texts.
    pub eta: f32,
    /// Temperature τ of the contrast with the texts.
    pub tau: f32,
    /// Federated features of a class.
    pub features_per_class: usize,
    /// Matching steps in a round.
    pub match_steps: usize,
    /// Learning rate of the features.
    pub match_lr: f32,
    /// Passes over the features in retraining.
    pub head_epochs: usize,
    /// Learning rate of retraining.
    pub head_lr: f32,
    /// Features in a retraining step; 0 for all.
    pub head_batch: usize,
    /// Retraining starts from a new draw in every round, else from the same one.
    pub fresh_head: bool,
    /// Draws of real images that a gradient is the mean over.
    pub repeats: usize,
    /// Images of a class in such a draw, at most.
    pub real_batch: usize,
    /// Siamese augmentation of these images; without it they are shown plain.
    pub dsa: bool,
}

impl Default for Clip2Fl {
    fn default() -> Self {
        let c = CReFF::default();
        Clip2Fl {
            alpha: 1.0,
            temperature: 3.0,
            eta: 0.001,
            tau: 0.1,
            features_per_class: c.features_per_class,
            match_steps: c.match_steps,
            match_lr: c.match_lr,
            head_epochs: c.head_epochs,
            head_lr: c.head_lr,
            head_batch: c.head_batch,
            fresh_head: c.fresh_head,
            repeats: c.repeats,
            real_batch: c.real_batch,
            dsa: c.dsa,
        }
    }
}

/// `CE + α T² mean_i KL(softmax(t_i / T) ‖ softmax(z_i / T))` with the teacher's column t.
struct Taught {
    alpha: f32,
    temperature: f32,
}

impl Objective for Taught {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let (own, classes, t) = (at.column(Supplies::TEACHER)?, at.classes, self.temperature);
        let (scaled, mut q): (Vec<f32>, Vec<f32>) = (own.iter().map(|z| z / t).collect(), Vec::new());
        loss::softmax(&scaled, classes, &mut q);
        let (scale, ones) = (self.alpha * t * t, vec![1.0; at.rows()]);
        let value = loss::cross_entropy(at.logits, at.y, classes, 1.0, at.d_logits)?;
        let apart = loss::kl_divergence(at.logits, &q, &ones, classes, t, scale, at.d_logits)?;
        Ok(value + f64::from(scale) * apart)
    }
}

impl Clip2Fl {
    /// What it is without its two additions.
    fn creff(&self) -> CReFF {
        CReFF {
            features_per_class: self.features_per_class,
            match_steps: self.match_steps,
            match_lr: self.match_lr,
            head_epochs: self.head_epochs,
            head_lr: self.head_lr,
            head_batch: self.head_batch,
            fresh_head: self.fresh_head,
            repeats: self.repeats,
            real_batch: self.real_batch,
            dsa: self.dsa,
        }
    }

    fn training(&self, now: &Now<'_>) -> Train<'static> {
        let mut train = Brief::training(now);
        if self.alpha > 0.0 {
            train.loss = Loss::Open(vec![Arc::new(Taught { alpha: self.alpha, temperature: self.temperature })]);
            train.feeds[0].columns.push(Supplies::TEACHER.into());
        }
        train
    }
}

/// Refuses texts and teachers that do not fit the network.
fn fits(method: &Clip2Fl, now: &Now<'_>) -> Result<()> {
    let head = now.head()?;
    if let (true, Some(texts)) = (method.eta > 0.0, &now.supplies.texts) {
        let (found, want) = (texts.data().len(), head.classes * head.features);
        if found != want {
            let (width, features) = (found / head.classes.max(1), head.features);
            let message = format!("clip2fl: class texts of width {width}, a feature of width {features}");
            return Err(Error::input(message).hint(format!("set model.mlp = {width}, or algorithm.eta = 0")));
        }
    }
    if let (true, Some(teacher)) = (method.alpha > 0.0, now.supplies.columns.get(Supplies::TEACHER))
        && teacher.dim != head.classes
    {
        let (dim, classes) = (teacher.dim, head.classes);
        return Err(Error::data(format!("clip2fl: the teacher has {dim} logits an image, the network {classes} classes")));
    }
    Ok(())
}

impl Algorithm for Clip2Fl {
    fn about(&self) -> About {
        let paper = "Shi et al., CLIP-Guided Federated Learning on Heterogeneous and Long-Tailed Data, AAAI 2024";
        About { paper, ..self.creff().about() }
    }

    fn needs(&self) -> Needs {
        Needs { teacher: self.alpha > 0.0, texts: self.eta > 0.0, ..self.creff().needs() }
    }

    fn check(&self) -> Result<()> {
        for (key, value) in [("alpha", self.alpha), ("eta", self.eta)] {
            if !(value.is_finite() && value >= 0.0) {
                return Err(Error::input(format!("algorithm.{key} = {value}: a weight is finite and not negative")));
            }
        }
        for (key, value) in [("temperature", self.temperature), ("tau", self.tau)] {
            if !(value.is_finite() && value > 0.0) {
                return Err(Error::input(format!("algorithm.{key} = {value}: a temperature is finite and positive")));
            }
        }
        if self.eta > 0.0 && self.features_per_class == 1 {
            return Err(Error::input("algorithm.features_per_class = 1: the contrast needs two features of a class")
                .hint("set algorithm.features_per_class = 2, or algorithm.eta = 0"));
        }
        self.creff().check()
    }

    fn cost(&self, sizes: &Sizes) -> Cost {
        self.creff().cost(sizes)
    }

    fn init(&self, model: &Params, now: &Now<'_>) -> Result<Named> {
        fits(self, now)?;
        self.creff().init(model, now)
    }

    fn exchanges(&self, state: &Named, now: &Now<'_>) -> Vec<Exchange> {
        self.creff().exchanges(state, now)
    }

    fn brief(&self, model: &Params, state: &Named, exchange: &Exchange, now: &Now<'_>, _: ClientId) -> Result<Brief> {
        self.creff().brief_with(model, state, exchange, now, || self.training(now))
    }

    fn reply(&self, job: &Job, outcome: Outcome) -> Result<(Reply, Option<Named>)> {
        self.creff().reply(job, outcome)
    }

    fn server(
        &self,
        model: &Params,
        state: &Named,
        exchange: &Exchange,
        got: &Collected,
        now: &Now<'_>,
    ) -> Result<(Params, Named)> {
        let (creff, head) = (self.creff(), now.head()?);
        let Some(texts) = now.supplies.texts.as_ref().filter(|_| self.eta > 0.0) else {
            return creff.server_with(model, state, exchange, got, now, None);
        };
        let (classes, width) = (head.classes, head.features);
        let contrast = Contrast { texts: texts.data(), classes, width, tau: f64::from(self.tau) };
        let scale = f64::from(self.eta) / (classes * self.features_per_class) as f64;
        let term = |rows: &[f32], class: usize, slope: &mut [f32]| {
            contrast.add(rows, class, scale, slope);
        };
        creff.server_with(model, state, exchange, got, now, Some(&term))
    }

    fn deploy<'m>(&self, model: &'m Params, state: &Named, now: &Now<'_>) -> Result<Cow<'m, Params>> {
        self.creff().deploy(model, state, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;

    fn taught(y: &[u32], teacher: Vec<f32>) -> Made {
        let mut made = Made::new(y, 4, 2);
        made.columns.insert(Supplies::TEACHER.into(), teacher);
        made
    }

    #[test]
    fn the_taught_loss_has_the_central_difference_as_its_gradient() {
        let made = taught(&[1, 3, 0], (0..12).map(|i| 4.0 * (i as f32 * 1.3).sin()).collect());
        made.differs_by(&Taught { alpha: 0.7, temperature: 3.0 }, 2e-4, &[1, 2, 3]);
    }

    #[test]
    fn a_teacher_that_says_what_the_student_says_adds_nothing() {
        let mut made = taught(&[1, 3, 0], Vec::new());
        made.columns.insert(Supplies::TEACHER.into(), made.logits.clone());
        let mut gradient = vec![0.0; 12];
        let plain = loss::cross_entropy(&made.logits, &made.y, 4, 1.0, &mut gradient).unwrap();
        let (value, gradients) = made.run(&Taught { alpha: 1.0, temperature: 3.0 });
        assert!((value - plain).abs() < 1e-5);
        assert!(gradients[0].iter().zip(&gradient).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn what_needs_no_teacher_and_no_texts_asks_for_none() {
        let all = Clip2Fl::default().needs();
        assert!(all.teacher && all.texts && all.classifier);
        let none = Clip2Fl { alpha: 0.0, eta: 0.0, ..Clip2Fl::default() };
        assert_eq!(none.needs(), CReFF::default().needs());
        assert_eq!(none.creff(), CReFF::default());
    }
}
