//! Duplicates between sets that should be apart, and how much of a benchmark's classes a pool covers.
//!
//! Exact duplicates have equal pixels. Near duplicates have close perceptual hashes: 256 bits of the brightness
//! gradient of the image scaled to 17 × 16, so that scaling, recompression and mild colour changes are seen through;
//! mirrored or cropped copies are not found.

use std::collections::BTreeMap;

use image::RgbImage;
use image_hasher::{HasherConfig, ImageHash};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::decode;
use super::pictures::Pictures;
use crate::error::{Error, Result};
use crate::exec::Context;

/// Bits of 256 by which near duplicates may differ. Unrelated pairs differ by 128 on average. Between CIFAR-10's train
/// and test images 150 test images come this close, and about eight in ten of them look alike pixel by pixel; beyond
/// 50 most do not.
pub const NEAR: u32 = 40;

/// What is compared of a set of images.
#[derive(Clone, Debug)]
pub struct Fingerprints {
    /// Name of the set: `pool`, `server`, `validation`, `clients`, `test`.
    pub name: String,
    /// Index of each image in its data set or pool.
    indices: Vec<u32>,
    pixels: Vec<[u8; 32]>,
    hashes: Vec<[u64; 4]>,
}

/// Images of one set that another set also has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlap {
    /// First set.
    pub a: String,
    /// Second set.
    pub b: String,
    /// Images of `b` whose pixels are an image of `a`'s.
    pub exact: usize,
    /// Further images of `b` that are close to an image of `a`.
    pub near: usize,
    /// Up to ten of them: index in `a`, index in `b`, bits apart.
    pub examples: Vec<(u32, u32, u32)>,
}

impl Fingerprints {
    /// Of the images at `indices`.
    pub fn new(name: impl Into<String>, images: &Pictures, indices: &[u32], cx: &Context) -> Result<Fingerprints> {
        let name = name.into();
        if let Some(i) = indices.iter().find(|&&i| i as usize >= images.len()) {
            return Err(Error::defect(format!("overlaps of {name}: no image {i} of {}", images.len())));
        }
        let one = |&i: &u32| -> Result<([u8; 32], [u64; 4])> {
            let image = images.square(i as usize)?;
            let digest = match images.held() {
                Some(images) => Sha256::digest(images.get(i as usize)),
                None => Sha256::digest(decode::to_planes(&image)),
            };
            cx.cancel.check()?;
            Ok((digest.into(), perceptual(&image)))
        };
        let both = decode::on_threads(cx, || indices.par_iter().map(one).collect::<Result<Vec<_>>>())??;
        let (pixels, hashes) = both.into_iter().unzip();
        Ok(Fingerprints { name, indices: indices.to_vec(), pixels, hashes })
    }

    /// Images of `other` that this set has too, exactly or within `near` bits of 256.
    pub fn overlap(&self, other: &Fingerprints, near: u32, cx: &Context) -> Result<Overlap> {
        let pairs = self.pairs(other, near, cx)?;
        let exact = pairs.iter().filter(|p| p.2.is_none()).count();
        Ok(Overlap {
            a: self.name.clone(),
            b: other.name.clone(),
            exact,
            near: pairs.len() - exact,
            examples: pairs.iter().take(10).map(|&(i, j, d)| (i, j, d.unwrap_or(0))).collect(),
        })
    }

    /// Each image of `other` that this set has too: index here, index there, bits apart (none: equal pixels).
    pub fn pairs(&self, other: &Fingerprints, near: u32, cx: &Context) -> Result<Vec<(u32, u32, Option<u32>)>> {
        let mut exact: BTreeMap<&[u8; 32], usize> = BTreeMap::new();
        for (at, digest) in self.pixels.iter().enumerate() {
            exact.entry(digest).or_insert(at);
        }
        let one = |(digest, hash): (&[u8; 32], &[u64; 4])| {
            let closest = || self.hashes.iter().map(|h| apart(h, hash)).enumerate().min_by_key(|&(_, d)| d);
            match exact.get(digest) {
                Some(&at) => Some((at, None)),
                None => closest().filter(|&(_, d)| d <= near).map(|(at, d)| (at, Some(d))),
            }
        };
        let found: Vec<Option<(usize, Option<u32>)>> =
            decode::on_threads(cx, || other.pixels.par_iter().zip(&other.hashes).map(one).collect())?;
        Ok(found.iter().zip(&other.indices).filter_map(|(f, &j)| f.map(|(at, d)| (self.indices[at], j, d))).collect())
    }
}

/// Every pair of sets, in the given order.
pub fn overlaps(sets: &[Fingerprints], near: u32, cx: &Context) -> Result<Vec<Overlap>> {
    let mut all = Vec::new();
    for (i, a) in sets.iter().enumerate() {
        for b in &sets[i + 1..] {
            cx.cancel.check()?;
            all.push(a.overlap(b, near, cx)?);
        }
    }
    Ok(all)
}

