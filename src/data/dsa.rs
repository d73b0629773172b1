//! Differentiable siamese augmentation (DSA; Zhao and Bilen, ICML 2021) of a batch of real images.
//!
//! One operation of six is drawn, with one set of parameters for the whole batch, as CReFF (`Dataset/param_aug.py`) and
//! CLIP2FL (`param_aug.py`) call it: `DiffAugment` with a seed, mode "S", `color_crop_cutout_flip_scale_rotate`. The
//! batch is normalised, so whatever comes from outside the image is 0, the mean colour. No gradient is needed.

use crate::key::{Key, Purpose};

/// Largest shift of a crop, as a part of the side: 4 of 32 pixels.
const CROP: f64 = 0.125;
/// Side of the square that is cut out, as a part of the image's: 16 of 32 pixels.
const CUTOUT: f64 = 0.5;
/// Largest factor of a scaling; the smallest is its inverse.
const SCALE: f64 = 1.2;
/// Largest rotation, degrees.
const ROTATE: f64 = 15.0;

/// One operation with its parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Draw {
    /// Brightness, then saturation, then contrast.
    Color {
        /// Added to every number, in `[−½, ½)`.
        brightness: f32,
        /// Factor of the distance to the mean of the pixel's channels, in `[0, 2)`.
        saturation: f32,
        /// Factor of the distance to the mean of the image, in `[½, 1½)`.
        contrast: f32,
    },
    /// Pixel `(y, x)` of the result is pixel `(y + dy, x + dx)`, or 0 outside.
    Crop {
        /// Rows.
        dy: isize,
        /// Columns.
        dx: isize,
    },
    /// A rectangle of half the height and width, its middle at this pixel, clipped at the edges, becomes 0.
    Cutout {
        /// Row, in `0..=H`.
        y: usize,
        /// Column, in `0..=W`.
        x: usize,
    },
    /// The mirror of left and right, if true.
    Flip(bool),
    /// Coordinates of the result, from the middle, times these are coordinates of the image: above 1 it shrinks.
    Scale {
        /// Factor of columns.
        x: f64,
        /// Factor of rows.
        y: f64,
    },
    /// A rotation of the coordinates about the middle, in units of half the sides.
    Rotate {
        /// The angle.
        radians: f64,
    },
}

impl Draw {
    /// The draw of `key`, the batch's own, for images of `shape` `(C, H, W)`.
    pub fn new(shape: [usize; 3], key: Key) -> Self {
        let [_, h, w] = shape;
        let mut rng = key.fold(Purpose::Augment, 1).rng();
        match rng.below(6) {
            0 => Draw::Color { brightness: rng.f32() - 0.5, saturation: rng.f32() * 2.0, contrast: rng.f32() + 0.5 },
            1 => {
                let mut shift = |side| rng.below(2 * part(side, CROP) + 1) as isize - part(side, CROP) as isize;
                Draw::Crop { dy: shift(h), dx: shift(w) }
            }
            2 => {
                // The reference lets an even square reach one further, so that both edges are as likely.
                let mut middle = |side| rng.below((side + 1 - part(side, CUTOUT) % 2).max(1));
                Draw::Cutout { y: middle(h), x: middle(w) }
            }
            3 => Draw::Flip(rng.f32() < 0.5),
            4 => {
                let mut factor = || rng.f64() * (SCALE - 1.0 / SCALE) + 1.0 / SCALE;
                Draw::Scale { x: factor(), y: factor() }
            }
            _ => Draw::Rotate { radians: ((rng.f64() - 0.5) * 2.0 * ROTATE).to_radians() },
        }
    }
}

/// `side · ratio`, rounded half up.
fn part(side: usize, ratio: f64) -> usize {
    (side as f64 * ratio + 0.5) as usize
}

/// Augments the normalised batch `x`, `(rows, C, H, W)` with `shape` `(C, H, W)`, in place; `key` is the batch's own.
pub fn dsa(x: &mut [f32], shape: [usize; 3], key: Key) {
    apply(Draw::new(shape, key), x, shape);
}

