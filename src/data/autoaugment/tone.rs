//! Operations on the values of an image, as Pillow's `ImageOps` and `ImageEnhance` define them, byte for byte.
//!
//! An image is planar, `(C, H, W)`, and `plane` is `H·W`, at least 1.

/// Inverts every value.
pub(in crate::data) fn invert(image: &mut [u8]) {
    image.iter_mut().for_each(|v| *v = 255 - *v);
}

/// Keeps the upper `bits` of every value, 1 to 8.
pub(in crate::data) fn posterize(image: &mut [u8], bits: u32) {
    let mask = !255u32.checked_shr(bits).unwrap_or(0) as u8;
    image.iter_mut().for_each(|v| *v &= mask);
}

/// Inverts every value that is not below `threshold`.
pub(in crate::data) fn solarize(image: &mut [u8], threshold: f64) {
    let table = std::array::from_fn(|v| if (v as f64) < threshold { v as u8 } else { 255 - v as u8 });
    look_up(image, &table);
}

/// Moves every value away from black by `factor`.
pub(in crate::data) fn brightness(image: &mut [u8], factor: f32) {
    look_up(image, &std::array::from_fn(|v| blend(0, v as u8, factor)));
}

/// Moves every value away from the image's mean grey, rounded, by `factor`.
pub(in crate::data) fn contrast(image: &mut [u8], plane: usize, factor: f32) {
    let sum: u64 = match colours(image, plane) {
        Some([r, g, b]) => r.iter().zip(g).zip(b).map(|((r, g), b)| u64::from(grey([*r, *g, *b]))).sum(),
        None => image.iter().map(|v| u64::from(*v)).sum(),
    };
    let mean = (sum as f64 / plane as f64 + 0.5) as u8;
    look_up(image, &std::array::from_fn(|v| blend(mean, v as u8, factor)));
}

/// Moves every pixel away from its grey by `factor`. An image of one channel stays as it is.
pub(in crate::data) fn color(image: &mut [u8], plane: usize, factor: f32) {
    if let Some([red, green, blue]) = colours(image, plane) {
        for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
            let grey = grey([*r, *g, *b]);
            [*r, *g, *b] = [*r, *g, *b].map(|v| blend(grey, v, factor));
        }
    }
}

/// Moves every value away from its neighbourhood's weighted mean (5 in the middle, 1 for the eight around it), rounded,
/// by `factor`. The border stays as it is, as does an image with a side below 3.
pub(in crate::data) fn sharpness(image: &mut [u8], [_, h, w]: [usize; 3], factor: f32, scratch: &mut Vec<u8>) {
    if h < 3 || w < 3 {
        return;
    }
    scratch.clear();
    scratch.extend_from_slice(image);
    for (to, from) in image.chunks_exact_mut(h * w).zip(scratch.chunks_exact(h * w)) {
        for y in 1..h - 1 {
            let rows = [y - 1, y, y + 1].map(|r| &from[r * w..(r + 1) * w]);
            for (x, v) in to[y * w + 1..(y + 1) * w - 1].iter_mut().enumerate() {
                let nine: u32 = rows.iter().flat_map(|row| &row[x..x + 3]).map(|&n| u32::from(n)).sum();
                // Half up in whole numbers; the exact quotient is never half-way, so Pillow's floats give the same.
                let smooth = (2 * (nine + 4 * u32::from(*v)) + 13) / 26;
                *v = blend(smooth as u8, *v, factor);
            }
        }
    }
}

/// Stretches each channel to the whole range.
pub(in crate::data) fn autocontrast(image: &mut [u8], plane: usize) {
    for channel in image.chunks_exact_mut(plane) {
        let (low, high) = channel.iter().fold((255, 0), |(low, high), &v| (low.min(v), high.max(v)));
        if low < high {
            let scale = 255.0 / f64::from(high - low);
            let offset = -f64::from(low) * scale;
            look_up(channel, &std::array::from_fn(|v| (v as f64 * scale + offset) as u8));
        }
    }
}

/// Evens out the histogram of each channel. One with too few pixels for it stays as it is.
pub(in crate::data) fn equalize(image: &mut [u8], plane: usize) {
    for channel in image.chunks_exact_mut(plane) {
        let mut histogram = [0usize; 256];
        channel.iter().for_each(|&v| histogram[usize::from(v)] += 1);
        let last = histogram.iter().rev().find(|&&n| n > 0).copied().unwrap_or(0);
        let step = (plane - last) / 255;
        if step > 0 {
            let mut below = step / 2;
            let table = histogram.map(|n| {
                let level = (below / step).min(255) as u8;
                below += n;
                level
            });
            look_up(channel, &table);
        }
    }
}

fn look_up(values: &mut [u8], table: &[u8; 256]) {
    values.iter_mut().for_each(|v| *v = table[usize::from(*v)]);
}

/// `from + factor · (value − from)` in single precision, cut to a byte, not rounded.
fn blend(from: u8, value: u8, factor: f32) -> u8 {
    (f32::from(from) + factor * (f32::from(value) - f32::from(from))) as u8
}

/// The three channels, where there are three.
fn colours(image: &mut [u8], plane: usize) -> Option<[&mut [u8]; 3]> {
    let (red, rest) = image.split_at_mut_checked(plane)?;
    let (green, blue) = rest.split_at_mut_checked(plane)?;
    (blue.len() == plane).then_some([red, green, blue])
}

/// The luma (ITU-R 601-2) of a pixel in 16 bits of fraction.
fn grey([r, g, b]: [u8; 3]) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 0x8000) >> 16) as u8
}
