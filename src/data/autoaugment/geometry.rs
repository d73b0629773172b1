//! Operations on the places of pixels, as Pillow's affine transforms compute them, byte for byte.
//!
//! An image is planar, `(C, H, W)` of its `shape`, no side 0.

/// What a place outside the image becomes in the policy, in every channel.
pub const GREY: u8 = 128;

/// The direction in which pixels move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Along {
    /// Left and right.
    Row,
    /// Up and down.
    Column,
}

impl Along {
    /// Length and stride of a line in this direction, then number and stride of the lines.
    fn lines(self, [_, h, w]: [usize; 3]) -> [usize; 4] {
        match self {
            Along::Row => [w, 1, h, w],
            Along::Column => [h, w, w, 1],
        }
    }
}

/// Shears: place `u` of line `v` comes from place `u + tangent · v` (middles of pixels), bicubic; outside is grey.
pub fn shear(image: &mut [u8], shape: [usize; 3], along: Along, tangent: f64, scratch: &mut Vec<u8>) {
    let [length, step, lines, between] = along.lines(shape);
    let plane = shape[1] * shape[2];
    scratch.clear();
    scratch.extend_from_slice(image);
    for (to, from) in image.chunks_exact_mut(plane).zip(scratch.chunks_exact(plane)) {
        for line in 0..lines {
            let (first, shift) = (line * between, tangent * (line as f64 + 0.5));
            for u in 0..length {
                to[first + u * step] = cubic(&from[first..], length, step, (u as f64 + 0.5) + shift);
            }
        }
    }
}

/// A line at place `at` by cubic convolution with a = −1 (Keys 1981, whose own choice is −½), its ends repeated.
/// Cut to a byte, not rounded.
fn cubic(line: &[u8], length: usize, step: usize, at: f64) -> u8 {
    if at < 0.0 || at >= length as f64 {
        return GREY;
    }
    let left = (at - 0.5).floor();
    let d = (at - 0.5) - left;
    let near = |k: f64| f64::from(line[((left + k).max(0.0) as usize).min(length - 1) * step]);
    let [a, b, c, e] = [-1.0, 0.0, 1.0, 2.0].map(near);
    // Horner's rule, as there: where the value is near a whole number, the order of roundings decides the byte.
    (b + d * ((c - a) + d * ((2.0 * (a - b) + c - e) + d * (b - a - c + e)))) as u8
}

/// Moves the image against the direction by `by` pixels, rounded to the nearest; what comes in is grey.
pub fn translate(image: &mut [u8], shape: [usize; 3], along: Along, by: f64) {
    let [_, h, w] = shape;
    let shift = (by + 0.5).floor() as isize;
    let moved = |side: usize| shift.unsigned_abs().min(side);
    match along {
        Along::Row => image.chunks_exact_mut(w).for_each(|row| slide(row, moved(w), shift < 0)),
        Along::Column => image.chunks_exact_mut(h * w).for_each(|plane| slide(plane, moved(h) * w, shift < 0)),
    }
}

/// Moves values by `n`, at most all, to the end or to the beginning.
fn slide(values: &mut [u8], n: usize, to_the_end: bool) {
    let kept = values.len() - n;
    if to_the_end {
        values.copy_within(..kept, n);
        values[..n].fill(GREY);
    } else {
        values.copy_within(n.., 0);
        values[kept..].fill(GREY);
    }
}

/// Turns the image counterclockwise about its middle, nearest neighbour; outside is `fill`.
pub fn rotate(image: &mut [u8], shape: [usize; 3], degrees: f64, fill: u8, scratch: &mut Vec<u8>) {
    let [_, h, w] = shape;
    // Coordinates of the source in 1/65536 of a pixel, one step at a time.
    let fixed = |v: f64| (v * 65536.0 + 0.5).floor() as i64;
    let angle = -degrees.rem_euclid(360.0).to_radians();
    let [cos, sin] = [angle.cos(), angle.sin()].map(|v| (v * 1e15).round() / 1e15);
    let (cx, cy) = (w as f64 / 2.0, h as f64 / 2.0);
    let x0 = cos * -cx + sin * -cy + cx;
    let y0 = -sin * -cx + cos * -cy + cy;
    let start = [fixed(x0 + cos * 0.5 + sin * 0.5), fixed(y0 - sin * 0.5 + cos * 0.5)];
    let (cos, sin, minus_sin) = (fixed(cos), fixed(sin), fixed(-sin));
    scratch.clear();
    scratch.extend_from_slice(image);
    for (to, from) in image.chunks_exact_mut(h * w).zip(scratch.chunks_exact(h * w)) {
        for (y, row) in to.chunks_exact_mut(w).enumerate() {
            let (mut sx, mut sy) = (start[0] + sin * y as i64, start[1] + cos * y as i64);
            for v in row {
                let inside = (0..(w as i64) << 16).contains(&sx) && (0..(h as i64) << 16).contains(&sy);
                *v = if inside { from[(sy >> 16) as usize * w + (sx >> 16) as usize] } else { fill };
                sx += cos;
                sy += minus_sin;
            }
        }
    }
}

/// Makes a square of `side` black (DeVries and Taylor 2017): `side / 2` pixels before `middle` (row, column) and as
/// many from it on, clipped at the edges.
pub fn cutout(image: &mut [u8], [_, h, w]: [usize; 3], side: usize, middle: [usize; 2]) {
    let part = |middle: usize, end: usize| {
        let last = middle.saturating_add(side / 2).min(end);
        middle.saturating_sub(side / 2).min(last)..last
    };
    let (rows, columns) = (part(middle[0], h), part(middle[1], w));
    for plane in image.chunks_exact_mut(h * w) {
        rows.clone().for_each(|y| plane[y * w..][columns.clone()].fill(0));
    }
}
