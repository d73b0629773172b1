//! Vectors of f32 as bytes and back: what a compressed step is on the wire. All numbers are little-endian.
//!
//! | encoding | bytes of `n` numbers |
//! |---|---|
//! | [`Sparse`] | 1, the kept places as a bitmap (`n / 8`) or as u32s, whichever is shorter, then the kept numbers |
//! | [`Drawn`] | 16 of the draw's key, then the kept numbers |
//! | [`Rounded`] | a bucket's largest magnitude (f32), then its levels of 8 or 4 bits |
//! | [`Signs`] | a tensor's mean magnitude (f32), then a bit a number |

use std::ops::Range;

use crate::error::{Error, Result};
use crate::key::{Key, Rng};

/// Kept numbers and their places, everything else 0.
pub struct Sparse;

/// The places of a sparse vector follow as a bitmap.
const BITMAP: u8 = 0;
/// They follow as a count and u32s.
const PLACES: u8 = 1;

impl Sparse {
    /// The numbers at `kept`, which are sorted.
    pub fn encode(values: &[f32], kept: &[usize]) -> Vec<u8> {
        let mut out = Vec::new();
        if values.len().div_ceil(8) <= 4 * kept.len() + 4 {
            out.push(BITMAP);
            let mut bits = vec![0u8; values.len().div_ceil(8)];
            kept.iter().for_each(|&i| bits[i / 8] |= 1 << (i % 8));
            out.extend(bits);
        } else {
            out.push(PLACES);
            out.extend((kept.len() as u32).to_le_bytes());
            kept.iter().for_each(|&i| out.extend((i as u32).to_le_bytes()));
        }
        kept.iter().for_each(|&i| out.extend(values[i].to_le_bytes()));
        out
    }

    /// The `n` numbers again.
    pub fn decode(bytes: &[u8], n: usize) -> Result<Vec<f32>> {
        let mut bytes = Reader(bytes);
        let kept: Vec<usize> = match bytes.take(1)?[0] {
            BITMAP => {
                let bits = bytes.take(n.div_ceil(8))?;
                (0..n).filter(|i| (bits[i / 8] >> (i % 8)) & 1 == 1).collect()
            }
            PLACES => {
                let count = u32::from_le_bytes(bytes.four()?);
                (0..count).map(|_| Ok(u32::from_le_bytes(bytes.four()?) as usize)).collect::<Result<_>>()?
            }
            other => return Err(damaged(&format!("a sparse vector of form {other}"))),
        };
        place(&mut bytes, &kept, n, 1.0)
    }
}

/// Numbers at places that both sides draw from a key.
pub struct Drawn;

impl Drawn {
    /// So many of `n` places, sorted.
    fn places(key: Key, n: usize, keep: usize) -> Vec<usize> {
        let mut kept = key.rng().choose(n, keep);
        kept.sort_unstable();
        kept
    }

    /// `keep` of the numbers.
    pub fn encode(values: &[f32], keep: usize, key: Key) -> Vec<u8> {
        let (hi, lo) = key.halves();
        let mut out = [hi.to_le_bytes(), lo.to_le_bytes()].concat();
        Self::places(key, values.len(), keep).into_iter().for_each(|i| out.extend(values[i].to_le_bytes()));
        out
    }

    /// The `n` numbers, those kept times `n / keep`, so that their mean over draws is what was encoded. `key` is what
    /// both sides agreed on; bytes that name another are refused.
    pub fn decode(bytes: &[u8], n: usize, keep: usize, key: Key) -> Result<Vec<f32>> {
        let mut bytes = Reader(bytes);
        let (hi, lo) = key.halves();
        if *bytes.take(16)? != *[hi.to_le_bytes(), lo.to_le_bytes()].concat() {
            return Err(damaged("a draw of another key"));
        }
        place(&mut bytes, &Self::places(key, n, keep), n, n as f64 / keep.max(1) as f64)
    }
}

/// The next numbers, times a factor, at their places among `n`.
fn place(bytes: &mut Reader<'_>, kept: &[usize], n: usize, by: f64) -> Result<Vec<f32>> {
    let mut values = vec![0.0; n];
    for &i in kept {
        let value = f32::from_le_bytes(bytes.four()?);
        *values.get_mut(i).ok_or_else(|| damaged(&format!("a place {i} of {n}")))? = (f64::from(value) * by) as f32;
    }
    bytes.end().map(|()| values)
}

