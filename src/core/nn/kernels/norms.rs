//! Normalisations of rows. Compiled for every instruction set without contracting products and sums, so that all give
//! the same bytes.

use super::simd::{Isa, Simd, per_isa};

/// Sixteen sums side by side of `f` of each value, added from the first on.
#[inline(always)]
fn sum(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    let (whole, rest) = values.as_chunks::<16>();
    for chunk in whole {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f(*v);
    }
    lanes.iter().sum()
}

/// Layer normalisation of rows of the weight's length: `(x − mean) / √(variance + eps) · weight + bias`.
///
/// # Panics
/// When lengths disagree.
pub fn layer_norm(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    assert!(x.len() == y.len() && bias.len() == weight.len(), "layer norm: lengths");
    assert!(x.len().is_multiple_of(weight.len().max(1)), "layer norm: rows");
    // SAFETY: `detect` names an instruction set of this machine.
    unsafe { layer_kernel(Isa::detect(), x, weight, bias, eps, y) }
}

/// Root-mean-square normalisation of rows of the weight's length: `x / √(mean(x²) + eps) · weight`.
///
/// # Panics
/// When lengths disagree.
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    assert!(x.len() == y.len() && x.len().is_multiple_of(weight.len().max(1)), "norm: lengths");
    // SAFETY: as above.
    unsafe { rms_kernel(Isa::detect(), x, weight, eps, y) }
}

per_isa! {
    /// See [`layer_norm`].
    layer_kernel = layer_body(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32])
}

#[inline(always)]
unsafe fn layer_body<S: Simd>(x: &[f32], weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len().max(1);
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let mean = sum(x, |v| v) / width as f32;
        let variance = sum(x, |v| (v - mean) * (v - mean)) / width as f32;
        let inverse = 1.0 / (variance + eps).sqrt();
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = (x - mean) * inverse * w + b;
        }
    }
}

per_isa! {
    /// See [`rms_norm`].
    rms_kernel = rms_body(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32])
}

#[inline(always)]
unsafe fn rms_body<S: Simd>(x: &[f32], weight: &[f32], eps: f32, y: &mut [f32]) {
    let width = weight.len().max(1);
    for (x, y) in x.chunks_exact(width).zip(y.chunks_exact_mut(width)) {
        let scale = 1.0 / (sum(x, |v| v * v) / width as f32 + eps).sqrt();
        y.iter_mut().zip(x).zip(weight).for_each(|((y, x), w)| *y = x * scale * w);
    }
}

/// The way back of [`rms_norm`] to its input, added to `gx`: with r = 1/√(mean(x²) + eps) and h = grad·weight,
/// `r·h − x · r³ · mean(h·x)`.
///
/// # Panics
/// When lengths disagree.
pub fn rms_norm_back(x: &[f32], weight: &[f32], eps: f32, grad: &[f32], gx: &mut [f32]) {
    let rows = x.len().is_multiple_of(weight.len().max(1));
    assert!(rows && x.len() == grad.len() && x.len() == gx.len(), "a norm's gradient: lengths");
    // SAFETY: as above.
    unsafe { rms_back_kernel(Isa::detect(), x, weight, eps, grad, gx) }
}

per_isa! {
    /// See [`rms_norm_back`].
    rms_back_kernel = rms_back_body(x: &[f32], weight: &[f32], eps: f32, grad: &[f32], gx: &mut [f32])
}

