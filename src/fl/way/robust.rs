//! Rules that survive lying clients. The server looks at every reply by itself, so memory holds the cohort.
//!
//! | rule | what becomes the step | source |
//! |---|---|---|
//! | `median` | of each number the median | Yin et al., *Byzantine-Robust Distributed Learning*, ICML 2018 |
//! | `trimmed-mean` | of each number the mean without the `attackers` largest and smallest | the same |
//! | `krum` | the step that is nearest to its `n − f − 2` neighbours | Blanchard et al., *Machine Learning with Adversaries*, NeurIPS 2017 |
//! | `multi-krum` | the mean of the `n − f` best so | the same |
//! | `geometric-median` | the point whose distances to all, weighted by samples, are least in sum | Pillutla et al., *Robust Aggregation for Federated Learning*, IEEE TSP 2022, by Weiszfeld's iteration, smoothed |
//! | `norm-bound` | the mean, no step longer than `bound` times the median length | Sun et al., *Can You Really Backdoor Federated Learning?*, 2019, with a bound that follows |
//!
//! Distances and lengths are those of the weights; running statistics go with their step, or by number for the first two.
//! Those two weigh everybody the same; the others by samples, which a liar may overstate.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Acts, Link, Station, each_weight, norm_of, refuse_unless};
use crate::error::{Error, Result};
use crate::fl::reply::{Part, PartKind, Reply};
use crate::fl::{ClientId, Collected};
use crate::nn::{Named, Params, Role};

/// How replies are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Rule {
    /// Of each number the median.
    #[default]
    Median,
    /// Of each number the mean without the extremes.
    TrimmedMean,
    /// The one step nearest to its neighbours.
    Krum,
    /// The mean of the steps nearest to their neighbours.
    MultiKrum,
    /// The point nearest to all.
    GeometricMedian,
    /// The mean of steps that are held to a multiple of their median length.
    NormBound,
}

/// The knobs of `robust`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Robust {
    /// How replies are put together.
    pub rule: Rule,
    /// Liars f in a round that `trimmed-mean`, `krum` and `multi-krum` are to survive; with 0 the first and the last are
    /// the plain mean.
    pub attackers: usize,
    /// Iterations of `geometric-median`.
    pub iterations: usize,
    /// What `norm-bound` multiplies the median length with; 0 for no bound.
    pub bound: f64,
}

impl Default for Robust {
    fn default() -> Self {
        Robust { rule: Rule::Median, attackers: 0, iterations: 16, bound: 1.0 }
    }
}

/// Replies with whose they are.
type Replies = Vec<(ClientId, Reply)>;

impl Robust {
    /// The smallest number of replies for which the rule says something.
    pub fn least(&self) -> usize {
        match self.rule {
            Rule::TrimmedMean => 2 * self.attackers + 1,
            Rule::Krum | Rule::MultiKrum => 2 * self.attackers + 3,
            _ => 1,
        }
    }

    /// The replies whose mean is the rule's result.
    fn settled(&self, each: Replies) -> Result<Replies> {
        let steps: Vec<Params> = each.iter().filter_map(|(_, r)| step(r).map(|p| p.data.clone())).collect();
        if steps.len() != each.len() {
            return Ok(each);
        }
        Ok(match self.rule {
            Rule::Median => by_number(each, |sorted| (sorted[(sorted.len() - 1) / 2] + sorted[sorted.len() / 2]) / 2.0),
            Rule::TrimmedMean => by_number(each, |sorted| {
                let rest = &sorted[self.attackers..sorted.len() - self.attackers];
                rest.iter().sum::<f64>() / rest.len() as f64
            }),
            Rule::Krum => kept(each, &best(&steps, self.attackers, 1)),
            Rule::MultiKrum => kept(each, &best(&steps, self.attackers, steps.len() - self.attackers)),
            Rule::GeometricMedian => {
                let samples: Vec<f64> = each.iter().map(|(_, r)| step(r).map_or(0.0, |p| p.weight)).collect();
                weighted(each, &nearness(&steps, &samples, self.iterations))
            }
            Rule::NormBound => bounded(each, self.bound),
        })
    }
}