/// One operation on a batch `(rows, C, H, W)`, in place. Numbers after the last whole image stay as they are.
///
/// Scaling and rotating are `affine_grid` and `grid_sample` without further arguments, as the reference calls them:
/// bilinear, zeros outside, and `align_corners` at PyTorch's default, false.
pub fn apply(draw: Draw, x: &mut [f32], shape: [usize; 3]) {
    let [channels, h, w] = shape;
    let (plane, size) = (h * w, channels * h * w);
    if size == 0 {
        return;
    }
    match draw {
        Draw::Color { brightness, saturation, contrast } => {
            x.chunks_exact_mut(size).for_each(|image| color(image, plane, brightness, saturation, contrast));
        }
        Draw::Crop { dy, dx } => {
            let rows = shifted(h, dy);
            let columns = shifted(w, dx);
            planes(x, plane, |from, to| {
                to.fill(0.0);
                for y in rows.clone() {
                    let line = y.wrapping_add_signed(dy) * w;
                    let source = columns.start.wrapping_add_signed(dx);
                    let line = &from[line + source..line + source + columns.len()];
                    to[y * w..][columns.clone()].copy_from_slice(line);
                }
            });
        }
        Draw::Cutout { y, x: column } => {
            let (rows, columns) = (around(y, h), around(column, w));
            for image in x.chunks_exact_mut(plane) {
                rows.clone().for_each(|y| image[y * w..][columns.clone()].fill(0.0));
            }
        }
        Draw::Flip(false) => {}
        Draw::Flip(true) => x.chunks_exact_mut(w).for_each(<[f32]>::reverse),
        Draw::Scale { x: sx, y: sy } => resample(x, [h, w], [sx, 0.0, 0.0, sy]),
        Draw::Rotate { radians } => {
            let (sin, cos) = radians.sin_cos();
            resample(x, [h, w], [cos, -sin, sin, cos]);
        }
    }
}

/// The means are of the image as it is when they are needed, in `f64`.
fn color(image: &mut [f32], plane: usize, brightness: f32, saturation: f32, contrast: f32) {
    image.iter_mut().for_each(|v| *v += brightness);
    let channels = image.len() / plane;
    for p in 0..plane {
        let sum: f64 = (0..channels).map(|c| f64::from(image[c * plane + p])).sum();
        let mean = (sum / channels as f64) as f32;
        for c in 0..channels {
            let v = &mut image[c * plane + p];
            *v = (*v - mean) * saturation + mean;
        }
    }
    let mean = (image.iter().map(|&v| f64::from(v)).sum::<f64>() / image.len() as f64) as f32;
    image.iter_mut().for_each(|v| *v = (*v - mean) * contrast + mean);
}

/// Places `i` of `0..side` whose `i + by` is in it too.
fn shifted(side: usize, by: isize) -> std::ops::Range<usize> {
    let first = by.min(0).unsigned_abs().min(side);
    first..side.saturating_sub(by.max(0).unsigned_abs()).max(first)
}

/// The places of the cut-out square about `middle`.
fn around(middle: usize, side: usize) -> std::ops::Range<usize> {
    let (cut, half) = (part(side, CUTOUT), part(side, CUTOUT) / 2);
    let first = middle.saturating_sub(half).min(side);
    first..middle.saturating_add(cut).saturating_sub(half).min(side)
}

/// Calls `f` with a copy of each plane and the plane itself.
fn planes(x: &mut [f32], plane: usize, mut f: impl FnMut(&[f32], &mut [f32])) {
    let mut copy = vec![0.0; plane];
    for to in x.chunks_exact_mut(plane) {
        copy.copy_from_slice(to);
        f(&copy, to);
    }
}

/// Where a pixel of the result comes from: four pixels and their weights, 0 for those outside.
#[derive(Clone, Copy, Default)]
struct Tap {
    at: [usize; 4],
    weight: [f32; 4],
}

/// Every plane at the coordinates `theta` (two rows of two: x, y) gives, from −1 to 1 between the outer edges.
fn resample(x: &mut [f32], [h, w]: [usize; 2], theta: [f64; 4]) {
    let middle = |i: usize, side: usize| (2 * i + 1) as f64 / side as f64 - 1.0;
    let place = |at: f64, side: usize| ((at + 1.0) * side as f64 - 1.0) / 2.0;
    let tap_of = |i: usize| {
        let (y, x) = (middle(i / w, h), middle(i % w, w));
        tap([place(theta[2] * x + theta[3] * y, h), place(theta[0] * x + theta[1] * y, w)], [h, w])
    };
    let taps: Vec<Tap> = (0..h * w).map(tap_of).collect();
    planes(x, h * w, |from, to| {
        for (t, tap) in to.iter_mut().zip(&taps) {
            *t = tap.at.iter().zip(tap.weight).map(|(&at, weight)| from[at] * weight).sum();
        }
    });
}