#[inline(always)]
unsafe fn rms_back_body<S: Simd>(x: &[f32], weight: &[f32], eps: f32, grad: &[f32], gx: &mut [f32]) {
    let width = weight.len().max(1);
    for ((x, grad), gx) in x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(gx.chunks_exact_mut(width)) {
        let scale = 1.0 / (sum(x, |v| v * v) / width as f32 + eps).sqrt();
        let mut lanes = [0f32; 16];
        for ((x, w), g) in x.chunks(16).zip(weight.chunks(16)).zip(grad.chunks(16)) {
            lanes.iter_mut().zip(x.iter().zip(w).zip(g)).for_each(|(lane, ((x, w), g))| *lane += g * w * x);
        }
        let along = lanes.iter().sum::<f32>() / width as f32 * scale * scale;
        for (((gx, x), w), g) in gx.iter_mut().zip(x).zip(weight).zip(grad) {
            *gx += (g * w - x * along) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_norms_are_their_formulas_and_the_same_bytes_on_every_instruction_set() {
        let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin() * 3.0 + 1.0).collect::<Vec<f32>>();
        for width in [1, 15, 37, 64] {
            let (x, w, b) = (wave(3 * width, 0.7), wave(width, 0.9), wave(width, 0.4));
            let run = |isa| {
                let mut made = [vec![9.0; x.len()], vec![9.0; x.len()]];
                let [layer, rms] = &mut made;
                // SAFETY: the instruction set is one of this machine's.
                unsafe {
                    layer_kernel(isa, &x, &w, &b, 1e-3, layer);
                    rms_kernel(isa, &x, &w, 1e-3, rms);
                }
                made
            };
            let [layer, rms] = run(Isa::Portable);
            for (r, row) in x.chunks_exact(width).enumerate() {
                let mean_of = |f: &dyn Fn(f64) -> f64| row.iter().map(|v| f(f64::from(*v))).sum::<f64>() / width as f64;
                let (mean, squares) = (mean_of(&|v| v), mean_of(&|v| v * v));
                let variance = mean_of(&|v| (v - mean) * (v - mean));
                for (i, v) in row.iter().enumerate() {
                    let (v, w, b) = (f64::from(*v), f64::from(w[i]), f64::from(b[i]));
                    let want = (v - mean) / (variance + 1e-3).sqrt() * w + b;
                    assert!((f64::from(layer[r * width + i]) - want).abs() < 1e-4, "{width}");
                    let want = v / (squares + 1e-3).sqrt() * w;
                    assert!((f64::from(rms[r * width + i]) - want).abs() < 1e-4, "{width}");
                }
            }
            let want = [layer, rms];
            Isa::available().into_iter().for_each(|isa| assert_eq!(run(isa), want, "{isa}"));
        }
    }

    #[test]
    fn the_way_back_of_the_root_mean_square_is_its_slope_and_is_added() {
        for width in [1, 15, 37, 64] {
            let wave = |n: usize, step: f32| (0..n).map(|i| (i as f32 * step).sin() * 2.0 + 0.5).collect::<Vec<f32>>();
            let (x, w, g) = (wave(3 * width, 0.7), wave(width, 0.9), wave(3 * width, 1.3));
            let value = |x: &[f32]| {
                let row = |(x, g): (&[f32], &[f32])| {
                    let squares = x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / width as f64;
                    let scale = 1.0 / (squares + 1e-3).sqrt();
                    let one = |i: usize| f64::from(x[i]) * scale * f64::from(w[i]) * f64::from(g[i]);
                    (0..width).map(one).sum::<f64>()
                };
                x.chunks_exact(width).zip(g.chunks_exact(width)).map(row).sum::<f64>()
            };
            let run = |isa| {
                let mut gx = vec![9.0; x.len()];
                // SAFETY: the instruction set is one of this machine's.
                unsafe { rms_back_kernel(isa, &x, &w, 1e-3, &g, &mut gx) };
                gx
            };
            let want = run(Isa::Portable);
            for (i, got) in want.iter().enumerate() {
                let moved = |by: f32| {
                    let mut x = x.clone();
                    x[i] += by;
                    value(&x)
                };
                let slope = (moved(1e-2) - moved(-1e-2)) / 2e-2;
                assert!((f64::from(*got) - 9.0 - slope).abs() < 5e-3 * (1.0 + slope.abs()), "{width}: {got}, {slope}");
            }
            Isa::available().into_iter().for_each(|isa| assert_eq!(run(isa), want, "{isa}"));
        }
    }
}
