//! Randomness as a key path: seed → purpose → round → client → epoch.
//!
//! A [`Key`] is a value. Folding a purpose and a number into it gives another key, and a key opens a counter-based
//! generator, Philox4x32-10 (Salmon et al., *Parallel random numbers: as easy as 1, 2, 3*, SC 2011). So a draw depends
//! on what it is for, never on the order of work, on threads or on a resumption, and no generator state is saved.

/// What a draw is for. The number is part of every key: append, never renumber.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights.
    Init = 1,
    /// Which clients take part.
    Cohort = 2,
    /// A communication round.
    Round = 3,
    /// A client.
    Client = 4,
    /// A local epoch.
    Epoch = 5,
    /// The order of samples.
    Shuffle = 6,
    /// Crops and flips.
    Augment = 7,
    /// Dropout masks.
    Dropout = 8,
    /// The long tail's choice of images.
    LongTail = 9,
    /// Who holds which image.
    Partition = 10,
    /// The server's balanced set.
    ServerSet = 11,
    /// The validation set.
    Validation = 12,
    /// Pretraining.
    Pretrain = 13,
    /// Alignment.
    Align = 14,
    /// The procedural image world.
    World = 15,
    /// Captions.
    Caption = 16,
    /// A step of training.
    Step = 17,
    /// Text generation.
    Decode = 18,
    /// A tensor, a class, an image: an item of a list.
    Item = 19,
    /// Tests and benchmarks.
    Test = 20,
    /// An exchange of a round after its first.
    Exchange = 21,
    /// The server's own work in a round.
    Server = 22,
    /// Noise on features.
    Noise = 23,
    /// The server's images without labels.
    Unlabelled = 24,
    /// A link of the way of updates.
    Way = 25,
}

/// A 128-bit key: where in the tree of draws we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    hi: u64,
    lo: u64,
}

impl Key {
    /// The root of a run.
    pub fn from_seed(seed: u64) -> Self {
        Key { hi: seed, lo: 0 }.fold(Purpose::Init, 0)
    }

    /// The child for `purpose` number `n`. Different paths give unrelated keys.
    pub fn fold(self, purpose: Purpose, n: u64) -> Self {
        let key = self.hi ^ u64::from(purpose as u32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let out = philox(counter(self.lo, n), [key as u32, (key >> 32) as u32]);
        Key { hi: join(out[0], out[1]), lo: join(out[2], out[3]) }
    }

    /// The generator of this key.
    pub fn rng(self) -> Rng {
        Rng { key: [self.hi as u32, (self.hi >> 32) as u32], stream: self.lo, block: 0, buffer: [0; 4], left: 0 }
    }

    /// The two halves, as they enter a generator on another device.
    pub fn halves(self) -> (u64, u64) {
        (self.hi, self.lo)
    }
}

fn join(lo: u32, hi: u32) -> u64 {
    u64::from(lo) | u64::from(hi) << 32
}

fn counter(a: u64, b: u64) -> [u32; 4] {
    [a as u32, (a >> 32) as u32, b as u32, (b >> 32) as u32]
}

/// One Philox4x32-10 block: ten rounds over a 128-bit counter with a 64-bit key.
pub fn philox(c: [u32; 4], k: [u32; 2]) -> [u32; 4] {
    philox_lanes(c.map(|word| [word]), k).map(|[word]| word)
}

/// `N` blocks side by side, word by word. Inlined, so that a caller compiled for vectors uses them.
#[inline(always)]
#[allow(clippy::needless_range_loop, reason = "a lane of four arrays")]
fn philox_lanes<const N: usize>(mut c: [[u32; N]; 4], mut k: [u32; 2]) -> [[u32; N]; 4] {
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        for lane in 0..N {
            let a = u64::from(c[0][lane]) * 0xD251_1F53;
            let b = u64::from(c[2][lane]) * 0xCD9E_8D57;
            c[0][lane] = (b >> 32) as u32 ^ c[1][lane] ^ k[0];
            c[1][lane] = b as u32;
            c[2][lane] = (a >> 32) as u32 ^ c[3][lane] ^ k[1];
            c[3][lane] = a as u32;
        }
    }
    c
}

/// The draws of one key, in order.
#[derive(Clone, Debug)]
pub struct Rng {
    key: [u32; 2],
    stream: u64,
    block: u64,
    buffer: [u32; 4],
    left: usize,
}

impl Rng {
    /// 32 random bits.
    pub fn u32(&mut self) -> u32 {
        if self.left == 0 {
            self.buffer = philox(counter(self.stream, self.block), self.key);
            self.block += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.buffer[3 - self.left]
    }

    /// What 64 calls of [`Rng::u32`] give, by vectors where the caller is compiled for them.
    #[inline(always)]
    pub fn draws(&mut self) -> [u32; 64] {
        if self.left > 0 {
            return std::array::from_fn(|_| self.u32());
        }
        let blocks: [u64; 16] = std::array::from_fn(|lane| self.block + lane as u64);
        self.block += 16;
        let [s0, s1, _, _] = counter(self.stream, 0);
        let c = [[s0; 16], [s1; 16], blocks.map(|b| b as u32), blocks.map(|b| (b >> 32) as u32)];
        let words = philox_lanes(c, self.key);
        std::array::from_fn(|i| words[i % 4][i / 4])
    }

    /// 64 random bits.
    pub fn u64(&mut self) -> u64 {
        let lo = self.u32();
        join(lo, self.u32())
    }

    /// Uniform in `[0, 1)`, with 24 bits.
    pub fn f32(&mut self) -> f32 {
        (self.u32() >> 8) as f32 * (1.0 / (1 << 24) as f32)
    }

    /// Uniform in `[0, 1)`, with 53 bits.
    pub fn f64(&mut self) -> f64 {
        (self.u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// Uniform in `0..n`, unbiased (Lemire, *Fast random integer generation in an interval*, 2019). `n` ≥ 1.
    pub fn below(&mut self, n: usize) -> usize {
        let n = n as u64;
        loop {
            let wide = u128::from(self.u64()) * u128::from(n);
            if wide as u64 >= n.wrapping_neg() % n {
                return (wide >> 64) as usize;
            }
        }
    }

    /// Standard normal (Box–Muller, one of the pair).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.f64()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.f64()).cos()
    }

    /// Gamma with this shape and scale 1 (Marsaglia and Tsang, 2000; boosted below shape 1).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        self.gamma_with_log(shape).0
    }

    /// A gamma draw, which may be too small for a number, and its logarithm, which is not.
    fn gamma_with_log(&mut self, shape: f64) -> (f64, f64) {
        if shape < 1.0 {
            let u = 1.0 - self.f64();
            let boosted = self.gamma(shape + 1.0);
            return (boosted * u.powf(1.0 / shape), boosted.ln() + u.ln() / shape);
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && (1.0 - self.f64()).ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return (d * v, d.ln() + v.ln());
            }
        }
    }

