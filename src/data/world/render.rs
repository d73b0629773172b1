//! From a scene to pixels: coverage by 3×3 supersampling, then light, noise and rounding.

use std::f32::consts::{PI, TAU};

use super::attributes::{Backdrop, Shape, Texture};
use super::palette::Rgb;
use super::scene::{Bar, Object, Scene};
use super::{PIXELS, SIDE};
use crate::key::{Key, Purpose, Rng};

/// Samples of a pixel in each direction.
const SUB: usize = 3;

/// Renders into `out`, `(3, 32, 32)` bytes, channels first. `key` gives the noise.
pub(super) fn render(scene: &Scene, key: Key, out: &mut [u8]) {
    let mut canvas = [[0.0f32; 3]; SIDE * SIDE];
    paint_background(scene, &mut canvas, &mut key.fold(Purpose::World, 0).rng());
    for object in scene.behind.iter().chain(&scene.objects).chain(&scene.front) {
        paint_object(object, &mut canvas);
    }
    if let Some(bar) = &scene.bar {
        paint_bar(bar, &mut canvas);
    }
    develop(scene, &canvas, &mut key.fold(Purpose::World, 1).rng(), out);
}

fn mix(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t]
}

fn paint_background(scene: &Scene, canvas: &mut [Rgb], rng: &mut Rng) {
    let (sin, cos) = scene.ground_angle.sin_cos();
    let blotches: Vec<[f32; 3]> = (0..6).map(|_| [rng.f32(), rng.f32(), rng.f32()]).collect();
    for (i, pixel) in canvas.iter_mut().enumerate() {
        let (x, y) = ((i % SIDE) as f32 + 0.5, (i / SIDE) as f32 + 0.5);
        let (dx, dy) = (x - 16.0, y - 16.0);
        let (along, across) = (dx * cos + dy * sin, dy * cos - dx * sin);
        let t = match scene.truth.backdrop {
            Backdrop::Plain => 0.0,
            Backdrop::Faded => (along / 40.0 + 0.5).clamp(0.0, 1.0),
            Backdrop::Lined => 0.5 + 0.5 * (along * TAU / (7.0 * scene.ground_period)).sin(),
            Backdrop::Tiled => {
                let tile = 7.0 * scene.ground_period;
                ((along / tile).floor() + (across / tile).floor()).rem_euclid(2.0)
            }
            Backdrop::Grainy => rng.f32(),
            Backdrop::Cloudy => cloud(x / 32.0, y / 32.0, &blotches),
        };
        *pixel = mix(scene.ground, scene.ground_second, t);
    }
}

/// A few soft bumps, some up and some down, in `[0, 1]`.
fn cloud(x: f32, y: f32, blotches: &[[f32; 3]]) -> f32 {
    let sum: f32 = blotches
        .iter()
        .map(|[cx, cy, w]| {
            let d2 = (x - cx).powi(2) + (y - cy).powi(2);
            (w - 0.3) * 3.0 * (-d2 / 0.03).exp()
        })
        .sum();
    (sum + 0.3).clamp(0.0, 1.0)
}

fn paint_object(object: &Object, canvas: &mut [Rgb]) {
    // No outline leaves a disc of 1.25 radii.
    let reach = object.radius * 1.25 + 1.0;
    let span = |c: f32| {
        let low = (c - reach).floor().clamp(0.0, SIDE as f32) as usize;
        (low, (c + reach).ceil().clamp(0.0, SIDE as f32) as usize)
    };
    let ((x0, x1), (y0, y1)) = (span(object.centre[0]), span(object.centre[1]));
    let (sin, cos) = object.angle.sin_cos();
    let (grain_sin, grain_cos) = object.grain_angle.sin_cos();
    for y in y0..y1 {
        for x in x0..x1 {
            let (mut covered, mut second) = (0.0, 0.0);
            for s in 0..SUB * SUB {
                let dx = x as f32 + sub(s % SUB) - object.centre[0];
                let dy = y as f32 + sub(s / SUB) - object.centre[1];
                let (u, v) = ((dx * cos + dy * sin) / object.radius, (dy * cos - dx * sin) / object.radius);
                if inside(object.shape, u, v) {
                    covered += 1.0;
                    let along = (dx * grain_cos + dy * grain_sin) / object.grain;
                    let across = (dy * grain_cos - dx * grain_sin) / object.grain;
                    second += pattern(object.texture, along, across, object.grain / object.radius);
                }
            }
            if covered > 0.0 {
                let fill = mix(object.first, object.second, second / covered);
                let pixel = &mut canvas[y * SIDE + x];
                *pixel = mix(*pixel, fill, covered / (SUB * SUB) as f32);
            }
        }
    }
}

/// The offset of a sample within its pixel.
fn sub(i: usize) -> f32 {
    (i as f32 + 0.5) / SUB as f32
}

/// How much of the second colour at `(along, across)`, in periods; `scale` is the period in radii.
fn pattern(texture: Texture, along: f32, across: f32, scale: f32) -> f32 {
    let odd = |yes: bool| if yes { 1.0 } else { 0.0 };
    match texture {
        Texture::Solid => 0.0,
        Texture::Striped => odd(along.rem_euclid(1.0) < 0.5),
        Texture::Dotted => {
            let (a, b) = ((along * 0.8).rem_euclid(1.0) - 0.5, (across * 0.8).rem_euclid(1.0) - 0.5);
            odd(a * a + b * b < 0.09)
        }
        Texture::Checkered => odd(((along * 1.25).floor() + (across * 1.25).floor()).rem_euclid(2.0) < 0.5),
        Texture::Shaded => (along * scale * 0.6 + 0.5).clamp(0.0, 1.0),
    }
}

