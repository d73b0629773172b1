//! Pooling, option-A shortcuts and dropout on one sample.

use super::map::Map;
use crate::key::Key;
use crate::nn::dropout;
use crate::nn::kernels::simd::{Simd, per_isa};
use crate::nn::net::Node;

/// A pooling window's numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// Side.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
    /// Border; its values never win a maximum.
    pub padding: usize,
}

impl Window {
    /// Whether every pixel of an input of `x` is in one window, of outputs of `y`.
    pub fn covers(&self, y: &Map, x: &Map) -> bool {
        self.stride == self.kernel && self.padding == 0 && [y.h * self.kernel, y.w * self.kernel] == [x.h, x.w]
    }

    /// Taps of output pixel `(oy, ox)` inside an input of `map`: (tap number, first channel).
    fn taps<'a>(&'a self, map: &'a Map, oy: usize, ox: usize) -> impl Iterator<Item = (usize, usize)> + 'a {
        (0..self.kernel * self.kernel).filter_map(move |tap| {
            let y = (oy * self.stride + tap / self.kernel).checked_sub(self.padding)?;
            let x = (ox * self.stride + tap % self.kernel).checked_sub(self.padding)?;
            (y < map.h && x < map.w).then(|| (tap, map.at(y, x)))
        })
    }
}

per_isa! {
    /// Maximum over windows; `index` receives the winning tap.
    max = max_body(window: Window, x: (&[f32], &Map), out: (&mut [f32], &Map), index: (&mut [f32], &Map))
}

#[inline(always)]
unsafe fn max_body<S: Simd>(
    window: Window,
    (x, xm): (&[f32], &Map),
    (out, om): (&mut [f32], &Map),
    (index, im): (&mut [f32], &Map),
) {
    let inside = |at: usize, tap: usize, side: usize| {
        (at * window.stride + tap).checked_sub(window.padding).filter(|p| *p < side)
    };
    for pixel in 0..om.pixels() {
        let (oy, ox) = (pixel / om.w, pixel % om.w);
        let (best, which) = (&mut out[om.at(oy, ox)..][..om.cp], &mut index[im.at(oy, ox)..][..om.cp]);
        best.fill(f32::NEG_INFINITY);
        for tap in 0..window.kernel * window.kernel {
            let places = (inside(oy, tap / window.kernel, xm.h), inside(ox, tap % window.kernel, xm.w));
            let (Some(y), Some(x0)) = places else { continue };
            let from = &x[xm.at(y, x0)..][..om.cp];
            for c in (0..om.cp).step_by(16) {
                // SAFETY: whole blocks of sixteen channels of slices of `cp` channels.
                unsafe {
                    let (b, w) = (best.as_mut_ptr().add(c), which.as_mut_ptr().add(c));
                    let mark = S::splat(tap as f32);
                    let (value, mark) = S::greater(S::load(from.as_ptr().add(c)), mark, S::load(b), S::load(w));
                    S::store(b, value);
                    S::store(w, mark);
                }
            }
        }
    }
}

per_isa! {
    /// Adds the gradient of [`max`] to `gx`, or writes it where windows cover `gx`.
    max_grad = max_grad_body(window: Window, y: (&[f32], &Map), index: (&[f32], &Map), add: bool, gx: (&mut [f32], &Map))
}

#[inline(always)]
unsafe fn max_grad_body<S: Simd>(
    window: Window,
    (gy, ym): (&[f32], &Map),
    (index, im): (&[f32], &Map),
    add: bool,
    (gx, xm): (&mut [f32], &Map),
) {
    let cp = ym.cp;
    for oy in 0..ym.h {
        for ox in 0..ym.w {
            let (g, which) = (&gy[ym.at(oy, ox)..][..cp], &index[im.at(oy, ox)..][..cp]);
            for (tap, to) in window.taps(xm, oy, ox) {
                for ((slot, &g), &w) in gx[to..to + cp].iter_mut().zip(g).zip(which) {
                    let g = if w == tap as f32 { g } else { 0.0 };
                    *slot = if add { *slot + g } else { g };
                }
            }
        }
    }
}

