//! The strong view of FedYoYo: AutoAugment's policy for CIFAR-10, then a black square, on bytes before normalisation.
//!
//! | file | what |
//! |---|---|
//! | this one | the policy, what an image draws, [`strong`] |
//! | `tone` | operations on values: contrast, colour, sharpness and the like |
//! | [`geometry`] | operations on places: shear, translate, rotate, the square |
//!
//! The policy is Cubuk et al., *AutoAugment*, CVPR 2019, table 7. Magnitudes, fill, resampling and signs are those of
//! FedYoYo's `data_loader/autoaug.py`, a widespread reimplementation on Pillow; where it differs from the paper's own
//! code it is followed: a translation is a part of the side (up to 150 of 331), shears are bicubic, rotations only
//! counterclockwise. Its whole transform is: crop with a border of 4 **black** pixels, flip, policy, `ToTensor`,
//! `Cutout(16)`, `Normalize`. The square comes before the normalisation, so it is black and not the mean colour. Crop and
//! flip are the caller's.
//!
//! Images have three channels, or one: then, as in Pillow's mode "L", colour changes nothing and contrast is about the
//! mean of the one channel.

use crate::error::{Error, Result};
use crate::key::{Key, Purpose, Rng};

pub mod geometry;
pub(in crate::data) mod tone;

#[cfg(test)]
mod tests;

/// Side of the black square, pixels.
const HOLE: usize = 16;

/// An operation of AutoAugment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    #[allow(dead_code, reason = "the policy for CIFAR-10 has none; tested with the others")]
    ShearX,
    ShearY,
    TranslateX,
    TranslateY,
    Rotate,
    Color,
    Posterize,
    Solarize,
    Contrast,
    Sharpness,
    Brightness,
    AutoContrast,
    Equalize,
    Invert,
}

use Op::*;

/// The 25 sub-policies: two operations in order, each with its probability and its level, 0 to 9.
/// An operation without a magnitude has level 0.
const POLICY: [[(Op, f64, usize); 2]; 25] = [
    [(Invert, 0.1, 0), (Contrast, 0.2, 6)],
    [(Rotate, 0.7, 2), (TranslateX, 0.3, 9)],
    [(Sharpness, 0.8, 1), (Sharpness, 0.9, 3)],
    [(ShearY, 0.5, 8), (TranslateY, 0.7, 9)],
    [(AutoContrast, 0.5, 0), (Equalize, 0.9, 0)],
    [(ShearY, 0.2, 7), (Posterize, 0.3, 7)],
    [(Color, 0.4, 3), (Brightness, 0.6, 7)],
    [(Sharpness, 0.3, 9), (Brightness, 0.7, 9)],
    [(Equalize, 0.6, 0), (Equalize, 0.5, 0)],
    [(Contrast, 0.6, 7), (Sharpness, 0.6, 5)],
    [(Color, 0.7, 7), (TranslateX, 0.5, 8)],
    [(Equalize, 0.3, 0), (AutoContrast, 0.4, 0)],
    [(TranslateY, 0.4, 3), (Sharpness, 0.2, 6)],
    [(Brightness, 0.9, 6), (Color, 0.2, 8)],
    [(Solarize, 0.5, 2), (Invert, 0.0, 0)],
    [(Equalize, 0.2, 0), (AutoContrast, 0.6, 0)],
    [(Equalize, 0.2, 0), (Equalize, 0.6, 0)],
    [(Color, 0.9, 9), (Equalize, 0.6, 0)],
    [(AutoContrast, 0.8, 0), (Solarize, 0.2, 8)],
    [(Brightness, 0.1, 3), (Color, 0.7, 0)],
    [(Solarize, 0.4, 5), (AutoContrast, 0.9, 0)],
    [(TranslateY, 0.9, 9), (TranslateY, 0.7, 9)],
    [(AutoContrast, 0.9, 0), (Solarize, 0.8, 3)],
    [(Equalize, 0.8, 0), (Invert, 0.1, 0)],
    [(TranslateY, 0.7, 9), (AutoContrast, 0.9, 0)],
];

