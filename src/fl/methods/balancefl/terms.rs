//! The client's loss, term by term.

use super::noise::blurred;
use super::{BalanceFl, Entropy, Present};
use crate::error::Result;
use crate::fl::brief::SlotId;
use crate::fl::{Here, Objective, Tap};
use crate::nn::{classifier, loss};

/// The client's loss.
pub struct Balance {
    /// The method's knobs.
    pub config: BalanceFl,
    /// Where the noise's factor is, if there is noise.
    pub noise: Option<SlotId>,
}

impl Objective for Balance {
    fn taps(&self) -> &[Tap] {
        if self.noise.is_some() { &[Tap::Logits, Tap::Feature, Tap::Head] } else { &[Tap::Logits] }
    }

    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let here: Vec<bool> = match self.config.present {
            Present::Client => at.counts.iter().map(|&n| n > 0).collect(),
            Present::Batch => (0..at.classes as u32).map(|c| at.y.contains(&c)).collect(),
        };
        let of = |wanted: bool| (0..at.classes).filter(|&c| here.get(c) == Some(&wanted)).collect::<Vec<usize>>();
        let (present, absent) = (of(true), of(false));
        let mut value = self.classify(at, &present)?;
        if self.config.lambda != 0.0 && !absent.is_empty() {
            value += self.distil(at, &absent)?;
        }
        if self.config.entropy_weight != 0.0 {
            value -= self.spread_out(at, &present);
        }
        Ok(value)
    }
}

impl Balance {
    /// Cross-entropy over present classes, through the noisy feature where there is noise.
    fn classify(&self, at: &mut Here<'_>, present: &[usize]) -> Result<f64> {
        let classes = at.classes;
        let labels: Vec<u32> =
            at.y.iter().map(|&y| present.binary_search(&(y as usize)).map_or(u32::MAX, |i| i as u32)).collect();
        let mut seeds = vec![0.0; at.rows() * present.len()];
        let Some(slot) = self.noise else {
            let own = gathered(at.logits, classes, present);
            let value = loss::cross_entropy(&own, &labels, present.len(), 1.0, &mut seeds)?;
            scatter(&seeds, classes, present, at.d_logits);
            return Ok(value);
        };
        let (h, mut z) = (blurred(at, at.slot(slot)?, at.key)?, Vec::new());
        classifier::logits(at.head.0, at.head.1, &h, at.features, &mut z);
        let own = gathered(&z, classes, present);
        let value = loss::cross_entropy(&own, &labels, present.len(), 1.0, &mut seeds)?;
        let mut all = vec![0.0; z.len()];
        scatter(&seeds, classes, present, &mut all);
        classifier::gradient(&h, &all, at.features, at.d_head.0);
        classifier::bias_gradient(&all, at.d_head.1);
        classifier::input_gradient(at.head.0, &all, at.features, at.d_feature);
        Ok(value)
    }

    /// λ times the cross-entropy of the received model's distribution over absent classes.
    fn distil(&self, at: &mut Here<'_>, absent: &[usize]) -> Result<f64> {
        let (classes, n, t) = (at.classes, absent.len(), self.config.temperature);
        let mut q = Vec::new();
        let teacher = gathered(&at.witness(0)?.logits, classes, absent);
        loss::softmax(&teacher.iter().map(|z| z / t).collect::<Vec<_>>(), n, &mut q);
        let (own, weights) = (gathered(at.logits, classes, absent), vec![1.0; at.rows()]);
        let mut seeds = vec![0.0; own.len()];
        let divergence = loss::kl_divergence(&own, &q, &weights, n, t, self.config.lambda, &mut seeds)?;
        scatter(&seeds, classes, absent, at.d_logits);
        let entropy = -q.iter().map(|&q| f64::from(q)).filter(|q| *q > 0.0).map(|q| q * q.ln()).sum::<f64>();
        Ok(f64::from(self.config.lambda) * (divergence + entropy / at.rows().max(1) as f64))
    }

