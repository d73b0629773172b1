//! Steps as fewer bytes. The weights of a step are encoded to bytes and decoded again ([`codec`](super::codec)), and the
//! bytes are counted; buffers, and parts that are values, travel as they are.
//!
//! - `top-k`: the largest magnitudes (Stich et al., *Sparsified SGD with Memory*, NeurIPS 2018). Biased.
//! - `random-k`: drawn places, scaled up. Unbiased.
//! - `qsgd`: rounding by chance to 8 or 4 bits (Alistarh et al., *QSGD*, NeurIPS 2017). Unbiased.
//! - `sign`: signs times a tensor's mean magnitude (Karimireddy et al., ICML 2019). Biased.
//!
//! With error feedback a client keeps what the encoding lost and adds it to its next step; it is kept with what clients
//! keep, one vector of the model's size each.

use std::ops::Range;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::codec::{Drawn, Rounded, Signs, Sparse};
use super::{Acts, Link, Parcel, Station, refuse_unless, steps};
use crate::error::{Error, Result};
use crate::fl::brief::Job;
use crate::key::{Key, Purpose};
use crate::nn::{Layout, Params, Role};

/// How a step is encoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Codec {
    /// The largest magnitudes.
    #[default]
    TopK,
    /// Drawn places, scaled up.
    RandomK,
    /// Rounding by chance to `bits` bits.
    Qsgd,
    /// Signs, and a magnitude a tensor.
    Sign,
}

/// The knobs of `compress`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Compress {
    /// How a step is encoded.
    pub codec: Codec,
    /// Share of the numbers that `top-k` and `random-k` keep, in `(0, 1]`; 1 keeps all and is no compression.
    pub share: f64,
    /// Bits of a number for `qsgd`: 8 or 4.
    pub bits: u32,
    /// Numbers that share a scale for `qsgd`.
    pub bucket: usize,
    /// Whether a client adds what the encoding lost to its next step.
    pub error_feedback: bool,
}

impl Default for Compress {
    fn default() -> Self {
        Compress { codec: Codec::TopK, share: 0.1, bits: 8, bucket: 512, error_feedback: true }
    }
}

impl Compress {
    /// The numbers of so many that are kept, at least one.
    fn keep(&self, n: usize) -> usize {
        ((self.share * n as f64).round() as usize).clamp(1, n.max(1))
    }

    /// Values there and back, and the bytes on the way.
    fn through(&self, values: &[f32], tensors: &[Range<usize>], key: Key) -> Result<(Vec<f32>, u64)> {
        let (n, rounded) = (values.len(), Rounded { bits: self.bits, bucket: self.bucket });
        let bytes = match self.codec {
            Codec::TopK => Sparse::encode(values, &largest(values, self.keep(n))),
            Codec::RandomK => Drawn::encode(values, self.keep(n), key),
            Codec::Qsgd => rounded.encode(values, &mut key.rng()),
            Codec::Sign => Signs::encode(values, tensors),
        };
        let back = match self.codec {
            Codec::TopK => Sparse::decode(&bytes, n),
            Codec::RandomK => Drawn::decode(&bytes, n, self.keep(n), key),
            Codec::Qsgd => rounded.decode(&bytes, n),
            Codec::Sign => Signs::decode(&bytes, tensors),
        }?;
        Ok((back, bytes.len() as u64))
    }

    /// Whether error feedback has anything to do: what is right on average needs none.
    pub fn keeps(&self) -> bool {
        self.error_feedback && matches!(self.codec, Codec::TopK | Codec::Sign)
    }
}

/// The places of the `keep` largest magnitudes, sorted; of equal ones the first.
fn largest(values: &[f32], keep: usize) -> Vec<usize> {
    let mut places: Vec<usize> = (0..values.len()).collect();
    let order = |a: &usize, b: &usize| values[*b].abs().total_cmp(&values[*a].abs()).then(a.cmp(b));
    if keep < places.len() {
        places.select_nth_unstable_by(keep, order);
        places.truncate(keep);
    }
    places.sort_unstable();
    places
}

/// The numbers in some ranges, one after the other.
fn gathered(data: &[f32], ranges: &[Range<usize>]) -> Vec<f32> {
    ranges.iter().flat_map(|range| &data[range.clone()]).copied().collect()
}