/// The step of a reply.
fn step(reply: &Reply) -> Option<&Part> {
    reply.parts.iter().find(|part| part.kind == PartKind::Delta)
}

/// The first reply with the steps that `of` makes of each number's values, sorted; the other replies without theirs.
fn by_number(mut each: Replies, of: impl Fn(&[f64]) -> f64) -> Replies {
    let steps: Vec<Params> = each.iter().filter_map(|(_, r)| step(r).map(|p| p.data.clone())).collect();
    let mut values = vec![0.0; steps.len()];
    for (k, (_, reply)) in each.iter_mut().enumerate() {
        if k > 0 {
            reply.parts.retain(|part| part.kind != PartKind::Delta);
            continue;
        }
        for part in reply.parts.iter_mut().filter(|part| part.kind == PartKind::Delta) {
            for (i, out) in part.data.data_mut().iter_mut().enumerate() {
                values.iter_mut().zip(&steps).for_each(|(v, s)| *v = f64::from(s.data()[i]));
                values.sort_unstable_by(f64::total_cmp);
                *out = of(&values) as f32;
            }
            part.weight = 1.0;
        }
    }
    each
}

/// Only the replies at these places.
fn kept(each: Replies, places: &[usize]) -> Replies {
    each.into_iter().enumerate().filter(|(k, _)| places.contains(k)).map(|(_, r)| r).collect()
}

/// Squared distance of two steps over the weights.
fn distance(a: &Params, b: &Params) -> f64 {
    let square = |(x, y): (&f32, &f32)| (f64::from(*x) - f64::from(*y)).powi(2);
    let of = |range: std::ops::Range<usize>| a.data()[range.clone()].iter().zip(&b.data()[range]).map(square);
    a.layout().ranges(Role::Weight).into_iter().flat_map(of).sum()
}

/// The places of the `keep` steps nearest to their `n − f − 2` neighbours, sorted; of equal ones the first.
fn best(steps: &[Params], attackers: usize, keep: usize) -> Vec<usize> {
    let far = |a: &Params| steps.iter().map(|b| distance(a, b)).collect::<Vec<f64>>();
    let (n, square) = (steps.len(), steps.iter().map(far).collect::<Vec<_>>());
    let score = |i: usize| {
        let mut others: Vec<f64> = (0..n).filter(|j| *j != i).map(|j| square[i][j]).collect();
        others.sort_unstable_by(f64::total_cmp);
        others.iter().take(n.saturating_sub(attackers + 2).max(1)).sum::<f64>()
    };
    let scores: Vec<f64> = (0..n).map(score).collect();
    let mut places: Vec<usize> = (0..n).collect();
    places.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]).then(a.cmp(b)));
    places.truncate(keep);
    places.sort_unstable();
    places
}

/// Weights with which the mean of the steps is their geometric median, `samples / distance`, scaled to the samples' sum.
fn nearness(steps: &[Params], samples: &[f64], iterations: usize) -> Vec<f64> {
    let (whole, mut weights) = (samples.iter().sum::<f64>(), samples.to_vec());
    for _ in 0..iterations {
        let total: f64 = weights.iter().sum();
        let mut mean = Params::zeros(steps[0].layout().clone());
        let shares: Vec<f64> = weights.iter().map(|w| w / total).collect();
        for (i, out) in mean.data_mut().iter_mut().enumerate() {
            *out = shares.iter().zip(steps).map(|(w, s)| w * f64::from(s.data()[i])).sum::<f64>() as f32;
        }
        let far: Vec<f64> = steps.iter().map(|s| distance(s, &mean).sqrt()).collect();
        // No step is nearer than this: the iteration never divides by nothing.
        let least = 1e-6 * far.iter().fold(0.0, |m: f64, d| m.max(*d));
        if least == 0.0 {
            break;
        }
        weights = samples.iter().zip(&far).map(|(n, d)| n / d.max(least)).collect();
    }
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w * whole / total).collect()
}