fn perceptual(image: &RgbImage) -> [u64; 4] {
    let hasher = HasherConfig::new().hash_size(16, 16).to_hasher();
    let hash: ImageHash = hasher.hash_image(image);
    let mut words = [0u64; 4];
    for (word, bytes) in words.iter_mut().zip(hash.as_bytes().chunks(8)) {
        *word = bytes.iter().fold(0, |w, &b| w << 8 | u64::from(b));
    }
    words
}

fn apart(a: &[u64; 4], b: &[u64; 4]) -> u32 {
    a.iter().zip(b).map(|(x, y)| (x ^ y).count_ones()).sum()
}

/// How many of `texts` name each class: whole words, any case, `_` as a space, a plural's `s` allowed. `(classes,)`.
pub fn coverage<'t>(classes: &[String], texts: impl Iterator<Item = &'t str>) -> Vec<usize> {
    let plain = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let names: Vec<Vec<String>> = classes.iter().map(|c| plain(c)).collect();
    let same = |word: &String, name: &String| word == name || word.strip_suffix('s') == Some(name);
    let mut counts = vec![0; classes.len()];
    for words in texts.map(plain) {
        for (count, name) in counts.iter_mut().zip(&names).filter(|(_, n)| !n.is_empty()) {
            let named = words.windows(name.len()).any(|w| w.iter().zip(name).all(|(a, b)| same(a, b)));
            *count += usize::from(named);
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::super::dataset::Images;
    use super::*;

    /// Random smooth images `(3, 32, 32)`.
    fn images(n: usize, seed: u64) -> Vec<u8> {
        let mut rng = crate::key::Key::from_seed(seed).rng();
        let mut pixels = Vec::new();
        for _ in 0..n {
            let waves: Vec<[f64; 3]> = (0..6).map(|_| [rng.f64() * 0.9, rng.f64() * 0.9, rng.f64() * 6.3]).collect();
            for _ in 0..3 {
                for at in 0..1024 {
                    let (x, y) = (f64::from(at % 32), f64::from(at / 32));
                    let v: f64 = waves.iter().map(|[a, b, c]| (a * x + b * y + c).sin()).sum();
                    pixels.push((128.0 + 20.0 * v) as u8);
                }
            }
        }
        pixels
    }

    fn set(name: &str, pixels: Vec<u8>) -> Fingerprints {
        let images = Images::new([3, 32, 32], pixels).unwrap();
        let all: Vec<u32> = (0..images.len() as u32).collect();
        Fingerprints::new(name, &images.into(), &all, &Context::cpu(2)).unwrap()
    }

    #[test]
    fn copies_and_slightly_changed_copies_are_found_and_others_are_not() {
        let base = images(60, 1);
        let (a, fresh) = (set("a", base.clone()), images(40, 2));
        let copy = base[3 * 3072..4 * 3072].to_vec();
        let brighter: Vec<u8> = base[7 * 3072..8 * 3072].iter().map(|v| v.saturating_add(9)).collect();
        let b = set("b", [fresh, copy, brighter].concat());
        let cx = Context::cpu(2);
        let got = a.overlap(&b, NEAR, &cx).unwrap();
        assert_eq!((got.exact, got.near), (1, 1), "{got:?}");
        assert_eq!(got.examples.iter().map(|e| (e.0, e.1)).collect::<Vec<_>>(), [(3, 40), (7, 41)]);
        let back = overlaps(&[b, a], NEAR, &cx).unwrap();
        assert_eq!((back.len(), back[0].exact, back[0].near), (1, 1, 1));
    }

    #[test]
    fn a_half_size_copy_in_another_set_is_near() {
        let base = images(5, 3);
        let half: Vec<u8> = base
            .chunks_exact(1024)
            .flat_map(|p| {
                (0..256).map(|i| {
                    let at = i / 16 * 64 + i % 16 * 2;
                    ([0, 1, 32, 33].iter().map(|d| u32::from(p[at + d])).sum::<u32>() / 4) as u8
                })
            })
            .collect();
        let small = Images::new([3, 16, 16], half).unwrap();
        let cx = Context::cpu(1);
        let small = Fingerprints::new("small", &small.into(), &[0, 1, 2, 3, 4], &cx).unwrap();
        let got = set("large", base).overlap(&small, 24, &cx).unwrap();
        assert_eq!(
            got.examples.iter().map(|e| (e.0, e.1)).collect::<Vec<_>>(),
            (0..5).map(|i| (i, i)).collect::<Vec<_>>()
        );
    }

    #[test]
    fn class_names_are_counted_as_whole_words() {
        let classes = ["cat", "maple_tree", "ship"].map(String::from);
        let texts = ["Two cats, and a ship.", "a catalogue", "the maple tree and the cat", "maple, tree"];
        assert_eq!(coverage(&classes, texts.into_iter()), [2, 2, 1]);
    }
}
