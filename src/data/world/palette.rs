//! The colours of the words.

use super::attributes::{Colour, Ground};
use crate::key::Rng;

/// Red, green and blue in `[0, 1]`.
pub(super) type Rgb = [f32; 3];

/// Hue in degrees, saturation and value in `[0, 1]`.
pub(super) fn hsv_of(colour: Colour) -> [f32; 3] {
    match colour {
        Colour::Red => [0.0, 0.92, 0.9],
        Colour::Orange => [28.0, 0.95, 1.0],
        Colour::Yellow => [55.0, 0.9, 1.0],
        Colour::Green => [125.0, 0.8, 0.75],
        Colour::Cyan => [182.0, 0.75, 0.95],
        Colour::Blue => [225.0, 0.85, 0.95],
        Colour::Purple => [275.0, 0.75, 0.75],
        Colour::Pink => [325.0, 0.45, 1.0],
        Colour::Brown => [25.0, 0.7, 0.5],
        Colour::White => [0.0, 0.0, 1.0],
    }
}

pub(super) fn hsv_of_ground(ground: Ground) -> [f32; 3] {
    match ground {
        Ground::Black => [0.0, 0.0, 0.08],
        Ground::Gray => [0.0, 0.0, 0.5],
        Ground::Navy => [225.0, 0.7, 0.32],
        Ground::Olive => [68.0, 0.6, 0.42],
        Ground::Maroon => [345.0, 0.7, 0.35],
        Ground::Beige => [40.0, 0.25, 0.85],
        Ground::Teal => [180.0, 0.65, 0.4],
        Ground::Lilac => [262.0, 0.25, 0.85],
    }
}

/// A colour near `hsv`: hue moved by `shift` degrees, all three jittered.
pub(super) fn colour(rng: &mut Rng, [h, s, v]: [f32; 3], jitter: f32, shift: f32) -> Rgb {
    let hue = h + shift + 10.0 * jitter * rng.normal() as f32;
    let saturation = s * (1.0 - 0.4 * jitter * rng.f32());
    let value = v * (1.0 - 0.4 * jitter * rng.f32());
    hsv_to_rgb(hue, saturation, value)
}

fn hsv_to_rgb(hue: f32, s: f32, v: f32) -> Rgb {
    let h = (hue / 60.0).rem_euclid(6.0);
    [5.0, 3.0, 1.0].map(|n: f32| {
        let k = (n + h) % 6.0;
        v - v * s * k.min(4.0 - k).clamp(0.0, 1.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of Python's colorsys.hsv_to_rgb.
    #[test]
    fn hsv_becomes_the_published_rgb() {
        let near = |a: Rgb, b: Rgb| a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5);
        assert!(near(hsv_to_rgb(0.0, 1.0, 1.0), [1.0, 0.0, 0.0]));
        assert!(near(hsv_to_rgb(125.0, 0.8, 0.75), [0.15, 0.75, 0.2]));
        assert!(near(hsv_to_rgb(-35.0, 0.45, 1.0), hsv_to_rgb(325.0, 0.45, 1.0)));
    }
}