/// Whether `(u, v)`, in radii with v downwards, lies in the shape. Areas are made roughly equal.
fn inside(shape: Shape, u: f32, v: f32) -> bool {
    let r2 = u * u + v * v;
    match shape {
        Shape::Circle => r2 < 0.81,
        Shape::Square => u.abs().max(v.abs()) < 0.8,
        Shape::Triangle => v < 0.58 && -0.5 * v + 0.866 * u.abs() < 0.58,
        Shape::Star => in_star(u, v),
        Shape::Ring => r2 < 1.0 && r2 > 0.25,
        Shape::Cross => u.abs().min(v.abs()) < 0.33 && u.abs().max(v.abs()) < 1.0,
        Shape::Heart => {
            let (x, y) = (u * 1.15, 0.15 - v * 1.15);
            let a = x * x + y * y - 1.0;
            a * a * a - x * x * y * y * y < 0.0
        }
        Shape::Diamond => u.abs() / 0.65 + v.abs() / 1.15 < 1.0,
        Shape::Crescent => r2 < 1.0 && (u - 0.5).powi(2) + v * v > 0.56,
        Shape::Arrow => {
            let head = v > -1.05 && v < 0.0 && u.abs() < (v + 1.05) * 0.85;
            head || (u.abs() < 0.33 && (0.0..1.0).contains(&v))
        }
    }
}

/// Five points at radius 1.15, notches at 0.52.
fn in_star(u: f32, v: f32) -> bool {
    let sector = TAU / 5.0;
    // The angle from the nearest point's axis, folded to one side of it.
    let angle = (u.atan2(-v)).rem_euclid(sector);
    let angle = angle.min(sector - angle);
    let r = u.hypot(v);
    let (x, y) = (r * angle.cos(), r * angle.sin());
    let (tip, notch) = (1.15, [0.52 * (PI / 5.0).cos(), 0.52 * (PI / 5.0).sin()]);
    // Left of the edge from the tip to the notch.
    (notch[0] - tip) * y - notch[1] * (x - tip) > 0.0
}

fn paint_bar(bar: &Bar, canvas: &mut [Rgb]) {
    for (i, pixel) in canvas.iter_mut().enumerate() {
        let (x, y) = ((i % SIDE) as f32 - 15.5, (i / SIDE) as f32 - 15.5);
        let distance = (x * bar.normal[0] + y * bar.normal[1] - bar.offset).abs();
        let cover = (bar.half_width - distance + 0.5).clamp(0.0, 1.0);
        *pixel = mix(*pixel, bar.colour, cover);
    }
}

/// Light, noise, bytes.
fn develop(scene: &Scene, canvas: &[Rgb], rng: &mut Rng, out: &mut [u8]) {
    let (scale, sigma) = (255.0 * scene.light, 255.0 * scene.noise);
    for (i, pixel) in canvas.iter().enumerate() {
        for (channel, value) in pixel.iter().enumerate() {
            let noisy = value * scale + sigma * bell(rng.u32());
            if let Some(byte) = out.get_mut(channel * PIXELS / 3 + i) {
                *byte = noisy.round().clamp(0.0, 255.0) as u8;
            }
        }
    }
}

/// The sum of four bytes, moved and scaled to mean 0 and variance 1: near enough to a normal, and cheap.
fn bell(bits: u32) -> f32 {
    let sum: u32 = bits.to_le_bytes().iter().map(|b| u32::from(*b)).sum();
    // Four uniform bytes: mean 510, variance 4 (256² - 1) / 12.
    (sum as f32 - 510.0) / 147.8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(shape: Shape) -> f32 {
        let n = 400;
        let at = |i: i32| (i as f32 + 0.5) / n as f32 * 3.0 - 1.5;
        let hits = (0..n * n).filter(|i| inside(shape, at(i % n), at(i / n))).count();
        hits as f32 * (3.0 / n as f32).powi(2)
    }

    /// Closed forms: πr², side², π(R² - r²), five-armed star, rhombus.
    #[test]
    fn areas_of_the_outlines_are_those_of_geometry() {
        assert!((area(Shape::Circle) - PI * 0.81).abs() < 0.02);
        assert!((area(Shape::Square) - 2.56).abs() < 0.02);
        assert!((area(Shape::Ring) - PI * 0.75).abs() < 0.02);
        assert!((area(Shape::Star) - 5.0 * 1.15 * 0.52 * (PI / 5.0).sin()).abs() < 0.02);
        assert!((area(Shape::Diamond) - 2.0 * 0.65 * 1.15).abs() < 0.02);
        assert!((area(Shape::Triangle) - 3.0 * 3f32.sqrt() * 0.58 * 0.58).abs() < 0.02);
        assert!((area(Shape::Cross) - (2.0 * 2.0 * 0.66 - 0.66 * 0.66)).abs() < 0.02);
    }

    #[test]
    fn no_outline_leaves_the_disc_that_is_painted() {
        for &shape in Shape::ALL {
            for step in 0..3600 {
                let (sin, cos) = (step as f32 * TAU / 3600.0).sin_cos();
                assert!(!inside(shape, 1.26 * cos, 1.26 * sin), "{shape:?} at {step}");
            }
        }
    }

    #[test]
    fn the_noise_has_mean_zero_and_variance_one() {
        let mut rng = Key::from_seed(1).rng();
        let draws: Vec<f32> = (0..100_000).map(|_| bell(rng.u32())).collect();
        let mean = draws.iter().sum::<f32>() / 1e5;
        let variance = draws.iter().map(|d| d * d).sum::<f32>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
