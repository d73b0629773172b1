//! The micro-kernel of 3×3 windows of step one: a pixel that is loaded once serves all three windows of its row.
//!
//! `P` neighbouring output pixels × `NV`·16 channels stay in registers; per window row and input channel, `P + 2`
//! broadcasts and three loads a vector feed `3·P·NV` multiply-adds, where the general tile needs a broadcast for each
//! tap and pixel. Each output is one chain of multiply-adds in the order window row, channel, window column.

#![allow(clippy::needless_range_loop, reason = "the loops are unrolled over registers of equal shape")]

use super::simd::{Isa, Simd, per_isa};
use super::tile::{GradPass, Pass};

/// Pixels of a weight gradient that are asked for before they are used.
const AHEAD: usize = 8;

/// Where the windows of neighbouring pixels overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lines {
    /// Start of each window row, relative to a pixel's base.
    pub rows: [isize; 3],
    /// Channels read of each pixel.
    pub channels: usize,
    /// Output pixels of a row, one that [`fits`].
    pub columns: usize,
    /// Floats between neighbouring pixels of input and output.
    pub pitch: [usize; 2],
}

/// Whether rows of so many output pixels can be cut into tiles, and the instruction set has enough registers to gain.
pub(super) fn fits(isa: Isa, columns: usize) -> bool {
    isa == Isa::Avx512 && [8, 10, 7].iter().any(|p| columns.is_multiple_of(*p))
}