/// The replies with these weights on their steps.
fn weighted(mut each: Replies, weights: &[f64]) -> Replies {
    for ((_, reply), weight) in each.iter_mut().zip(weights) {
        reply.parts.iter_mut().filter(|p| p.kind == PartKind::Delta).for_each(|p| p.weight = *weight);
    }
    each
}

/// The replies with steps no longer than `bound` times their median length.
fn bounded(mut each: Replies, bound: f64) -> Replies {
    let lengths: Vec<f64> = each.iter().filter_map(|(_, r)| step(r).map(|p| norm_of(&p.data))).collect();
    let mut sorted = lengths.clone();
    sorted.sort_unstable_by(f64::total_cmp);
    let most = bound * sorted[(sorted.len() - 1) / 2];
    for ((_, reply), length) in each.iter_mut().zip(lengths).filter(|(_, length)| *length > most) {
        let by = most / length;
        for part in reply.parts.iter_mut().filter(|p| p.kind == PartKind::Delta) {
            each_weight(&mut part.data, |w| (f64::from(w) * by) as f32);
        }
    }
    each
}

impl Link for Robust {
    fn acts(&self) -> Acts {
        Acts::Whole
    }

    fn idle(&self) -> bool {
        match self.rule {
            Rule::TrimmedMean | Rule::MultiKrum => self.attackers == 0,
            Rule::NormBound => self.bound == 0.0,
            _ => false,
        }
    }

    fn check(&self) -> Result<()> {
        let fits = self.bound.is_finite() && self.bound >= 0.0;
        refuse_unless(fits, "robust", "bound", self.bound, "choose a factor above 0, or 0 for none")?;
        refuse_unless(self.iterations > 0, "robust", "iterations", self.iterations as f64, "the smallest is 1")
    }