/// Numbers rounded up or down to levels by chance, so that their mean is what they were: Alistarh et al., *QSGD*, NeurIPS
/// 2017, a bucket's levels being multiples of its largest magnitude over 127 or 7.
#[derive(Clone, Copy)]
pub struct Rounded {
    /// Bits of a level, with its sign: 8 or 4.
    pub bits: u32,
    /// Numbers that share a scale.
    pub bucket: usize,
}

impl Rounded {
    /// The greatest level.
    fn top(self) -> f64 {
        f64::from((1u32 << (self.bits - 1)) - 1)
    }

    /// The levels, with draws of `rng`.
    pub fn encode(self, values: &[f32], rng: &mut Rng) -> Vec<u8> {
        let mut out = Vec::new();
        for bucket in values.chunks(self.bucket.max(1)) {
            let scale = bucket.iter().fold(0.0f32, |m, v| m.max(v.abs()));
            out.extend(scale.to_le_bytes());
            let by = if scale > 0.0 { self.top() / f64::from(scale) } else { 0.0 };
            let mut level =
                |v: &f32| (f64::from(*v) * by + rng.f64()).floor().clamp(-self.top(), self.top()) as i8 as u8;
            let levels: Vec<u8> = bucket.iter().map(&mut level).collect();
            match self.bits {
                8 => out.extend(levels),
                _ => out.extend(levels.chunks(2).map(|two| (two[0] & 15) | two.get(1).map_or(0, |b| b << 4))),
            }
        }
        out
    }

    /// The `n` numbers again, on their levels.
    pub fn decode(self, bytes: &[u8], n: usize) -> Result<Vec<f32>> {
        let (mut bytes, mut values) = (Reader(bytes), Vec::with_capacity(n));
        while values.len() < n {
            let len = self.bucket.max(1).min(n - values.len());
            let step = f64::from(f32::from_le_bytes(bytes.four()?)) / self.top();
            let levels = bytes.take((len * self.bits as usize).div_ceil(8))?;
            let level = |i: usize| match self.bits {
                8 => levels[i] as i8,
                // The lower or the upper half, its sign drawn out.
                _ if i.is_multiple_of(2) => ((levels[i / 2] << 4) as i8) >> 4,
                _ => (levels[i / 2] as i8) >> 4,
            };
            values.extend((0..len).map(|i| (step * f64::from(level(i))) as f32));
        }
        bytes.end().map(|()| values)
    }
}

/// A bit a number: its sign, times the mean magnitude of its tensor: Karimireddy et al., *Error Feedback Fixes SignSGD*,
/// ICML 2019.
pub struct Signs;

impl Signs {
    /// Signs of tensors that lie one after the other.
    pub fn encode(values: &[f32], tensors: &[Range<usize>]) -> Vec<u8> {
        let mut out = Vec::new();
        for tensor in tensors {
            let own = &values[tensor.clone()];
            let mean = own.iter().map(|v| f64::from(v.abs())).sum::<f64>() / own.len().max(1) as f64;
            out.extend((mean as f32).to_le_bytes());
            let bits = |eight: &[f32]| eight.iter().enumerate().fold(0u8, |b, (i, v)| b | (u8::from(*v >= 0.0) << i));
            out.extend(own.chunks(8).map(bits));
        }
        out
    }

    /// The numbers again, each its tensor's mean magnitude.
    pub fn decode(bytes: &[u8], tensors: &[Range<usize>]) -> Result<Vec<f32>> {
        let (mut bytes, mut values) = (Reader(bytes), Vec::new());
        for tensor in tensors {
            let mean = f32::from_le_bytes(bytes.four()?);
            let bits = bytes.take(tensor.len().div_ceil(8))?;
            values.extend((0..tensor.len()).map(|i| if (bits[i / 8] >> (i % 8)) & 1 == 1 { mean } else { -mean }));
        }
        bytes.end().map(|()| values)
    }
}