per_isa! {
    /// Runs one [`Pass`] whose windows overlap as `lines` says. Contract: that of `tile::pass`; the pixels of the
    /// tables come row by row, `columns` each.
    pass = pass_body(p: &Pass<'_>, lines: &Lines)
}

#[inline(always)]
unsafe fn pass_body<S: Simd>(p: &Pass<'_>, lines: &Lines) {
    let whole = |p: usize| lines.columns.is_multiple_of(p);
    // SAFETY: the caller's contract. The first branch is decided when compiling: `fits` names no other instruction set.
    unsafe {
        match p.vectors {
            _ if S::ISA != Isa::Avx512 => {}
            1 if whole(16) => walk::<S, 16, 1>(p, lines),
            1 if whole(14) => walk::<S, 14, 1>(p, lines),
            1 if whole(10) => walk::<S, 10, 1>(p, lines),
            1 if whole(8) => walk::<S, 8, 1>(p, lines),
            1 => walk::<S, 7, 1>(p, lines),
            _ if whole(8) => walk::<S, 8, 2>(p, lines),
            _ if whole(10) => walk::<S, 10, 2>(p, lines),
            _ => walk::<S, 7, 2>(p, lines),
        }
    }
}

#[inline(always)]
unsafe fn walk<S: Simd, const P: usize, const NV: usize>(p: &Pass<'_>, lines: &Lines) {
    for image in 0..p.images {
        for first in (0..p.from.len()).step_by(P) {
            // SAFETY: image and pixel are in range, the tables by the contract.
            unsafe {
                let x = p.x.add(image * p.x_image + *p.from.get_unchecked(first) as usize);
                let y = p.y.add(image * p.y_image + *p.to.get_unchecked(first) as usize);
                tile::<S, P, NV>(p, lines, x, y, (image, first));
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const NV: usize>(
    p: &Pass<'_>,
    lines: &Lines,
    x: *const f32,
    y: *mut f32,
    (image, first): (usize, usize),
) {
    let [pitch, y_pitch] = lines.pitch;
    // SAFETY: the contract of `pass`.
    unsafe {
        let mut acc = [[S::zero(); NV]; P];
        for i in 0..P {
            for v in 0..NV {
                S::prefetch(y.add(i * y_pitch + 16 * v));
                if !p.bias.is_null() {
                    acc[i][v] = S::load(p.bias.add(16 * v));
                }
            }
        }
        if let Some(s) = &p.start {
            let from = s.at.add(image * s.image);
            for i in 0..P {
                for v in 0..NV {
                    let at = *s.to.get_unchecked(first + i) as usize + 16 * v;
                    acc[i][v] = S::add(acc[i][v], S::load(from.add(at)));
                }
            }
        }
        let mut w = p.w;
        let tap = lines.channels * 16 * NV;
        for row in lines.rows {
            for c in 0..lines.channels {
                window::<S, P, NV>(&mut acc, x.offset(row).add(c), pitch, w, tap);
                w = w.add(16 * NV);
            }
            w = w.add(2 * tap);
        }
        for i in 0..P {
            for v in 0..NV {
                let value = if p.relu { S::relu(acc[i][v]) } else { acc[i][v] };
                S::store(y.add(i * y_pitch + 16 * v), value);
            }
        }
    }
}

/// One channel of one window row: pixel `i` meets the taps of the outputs `i`, `i − 1` and `i − 2`.
#[inline(always)]
unsafe fn window<S: Simd, const P: usize, const NV: usize>(
    acc: &mut [[S::V; NV]; P],
    x: *const f32,
    pitch: usize,
    w: *const f32,
    tap: usize,
) {
    // SAFETY: the contract of `pass`.
    unsafe {
        let mut taps = [[S::zero(); NV]; 3];
        for t in 0..3 {
            for v in 0..NV {
                taps[t][v] = S::load(w.add(t * tap + 16 * v));
            }
        }
        let first = S::splat(*x);
        let second = S::splat(*x.add(pitch));
        for v in 0..NV {
            acc[0][v] = S::fma(first, taps[0][v], acc[0][v]);
            acc[1][v] = S::fma(second, taps[0][v], acc[1][v]);
            acc[0][v] = S::fma(second, taps[1][v], acc[0][v]);
        }
        for i in 2..P {
            let value = S::splat(*x.add(i * pitch));
            for v in 0..NV {
                acc[i][v] = S::fma(value, taps[0][v], acc[i][v]);
                acc[i - 1][v] = S::fma(value, taps[1][v], acc[i - 1][v]);
                acc[i - 2][v] = S::fma(value, taps[2][v], acc[i - 2][v]);
            }
        }
        let before = S::splat(*x.add(P * pitch));
        let last = S::splat(*x.add((P + 1) * pitch));
        for v in 0..NV {
            acc[P - 1][v] = S::fma(before, taps[1][v], acc[P - 1][v]);
            acc[P - 2][v] = S::fma(before, taps[2][v], acc[P - 2][v]);
            acc[P - 1][v] = S::fma(last, taps[2][v], acc[P - 1][v]);
        }
    }
}

/// Vectors of a panel whose weight gradient gains: with one, the general tile is as fast.
pub(super) const GRAD_VECTORS: usize = 2;
/// Channels of a window row whose weight gradient a tile computes at once.
pub(super) const GRAD_CHANNELS: usize = 4;

/// One window row's accumulators: `[tap][channel][vector]`.
type Sums<V> = [[[V; GRAD_VECTORS]; GRAD_CHANNELS]; 3];

per_isa! {
    /// Runs one [`GradPass`] over [`GRAD_CHANNELS`] channels of one window row and all three of its taps, which lie
    /// `tap` floats apart in the packed gradient. Contract: that of `tile::grad_pass`; `len` is not used, and the panel
    /// has [`GRAD_VECTORS`].
    grad_pass = grad_body(p: &GradPass, tap: usize)
}

#[inline(always)]
unsafe fn grad_body<S: Simd>(p: &GradPass, tap: usize) {
    if S::ISA != Isa::Avx512 {
        return;
    }
    // SAFETY: the caller's contract; the row's outer windows reach one pixel beyond the outputs on each side.
    unsafe {
        let mut acc = [[[S::zero(); GRAD_VECTORS]; GRAD_CHANNELS]; 3];
        for image in 0..p.images {
            for row in 0..p.rows {
                let x = p.x.add(image * p.image_step[0] + row * p.x_step[0]).offset(p.offset);
                let y = p.y.add(image * p.image_step[1] + row * p.y_step[0]);
                grad_row::<S>(&mut acc, x, y, p);
            }
        }
        for t in 0..3 {
            for c in 0..GRAD_CHANNELS {
                for v in 0..GRAD_VECTORS {
                    let at = p.w.add(t * tap + 16 * (c * GRAD_VECTORS + v));
                    S::store(at, S::add(S::load(at), acc[t][c][v]));
                }
            }
        }
    }
}

/// One row of pixels. Pixel `i` of the inputs meets the outputs `i`, `i − 1` and `i − 2`.
#[inline(always)]
unsafe fn grad_row<S: Simd>(acc: &mut Sums<S::V>, mut x: *const f32, mut y: *const f32, p: &GradPass) {
    let (x_step, y_step) = (p.x_step[1], p.y_step[1]);
    // SAFETY: the contract of `grad_pass`.
    unsafe {
        let (first, second) = (load::<S>(y), load::<S>(y.add(y_step)));
        meet::<S>(&mut acc[0], x, &first);
        meet::<S>(&mut acc[0], x.add(x_step), &second);
        meet::<S>(&mut acc[1], x.add(x_step), &first);
        for _ in 2..p.columns {
            let dy = [load::<S>(y.add(2 * y_step)), load::<S>(y.add(y_step)), load::<S>(y)];
            let x2 = x.add(2 * x_step);
            S::prefetch(x2.wrapping_add(AHEAD * x_step));
            (0..GRAD_VECTORS).for_each(|v| S::prefetch(y.wrapping_add(AHEAD * y_step + 16 * v)));
            for c in 0..GRAD_CHANNELS {
                let value = S::splat(*x2.add(c));
                for v in 0..GRAD_VECTORS {
                    acc[0][c][v] = S::fma(value, dy[0][v], acc[0][c][v]);
                    acc[1][c][v] = S::fma(value, dy[1][v], acc[1][c][v]);
                    acc[2][c][v] = S::fma(value, dy[2][v], acc[2][c][v]);
                }
            }
            (x, y) = (x.add(x_step), y.add(y_step));
        }
        let (before, last) = (load::<S>(y), load::<S>(y.add(y_step)));
        meet::<S>(&mut acc[1], x.add(2 * x_step), &last);
        meet::<S>(&mut acc[2], x.add(2 * x_step), &before);
        meet::<S>(&mut acc[2], x.add(3 * x_step), &last);
    }
}

#[inline(always)]
unsafe fn load<S: Simd>(at: *const f32) -> [S::V; GRAD_VECTORS] {
    // SAFETY: the contract of `grad_pass`.
    unsafe {
        let mut all = [S::zero(); GRAD_VECTORS];
        for v in 0..GRAD_VECTORS {
            all[v] = S::load(at.add(16 * v));
        }
        all
    }
}

/// Adds the products of some channels of one pixel with one pixel of the output gradient.
#[inline(always)]
unsafe fn meet<S: Simd>(acc: &mut [[S::V; GRAD_VECTORS]; GRAD_CHANNELS], x: *const f32, dy: &[S::V; GRAD_VECTORS]) {
    // SAFETY: the contract of `grad_pass`.
    unsafe {
        for c in 0..GRAD_CHANNELS {
            let value = S::splat(*x.add(c));
            for v in 0..GRAD_VECTORS {
                acc[c][v] = S::fma(value, dy[v], acc[c][v]);
            }
        }
    }
}
