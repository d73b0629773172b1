//! The privacy loss's distribution, composed by Fourier transforms: Gopi, Lee and Wutschitz, *Numerical Composition of
//! Differential Privacy*, NeurIPS 2021: the loss of a round is put on a grid, its mean kept, and `rounds` of it are a power of
//! its transform. Adding and leaving out a client are two losses; ε is the larger.

use rustfft::FftPlanner;
use rustfft::num_complex::Complex;

use super::rdp::reach;
use crate::error::{Error, Result};

/// Points of the grid, a power of two.
const POINTS: usize = 1 << 17;

/// Which of two neighbours the losses are those of.
#[derive(Clone, Copy, PartialEq)]
enum Neighbour {
    /// The one with the client.
    With,
    /// The one without.
    Without,
}

/// The loss of one round: of clients drawn at `rate`, noise of deviation `multiplier`.
#[derive(Clone, Copy)]
struct Loss {
    rate: f64,
    multiplier: f64,
    neighbour: Neighbour,
}

/// The standard normal's distribution function.
fn phi(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

impl Loss {
    /// `ln` of the ratio of the densities with and without the client, where the sum is `x`.
    fn ratio(self, x: f64) -> f64 {
        let exponent = (2.0 * x - 1.0) / (2.0 * self.multiplier * self.multiplier);
        if self.rate == 1.0 {
            return exponent;
        }
        // The larger of the two terms first, so that nothing overflows.
        match exponent > 0.0 {
            true => exponent + (self.rate + (1.0 - self.rate) * (-exponent).exp()).ln(),
            false => (self.rate * exponent.exp() + (1.0 - self.rate)).ln(),
        }
    }

    /// Where that ratio is `e^l`; nowhere for `l` at or below `ln(1 − rate)`.
    fn place(self, l: f64) -> Option<f64> {
        let above = l.exp_m1() + self.rate;
        let variance = self.multiplier * self.multiplier;
        // e^l may be too large for a number, and then it is all that counts.
        let ln = if l > 500.0 { l - self.rate.ln() } else { (above / self.rate).ln() };
        (above > 0.0).then_some(variance * ln + 0.5)
    }

    /// `P(loss ≤ l)`.
    fn below(self, l: f64) -> f64 {
        let z = self.multiplier;
        match self.neighbour {
            Neighbour::With => {
                self.place(l).map_or(0.0, |x| (1.0 - self.rate) * phi(x / z) + self.rate * phi((x - 1.0) / z))
            }
            Neighbour::Without => self.place(-l).map_or(1.0, |x| phi(-x / z)),
        }
    }

    /// `P(loss > l)`, to its own digits.
    fn above(self, l: f64) -> f64 {
        let z = self.multiplier;
        match self.neighbour {
            Neighbour::With => {
                self.place(l).map_or(1.0, |x| (1.0 - self.rate) * phi(-x / z) + self.rate * phi((1.0 - x) / z))
            }
            Neighbour::Without => self.place(-l).map_or(0.0, |x| phi(x / z)),
        }
    }

    /// The mean loss, by the trapezoidal rule, which is exact to the last digits for densities that fall like these.
    fn mean(self) -> f64 {
        let (z, steps) = (self.multiplier, 40_000);
        let (from, to) = (-14.0 * z, 1.0 + 14.0 * z);
        let h = (to - from) / f64::from(steps);
        let normal = |x: f64| (-x * x / (2.0 * z * z)).exp() / (z * std::f64::consts::TAU.sqrt());
        let at = |i: i32| {
            let x = from + h * f64::from(i);
            match self.neighbour {
                Neighbour::With => self.ratio(x) * ((1.0 - self.rate) * normal(x) + self.rate * normal(x - 1.0)),
                Neighbour::Without => -self.ratio(x) * normal(x),
            }
        };
        h * (0..=steps).map(at).sum::<f64>()
    }
}

/// Losses on a grid: masses at `step · i`, negative `i` at the end, all of them `shift` further on.
struct Grid {
    step: f64,
    shift: f64,
    mass: Vec<Complex<f64>>,
    /// Probability of a loss beyond the grid.
    beyond: f64,
}

/// The place of an entry of the grid, in steps.
fn steps(i: usize) -> f64 {
    if i < POINTS / 2 { i as f64 } else { i as f64 - POINTS as f64 }
}

impl Grid {
    /// One round's.
    fn of(loss: Loss, reach: f64) -> Self {
        let step = 2.0 * reach / POINTS as f64;
        let mass = |i: usize| {
            let (low, high) = (step * (steps(i) - 0.5), step * (steps(i) + 0.5));
            // Differences of what is small lose no digits.
            let within =
                if low > 0.0 { loss.above(low) - loss.above(high) } else { loss.below(high) - loss.below(low) };
            Complex::new(within, 0.0)
        };
        let mut mass: Vec<Complex<f64>> = (0..POINTS).map(mass).collect();
        let (lowest, edge) = (POINTS / 2, step * (POINTS as f64 / 2.0 - 0.5));
        mass[lowest].re += loss.below(-edge - step);
        let mean: f64 = mass.iter().enumerate().map(|(i, m)| step * steps(i) * m.re).sum();
        Grid { step, shift: loss.mean() - mean, mass, beyond: loss.above(edge) }
    }

    /// That of so many rounds.
    fn composed(mut self, rounds: usize) -> Self {
        let mut planner = FftPlanner::new();
        planner.plan_fft_forward(POINTS).process(&mut self.mass);
        self.mass.iter_mut().for_each(|m| *m = m.powf(rounds as f64) / POINTS as f64);
        planner.plan_fft_inverse(POINTS).process(&mut self.mass);
        let n = rounds as f64;
        Grid { shift: self.shift * n, beyond: (self.beyond * n).min(1.0), ..self }
    }

    /// δ at `epsilon`.
    fn delta(&self, epsilon: f64) -> f64 {
        let over = |(i, m): (usize, &Complex<f64>)| {
            let loss = self.step * steps(i) + self.shift;
            if loss > epsilon { -(epsilon - loss).exp_m1() * m.re } else { 0.0 }
        };
        self.mass.iter().enumerate().map(over).sum::<f64>() + self.beyond
    }

    /// The least ε ≥ 0 at which δ is no larger.
    fn epsilon(&self, delta: f64, reach: f64) -> Result<f64> {
        let (mut low, mut high) = (0.0, reach);
        if self.delta(low) <= delta {
            return Ok(0.0);
        }
        if self.delta(high) > delta {
            return Err(Error::defect(format!("privacy accountant: losses of {high} are not below delta {delta}")));
        }
        while high - low > 1e-5 {
            let middle = (low + high) / 2.0;
            if self.delta(middle) > delta { low = middle } else { high = middle }
        }
        Ok(high)
    }
}

/// ε at `delta` after `rounds`.
pub fn epsilon(rate: f64, multiplier: f64, rounds: usize, delta: f64) -> Result<f64> {
    // Losses below the negative reach are less likely than e^−reach, for P(loss ≤ −t) ≤ e^−t.
    let reach = reach(rate, multiplier, rounds, 1e-4 * delta).max(-(1e-6 * delta).ln());
    let one = |neighbour| {
        let loss = Loss { rate, multiplier, neighbour };
        Grid::of(loss, reach).composed(rounds).epsilon(delta, reach)
    };
    Ok(one(Neighbour::With)?.max(one(Neighbour::Without)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Balle and Wang, *Improving the Gaussian Mechanism*, ICML 2018: δ of the Gaussian mechanism in closed form; T rounds
    /// are one with √T times less noise.
    #[test]
    fn everybody_in_every_round_is_the_gaussian_mechanisms_closed_form() {
        for (z, rounds) in [(1.0, 1), (2.0, 9), (20.0, 400)] {
            let own = epsilon(1.0, z, rounds, 1e-5).unwrap();
            let one = z / (rounds as f64).sqrt();
            let delta = phi(0.5 / one - own * one) - own.exp() * phi(-0.5 / one - own * one);
            assert!((delta / 1e-5 - 1.0).abs() < 1e-3, "{z} {rounds}: {own} {delta}");
        }
    }

    #[test]
    fn the_distribution_is_its_densitys_integral() {
        for neighbour in [Neighbour::With, Neighbour::Without] {
            let loss = Loss { rate: 0.1, multiplier: 0.8, neighbour };
            let (mut last, h) = (0.0, 1e-3);
            for i in -3000..3000 {
                let (l, now) = (h * f64::from(i), loss.below(h * f64::from(i)));
                assert!(now >= last && (now + loss.above(l) - 1.0).abs() < 1e-12, "{l}");
                last = now;
            }
            // The mean, by parts: ∫ above − ∫ below.
            let grid = |f: &dyn Fn(f64) -> f64| (0..60_000).map(|i| h * f(h * (f64::from(i) + 0.5))).sum::<f64>();
            let mean = grid(&|l| loss.above(l)) - grid(&|l| loss.below(-l));
            assert!((mean - loss.mean()).abs() < 1e-6, "{mean} {}", loss.mean());
        }
    }
}