/// Bytes that are read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n).ok_or_else(|| damaged("too few bytes"))?;
        self.0 = rest;
        Ok(head)
    }

    fn four(&mut self) -> Result<[u8; 4]> {
        let mut four = [0; 4];
        four.copy_from_slice(self.take(4)?);
        Ok(four)
    }

    fn end(&self) -> Result<()> {
        if self.0.is_empty() { Ok(()) } else { Err(damaged(&format!("{} bytes too many", self.0.len()))) }
    }
}

fn damaged(what: &str) -> Error {
    Error::data(format!("a step's encoding: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const X: [f32; 5] = [0.5, -2.0, 0.0, 1.0, -0.25];

    #[test]
    fn kept_numbers_come_back_by_either_form_and_have_the_bytes_that_the_table_says() {
        let coded = Sparse::encode(&X, &[1, 3]);
        assert_eq!((coded.len(), coded[0]), (1 + 1 + 8, BITMAP));
        assert_eq!(Sparse::decode(&coded, 5).unwrap(), [0.0, -2.0, 0.0, 1.0, 0.0]);
        let mut long = vec![0.0; 1000];
        long[700] = 3.0;
        let coded = Sparse::encode(&long, &[700]);
        assert_eq!((coded.len(), coded[0]), (1 + 4 + 4 + 4, PLACES));
        assert_eq!(Sparse::decode(&coded, 1000).unwrap(), long);
        assert!(Sparse::decode(&coded[..12], 1000).is_err() && Sparse::decode(&coded, 700).is_err());
        assert!(Sparse::decode(&[coded.clone(), vec![0]].concat(), 1000).is_err() && Sparse::decode(&[], 3).is_err());
    }

    #[test]
    fn drawn_numbers_are_their_own_mean_over_draws() {
        let mut mean = [0.0; 5];
        for seed in 0..20_000 {
            let key = Key::from_seed(seed);
            let coded = Drawn::encode(&X, 2, key);
            assert_eq!(coded.len(), 16 + 8);
            let back = Drawn::decode(&coded, 5, 2, key).unwrap();
            assert_eq!(
                back.iter().filter(|v| **v != 0.0).count() + usize::from(coded[16..].chunks(4).any(|c| c == [0; 4])),
                2
            );
            mean.iter_mut().zip(back).for_each(|(m, v)| *m += f64::from(v) / 20_000.0);
        }
        assert!(mean.iter().zip(X).all(|(m, x)| (m - f64::from(x)).abs() < 0.08), "{mean:?}");
        assert!(Drawn::decode(&Drawn::encode(&X, 2, Key::from_seed(1)), 5, 2, Key::from_seed(2)).is_err());
    }

    #[test]
    fn rounded_numbers_are_their_own_mean_and_never_further_off_than_a_level() {
        for (bits, bytes) in [(8, 4 + 3 + 4 + 2), (4, 4 + 2 + 4 + 1)] {
            let (rounded, mut rng, mut mean) = (Rounded { bits, bucket: 3 }, Key::from_seed(3).rng(), [0.0; 5]);
            for _ in 0..4_000 {
                let coded = rounded.encode(&X, &mut rng);
                assert_eq!(coded.len(), bytes);
                let back = rounded.decode(&coded, 5).unwrap();
                let level = 2.0 / rounded.top() as f32;
                assert!(back.iter().zip(X).all(|(b, x)| (b - x).abs() < level), "{back:?}");
                mean.iter_mut().zip(back).for_each(|(m, v)| *m += f64::from(v) / 4_000.0);
            }
            assert!(mean.iter().zip(X).all(|(m, x)| (m - f64::from(x)).abs() < 0.1 / rounded.top()), "{mean:?}");
        }
        let none = Rounded { bits: 4, bucket: 8 }.encode(&[0.0; 3], &mut Key::from_seed(1).rng());
        assert_eq!(Rounded { bits: 4, bucket: 8 }.decode(&none, 3).unwrap(), [0.0; 3]);
    }

    #[test]
    fn signs_have_their_tensors_mean_magnitude() {
        let tensors = [0..2, 2..5];
        let coded = Signs::encode(&X, &tensors);
        assert_eq!(coded.len(), 4 + 1 + 4 + 1);
        let third = 1.25 / 3.0;
        assert_eq!(Signs::decode(&coded, &tensors).unwrap(), [1.25, -1.25, third, third, -third]);
        assert!(Signs::decode(&coded[1..], &tensors).is_err());
    }
}
