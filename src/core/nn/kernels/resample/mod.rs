//! Pillow's antialiased resizing of 8-bit images, to the bit.
//!
//! Two passes with fixed-point weights of 22 fractional bits and an 8-bit result in between. The filter widens when the
//! image shrinks. The order of the passes is that of Pillow 13, found by trying it (440 random sizes): the vertical pass
//! comes first for an image that loses more than twice as many rows as columns. Earlier releases always begin with the
//! horizontal pass; there such tall images differ by one grey level here and there.
//!
//! | file | what |
//! |---|---|
//! | this one | filters, whole images as planes |
//! | `area` | a part of an interleaved RGB image, to a part of the result, as planes |
//! | `taps` | weights, and the pass along columns |

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use area::{Area, Frame, Resampler, Window};

use crate::error::{Error, Result};
use crate::nn::kernels::Isa;
use taps::Taps;

mod area;
#[cfg(target_arch = "x86_64")]
mod avx2;
mod taps;

const BITS: u32 = 22;

/// The interpolation, numbered as PIL does (`resample` in a preprocessor's config).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub enum Filter {
    /// Lanczos with three lobes (1).
    Lanczos,
    /// Triangle (2).
    Bilinear,
    /// Cubic with a = −0.5 (3).
    Bicubic,
}

impl TryFrom<u8> for Filter {
    type Error = String;

    fn try_from(code: u8) -> Result<Self, String> {
        match code {
            1 => Ok(Filter::Lanczos),
            2 => Ok(Filter::Bilinear),
            3 => Ok(Filter::Bicubic),
            _ => Err(format!("resample {code}: 1 (Lanczos), 2 (bilinear) and 3 (bicubic) are supported")),
        }
    }
}

impl From<Filter> for u8 {
    fn from(filter: Filter) -> u8 {
        match filter {
            Filter::Lanczos => 1,
            Filter::Bilinear => 2,
            Filter::Bicubic => 3,
        }
    }
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Lanczos => 3.0,
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        match (self, x.abs()) {
            (Filter::Lanczos, _) if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            (Filter::Bilinear, x) if x < 1.0 => 1.0 - x,
            (Filter::Bicubic, x) if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            (Filter::Bicubic, x) if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    let x = x * std::f64::consts::PI;
    if x == 0.0 { 1.0 } else { x.sin() / x }
}

fn clip8(sum: i32) -> u8 {
    (sum >> BITS).clamp(0, 255) as u8
}

/// Whether the pass along columns comes first.
fn tall((height, width): (usize, usize), (to_height, to_width): (usize, usize)) -> bool {
    let lost = |from: usize, to: usize| from as i64 - to as i64;
    to_height < height && lost(height, to_height) > 2 * lost(width, to_width)
}

/// `(channels, height, width)` bytes → `(channels, to_height, to_width)`. A side that stays is not filtered.
pub fn resize(image: &[u8], from: (usize, usize, usize), to: (usize, usize), filter: Filter) -> Result<Vec<u8>> {
    passes(image, from, to, filter, tall((from.1, from.2), to))
}

/// As [`resize`], the pass along rows always first: Pillow before 13, by which most models were trained and judged.
pub fn resize_across_first(
    image: &[u8],
    from: (usize, usize, usize),
    to: (usize, usize),
    filter: Filter,
) -> Result<Vec<u8>> {
    passes(image, from, to, filter, false)
}

fn passes<'a>(
    image: &'a [u8],
    (channels, height, width): (usize, usize, usize),
    (to_height, to_width): (usize, usize),
    filter: Filter,
    down_first: bool,
) -> Result<Vec<u8>> {
    let sides = [height, width, to_height, to_width];
    if sides.contains(&0) || image.len() != channels * height * width {
        return Err(Error::data(format!(
            "resize: {} bytes as ({channels}, {height}, {width}) to ({to_height}, {to_width})",
            image.len()
        )));
    }
    let across = |image: Cow<'a, [u8]>| match to_width == width {
        true => image,
        false => Cow::Owned(horizontal(&image, width, &Taps::new(width, to_width, 0..to_width, filter))),
    };
    let down = |image: Cow<'a, [u8]>, width| match to_height == height {
        true => image,
        false => {
            let taps = Taps::new(height, to_height, 0..to_height, filter);
            let mut out = vec![0; image.len() / height * to_height];
            let planes = image.chunks_exact(height * width).zip(out.chunks_exact_mut(to_height * width));
            planes.for_each(|(from, to)| taps::vertical(Isa::detect(), from, width, &taps, to, width));
            Cow::Owned(out)
        }
    };
    let image = Cow::Borrowed(image);
    Ok(if down_first { across(down(image, width)) } else { down(across(image), to_width) }.into_owned())
}

fn horizontal(image: &[u8], width: usize, taps: &Taps) -> Vec<u8> {
    let mut out = Vec::with_capacity(image.len() / width * taps.len());
    for row in image.chunks_exact(width) {
        out.extend((0..taps.len()).map(|i| {
            let (first, weights) = taps.of(i);
            let pixels = &row[first..first + weights.len()];
            clip8(pixels.iter().zip(weights).fold(1 << (BITS - 1), |sum, (p, w)| sum + i32::from(*p) * w))
        }));
    }
    out
}