/// Puts numbers back into their ranges.
fn scatter(data: &mut [f32], ranges: &[Range<usize>], values: &[f32]) {
    let places = ranges.iter().flat_map(|range| range.clone());
    places.zip(values).for_each(|(i, v)| data[i] = *v);
}

/// Where each weight tensor lies among the weights alone.
fn tensors(layout: &Layout) -> Vec<Range<usize>> {
    let mut at = 0;
    let weights = layout.entries().iter().filter(|e| e.role == Role::Weight);
    weights
        .map(|entry| {
            at += entry.len();
            at - entry.len()..at
        })
        .collect()
}

impl Link for Compress {
    fn acts(&self) -> Acts {
        Acts::Client
    }

    fn idle(&self) -> bool {
        self.share == 1.0 && matches!(self.codec, Codec::TopK | Codec::RandomK)
    }

    fn check(&self) -> Result<()> {
        let fits = self.share > 0.0 && self.share <= 1.0;
        refuse_unless(fits, "compress", "share", self.share, "a share above 0, at most 1")?;
        if ![4, 8].contains(&self.bits) {
            return Err(Error::input(format!("federated.way: compress: bits = {}: choose 8 or 4", self.bits)));
        }
        refuse_unless(self.bucket > 0, "compress", "bucket", self.bucket as f64, "the smallest is 1")
    }

    fn leave(&self, parcel: &mut Parcel, _: &Job, at: &Station<'_>) -> Result<()> {
        let Parcel { reply, kept } = parcel;
        let mut coded = Vec::new();
        for (number, part) in steps(reply).enumerate() {
            let (layout, name) = (part.data.layout().clone(), at.name(&format!("lost/{}", part.name)));
            let (ranges, tensors) = (layout.ranges(Role::Weight), tensors(&layout));
            let mut values = gathered(part.data.data(), &ranges);
            if let Some(lost) = kept.get(&name).filter(|lost| self.keeps() && lost.data().len() == values.len()) {
                values.iter_mut().zip(lost.data()).for_each(|(v, l)| *v += l);
            }
            let key = at.key.fold(Purpose::Item, number as u64);
            let (back, bytes) = self.through(&values, &tensors, key)?;
            if self.keeps() {
                let lost: Vec<f32> = values.iter().zip(&back).map(|(v, b)| v - b).collect();
                kept.insert(name, Params::tensor("lost", &[lost.len()], lost)?);
            }
            scatter(part.data.data_mut(), &ranges, &back);
            let raw = 4 * (layout.len() - values.len()) as u64;
            coded.push((part.name.clone(), bytes + raw));
        }
        reply.wire.coded.extend(coded);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_magnitudes_are_kept_and_of_equal_ones_the_first() {
        assert_eq!(largest(&[1.0, -3.0, 3.0, 0.5, -1.0], 3), [0, 1, 2]);
        assert_eq!(largest(&[2.0, 2.0, 2.0], 2), [0, 1]);
        assert_eq!(largest(&[2.0, 1.0], 5), [0, 1]);
    }

    #[test]
    fn every_codec_counts_the_bytes_that_it_makes() {
        let values: Vec<f32> = (0..1000).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let all = std::iter::once(0..1000).collect::<Vec<_>>();
        let bytes = |codec, share, bits| {
            let link = Compress { codec, share, bits, bucket: 500, ..Compress::default() };
            link.through(&values, &all, Key::from_seed(1)).unwrap().1
        };
        assert_eq!(bytes(Codec::TopK, 0.1, 8), 1 + 125 + 400);
        assert_eq!(bytes(Codec::TopK, 0.01, 8), 1 + 4 + 40 + 40);
        assert_eq!(bytes(Codec::RandomK, 0.1, 8), 16 + 400);
        assert_eq!(bytes(Codec::Qsgd, 1.0, 8), 2 * 4 + 1000);
        assert_eq!(bytes(Codec::Qsgd, 1.0, 4), 2 * 4 + 500);
        assert_eq!(bytes(Codec::Sign, 1.0, 8), 4 + 125);
    }
}
