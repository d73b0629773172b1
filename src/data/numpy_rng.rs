//! numpy's legacy generator, `numpy.random.RandomState`, replayed to the bit.
//!
//! Published splits were drawn with it, so a run that wants the same images replays it. The algorithms are those of
//! numpy's `legacy-distributions.c` and `mtrand.pyx`, which numpy keeps frozen: MT19937, masked rejection for bounded
//! integers, polar Gauss with a cache, Ahrens–Dieter and Marsaglia–Tsang gamma. Everything new in this project draws
//! from [`Key`](crate::key::Key) instead.

use rand_mt::Mt;

/// The state of one `numpy.random.RandomState(seed)`.
pub struct RandomState {
    core: Mt,
    gauss: Option<f64>,
}

impl RandomState {
    /// `RandomState(seed)`; numpy allows seeds of 32 bits.
    pub fn new(seed: u32) -> Self {
        RandomState { core: Mt::new(seed), gauss: None }
    }

    /// `random_sample()`: uniform in `[0, 1)` with 53 bits.
    pub fn random_sample(&mut self) -> f64 {
        let a = f64::from(self.core.next_u32() >> 5);
        let b = f64::from(self.core.next_u32() >> 6);
        (a * 67_108_864.0 + b) / 9_007_199_254_740_992.0
    }

    /// Uniform in `0..=max` by masked rejection; 64-bit draws only above 2³² − 1.
    fn interval(&mut self, max: u64) -> u64 {
        if max == 0 {
            return 0;
        }
        let mask = u64::MAX >> max.leading_zeros();
        loop {
            let draw = match u32::try_from(max) {
                Ok(_) => u64::from(self.core.next_u32()),
                // numpy puts the first draw in the upper half.
                Err(_) => u64::from(self.core.next_u32()) << 32 | u64::from(self.core.next_u32()),
            };
            if draw & mask <= max {
                return draw & mask;
            }
        }
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.interval(i as u64) as usize;
            items.swap(i, j);
        }
    }

    /// `permutation(n)`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    /// `choice(n, k, replace=False)`; `k` is cut to `n`.
    pub fn choice(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut order = self.permutation(n);
        order.truncate(k);
        order
    }

    /// `standard_normal()`: Marsaglia's polar method; the second value of the pair is kept for the next call.
    pub fn standard_normal(&mut self) -> f64 {
        if let Some(kept) = self.gauss.take() {
            return kept;
        }
        loop {
            let x1 = 2.0 * self.random_sample() - 1.0;
            let x2 = 2.0 * self.random_sample() - 1.0;
            let r2 = x1 * x1 + x2 * x2;
            if r2 < 1.0 && r2 != 0.0 {
                let f = (-2.0 * r2.ln() / r2).sqrt();
                self.gauss = Some(f * x1);
                return f * x2;
            }
        }
    }

    /// `standard_exponential()`.
    pub fn standard_exponential(&mut self) -> f64 {
        -(1.0 - self.random_sample()).ln()
    }

    /// `standard_gamma(shape)`, `shape` ≥ 0.
    pub fn standard_gamma(&mut self, shape: f64) -> f64 {
        if shape == 1.0 {
            self.standard_exponential()
        } else if shape <= 0.0 {
            0.0
        } else if shape < 1.0 {
            self.gamma_below_one(shape)
        } else {
            self.gamma_above_one(shape)
        }
    }

    fn gamma_below_one(&mut self, shape: f64) -> f64 {
        loop {
            let u = self.random_sample();
            let v = self.standard_exponential();
            if u <= 1.0 - shape {
                let x = u.powf(1.0 / shape);
                if x <= v {
                    return x;
                }
            } else {
                let y = -((1.0 - u) / shape).ln();
                let x = (1.0 - shape + shape * y).powf(1.0 / shape);
                if x <= v + y {
                    return x;
                }
            }
        }
    }

    fn gamma_above_one(&mut self, shape: f64) -> f64 {
        let b = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * b).sqrt();
        loop {
            let (x, v) = loop {
                let x = self.standard_normal();
                let v = 1.0 + c * x;
                if v > 0.0 {
                    break (x, v);
                }
            };
            let v = v * v * v;
            let u = self.random_sample();
            if u < 1.0 - 0.0331 * (x * x) * (x * x) || u.ln() < 0.5 * x * x + b * (1.0 - v + v.ln()) {
                return b * v;
            }
        }
    }

    /// `binomial(1, p)`, `p` in `[0, 1]`: by inversion of the smaller of `p` and 1 − p.
    pub fn bernoulli(&mut self, p: f64) -> bool {
        let rare = p.min(1.0 - p);
        // numpy draws nothing at probability 0.
        let hit = p > 0.0 && self.random_sample() > (1.0 - rare).ln().exp();
        hit == (p <= 0.5)
    }

    /// `dirichlet([alpha] * n)`: gammas times the reciprocal of their running sum.
    pub fn dirichlet(&mut self, alpha: f64, n: usize) -> Vec<f64> {
        let mut draws: Vec<f64> = (0..n).map(|_| self.standard_gamma(alpha)).collect();
        let reciprocal = 1.0 / draws.iter().sum::<f64>();
        draws.iter_mut().for_each(|g| *g *= reciprocal);
        draws
    }
}

