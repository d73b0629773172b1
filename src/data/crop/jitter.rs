//! torchvision's `ColorJitter` on Pillow images: brightness, contrast, saturation and hue in a random order.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::data::autoaugment::tone;
use crate::error::{Error, Result};
use crate::key::Rng;

/// How far colours change; 0 leaves them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct JitterConfig {
    /// Brightness is multiplied by a factor between 1 − this, at least 0, and 1 + this.
    pub brightness: f64,
    /// Contrast likewise.
    pub contrast: f64,
    /// Saturation likewise.
    pub saturation: f64,
    /// Hue turns by at most this part of the circle, up to 0.5.
    pub hue: f64,
}

impl Default for JitterConfig {
    /// As the code of Kang et al., *Decoupling Representation and Classifier for Long-Tailed Recognition*, ICLR 2020,
    /// trains on ImageNet-LT, Places-LT and iNaturalist.
    fn default() -> Self {
        JitterConfig { brightness: 0.4, contrast: 0.4, saturation: 0.4, hue: 0.0 }
    }
}

/// One change of colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Away from black.
    Brightness,
    /// Away from the mean grey.
    Contrast,
    /// Away from each pixel's grey.
    Saturation,
    /// Around the colour circle.
    Hue,
}

/// The changes of one picture, in order, each with its factor; hue with its part of the circle.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Jitter([Option<(Change, f64)>; 4]);

impl JitterConfig {
    /// No change.
    pub fn none() -> Self {
        JitterConfig { brightness: 0.0, contrast: 0.0, saturation: 0.0, hue: 0.0 }
    }

    /// Refuses values without a meaning; `section` is what the keys stand under.
    pub fn check(&self, section: &str) -> Result<()> {
        let factors = [("brightness", self.brightness), ("contrast", self.contrast), ("saturation", self.saturation)];
        if let Some((name, v)) = factors.iter().find(|(_, v)| !(v.is_finite() && *v >= 0.0)) {
            return Err(Error::input(format!("{section}.{name} = {v}: a number from 0 on")));
        }
        if !(0.0..=0.5).contains(&self.hue) {
            return Err(Error::input(format!("{section}.hue = {}: from 0 to 0.5", self.hue)));
        }
        Ok(())
    }

    /// The order, then every factor; as many draws whatever is switched off.
    pub fn draw(&self, rng: &mut Rng) -> Jitter {
        let mut order = [0, 1, 2, 3];
        rng.shuffle(&mut order);
        let mut within = |low: f64, high: f64| low + (high - low) * rng.f64();
        let mut around = |by: f64| within((1.0 - by).max(0.0), 1.0 + by);
        let (brightness, contrast, saturation) =
            (around(self.brightness), around(self.contrast), around(self.saturation));
        let steps = [
            (Change::Brightness, self.brightness, brightness),
            (Change::Contrast, self.contrast, contrast),
            (Change::Saturation, self.saturation, saturation),
            (Change::Hue, self.hue, within(-self.hue, self.hue)),
        ];
        Jitter(order.map(|i: usize| (steps[i].1 > 0.0).then_some((steps[i].0, steps[i].2))))
    }
}

impl Jitter {
    /// These changes in this order.
    pub fn of(steps: [Option<(Change, f64)>; 4]) -> Self {
        Jitter(steps)
    }

    /// The changes in order, each with its factor.
    pub fn steps(&self) -> [Option<(Change, f64)>; 4] {
        self.0
    }

    /// Changes a picture of planes, `(3, height, width)`, `plane` = height · width.
    pub fn apply(&self, image: &mut [u8], plane: usize) {
        for (change, factor) in self.0.into_iter().flatten() {
            match change {
                Change::Brightness => tone::brightness(image, factor as f32),
                Change::Contrast => tone::contrast(image, plane, factor as f32),
                Change::Saturation => tone::color(image, plane, factor as f32),
                Change::Hue => turn(image, plane, factor),
            }
        }
    }
}

/// Turns the hue in Pillow's HSV bytes.
fn turn(image: &mut [u8], plane: usize, by: f64) {
    let by = (by * 255.0) as i32 as u8;
    let (red, rest) = image.split_at_mut(plane);
    let (green, blue) = rest.split_at_mut(plane);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        let [h, s, v] = hsv([*r, *g, *b]);
        [*r, *g, *b] = rgb([h.wrapping_add(by), s, v]);
    }
}

/// Pillow's HSV of a pixel: its steps in single and double precision, cut to bytes.
fn hsv([r, g, b]: [u8; 3]) -> [u8; 3] {
    let (most, least) = (r.max(g).max(b), r.min(g).min(b));
    if most == least {
        return [0, 0, most];
    }
    let range = f32::from(most - least);
    let [rc, gc, bc] = [r, g, b].map(|v| f32::from(most - v) / range);
    let sixth = if r == most {
        bc - gc
    } else if g == most {
        (2.0 + f64::from(rc) - f64::from(bc)) as f32
    } else {
        (4.0 + f64::from(gc) - f64::from(rc)) as f32
    };
    let hue = ((f64::from(sixth) / 6.0 + 1.0) % 1.0) as f32;
    let saturation = range / f32::from(most);
    [(f64::from(hue) * 255.0) as u8, (f64::from(saturation) * 255.0) as u8, most]
}

/// The pixel of Pillow's HSV.
fn rgb([h, s, v]: [u8; 3]) -> [u8; 3] {
    if s == 0 {
        return [v; 3];
    }
    let sixth = (f32::from(h) * 6.0) as f64 / 255.0;
    let whole = sixth.floor();
    let (f, s, value) = ((sixth - whole) as f32, (f64::from(s) / 255.0) as f32, f64::from(v));
    let (f, s) = (f64::from(f), f64::from(s));
    let p = (value * (1.0 - s)).round() as u8;
    let q = (value * (1.0 - s * f)).round() as u8;
    let t = (value * (1.0 - s * (1.0 - f))).round() as u8;
    match whole as u8 % 6 {
        0 => [v, t, p],
        1 => [q, v, p],
        2 => [p, v, t],
        3 => [p, q, v],
        4 => [t, p, v],
        _ => [v, p, q],
    }
}
