//! Python's generator, `random.Random`, replayed to the bit.
//!
//! Published masks and cohorts were drawn with it, so a run that wants the same ones replays it: MT19937 seeded by the
//! integer's 32-bit words, 53-bit floats, integers by rejection of `getrandbits`, and `shuffle` and `sample` as CPython
//! has them since 3.2. Everything new in this project draws from [`Key`](crate::key::Key) instead.

use rand_mt::Mt;

/// The state of one `random.Random(seed)`.
pub struct PythonRandom(Mt);

impl PythonRandom {
    /// `random.seed(seed)`; a negative integer has the state of its absolute value.
    pub fn new(seed: u64) -> Self {
        let (low, high) = (seed as u32, (seed >> 32) as u32);
        let words: &[u32] = if high == 0 { &[low] } else { &[low, high] };
        PythonRandom(Mt::new_with_key(words.iter().copied()))
    }

    /// `random()`: uniform in `[0, 1)` with 53 bits.
    pub fn random(&mut self) -> f64 {
        let a = f64::from(self.0.next_u32() >> 5);
        let b = f64::from(self.0.next_u32() >> 6);
        (a * 67_108_864.0 + b) / 9_007_199_254_740_992.0
    }

    /// `getrandbits(bits)` for 1 to 64 bits: the low word is drawn first.
    fn bits(&mut self, bits: u32) -> u64 {
        match bits {
            0..=32 => u64::from(self.0.next_u32() >> (32 - bits)),
            _ => u64::from(self.0.next_u32()) | u64::from(self.0.next_u32() >> (64 - bits)) << 32,
        }
    }

    /// `randrange(n)`, n ≥ 1.
    pub fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = self.bits(bits) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `shuffle(items)`.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `sample(range(n), k)`; `k` is cut to `n`.
    pub fn sample(&mut self, n: usize, k: usize) -> Vec<usize> {
        let k = k.min(n);
        // A list is cheaper than a set up to so many, and draws otherwise.
        let list_up_to = 21 + if k > 5 { 4usize.pow(((k * 3) as f64).log(4.0).ceil() as u32) } else { 0 };
        if n > list_up_to {
            let mut chosen = Vec::with_capacity(k);
            while chosen.len() < k {
                let drawn = self.below(n);
                if !chosen.contains(&drawn) {
                    chosen.push(drawn);
                }
            }
            return chosen;
        }
        let mut pool: Vec<usize> = (0..n).collect();
        (0..k)
            .map(|i| {
                let j = self.below(n - i);
                let drawn = pool[j];
                pool[j] = pool[n - i - 1];
                drawn
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tests/golden/python/rng.json`, written by the script beside it.
    #[derive(serde::Deserialize)]
    struct Golden {
        seed: u64,
        random: Vec<f64>,
        randrange: Vec<(usize, usize)>,
        shuffle_40: Vec<usize>,
        samples: Vec<(usize, usize, Vec<usize>)>,
    }

    #[test]
    fn floats_integers_shuffles_and_samples_are_pythons() {
        let cases: Vec<Golden> = serde_json::from_str(include_str!("../../tests/golden/python/rng.json")).unwrap();
        assert!(cases.len() >= 4);
        for case in cases {
            let mut rng = PythonRandom::new(case.seed);
            for want in case.random {
                assert_eq!(rng.random(), want, "seed {}", case.seed);
            }
            for (n, want) in case.randrange {
                assert_eq!(rng.below(n), want, "seed {}, randrange({n})", case.seed);
            }
            let mut list: Vec<usize> = (0..40).collect();
            rng.shuffle(&mut list);
            assert_eq!(list, case.shuffle_40, "seed {}", case.seed);
            for (n, k, want) in case.samples {
                assert_eq!(rng.sample(n, k), want, "seed {}, sample of {k} of {n}", case.seed);
            }
        }
    }
}
