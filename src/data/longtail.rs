//! The long tail: how many images of each class stay, and which.
//!
//! Exponential profile of Cui et al., *Class-Balanced Loss* (CVPR 2019), as CReFF and CLIP2FL cut it: class `i` of `C`
//! keeps `n_i = int(n · factor^(i/(C−1)))` images, class 0 most; `factor` is one over the imbalance factor. The test
//! set stays balanced.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::numpy_rng::RandomState;
use crate::error::{Error, Result};
use crate::key::{Key, Purpose};

/// The `longtail` section.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LongTailConfig {
    /// Shape of the tail.
    pub kind: LongTailKind,
    /// Images of the largest class over those of the smallest; 100 and 0.01 mean the same.
    pub imbalance: f64,
    /// Seed of numpy's generator for the choice of images. Without it the `creff` partition uses its own seed, as the
    /// reference code does, and the other partitions draw from the run's key.
    pub seed: Option<u32>,
}

impl Default for LongTailConfig {
    fn default() -> Self {
        LongTailConfig { kind: LongTailKind::Exp, imbalance: 100.0, seed: None }
    }
}

/// The shape of the tail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LongTailKind {
    /// Exponential.
    Exp,
    /// None: every image stays.
    None,
}

/// Which images of each class stay and which do not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Image indices of each class that stay, in draw order (the partition's outcome depends on it).
    pub kept: Vec<Vec<u32>>,
    /// Image indices of each class that go, ascending.
    pub discarded: Vec<Vec<u32>>,
}

/// Who draws.
pub enum Draw {
    /// numpy's global generator, seeded with this.
    Numpy(u32),
    /// The run's key.
    Key(Key),
}

impl LongTailConfig {
    /// Smallest over largest class, in `(0, 1]`.
    pub fn factor(&self) -> Result<f64> {
        match self.imbalance {
            x if x.is_finite() && x >= 1.0 => Ok(1.0 / x),
            x if x > 0.0 && x < 1.0 => Ok(x),
            x => Err(Error::input(format!("longtail.imbalance = {x} is neither ≥ 1 nor in (0, 1)"))
                .hint("write 100 (or 0.01) for a head a hundred times the tail")),
        }
    }

    /// Images of each class that stay when the smallest class has `most`, `(classes,)`.
    pub fn class_counts(&self, most: usize, classes: usize) -> Result<Vec<usize>> {
        if self.kind == LongTailKind::None || classes < 2 {
            return Ok(vec![most; classes]);
        }
        let factor = self.factor()?;
        let keep = |i: usize| (most as f64 * factor.powf(i as f64 / (classes - 1) as f64)) as usize;
        let counts: Vec<usize> = (0..classes).map(keep).collect();
        match counts.iter().position(|&n| n == 0) {
            None => Ok(counts),
            Some(i) => Err(Error::input(format!(
                "longtail: imbalance {} leaves class {i} of {classes} without an image (the largest keeps {most})",
                self.imbalance
            ))
            .hint("lower longtail.imbalance")),
        }
    }

    /// Cuts the tail. `labels` are those of the whole training set.
    ///
    /// The profile starts from the smallest class's count, which is N/C for the balanced benchmarks.
    pub fn cut(&self, labels: &[u32], classes: usize, draw: Draw) -> Result<Tail> {
        let mut kept = by_class(labels, classes)?;
        if self.kind == LongTailKind::None {
            return Ok(Tail { discarded: vec![Vec::new(); classes], kept });
        }
        let most = kept.iter().map(Vec::len).min().unwrap_or(0);
        let counts = self.class_counts(most, classes)?;
        let mut numpy = match draw {
            Draw::Numpy(seed) => Some(RandomState::new(seed)),
            Draw::Key(_) => None,
        };
        let mut discarded = Vec::with_capacity(classes);
        for (class, (indices, &n)) in kept.iter_mut().zip(&counts).enumerate() {
            match (&mut numpy, &draw) {
                (Some(rng), _) => rng.shuffle(indices),
                (None, Draw::Key(key)) => key.fold(Purpose::LongTail, class as u64).rng().shuffle(indices),
                (None, Draw::Numpy(_)) => {}
            }
            let mut rest = indices.split_off(n);
            rest.sort_unstable();
            discarded.push(rest);
        }
        Ok(Tail { kept, discarded })
    }
}

/// Image indices of each class, ascending.
fn by_class(labels: &[u32], classes: usize) -> Result<Vec<Vec<u32>>> {
    let mut lists = vec![Vec::new(); classes];
    for (i, &y) in labels.iter().enumerate() {
        match lists.get_mut(y as usize) {
            Some(list) => list.push(i as u32),
            None => return Err(Error::data(format!("image {i} has label {y}, but there are {classes} classes"))),
        }
    }
    match lists.iter().position(Vec::is_empty) {
        None => Ok(lists),
        Some(c) => Err(Error::data(format!("class {c} of {classes} has no image in the training set"))
            .hint("labels count from 0, without gaps")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exp(imbalance: f64) -> LongTailConfig {
        LongTailConfig { imbalance, ..Default::default() }
    }

    #[test]
    fn the_published_class_counts_come_out_for_either_way_of_writing() {
        let if100 = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50];
        let if50 = [5000, 3237, 2096, 1357, 878, 568, 368, 238, 154, 100];
        let if10 = [5000, 3871, 2997, 2320, 1796, 1391, 1077, 834, 645, 500];
        for (a, b, want) in [(100.0, 0.01, if100), (50.0, 0.02, if50), (10.0, 0.1, if10)] {
            assert_eq!(exp(a).class_counts(5000, 10).unwrap(), want);
            assert_eq!(exp(b).class_counts(5000, 10).unwrap(), want);
        }
        for (factor, total, last) in [(100.0, 10847, 5), (50.0, 12608, 10), (10.0, 19573, 50)] {
            let counts = exp(factor).class_counts(500, 100).unwrap();
            assert_eq!((counts.iter().sum::<usize>(), counts[99]), (total, last));
        }
    }

    #[test]
    fn kept_and_discarded_are_the_whole_class() {
        let labels: Vec<u32> = (0..300).map(|i| i % 3).collect();
        for draw in [Draw::Numpy(7), Draw::Key(Key::from_seed(1))] {
            let tail = exp(10.0).cut(&labels, 3, draw).unwrap();
            assert_eq!(tail.kept.iter().map(Vec::len).collect::<Vec<_>>(), [100, 31, 10]);
            for class in 0..3 {
                let mut all = [tail.kept[class].clone(), tail.discarded[class].clone()].concat();
                all.sort_unstable();
                assert_eq!(all, (0..100).map(|i| 3 * i + class as u32).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn nonsense_and_an_empty_class_are_refused_with_the_number() {
        assert!(exp(-3.0).factor().unwrap_err().to_string().contains("-3"));
        assert!(exp(f64::NAN).factor().is_err());
        let e = exp(1000.0).class_counts(500, 10).unwrap_err();
        assert!(e.to_string().contains("class 9"), "{e}");
    }
}
