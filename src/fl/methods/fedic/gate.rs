//! The gate: which client is trusted on an image, how its classes are scaled, and how far the ensemble is.

use crate::error::{Error, Result};
use crate::fl::brief::SlotId;
use crate::fl::objective::Seen;
use crate::fl::{Here, Objective, Tap};
use crate::key::Key;
use crate::nn::{Layout, Params, Role, loss};

/// The gate's parameters as f64, in the order of their layout.
pub struct Gate {
    /// v, `(classes,)`: an image's trust in a client, from its logits.
    trust: Vec<f64>,
    /// b.
    trust_bias: f64,
    /// γ and β, `(classes,)`.
    scale: Vec<f64>,
    shift: Vec<f64>,
    /// w, `(features,)`, and b_w: the ensemble's share, from the mean feature.
    carry: Vec<f64>,
    carry_bias: f64,
}

/// Values on an image that the gradient needs again.
struct Image {
    /// a_k and σ(v·z_k + b), `(clients,)`.
    shares: Vec<f64>,
    trusts: Vec<f64>,
    /// Σ a_k z_k and ẑ, `(classes,)`.
    mixed: Vec<f64>,
    scaled: Vec<f64>,
    /// mean_k h_k, `(features,)`.
    feature: Vec<f64>,
    /// G.
    carry: f64,
    /// `(classes,)`.
    out: Vec<f64>,
}

impl Gate {
    /// v = γ = 1, b = β = 0, (w, b_w) uniform within 1/√features.
    pub fn start(classes: usize, features: usize, key: Key) -> Result<Params> {
        let mut layout = Layout::default();
        layout.push("ensemble_scale", &[classes], Role::Weight)?;
        layout.push("ensemble_bias", &[1], Role::Weight)?;
        layout.push("logit_scale", &[classes], Role::Weight)?;
        layout.push("logit_bias", &[classes], Role::Weight)?;
        layout.push("carry.weight", &[1, features], Role::Weight)?;
        layout.push("carry.bias", &[1], Role::Weight)?;
        let (mut rng, bound) = (key.rng(), 1.0 / (features.max(1) as f32).sqrt());
        let mut data = [vec![1.0; classes], vec![0.0], vec![1.0; classes], vec![0.0; classes]].concat();
        data.extend((0..=features).map(|_| bound * (2.0 * rng.f32() - 1.0)));
        Params::new(layout.into(), data)
    }

    fn of(params: &Params) -> Result<Self> {
        let get = |name: &str| -> Result<Vec<f64>> { Ok(params.get(name)?.iter().map(|&v| f64::from(v)).collect()) };
        let one = |name: &str| params.get(name)?.first().map(|&v| f64::from(v)).ok_or_else(|| absent(name));
        Ok(Gate {
            trust: get("ensemble_scale")?,
            trust_bias: one("ensemble_bias")?,
            scale: get("logit_scale")?,
            shift: get("logit_bias")?,
            carry: get("carry.weight")?,
            carry_bias: one("carry.bias")?,
        })
    }

    /// The gated logits of image `i`, whose calibrated logits are `calibrated`.
    fn image(&self, clients: &[&Seen], calibrated: &[f32], i: usize) -> Image {
        let (c, d) = (self.trust.len(), self.carry.len());
        let trust = |seen: &&Seen| sigmoid(self.trust_bias + dot(&self.trust, &seen.logits[i * c..(i + 1) * c]));
        let trusts: Vec<f64> = clients.iter().map(trust).collect();
        let total: f64 = trusts.iter().sum();
        let shares: Vec<f64> = trusts.iter().map(|t| t / total).collect();
        let (mut mixed, mut feature) = (vec![0.0; c], vec![0.0; d]);
        for (seen, share) in clients.iter().zip(&shares) {
            mixed.iter_mut().zip(&seen.logits[i * c..]).for_each(|(m, &z)| *m += share * f64::from(z));
            feature.iter_mut().zip(&seen.feature[i * d..]).for_each(|(m, &h)| *m += f64::from(h));
        }
        feature.iter_mut().for_each(|h| *h /= clients.len() as f64);
        let carry = sigmoid(self.carry_bias + self.carry.iter().zip(&feature).map(|(w, h)| w * h).sum::<f64>());
        let scaled: Vec<f64> =
            mixed.iter().zip(&self.scale).zip(&self.shift).map(|((m, scale), shift)| m * scale + shift).collect();
        let mix = |(e, &z): (&f64, &f32)| carry * e + (1.0 - carry) * f64::from(z);
        let out = scaled.iter().zip(calibrated).map(mix).collect();
        Image { shares, trusts, mixed, scaled, feature, carry, out }
    }