impl Op {
    /// The magnitude of a level from 0 to 9, before its sign; 0 for an operation without one.
    ///
    /// Shear: tangent, to 0.3. Translation: part of the side, to 150/331. Rotation: degrees, to 30. Posterise: bits that
    /// stay, 8 to 4, rounded. Solarise: the first value that is inverted, 256 to 0. The rest: distance of the factor
    /// from 1, to 0.9.
    fn magnitude(self, level: usize) -> f64 {
        let (first, last) = match self {
            ShearX | ShearY => (0.0, 0.3),
            TranslateX | TranslateY => (0.0, 150.0 / 331.0),
            Rotate => (0.0, 30.0),
            Posterize => (8.0, 4.0),
            Solarize => (256.0, 0.0),
            Color | Contrast | Sharpness | Brightness => (0.0, 0.9),
            AutoContrast | Equalize | Invert => return 0.0,
        };
        let value = if level >= 9 { last } else { level as f64 * ((last - first) / 9.0) + first };
        if self == Posterize { value.round() } else { value }
    }

    /// Whether the sign of the magnitude is drawn.
    fn signed(self) -> bool {
        !matches!(self, Rotate | Posterize | Solarize | AutoContrast | Equalize | Invert)
    }

    /// Changes an image `(C, H, W)` of `shape` as Pillow does; `magnitude` has its sign. `scratch` is memory to reuse.
    fn apply(self, magnitude: f64, image: &mut [u8], shape: [usize; 3], scratch: &mut Vec<u8>) {
        let plane = shape[1] * shape[2];
        let factor = (1.0 + magnitude) as f32;
        match self {
            ShearX => geometry::shear(image, shape, geometry::Along::Row, magnitude, scratch),
            ShearY => geometry::shear(image, shape, geometry::Along::Column, magnitude, scratch),
            TranslateX => geometry::translate(image, shape, geometry::Along::Row, magnitude * shape[2] as f64),
            TranslateY => geometry::translate(image, shape, geometry::Along::Column, magnitude * shape[1] as f64),
            Rotate => geometry::rotate(image, shape, magnitude, geometry::GREY, scratch),
            Color => tone::color(image, plane, factor),
            Posterize => tone::posterize(image, magnitude as u32),
            Solarize => tone::solarize(image, magnitude),
            Contrast => tone::contrast(image, plane, factor),
            Sharpness => tone::sharpness(image, shape, factor, scratch),
            Brightness => tone::brightness(image, factor),
            AutoContrast => tone::autocontrast(image, plane),
            Equalize => tone::equalize(image, plane),
            Invert => tone::invert(image),
        }
    }
}

/// What one image undergoes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Draw {
    /// The operations of the sub-policy that take place, with their signed magnitudes.
    ops: [Option<(Op, f64)>; 2],
    /// Row and column of the square's middle.
    hole: [usize; 2],
}

impl Draw {
    /// The draw of `key`, the image's own, for an image of height and width `sides`, each at least 1.
    fn new(sides: [usize; 2], key: Key) -> Self {
        let mut rng = key.fold(Purpose::Augment, 2).rng();
        let pair = POLICY[rng.below(POLICY.len())];
        let ops = pair.map(|item| taken(item, &mut rng));
        Draw { ops, hole: sides.map(|side| rng.below(side)) }
    }
}

/// Every item takes the same draws, whether it takes place or not.
fn taken((op, probability, level): (Op, f64, usize), rng: &mut Rng) -> Option<(Op, f64)> {
    let (takes_place, negative) = (rng.f64() < probability, rng.below(2) == 1);
    let sign = if op.signed() && negative { -1.0 } else { 1.0 };
    takes_place.then(|| (op, sign * op.magnitude(level)))
}

/// Makes an image `(C, H, W)` of `shape`, cropped and flipped already, its strong view. C is 1 or 3.
///
/// `key` is the image's own; it decides the sub-policy, what of it takes place, signs and the place of the square.
/// `scratch` is memory to reuse. An input error says that the image has other channels, a defect that its length is not
/// that of its shape.
pub fn strong(image: &mut [u8], shape: [usize; 3], key: Key, scratch: &mut Vec<u8>) -> Result<()> {
    let [channels, h, w] = shape;
    if channels != 1 && channels != 3 {
        return Err(Error::input(format!("the strong view is for images of 1 or 3 channels, not of {channels}"))
            .hint("train without it, or on images in grey or RGB"));
    }
    if h == 0 || w == 0 || image.len() != channels * h * w {
        return Err(Error::defect(format!("the strong view of {} bytes with shape {shape:?}", image.len())));
    }
    let draw = Draw::new([h, w], key);
    for (op, magnitude) in draw.ops.into_iter().flatten() {
        op.apply(magnitude, image, shape, scratch);
    }
    geometry::cutout(image, shape, HOLE, draw.hole);
    Ok(())
}