    /// A symmetric Dirichlet draw of dimension `n`; sums to 1. For any `alpha` above 0: towards 0 one entry has all,
    /// towards infinity each has the same.
    pub fn dirichlet(&mut self, alpha: f64, n: usize) -> Vec<f64> {
        let draws: Vec<(f64, f64)> = (0..n).map(|_| self.gamma_with_log(alpha)).collect();
        let shares = |weights: Vec<f64>| {
            let total: f64 = weights.iter().sum();
            weights.into_iter().map(|w| w / total).collect()
        };
        let sum: f64 = draws.iter().map(|(g, _)| g).sum();
        if sum.is_finite() && draws.iter().all(|(g, _)| *g >= f64::MIN_POSITIVE) {
            return shares(draws.into_iter().map(|(g, _)| g).collect());
        }
        // Some are too small for a number, or their sum is too large: all over the largest, by their logarithms.
        let largest = draws.iter().map(|(_, log)| *log).fold(f64::NEG_INFINITY, f64::max);
        shares(draws.into_iter().map(|(_, log)| (log - largest).exp()).collect())
    }

    /// Shuffles in place (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }

    /// `k` different numbers below `n`, in draw order, in O(k) time and memory.
    pub fn choose(&mut self, n: usize, k: usize) -> Vec<usize> {
        let mut moved = std::collections::BTreeMap::new();
        (0..k.min(n))
            .map(|i| {
                let j = i + self.below(n - i);
                let at_i = *moved.get(&i).unwrap_or(&i);
                moved.insert(j, at_i).unwrap_or(j)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_huge_alpha_shares_evenly_and_a_tiny_one_gives_all_to_one() {
        for alpha in [1e300, 1e308, f64::MAX] {
            let shares = Key::from_seed(3).rng().dirichlet(alpha, 10);
            assert!(shares.iter().all(|s| (s - 0.1).abs() < 1e-6), "{alpha}: {shares:?}");
        }
        let shares = Key::from_seed(3).rng().dirichlet(f64::MIN_POSITIVE, 10);
        assert_eq!(shares.iter().filter(|s| **s == 1.0).count(), 1, "{shares:?}");
    }

    /// Known-answer vectors of the Random123 distribution (kat_vectors, philox4x32-10).
    #[test]
    fn philox_gives_the_published_vectors() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn many_draws_are_the_single_ones() {
        for before in [0, 3, 4] {
            let (mut one, mut many) = (Key::from_seed(5).rng(), Key::from_seed(5).rng());
            (0..before).for_each(|_| assert_eq!(one.u32(), many.u32()));
            for _ in 0..3 {
                assert_eq!(many.draws(), std::array::from_fn(|_| one.u32()));
            }
            assert_eq!(one.u64(), many.u64());
        }
    }

    #[test]
    fn different_paths_give_different_keys_and_the_same_path_the_same() {
        let root = Key::from_seed(7);
        let a = root.fold(Purpose::Round, 1).fold(Purpose::Client, 2);
        assert_eq!(a, Key::from_seed(7).fold(Purpose::Round, 1).fold(Purpose::Client, 2));
        assert_ne!(a, root.fold(Purpose::Round, 2).fold(Purpose::Client, 1));
        assert_ne!(a, root.fold(Purpose::Client, 2).fold(Purpose::Round, 1));
        assert_ne!(Key::from_seed(1), Key::from_seed(2));
    }

    #[test]
    fn choose_gives_different_numbers_and_every_one_when_asked_for_all() {
        let mut all = Key::from_seed(1).rng().choose(50, 50);
        all.sort_unstable();
        assert_eq!(all, (0..50).collect::<Vec<_>>());
        let few = Key::from_seed(2).rng().choose(1_000_000, 5);
        assert_eq!(few.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    }

    #[test]
    fn moments_of_the_draws_are_right() {
        let mut rng = Key::from_seed(3).rng();
        let n = 200_000;
        let mean = |f: &mut dyn FnMut() -> f64| (0..n).map(|_| f()).sum::<f64>() / f64::from(n);
        assert!((mean(&mut || rng.f64()) - 0.5).abs() < 0.005);
        assert!(mean(&mut || rng.normal()).abs() < 0.01);
        assert!((mean(&mut || rng.normal().powi(2)) - 1.0).abs() < 0.02);
        assert!((mean(&mut || rng.gamma(0.5)) - 0.5).abs() < 0.02);
        assert!((mean(&mut || rng.gamma(3.0)) - 3.0).abs() < 0.03);
        assert!((mean(&mut || rng.below(7) as f64) - 3.0).abs() < 0.03);
    }
}
