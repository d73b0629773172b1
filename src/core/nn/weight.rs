//! The dynamic weight of both server stages: `a(t)` of pretraining, `w` of alignment.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// How a weight moves with progress `t` in `[0, 1]`, or with the teacher's confidence.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Weight {
    /// Always the same.
    Constant(Constant),
    /// A straight line.
    Linear(Ramp),
    /// Half a cosine wave: slow, fast, slow.
    Cosine(Ramp),
    /// A jump.
    Step(Jump),
    /// Per sample, the probability that the teacher gives to the label: `w_i = q_i[y_i]`. Alignment only.
    Confidence(Confidence),
}

/// A constant weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Constant {
    /// The value.
    pub value: f32,
}

impl Default for Constant {
    fn default() -> Self {
        Constant { value: 1.0 }
    }
}

/// A monotone way from one value to another.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Ramp {
    /// Value at the start.
    pub from: f32,
    /// Value at the end.
    pub to: f32,
    /// When the end's value is reached, as a share of the whole; it stays from there on.
    pub until: f32,
}

impl Default for Ramp {
    fn default() -> Self {
        Ramp { from: 0.0, to: 1.0, until: 1.0 }
    }
}

impl Ramp {
    /// How far on its way at progress `t`, in `[0, 1]`.
    fn progress(&self, t: f32) -> f32 {
        if t >= self.until { 1.0 } else { t / self.until }
    }
}

/// Two values and the moment between them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Jump {
    /// Value before.
    pub from: f32,
    /// Value from the jump on.
    pub to: f32,
    /// When, as a share of the whole.
    pub at: f32,
}

impl Default for Jump {
    fn default() -> Self {
        Jump { from: 0.0, to: 1.0, at: 0.5 }
    }
}

/// No knobs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Confidence {}

impl Weight {
    /// The weight at progress `t`; `None` for confidence, which is per sample.
    pub fn at(&self, t: f32) -> Option<f32> {
        let t = t.clamp(0.0, 1.0);
        match self {
            Weight::Constant(c) => Some(c.value),
            Weight::Linear(r) => Some(r.from + (r.to - r.from) * r.progress(t)),
            Weight::Cosine(r) => {
                Some(r.from + (r.to - r.from) * 0.5 * (1.0 - (std::f32::consts::PI * r.progress(t)).cos()))
            }
            Weight::Step(j) => Some(if t < j.at { j.from } else { j.to }),
            Weight::Confidence(_) => None,
        }
    }

    /// Per-sample weights for teacher distributions `q`, `(rows, classes)`, and labels `(rows,)`.
    pub fn of_samples(&self, t: f32, q: &[f32], labels: &[u32], classes: usize) -> Vec<f32> {
        match self.at(t) {
            Some(w) => vec![w; labels.len()],
            None => labels.iter().zip(q.chunks(classes)).map(|(&y, q)| q[y as usize]).collect(),
        }
    }

    /// Refuses confidence where no label may be read, and values that are not finite or are negative.
    pub fn check(&self, key: &str, labels_allowed: bool) -> Result<()> {
        let values = match self {
            Weight::Confidence(_) if labels_allowed => vec![],
            Weight::Confidence(_) => {
                return Err(Error::input(format!("{key}: confidence reads labels, which this stage must not"))
                    .hint("use constant, linear, cosine or step"));
            }
            Weight::Constant(c) => vec![c.value],
            Weight::Linear(r) | Weight::Cosine(r) => vec![r.from, r.to, r.until],
            Weight::Step(j) => vec![j.from, j.to, j.at],
        };
        if values.iter().all(|v| v.is_finite() && *v >= 0.0) {
            return Ok(());
        }
        Err(Error::input(format!("{key}: {values:?}: weights are finite and not negative")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ramps_start_and_end_where_they_say_and_meet_in_the_middle() {
        for ramp in [Weight::Linear(Ramp::default()), Weight::Cosine(Ramp::default())] {
            let at: Vec<f32> = [0.0, 0.5, 1.0].iter().map(|&t| ramp.at(t).unwrap()).collect();
            assert!(at[0] == 0.0 && (at[1] - 0.5).abs() < 1e-6 && at[2] == 1.0, "{at:?}");
        }
    }

    #[test]
    fn a_ramp_that_ends_early_stays_where_it_ended() {
        for weight in [Weight::Linear as fn(Ramp) -> Weight, Weight::Cosine] {
            let until = |until| weight(Ramp { until, ..Ramp::default() });
            let at: Vec<f32> = [0.0, 0.2, 0.4, 0.7, 1.0].iter().map(|&t| until(0.4).at(t).unwrap()).collect();
            assert!(at[0] == 0.0 && (at[1] - 0.5).abs() < 1e-6 && at[2..] == [1.0; 3], "{at:?}");
            assert_eq!(until(0.0).at(0.0), Some(1.0));
        }
    }

    #[test]
    fn confidence_is_the_probability_of_the_label() {
        let w = Weight::Confidence(Confidence {});
        assert_eq!(w.of_samples(0.3, &[0.9, 0.1, 0.2, 0.8], &[1, 1], 2), vec![0.1, 0.8]);
        assert!(w.check("pretrain.weight", false).is_err());
    }
}
