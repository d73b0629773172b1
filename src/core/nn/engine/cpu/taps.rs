//! The micro-kernel of windows that overlap along a row: a pixel that is loaded once serves all windows it lies in.
//!
//! `P` neighbouring output pixels × `NV`·16 channels stay in registers. Of a 3×3 window of step one, each row and input
//! channel costs `P + 2` broadcasts and three loads a vector for `3·P·NV` multiply-adds, where the general tile needs
//! a broadcast for each tap and pixel; step two needs `2·P + 1`. Each output is one chain of multiply-adds in the order
//! window row, channel, window column.

#![allow(clippy::needless_range_loop, reason = "the loops are unrolled over registers of equal shape")]

use super::tile::Pass;
use crate::nn::kernels::simd::{Isa, Simd, per_isa};

/// Where the windows of neighbouring pixels overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lines {
    /// Start of each window row, relative to a pixel's base: as many as `height` says.
    pub rows: [isize; 3],
    /// Rows of the window.
    pub height: usize,
    /// Columns of the window and pixels from one window to the next: one of [`KINDS`].
    pub kind: (usize, usize),
    /// Channels read of each pixel.
    pub channels: usize,
    /// Output pixels of a row, one that [`fits`].
    pub columns: usize,
    /// Floats between neighbouring pixels of input and output.
    pub pitch: [usize; 2],
}

/// Window columns and steps that there are tiles for.
pub(super) const KINDS: [(usize, usize); 3] = [(3, 1), (3, 2), (2, 1)];

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
    // SAFETY: the caller's contract. The first branch is decided when compiling: `fits` names no other instruction set.
    unsafe {
        match lines.kind {
            _ if S::ISA != Isa::Avx512 => unreachable!("windows that overlap on {:?}", S::ISA),
            (3, 1) => widths::<S, 3, 1>(p, lines),
            (3, 2) => widths::<S, 3, 2>(p, lines),
            (2, 1) => widths::<S, 2, 1>(p, lines),
            other => unreachable!("overlapping windows of columns and step {other:?}"),
        }
    }
}

#[inline(always)]
unsafe fn widths<S: Simd, const T: usize, const STEP: usize>(p: &Pass<'_>, lines: &Lines) {
    let whole = |p: usize| lines.columns.is_multiple_of(p);
    // SAFETY: the caller's contract.
    unsafe {
        match p.vectors {
            1 if whole(16) => walk::<S, 16, 1, T, STEP>(p, lines),
            1 if whole(14) => walk::<S, 14, 1, T, STEP>(p, lines),
            1 if whole(10) => walk::<S, 10, 1, T, STEP>(p, lines),
            1 if whole(8) => walk::<S, 8, 1, T, STEP>(p, lines),
            1 => walk::<S, 7, 1, T, STEP>(p, lines),
            _ if whole(8) => walk::<S, 8, 2, T, STEP>(p, lines),
            _ if whole(10) => walk::<S, 10, 2, T, STEP>(p, lines),
            _ => walk::<S, 7, 2, T, STEP>(p, lines),
        }
    }
}

#[inline(always)]
unsafe fn walk<S: Simd, const P: usize, const NV: usize, const T: usize, const STEP: usize>(
    p: &Pass<'_>,
    lines: &Lines,
) {
    for image in 0..p.images {
        for first in (0..p.from.len()).step_by(P) {
            // SAFETY: image and pixel are in range, the tables by the contract.
            unsafe {
                let x = p.x.add(image * p.x_image + *p.from.get_unchecked(first) as usize);
                let y = p.y.add(image * p.y_image + *p.to.get_unchecked(first) as usize);
                tile::<S, P, NV, T, STEP>(p, lines, x, y, (image, first));
            }
        }
    }
}

#[inline(always)]
unsafe fn tile<S: Simd, const P: usize, const NV: usize, const T: usize, const STEP: usize>(
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
        for row in lines.rows.into_iter().take(lines.height) {
            for c in 0..lines.channels {
                window::<S, P, NV, T, STEP>(&mut acc, x.offset(row).add(c), pitch, w, tap);
                w = w.add(16 * NV);
            }
            w = w.add((T - 1) * tap);
        }
        for i in 0..P {
            for v in 0..NV {
                let value = if p.relu { S::relu(acc[i][v]) } else { acc[i][v] };
                S::store(y.add(i * y_pitch + 16 * v), value);
            }
        }
    }
}

/// One channel of one window row: pixel `j` meets the outputs `o` whose window it lies in, at its tap `j − o·STEP`.
#[inline(always)]
unsafe fn window<S: Simd, const P: usize, const NV: usize, const T: usize, const STEP: usize>(
    acc: &mut [[S::V; NV]; P],
    x: *const f32,
    pitch: usize,
    w: *const f32,
    tap: usize,
) {
    // SAFETY: the contract of `pass`.
    unsafe {
        let mut taps = [[S::zero(); NV]; T];
        for t in 0..T {
            for v in 0..NV {
                taps[t][v] = S::load(w.add(t * tap + 16 * v));
            }
        }
        for i in 0..P {
            // The pixels that no earlier output's window ends with: STEP of them, and the rest of the last window.
            for k in 0..T {
                if k >= STEP && i + 1 < P {
                    break;
                }
                let value = S::splat(*x.add((i * STEP + k) * pitch));
                for back in 0..T.div_ceil(STEP) {
                    let t = k + back * STEP;
                    if t < T && back <= i {
                        for v in 0..NV {
                            acc[i - back][v] = S::fma(value, taps[t][v], acc[i - back][v]);
                        }
                    }
                }
            }
        }
    }
}