    /// Adds the gradient of `⟨seed, out⟩` of image `i`, in layout order.
    fn pull(&self, at: &Image, clients: &[&Seen], calibrated: &[f32], i: usize, seed: &[f32], gradient: &mut [f64]) {
        let (c, d) = (self.trust.len(), self.carry.len());
        let logits = |seen: &&Seen| seen.logits[i * c..(i + 1) * c].to_vec();
        let (d_trust, rest) = gradient.split_at_mut(c + 1);
        let (d_scale, rest) = rest.split_at_mut(c);
        let (d_shift, d_carry) = rest.split_at_mut(c);
        let (mut d_mixed, mut along) = (vec![0.0; c], 0.0);
        for j in 0..c {
            let s = f64::from(seed[j]);
            along += s * (at.scaled[j] - f64::from(calibrated[j]));
            d_scale[j] += s * at.carry * at.mixed[j];
            d_shift[j] += s * at.carry;
            d_mixed[j] = s * at.carry * self.scale[j];
        }
        let along = along * at.carry * (1.0 - at.carry);
        d_carry[..d].iter_mut().zip(&at.feature).for_each(|(g, h)| *g += along * h);
        d_carry[d] += along;
        // d a_k = d_mixed·z_k; a_k = σ_k / Σ σ, so d(v·z_k + b) = a_k (1 − σ_k) (d a_k − Σ_j a_j d a_j).
        let d_shares: Vec<f64> = clients.iter().map(|seen| dot(&d_mixed, &logits(seen))).collect();
        let mean: f64 = d_shares.iter().zip(&at.shares).map(|(g, a)| g * a).sum();
        for (k, seen) in clients.iter().enumerate() {
            let step = at.shares[k] * (1.0 - at.trusts[k]) * (d_shares[k] - mean);
            d_trust[..c].iter_mut().zip(&logits(seen)).for_each(|(g, &z)| *g += step * f64::from(z));
            d_trust[c] += step;
        }
    }
}

/// Stage (b): the gate beside a frozen calibrated network, whose witnesses are the clients.
pub struct TrainGate;

impl Objective for TrainGate {
    fn taps(&self) -> &[Tap] {
        &[Tap::Logits, Tap::Feature]
    }

    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let (c, gate) = (at.classes, Gate::of(&at.beside.first().ok_or_else(|| absent("gate"))?.values)?);
        let clients = at.witnesses().iter().collect::<Vec<&Seen>>();
        let calibrated = |i: usize| &at.logits[i * c..(i + 1) * c];
        let images: Vec<Image> = (0..at.rows()).map(|i| gate.image(&clients, calibrated(i), i)).collect();
        let out: Vec<f32> = images.iter().flat_map(|image| &image.out).map(|&z| z as f32).collect();
        let mut seeds = vec![0.0; out.len()];
        let value = loss::cross_entropy(&out, at.y, c, 1.0, &mut seeds)?;
        let mut gradient = vec![0.0; at.beside[0].gradient.len()];
        for (i, image) in images.iter().enumerate() {
            gate.pull(image, &clients, calibrated(i), i, &seeds[i * c..(i + 1) * c], &mut gradient);
        }
        at.beside[0].gradient.iter_mut().zip(gradient).for_each(|(g, v)| *g += v as f32);
        Ok(value)
    }
}

/// Stage (c): the trained gate teaches on the first feed, labels on the second; the calibrated network is the first
/// witness, and the clients follow.
pub struct Student {
    /// The slot of the gate.
    pub gate: SlotId,
    /// T.
    pub temperature: f32,
    /// Weight of the teacher; 1 − this of the labels.
    pub mix: f32,
}

impl Student {
    /// `softmax(out / T)` of the first `rows` images, `(rows, classes)`.
    fn teacher(&self, at: &Here<'_>, rows: usize) -> Result<Vec<f32>> {
        let (c, gate) = (at.classes, Gate::of(at.slot(self.gate)?)?);
        let (calibrated, clients) = at.witnesses().split_first().ok_or_else(|| absent("calibrated"))?;
        let clients: Vec<&Seen> = clients.iter().collect();
        let out = (0..rows).flat_map(|i| gate.image(&clients, &calibrated.logits[i * c..(i + 1) * c], i).out);
        let tempered: Vec<f32> = out.map(|z| (z / f64::from(self.temperature)) as f32).collect();
        let mut teacher = Vec::new();
        loss::softmax(&tempered, c, &mut teacher);
        Ok(teacher)
    }
}