/// Mean over windows.
pub(super) fn mean(window: Window, (x, xm): (&[f32], &Map), (out, om): (&mut [f32], &Map)) {
    let scale = 1.0 / (window.kernel * window.kernel) as f32;
    for oy in 0..om.h {
        for ox in 0..om.w {
            let sum = &mut out[om.at(oy, ox)..][..om.cp];
            sum.fill(0.0);
            for (_, from) in window.taps(xm, oy, ox) {
                for (sum, v) in sum.iter_mut().zip(&x[from..]) {
                    *sum += v;
                }
            }
            sum.iter_mut().for_each(|v| *v *= scale);
        }
    }
}

/// Adds the gradient of [`mean`] to `gx`.
pub(super) fn mean_grad(window: Window, (gy, ym): (&[f32], &Map), (gx, xm): (&mut [f32], &Map)) {
    let scale = 1.0 / (window.kernel * window.kernel) as f32;
    for oy in 0..ym.h {
        for ox in 0..ym.w {
            let g = &gy[ym.at(oy, ox)..][..ym.cp];
            for (_, to) in window.taps(xm, oy, ox) {
                for (slot, g) in gx[to..].iter_mut().zip(g) {
                    *slot += scale * g;
                }
            }
        }
    }
}

/// Mean over all positions: sums along rows, then over rows.
pub(super) fn global_mean((x, xm): (&[f32], &Map), out: &mut [f32], row: &mut Vec<f32>) {
    out[..xm.cp].fill(0.0);
    for y in 0..xm.h {
        row.clear();
        row.resize(xm.cp, 0.0);
        for pixel in x[xm.at(y, 0)..][..xm.w * xm.cp].chunks_exact(xm.cp) {
            row.iter_mut().zip(pixel).for_each(|(s, v)| *s += v);
        }
        out.iter_mut().zip(&*row).for_each(|(s, v)| *s += v);
    }
    let n = xm.pixels() as f32;
    out[..xm.cp].iter_mut().for_each(|v| *v /= n);
}

/// Writes or adds the gradient of [`global_mean`].
pub(super) fn global_mean_grad(gy: &[f32], add: bool, (gx, xm): (&mut [f32], &Map)) {
    let n = xm.pixels() as f32;
    for y in 0..xm.h {
        for pixel in gx[xm.at(y, 0)..][..xm.w * xm.cp].chunks_exact_mut(xm.cp) {
            for (slot, g) in pixel.iter_mut().zip(gy) {
                *slot = if add { *slot + g / n } else { g / n };
            }
        }
    }
}

/// Every `stride`-th pixel with `before` zero channels in front; the rest of `out` stays as it is (zero).
pub(super) fn subsample(stride: usize, before: usize, (x, xm): (&[f32], &Map), (out, om): (&mut [f32], &Map)) {
    for oy in 0..om.h {
        for ox in 0..om.w {
            let from = &x[xm.at(oy * stride, ox * stride)..][..xm.c];
            out[om.at(oy, ox) + before..][..xm.c].copy_from_slice(from);
        }
    }
}

/// Adds the gradient of [`subsample`] to `gx`.
pub(super) fn subsample_grad(stride: usize, before: usize, (gy, ym): (&[f32], &Map), (gx, xm): (&mut [f32], &Map)) {
    for oy in 0..ym.h {
        for ox in 0..ym.w {
            let g = &gy[ym.at(oy, ox) + before..][..xm.c];
            gx[xm.at(oy * stride, ox * stride)..].iter_mut().zip(g).for_each(|(s, g)| *s += g);
        }
    }
}

/// `out = x·m`, or added to `out`, element by element where both have the same shape.
pub(super) fn multiply((x, xm): (&[f32], &Map), (m, mm): (&[f32], &Map), add: bool, (out, om): (&mut [f32], &Map)) {
    let width = om.w * om.cp;
    for y in 0..om.h {
        let row = x[xm.at(y, 0)..][..width].iter().zip(&m[mm.at(y, 0)..][..width]);
        for (slot, (x, m)) in out[om.at(y, 0)..][..width].iter_mut().zip(row) {
            *slot = if add { *slot + x * m } else { x * m };
        }
    }
}

per_isa! {
    /// A sample's dropout mask: [`dropout::mask`] by vectors.
    dropout = dropout_body(key: Key, node: Node, row: usize, p: f32, out: &mut [f32])
}

#[inline(always)]
unsafe fn dropout_body<S: Simd>(key: Key, node: Node, row: usize, p: f32, out: &mut [f32]) {
    dropout::mask(key, node, row, p, out);
}
