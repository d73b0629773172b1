//! The local loss: adjusted cross-entropy of both views, and the weak view as the strong one's teacher.

use crate::error::{Error, Result};
use crate::fl::brief::SlotId;
use crate::fl::{Here, Objective};
use crate::nn::loss;

/// Inside the logarithm of the prior.
const EPS: f64 = 1e-9;

/// Cross-entropy and self-distillation of a weak (first) and a strong (second) feed, row by row the same images.
pub struct Bootstrap {
    /// Weight of the distillation in this round.
    pub weight: f32,
    /// Its temperature.
    pub temperature: f32,
    /// Exponent of the prior.
    pub tau: f32,
    /// Share of local frequencies added by each step.
    pub gamma: f32,
    /// The slot of the received prior, `(classes,)`.
    pub prior: SlotId,
}

impl Bootstrap {
    /// π of optimiser step `step`, from 0: `s π_0 + (1 − s) n / Σ n` with `s = (1 − γ)^{step + 1}`.
    fn prior(&self, received: &[f32], counts: &[u32], step: usize) -> Vec<f64> {
        let share = (1.0 - f64::from(self.gamma)).powi(step.saturating_add(1).min(i32::MAX as usize) as i32);
        let total = counts.iter().map(|&n| f64::from(n)).sum::<f64>().max(1.0);
        let blend = |(&p, &n): (&f32, &u32)| share * f64::from(p) + (1.0 - share) * f64::from(n) / total;
        received.iter().zip(counts).map(blend).collect()
    }

    /// Logits plus log(π^τ + 1e-9), `(rows, classes)`.
    fn adjusted(&self, at: &Here<'_>) -> Result<Vec<f32>> {
        let received = at.slot(self.prior)?.data();
        if received.len() != at.classes || at.counts.len() != at.classes {
            let (prior, counts) = (received.len(), at.counts.len());
            return Err(Error::defect(format!("fedyoyo: prior of {prior}, counts of {counts}, {} classes", at.classes)));
        }
        let prior = self.prior(received, at.counts, at.step);
        let offset: Vec<f64> = prior.iter().map(|p| (p.powf(f64::from(self.tau)) + EPS).ln()).collect();
        let rows = at.logits.chunks_exact(at.classes);
        Ok(rows.flat_map(|row| row.iter().zip(&offset).map(|(&z, o)| (f64::from(z) + o) as f32)).collect())
    }
}

impl Objective for Bootstrap {
    fn add(&self, at: &mut Here<'_>) -> Result<f64> {
        let adjusted = self.adjusted(at)?;
        let mut value = loss::cross_entropy(&adjusted, at.y, at.classes, 1.0, at.d_logits)?;
        if self.weight != 0.0 {
            let [weak, strong] = at.feeds else { return Err(Error::defect("fedyoyo: a weak and a strong feed")) };
            let split = weak.len() * at.classes;
            if strong.start != weak.end || strong.len() != weak.len() {
                return Err(Error::defect(format!("fedyoyo: rows {weak:?} and {strong:?} are no pairs")));
            }
            let (z_weak, z_strong) = adjusted.split_at(split);
            let labels = &at.y[weak.clone()];
            let d_strong = &mut at.d_logits[split..];
            value += teach(z_weak, z_strong, labels, at.classes, self.temperature, self.weight, d_strong)?;
        }
        Ok(value)
    }
}

/// `weight · mean KL(softmax(weak / T) ‖ softmax(strong / T))` over the rows whose `weak` is largest at the label; 0
/// where there are none. Its gradient by `strong` is added to `gradient`, all of them `(rows, classes)`.
fn teach(
    weak: &[f32],
    strong: &[f32],
    labels: &[u32],
    classes: usize,
    temperature: f32,
    weight: f32,
    gradient: &mut [f32],
) -> Result<f64> {
    let right = |i: &usize| first_largest(&weak[i * classes..(i + 1) * classes]) == Some(labels[*i] as usize);
    let right: Vec<usize> = (0..labels.len()).filter(right).collect();
    if right.is_empty() {
        return Ok(0.0);
    }
    let gather = |all: &[f32]| -> Vec<f32> {
        right.iter().flat_map(|i| &all[i * classes..(i + 1) * classes]).copied().collect()
    };
    let tempered: Vec<f32> = gather(weak).iter().map(|z| z / temperature).collect();
    let (mut teacher, student, mut seeds) = (Vec::new(), gather(strong), vec![0.0; right.len() * classes]);
    loss::softmax(&tempered, classes, &mut teacher);
    let each = vec![1.0; right.len()];
    let value = loss::kl_divergence(&student, &teacher, &each, classes, temperature, weight, &mut seeds)?;
    for (i, seed) in right.iter().zip(seeds.chunks_exact(classes)) {
        gradient[i * classes..(i + 1) * classes].iter_mut().zip(seed).for_each(|(g, s)| *g += s);
    }
    Ok(f64::from(weight) * value)
}