    fn arrive(&self, got: &mut Collected, _: &mut Named, _: &Station<'_>) -> Result<Option<String>> {
        let each = std::mem::take(&mut got.each);
        if each.len() < self.least() {
            let (n, f, least) = (each.len(), self.attackers, self.least());
            return Ok(Some(format!("{n} clients answered; against {f} that lie the rule needs {least}")));
        }
        let layouts = each.iter().filter_map(|(_, r)| step(r)).map(|p| p.data.layout());
        if layouts.clone().zip(layouts.skip(1)).any(|(a, b)| a != b) {
            return Err(Error::defect("robust: replies disagree about the model"));
        }
        for (_, reply) in self.settled(each)? {
            got.add_up(reply)?;
        }
        got.close();
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::nn::Layout;

    /// Steps of two weights and a buffer; all weigh the same.
    fn replies(steps: &[[f32; 3]]) -> Replies {
        let mut layout = Layout::default();
        layout.push("w", &[2], Role::Weight).unwrap();
        layout.push("running_mean", &[1], Role::Buffer).unwrap();
        let layout = Arc::new(layout);
        let reply = |(k, data): (usize, &[f32; 3])| {
            let data = Params::new(layout.clone(), data.to_vec()).unwrap();
            let parts = vec![Part { name: "model".into(), kind: PartKind::Delta, data, weight: 2.0 }];
            (k as ClientId, Reply { parts, samples: 1, loss: None, multiply_adds: 0, wire: Default::default() })
        };
        steps.iter().enumerate().map(reply).collect()
    }

    fn mean(link: &Robust, steps: &[[f32; 3]]) -> Vec<f64> {
        let mut got = Collected::default();
        link.settled(replies(steps)).unwrap().into_iter().for_each(|(_, r)| got.add_up(r).unwrap());
        got.close();
        got.sum("model").unwrap().mean().unwrap()
    }

    const HONEST: [[f32; 3]; 5] =
        [[1.0, 0.0, 5.0], [1.2, 0.1, 5.0], [0.8, -0.1, 5.0], [1.1, 0.0, 5.0], [0.9, 0.0, 6.0]];

    fn rule(rule: Rule, attackers: usize) -> Robust {
        Robust { rule, attackers, ..Robust::default() }
    }

    #[test]
    fn each_rule_gives_what_its_definition_says() {
        let all = |link| mean(&link, &HONEST);
        assert_eq!(all(rule(Rule::Median, 0)), [1.0, 0.0, 5.0]);
        let even = mean(&rule(Rule::Median, 0), &HONEST[..4]);
        assert!((even[0] - 1.05).abs() < 1e-6, "{even:?}");
        let trimmed = all(rule(Rule::TrimmedMean, 1));
        assert!((trimmed[0] - 1.0).abs() < 1e-6 && trimmed[2] == 5.0, "{trimmed:?}");
        // The first is in the middle: its two nearest are nearer than anybody else's.
        assert_eq!(all(rule(Rule::Krum, 1)), [1.0, 0.0, 5.0]);
        let point = mean(
            &Robust { iterations: 200, ..rule(Rule::GeometricMedian, 0) },
            &[[0.0, 0.0, 1.0], [4.0, 0.0, 1.0], [0.0, 3.0, 1.0]],
        );
        // The Fermat point of a right triangle of legs 4 and 3: every side is seen under 120 degrees.
        let (a, b): (f64, f64) = (point[0], point[1]);
        let ways = [(-a, -b), (4.0 - a, -b), (-a, 3.0 - b)].map(|(x, y)| (x / x.hypot(y), y / x.hypot(y)));
        let pull = ways.iter().fold((0.0, 0.0), |s, w| (s.0 + w.0, s.1 + w.1));
        assert!(pull.0.hypot(pull.1) < 0.01, "{point:?} {pull:?}");
        let held = mean(&rule(Rule::NormBound, 0), &[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [30.0, 40.0, 0.0]]);
        assert!((held[0] - 1.6 / 3.0).abs() < 1e-6 && (held[1] - 1.8 / 3.0).abs() < 1e-6, "{held:?}");
    }

    #[test]
    fn every_rule_survives_liars_who_move_the_mean_far() {
        let mut steps = HONEST.to_vec();
        steps.extend([[-90.0, 70.0, 900.0], [-90.0, 70.0, 900.0]]);
        let honest = [1.0, 0.0];
        let off = |m: &[f64]| (m[0] - honest[0]).hypot(m[1] - honest[1]);
        let plain = mean(&Robust { bound: 1e9, ..rule(Rule::NormBound, 0) }, &steps);
        assert!(off(&plain) > 25.0, "{plain:?}");
        for (which, most) in [
            (Rule::Median, 0.3),
            (Rule::TrimmedMean, 0.3),
            (Rule::Krum, 0.3),
            (Rule::MultiKrum, 0.3),
            (Rule::GeometricMedian, 1.0),
            (Rule::NormBound, 1.0),
        ] {
            let got = mean(&rule(which, 2), &steps);
            assert!(off(&got) < most, "{which:?}: {got:?}");
        }
    }

    #[test]
    fn too_few_replies_are_no_round() {
        let mut got = Collected { each: replies(&HONEST[..4]), ..Collected::default() };
        let config = crate::fl::FederatedConfig::default();
        let way = super::super::Way::new(&config, 5, crate::key::Key::from_seed(1), 1, Named::new());
        let why = rule(Rule::Krum, 1).arrive(&mut got, &mut Named::new(), &way.station(0)).unwrap().unwrap();
        assert!(why.contains("4 clients answered; against 1 that lie the rule needs 5"), "{why}");
    }
}
