//! Pictures of many sizes → squares of one: torchvision's `RandomResizedCrop`, `RandomHorizontalFlip` and `ColorJitter`
//! for training, its `Resize` and `CenterCrop` for evaluation, on Pillow images.
//!
//! | file | what |
//! |---|---|
//! | this one | sizes and places: what is cut out and how large it becomes |
//! | [`jitter`] | brightness, contrast, saturation and hue |
//!
//! Given the same parameters the bytes are torchvision's; the parameters are drawn from a key, from the same
//! distributions.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::key::{Key, Purpose, Rng};
use crate::nn::kernels::resample::{Filter, Frame, Window};

pub mod jitter;

#[cfg(test)]
mod tests;

pub use jitter::{Jitter, JitterConfig};

/// How pictures of many sizes become squares of one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CropConfig {
    /// Side of the square that the network sees, pixels.
    pub side: usize,
    /// Length of the shorter side, pixels, to which a picture is scaled for evaluation before its middle is cut out.
    pub resize: usize,
    /// Smallest and greatest share of a picture's area that a random crop for training takes.
    pub scale: [f64; 2],
    /// Smallest and greatest width over height of a random crop.
    pub ratio: [f64; 2],
    /// Probability that a training picture is mirrored left to right.
    pub flip: f64,
    /// Random changes of a training picture's colours.
    pub jitter: JitterConfig,
}

impl Default for CropConfig {
    /// The usual ones for ImageNet, torchvision's own; the jitter is the one that long-tailed work adds.
    fn default() -> Self {
        CropConfig {
            side: 224,
            resize: 256,
            scale: [0.08, 1.0],
            ratio: [3.0 / 4.0, 4.0 / 3.0],
            flip: 0.5,
            jitter: JitterConfig::default(),
        }
    }
}

/// How a picture becomes a square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sight {
    /// Resized, and its middle: for evaluation.
    Centre,
    /// A random crop, mirror and change of colour, drawn from this key: for training.
    Random(Key),
}

/// What happens to one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// The part of the picture that is resized, to what, and the square of the result that stays.
    pub frame: Frame,
    /// Whether the result is mirrored.
    pub mirror: bool,
    /// Changes of colour.
    pub jitter: Jitter,
}

impl CropConfig {
    /// Refuses values without a meaning; `section` is what the keys stand under.
    pub fn check(&self, section: &str) -> Result<()> {
        let refuse = |what: String| Err(Error::input(format!("{section}.{what}")));
        let (scale, ratio) = (self.scale, self.ratio);
        if self.side == 0 || self.side > 4096 {
            return refuse(format!("side = {}: from 1 to 4096 pixels", self.side));
        }
        if self.resize < self.side || self.resize > 16_384 {
            return refuse(format!("resize = {}: at least side, {}, and at most 16384 pixels", self.resize, self.side));
        }
        if !(0.0 < scale[0] && scale[0] <= scale[1] && scale[1] <= 1.0) {
            return refuse(format!("scale = {scale:?}: two shares in (0, 1], the smaller one first"));
        }
        if !(0.0 < ratio[0] && ratio[0] <= ratio[1] && ratio[1].is_finite()) {
            return refuse(format!("ratio = {ratio:?}: two positive numbers, the smaller one first"));
        }
        if !(0.0..=1.0).contains(&self.flip) {
            return refuse(format!("flip = {}: a probability", self.flip));
        }
        self.jitter.check(&format!("{section}.jitter"))
    }

    /// What happens to a picture of so many rows and columns.
    pub fn cut(&self, size: (usize, usize), sight: Sight) -> Cut {
        match sight {
            Sight::Centre => self.centre(size),
            Sight::Random(key) => self.random(size, key),
        }
    }

    /// The random crop of a picture of so many rows and columns; `key` is the draw's own.
    pub fn random(&self, size: (usize, usize), key: Key) -> Cut {
        let mut rng = key.fold(Purpose::Augment, 3).rng();
        let mirror = rng.f64() < self.flip;
        let from = self.window(size, &mut rng);
        let jitter = self.jitter.draw(&mut key.fold(Purpose::Augment, 4).rng());
        let (to, keep) = ((self.side, self.side), Window::all(self.side, self.side));
        Cut { frame: Frame { from, to, keep, filter: Filter::Bilinear }, mirror, jitter }
    }

    /// Ten attempts, then the middle.
    fn window(&self, size: (usize, usize), rng: &mut Rng) -> Window {
        let between = |[low, high]: [f64; 2], rng: &mut Rng| low + (high - low) * rng.f64();
        for _ in 0..10 {
            let share = between(self.scale, rng);
            let ratio = between(self.ratio.map(f64::ln), rng).exp();
            if let Some((height, width)) = attempt(size, share, ratio) {
                let (top, left) = (rng.below(size.0 - height + 1), rng.below(size.1 - width + 1));
                return Window { top, left, height, width };
            }
        }
        middle(size, self.ratio)
    }

    /// Scaled and cut from the middle, for evaluation.
    pub fn centre(&self, size: (usize, usize)) -> Cut {
        let (short, long) = (size.0.min(size.1).max(1), size.0.max(size.1));
        let longer = (self.resize * long / short).max(self.resize);
        let to = if size.0 <= size.1 { (self.resize, longer) } else { (longer, self.resize) };
        // Python rounds halves to the even neighbour.
        let half = |all: usize| ((all - self.side) as f64 / 2.0).round_ties_even() as usize;
        let keep = Window { top: half(to.0), left: half(to.1), height: self.side, width: self.side };
        let frame = Frame { from: Window::all(size.0, size.1), to, keep, filter: Filter::Bilinear };
        Cut { frame, mirror: false, jitter: Jitter::default() }
    }
}

/// Rows and columns of a part of this share of the area and this width over height, where it fits.
fn attempt(size: (usize, usize), share: f64, ratio: f64) -> Option<(usize, usize)> {
    let area = (size.0 * size.1) as f64 * share;
    let width = (area * ratio).sqrt().round_ties_even() as usize;
    let height = (area / ratio).sqrt().round_ties_even() as usize;
    ((1..=size.0).contains(&height) && (1..=size.1).contains(&width)).then_some((height, width))
}

/// The largest part in the middle whose width over height is within bounds.
fn middle((rows, columns): (usize, usize), [low, high]: [f64; 2]) -> Window {
    let ratio = columns as f64 / rows as f64;
    let round = |side: f64| (side.round_ties_even() as usize).max(1);
    let (height, width) = if ratio < low {
        (round(columns as f64 / low).min(rows), columns)
    } else if ratio > high {
        (rows, round(rows as f64 * high).min(columns))
    } else {
        (rows, columns)
    };
    Window { top: (rows - height) / 2, left: (columns - width) / 2, height, width }
}