fn tap([y, x]: [f64; 2], [h, w]: [usize; 2]) -> Tap {
    let (top, left) = (y.floor(), x.floor());
    let (down, right) = (y - top, x - left);
    let weights = [(1.0 - down) * (1.0 - right), (1.0 - down) * right, down * (1.0 - right), down * right];
    let mut tap = Tap::default();
    for (k, weight) in weights.into_iter().enumerate() {
        let (row, column) = (top + (k / 2) as f64, left + (k % 2) as f64);
        if row >= 0.0 && row < h as f64 && column >= 0.0 && column < w as f64 {
            tap.at[k] = row as usize * w + column as usize;
            tap.weight[k] = weight as f32;
        }
    }
    tap
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The draw that `tests/golden/views/make.py` names, from its parameters.
    fn named(op: &str, p: &[f64]) -> Draw {
        match op {
            "color" => Draw::Color { brightness: p[0] as f32, saturation: p[1] as f32, contrast: p[2] as f32 },
            "crop" => Draw::Crop { dy: p[0] as isize, dx: p[1] as isize },
            "cutout" => Draw::Cutout { y: p[0] as usize, x: p[1] as usize },
            "flip" => Draw::Flip(p[0] == 1.0),
            "scale" => Draw::Scale { x: p[0], y: p[1] },
            "rotate" => Draw::Rotate { radians: p[0].to_radians() },
            other => panic!("{other}"),
        }
    }

    /// Tolerance 1e-5 in numbers up to about 3; the reference is in float64.
    #[test]
    fn every_operation_is_pytorchs() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/views/views.safetensors");
        let golden = candle_core::safetensors::load(path, &candle_core::Device::Cpu).unwrap();
        let floats = |name: &str| golden[name].flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let mut seen = std::collections::BTreeMap::new();
        for name in golden.keys().filter(|n| n.starts_with("dsa.") && n.ends_with(".result")) {
            let [_, batch, op, number, _] = name.split('.').collect::<Vec<_>>()[..] else { panic!("{name}") };
            let parameters = golden[&format!("dsa.{batch}.{op}.{number}.parameters")].to_vec1::<f64>().unwrap();
            let [_, c, h, w] = golden[&format!("dsa.{batch}")].dims()[..] else { panic!("{name}") };
            let mut x = floats(&format!("dsa.{batch}"));
            apply(named(op, &parameters), &mut x, [c, h, w]);
            let worst = x.iter().zip(floats(name)).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5, "{name}: {worst}");
            *seen.entry(op.to_string()).or_insert(0) += 1;
        }
        assert!(seen.len() == 6 && seen.values().all(|&n| n >= 4), "{seen:?}");
    }

    /// Which of the six, and its parameters in order.
    fn numbers(draw: Draw) -> (usize, Vec<f64>) {
        match draw {
            Draw::Color { brightness, saturation, contrast } => {
                (0, [brightness, saturation, contrast].map(f64::from).to_vec())
            }
            Draw::Crop { dy, dx } => (1, vec![dy as f64, dx as f64]),
            Draw::Cutout { y, x } => (2, vec![y as f64, x as f64]),
            Draw::Flip(flip) => (3, vec![f64::from(u8::from(flip))]),
            Draw::Scale { x, y } => (4, vec![x, y]),
            Draw::Rotate { radians } => (5, vec![radians.to_degrees()]),
        }
    }

    #[test]
    fn draws_choose_evenly_and_fill_their_ranges_evenly() {
        // Sides of 32 and 30: shifts of int(30 · 0.125 + 0.5) = 4; a cut of 15, odd, so 30 is no middle.
        let want: [&[[f64; 2]]; 6] = [
            &[[-0.5, 0.5], [0.0, 2.0], [0.5, 1.5]],
            &[[-4.0, 4.0]; 2],
            &[[0.0, 32.0], [0.0, 29.0]],
            &[[0.0, 1.0]],
            &[[1.0 / 1.2, 1.2]; 2],
            &[[-15.0, 15.0]],
        ];
        let mut drawn: [Vec<Vec<f64>>; 6] = Default::default();
        for seed in 0..60_000 {
            let (kind, parameters) = numbers(Draw::new([3, 32, 30], Key::from_seed(seed)));
            drawn[kind].push(parameters);
        }
        for (drawn, want) in drawn.iter().zip(want) {
            // 10,000 each: five standard deviations are 456.
            assert!(drawn.len().abs_diff(10_000) < 456, "{want:?} {} times", drawn.len());
            for (i, &[low, high]) in want.iter().enumerate() {
                let of = |f: fn(f64, f64) -> f64, start| drawn.iter().map(|p| p[i]).fold(start, f);
                let (least, most, sum) = (of(f64::min, f64::MAX), of(f64::max, f64::MIN), of(|a, b| a + b, 0.0));
                let (near, mean) = (0.002 * (high - low), sum / drawn.len() as f64);
                assert!(least >= low && least < low + near && most <= high && most > high - near, "{least}, {most}");
                // At most half the range is a standard deviation, of a coin: five of the mean are 2.5 % of the range.
                assert!((mean - (low + high) / 2.0).abs() < 0.026 * (high - low), "{low} to {high}: mean {mean}");
            }
        }
    }

    #[test]
    fn the_batch_shares_one_draw_and_the_key_decides() {
        let image: Vec<f32> = (0..3 * 8 * 8).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = |seed| {
            let mut x = image.repeat(5);
            dsa(&mut x, [3, 8, 8], Key::from_seed(seed));
            assert!(x.chunks(192).all(|row| row == &x[..192]), "seed {seed}");
            x
        };
        assert_eq!(run(1), run(1));
        assert!((2..20).any(|seed| run(seed) != run(1)));
        apply(Draw::Flip(true), &mut [], [3, 0, 8]);
    }
}