/// `numpy.sum` of at most 128 doubles: eight accumulators from eight elements on, which changes the last bits.
pub fn sum(values: &[f64]) -> f64 {
    let (whole, rest) = values.split_at(values.len() / 8 * 8);
    let mut total = 0.0;
    if !whole.is_empty() {
        let mut r = [0.0f64; 8];
        for chunk in whole.chunks_exact(8) {
            for (lane, value) in r.iter_mut().zip(chunk) {
                *lane += value;
            }
        }
        total = ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    }
    rest.iter().fold(total, |t, v| t + v)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/golden/numpy/rng.json`, written by the script beside it with numpy itself.
    fn golden() -> serde_json::Value {
        serde_json::from_str(include_str!("../../tests/golden/numpy/rng.json")).unwrap()
    }

    fn floats(v: &serde_json::Value) -> Vec<f64> {
        v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
    }

    fn integers(v: &serde_json::Value) -> Vec<usize> {
        v.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
    }

    #[test]
    fn uniform_normal_and_exponential_draws_are_numpys_to_the_bit() {
        let golden = golden();
        let draw = |f: fn(&mut RandomState) -> f64| {
            let mut rng = RandomState::new(7);
            (0..60).map(|_| f(&mut rng)).collect::<Vec<f64>>()
        };
        assert_eq!(draw(RandomState::random_sample), floats(&golden["random_sample"]));
        assert_eq!(draw(RandomState::standard_normal), floats(&golden["standard_normal"]));
        assert_eq!(draw(RandomState::standard_exponential), floats(&golden["standard_exponential"]));
    }

    #[test]
    fn shuffles_permutations_and_choices_are_numpys() {
        let golden = golden();
        let mut rng = RandomState::new(7);
        let mut list: Vec<usize> = (0..50).collect();
        rng.shuffle(&mut list);
        assert_eq!(list, integers(&golden["shuffle_50"]));
        assert_eq!(rng.permutation(33), integers(&golden["then_permutation_33"]));
        assert_eq!(rng.choice(1000, 12), integers(&golden["then_choice_1000_12"]));
    }

    #[test]
    fn gammas_and_dirichlets_are_numpys_for_shapes_below_at_and_above_one() {
        let golden = golden();
        for (name, shape) in [("0.1", 0.1), ("0.5", 0.5), ("1.0", 1.0), ("2.5", 2.5)] {
            let mut rng = RandomState::new(11);
            let got: Vec<f64> = (0..40).map(|_| rng.standard_gamma(shape)).collect();
            assert_eq!(got, floats(&golden["standard_gamma"][name]), "shape {shape}");
            let mut rng = RandomState::new(13);
            let got: Vec<f64> = (0..3).flat_map(|_| rng.dirichlet(shape, 10)).collect();
            assert_eq!(got, floats(&golden["dirichlet_10"][name]), "alpha {shape}");
        }
    }

    #[test]
    fn sums_are_numpys_and_the_eight_accumulators_are_seen() {
        let golden = golden();
        let values = floats(&golden["sum_values"]);
        let sums = floats(&golden["sums"]);
        for (n, want) in sums.iter().enumerate() {
            assert_eq!(sum(&values[..n]), *want, "{n} values");
        }
        let plain: Vec<f64> = (0..sums.len()).map(|n| values[..n].iter().fold(0.0, |t, v| t + v)).collect();
        assert_ne!(plain, sums);
    }

    /// Rounds one to five of the reference's client sampling: 8 of 20 from `RandomState(7)`.
    #[test]
    fn the_reference_client_sampling_is_replayed() {
        let mut rng = RandomState::new(7);
        let want = [
            [1, 17, 2, 5, 11, 0, 18, 6],
            [18, 7, 15, 14, 17, 3, 1, 10],
            [8, 2, 6, 1, 17, 4, 5, 11],
            [6, 16, 14, 19, 0, 10, 8, 12],
            [7, 6, 1, 8, 11, 2, 18, 10],
        ];
        for round in want {
            assert_eq!(rng.choice(20, 8), round);
        }
    }
}