    /// ω times the entropy of the softmax over present classes; −ω times its gradient is added.
    fn spread_out(&self, at: &mut Here<'_>, present: &[usize]) -> f64 {
        let rows = match self.config.entropy {
            Entropy::Sum => 1.0,
            Entropy::Mean => at.rows().max(1) as f64,
        };
        let weight = f64::from(self.config.entropy_weight) / rows;
        let mut p = Vec::new();
        loss::softmax(&gathered(at.logits, at.classes, present), present.len(), &mut p);
        let (mut seeds, mut total) = (Vec::with_capacity(p.len()), 0.0);
        for row in p.chunks(present.len().max(1)) {
            let log = |p: f32| f64::from(p.max(f32::MIN_POSITIVE)).ln();
            let entropy: f64 = -row.iter().map(|&p| f64::from(p) * log(p)).sum::<f64>();
            seeds.extend(row.iter().map(|&p| (weight * f64::from(p) * (log(p) + entropy)) as f32));
            total += entropy;
        }
        scatter(&seeds, at.classes, present, at.d_logits);
        weight * total
    }
}

/// The columns `which` of `(rows, classes)`.
fn gathered(values: &[f32], classes: usize, which: &[usize]) -> Vec<f32> {
    values.chunks_exact(classes).flat_map(|row| which.iter().map(|&c| row[c])).collect()
}

/// Adds `(rows, which)` to the columns `which` of `(rows, classes)`.
fn scatter(values: &[f32], classes: usize, which: &[usize], to: &mut [f32]) {
    for (row, to) in values.chunks_exact(which.len().max(1)).zip(to.chunks_exact_mut(classes)) {
        which.iter().zip(row).for_each(|(&c, v)| to[c] += v);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::Seen;
    use crate::fl::objective::check::Made;
    use crate::nn::Params;

    /// Five classes of which the client holds three; the batch shows two of them.
    fn made() -> Made {
        let mut made = Made::new(&[3, 0, 3], 5, 4);
        made.counts = vec![5, 0, 2, 4, 0];
        let logits = (0..15).map(|i| (i as f32 * 0.8).cos() * 2.0).collect();
        made.witnesses = vec![Seen { logits, feature: Vec::new() }];
        let factor = (0..16).map(|i| if i % 4 <= i / 4 { (i as f32).sin() } else { 0.0 }).collect::<Vec<_>>();
        made.slots = vec![Params::tensor("model", &[0], Vec::new()).unwrap()];
        made.slots.push(Params::tensor("noise", &[4, 4], factor).unwrap());
        made
    }

    #[test]
    fn the_gradient_is_that_of_the_value_with_and_without_noise() {
        for (entropy, present) in [(Entropy::Sum, Present::Client), (Entropy::Mean, Present::Batch)] {
            let mut config = BalanceFl { lambda: 0.7, entropy_weight: 0.3, entropy, present, ..BalanceFl::default() };
            made().differs_by(&config.objective(), 1e-3, &[]);
            config.feature_noise = false;
            made().differs_by(&config.objective(), 1e-3, &[1, 2, 3]);
        }
    }

    fn only(lambda: f32, entropy_weight: f32) -> Balance {
        BalanceFl { lambda, entropy_weight, feature_noise: false, ..BalanceFl::default() }.objective()
    }

    #[test]
    fn terms_by_hand() {
        let mut made = made();
        made.logits = [0.0, 9.0, 0.0, 0.0, 9.0].repeat(3);
        made.witnesses[0].logits = [0.0, 2.0, 0.0, 0.0, 2.0].repeat(3);
        let plain = made.run(&only(0.0, 0.0)).0;
        assert!((plain - 3f64.ln()).abs() < 1e-6, "three present classes alike, whatever the absent ones say");
        let distilled = made.run(&only(2.0, 0.0)).0 - plain;
        assert!((distilled - 2.0 * 2f64.ln()).abs() < 1e-6, "two absent classes alike: the cross-entropy is log 2");
        let entropy = made.run(&only(0.0, 0.5)).0 - plain;
        assert!((entropy + 0.5 * 3.0 * 3f64.ln()).abs() < 1e-5, "three rows of entropy log 3, added");
    }

    #[test]
    fn one_absent_class_teaches_nothing_and_none_neither() {
        let mut made = made();
        for counts in [vec![5, 1, 2, 4, 0], vec![5, 1, 2, 4, 1]] {
            made.counts = counts;
            assert_eq!(made.run(&only(3.0, 0.0)), made.run(&only(0.0, 0.0)));
        }
    }
}