impl Objective for Student {
    fn taps(&self) -> &[Tap] {
        &[Tap::Logits, Tap::Feature]
    }

    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let [unlabelled, labelled] = at.feeds else { return Err(Error::defect("fedic: images with and without labels")) };
        let (c, n, mut value) = (at.classes, unlabelled.len(), 0.0);
        if n > 0 {
            let (teacher, each) = (self.teacher(at, n)?, vec![1.0; n]);
            let (z, d) = (&at.logits[..n * c], &mut at.d_logits[..n * c]);
            value += f64::from(self.mix) * loss::kl_divergence(z, &teacher, &each, c, self.temperature, self.mix, d)?;
        }
        if !labelled.is_empty() {
            let rows = labelled.start * c..labelled.end * c;
            let (z, y, d) = (&at.logits[rows.clone()], &at.y[labelled.clone()], &mut at.d_logits[rows]);
            value += f64::from(1.0 - self.mix) * loss::cross_entropy(z, y, c, 1.0 - self.mix, d)?;
        }
        Ok(value)
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, &y)| x * f64::from(y)).sum()
}

fn absent(what: &str) -> Error {
    Error::defect(format!("fedic: no {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step + 0.7).sin()).collect()
    }

    fn seen(step: f32) -> Seen {
        Seen { logits: wave(15, step), feature: wave(10, 1.3 * step) }
    }

    /// A gate for 3 classes and 2 features that is nowhere at its start.
    fn gate() -> Params {
        let mut gate = Gate::start(3, 2, Key::from_seed(3)).unwrap();
        let moved: Vec<f32> = gate.data().iter().zip(wave(13, 0.8)).map(|(g, w)| g + 0.5 * w).collect();
        gate.data_mut().copy_from_slice(&moved);
        gate
    }

    #[test]
    fn a_fresh_gate_shares_equally_where_logits_are_equal_and_identical_clients_mix_to_themselves() {
        let gate = Gate::of(&gate()).unwrap();
        let (client, calibrated) = (seen(1.1), wave(15, 2.3));
        for i in 0..5 {
            let image = gate.image(&[&client, &client, &client], &calibrated[i * 3..], i);
            assert!(image.shares.iter().all(|a| (a - 1.0 / 3.0).abs() < 1e-12));
            for (m, &z) in image.mixed.iter().zip(&client.logits[i * 3..]) {
                assert!((m - f64::from(z)).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn shares_add_up_to_one_and_the_output_lies_between_ensemble_and_calibrated_logits() {
        let gate = Gate::of(&gate()).unwrap();
        let (a, b, calibrated) = (seen(1.1), seen(0.4), wave(15, 2.3));
        for i in 0..5 {
            let image = gate.image(&[&a, &b], &calibrated[i * 3..], i);
            assert!((image.shares.iter().sum::<f64>() - 1.0).abs() < 1e-12 && image.shares[0] != image.shares[1]);
            for (j, out) in image.out.iter().enumerate() {
                let (e, z) = (image.scaled[j], f64::from(calibrated[i * 3 + j]));
                assert!(e.min(z) <= *out && *out <= e.max(z));
            }
        }
    }

    #[test]
    fn the_gate_has_the_gradient_of_central_differences_and_the_network_none() {
        let mut made = Made::new(&[0, 2, 1, 1, 2], 3, 2);
        made.witnesses = vec![seen(1.1), seen(0.4), seen(1.9)];
        made.beside = vec![gate()];
        made.differs_by(&TrainGate, 1e-4, &[0, 1, 2, 3]);
    }

    #[test]
    fn the_student_has_the_gradient_of_central_differences_on_both_feeds() {
        let mut made = Made::new(&[0, 0, 0, 1, 2], 3, 2);
        made.feeds = vec![0..3, 3..5];
        made.witnesses = vec![seen(2.7), seen(1.1), seen(0.4)];
        made.slots = vec![gate()];
        made.differs_by(&Student { gate: 0, temperature: 2.0, mix: 0.3 }, 1e-4, &[1, 2, 3]);
    }

    #[test]
    fn a_student_that_answers_as_the_teacher_learns_from_labels_alone() {
        let mut made = Made::new(&[0, 0, 0, 1, 2], 3, 2);
        made.feeds = vec![0..3, 3..5];
        made.witnesses = vec![seen(2.7), seen(1.1), seen(0.4)];
        made.slots = vec![gate()];
        let gate = Gate::of(&made.slots[0]).unwrap();
        for i in 0..3 {
            let clients = [&made.witnesses[1], &made.witnesses[2]];
            let out = gate.image(&clients, &made.witnesses[0].logits[i * 3..], i).out;
            made.logits[i * 3..(i + 1) * 3].iter_mut().zip(out).for_each(|(z, o)| *z = o as f32);
        }
        let (value, gradients) = made.run(&Student { gate: 0, temperature: 2.0, mix: 0.5 });
        let want = loss::cross_entropy(&made.logits[9..], &[1, 2], 3, 1.0, &mut [0.0; 6]).unwrap();
        assert!((value - 0.5 * want).abs() < 1e-6, "{value}, {want}");
        assert!(gradients[0][..9].iter().all(|g| g.abs() < 1e-6) && gradients[0][9..].iter().all(|g| g.abs() > 1e-3));
    }
}