/// Where the largest entry is, the first of equals.
fn first_largest(row: &[f32]) -> Option<usize> {
    (0..row.len()).reduce(|best, i| if row[i] > row[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fl::objective::check::Made;
    use crate::nn::Params;

    const LABELS: [u32; 3] = [1, 0, 2];

    fn objective() -> Bootstrap {
        Bootstrap { weight: 4.0, temperature: 1.5, tau: 1.5, gamma: 0.1, prior: 0 }
    }

    /// Three images in two views; the weak view is right about the first and the last.
    fn made() -> Made {
        let mut made = Made::new(&[LABELS, LABELS].concat(), 3, 2);
        made.feeds = vec![0..3, 3..6];
        made.counts = vec![5, 2, 1];
        made.slots = vec![Params::tensor("prior", &[3], vec![0.2, 0.5, 0.3]).unwrap()];
        for (row, &y) in LABELS.iter().enumerate() {
            let top = if row == 1 { 2 } else { y as usize };
            made.logits[row * 3 + top] += 9.0;
        }
        made
    }

    #[test]
    fn the_prior_of_a_step_is_that_of_the_steps_one_by_one_and_ends_as_the_clients_own() {
        let (received, counts) = ([0.2f32, 0.5, 0.3], [6, 3, 1]);
        let mut want: Vec<f64> = received.iter().map(|&p| f64::from(p)).collect();
        for step in 0..100 {
            want.iter_mut().zip(counts).for_each(|(p, n)| *p += f64::from(0.1f32) * (f64::from(n) / 10.0 - *p));
            let got = objective().prior(&received, &counts, step);
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-12), "step {step}: {got:?}, {want:?}");
            let near = got.iter().zip(counts).all(|(p, n)| (p - f64::from(n) / 10.0).abs() < 0.01 * 0.4);
            assert_eq!(near, step >= 43, "99 % of the way after 44 steps, at {step}");
        }
    }

    #[test]
    fn without_teaching_and_with_the_clients_own_prior_it_is_local_logit_adjustment() {
        let (made, local) = (made(), [5.0f64 / 8.0, 2.0 / 8.0, 1.0 / 8.0]);
        let (value, gradients) = made.run(&Bootstrap { weight: 0.0, gamma: 1.0, ..objective() });
        let z: Vec<f32> =
            made.logits.iter().enumerate().map(|(i, &z)| z + (1.5 * local[i % 3].ln()) as f32).collect();
        let mut d = vec![0.0; z.len()];
        let want = loss::cross_entropy(&z, &made.y, 3, 1.0, &mut d).unwrap();
        assert!((value - want).abs() < 1e-6, "{value}, {want}");
        assert!(gradients[0].iter().zip(&d).all(|(a, b)| (a - b).abs() < 1e-6));
    }

    #[test]
    fn without_exponent_and_teaching_it_is_plain_cross_entropy() {
        let made = made();
        let (value, _) = made.run(&Bootstrap { weight: 0.0, tau: 0.0, ..objective() });
        let want = loss::cross_entropy(&made.logits, &made.y, 3, 1.0, &mut [0.0; 18]).unwrap();
        assert!((value - want).abs() < 1e-6);
    }

    #[test]
    fn cross_entropy_has_the_gradient_of_central_differences() {
        made().differs_by(&Bootstrap { weight: 0.0, ..objective() }, 2e-4, &[1, 2, 3]);
    }

    /// The weak view's rows get the gradient of cross-entropy alone, the strong view's that of the whole value.
    #[test]
    fn the_weak_view_is_held_and_the_strong_one_follows_central_differences() {
        let made = made();
        let (_, both) = made.run(&objective());
        let (_, alone) = made.run(&Bootstrap { weight: 0.0, ..objective() });
        assert_eq!(both[0][..9], alone[0][..9]);
        assert_ne!(both[0][9..12], alone[0][9..12]);
        for (i, &got) in both[0].iter().enumerate().skip(9) {
            let at = |h: f32| {
                let mut moved = made.clone();
                moved.logits[i] += h;
                moved.run(&objective()).0
            };
            let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((f64::from(got) - numeric).abs() < 5e-4, "{i}: {got}, {numeric}");
        }
    }

    #[test]
    fn images_that_the_weak_view_gets_wrong_teach_nothing() {
        let made = made();
        let (_, both) = made.run(&objective());
        let (_, alone) = made.run(&Bootstrap { weight: 0.0, ..objective() });
        assert_eq!(both[0][12..15], alone[0][12..15], "the second image's strong view");
        let mut none = made.clone();
        none.y = vec![0, 0, 0, 0, 0, 0];
        let without = none.run(&Bootstrap { weight: 0.0, ..objective() });
        assert_eq!(none.run(&objective()), without, "nobody is right, so nobody teaches");
    }

    #[test]
    fn equal_views_have_nothing_to_teach() {
        let mut made = made();
        let weak = made.logits[..9].to_vec();
        made.logits[9..].copy_from_slice(&weak);
        let (both, alone) = (made.run(&objective()), made.run(&Bootstrap { weight: 0.0, ..objective() }));
        assert!((both.0 - alone.0).abs() < 1e-6);
        assert!(both.1[0].iter().zip(&alone.1[0]).all(|(a, b)| (a - b).abs() < 1e-6));
    }
}
