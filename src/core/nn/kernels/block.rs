//! Blocks of outputs from panels of rows: each weight is broadcast against a panel's registers.

use std::ops::Range;

use super::curves;
use super::matrix::{After, Matrix};
use super::panels::{PANEL, Place};
use super::simd::{Isa, Simd, per_isa};

/// Outputs of a block of work.
pub(super) const BLOCK: usize = 64;

/// Columns between which sums rest in memory.
const SLICE: usize = 1024;

/// A block's sums, its lanes for each output.
#[repr(align(64))]
struct Sums([f32; BLOCK * PANEL]);

per_isa! {
    /// Outputs `outs`, at most [`BLOCK`], of the rows of a panel. Contract: `panel` has the place's lanes for each
    /// column of the matrix; `to` has its rows, `stride` values apart, with room for `outs` (initialised for
    /// [`After::Add`]). `ahead` is null or where weights lie that are needed next, half as many as the block's.
    block = block_body(panel: &[f32], place: Place, m: Matrix<'_>, to: (*mut f32, usize), after: After, outs: Range<usize>, ahead: *const f32)
}

#[inline(always)]
unsafe fn block_body<S: Simd>(
    panel: &[f32],
    place: Place,
    m: Matrix<'_>,
    (to, stride): (*mut f32, usize),
    after: After,
    outs: Range<usize>,
    ahead: *const f32,
) {
    let Range { start: from, end: until } = outs;
    let lanes = place.lanes;
    // The outputs' lines come while the sums are made: otherwise every store waits for memory.
    for r in 0..place.count {
        (from..until).step_by(16).for_each(|o| S::prefetch(to.wrapping_add((place.first + r) * stride + o)));
    }
    let mut sums = Sums([0.0f32; BLOCK * PANEL]);
    let sums = &mut sums.0[..(until - from) * lanes];
    if let Some(bias) = m.bias {
        for (sums, bias) in sums.chunks_exact_mut(lanes).zip(&bias[from..until]) {
            sums.fill(*bias);
        }
    }
    for slice in (0..m.inputs).step_by(SLICE) {
        let columns = SLICE.min(m.inputs - slice);
        let mut o = from;
        while o < until {
            // SAFETY: outputs o.. and columns slice.. exist, and `sums` has a row of `lanes` for each output.
            unsafe {
                let at = panel.as_ptr().add(slice * lanes);
                // Eight outputs ask for four rows.
                let rows = ahead.wrapping_add((o - from) / 2 * m.inputs + 4 * slice);
                let ahead = if ahead.is_null() { ahead } else { rows };
                let x = Columns { at, step: lanes, vectors: lanes / 16, columns, ahead };
                let w = m.weight.as_ptr().add(o * m.inputs + slice);
                o += tiles::<S>(x, w, m.inputs, sums.as_mut_ptr().add((o - from) * lanes), lanes, until - o);
            }
        }
    }
    if after == After::QuickGelu {
        // SAFETY: the instruction set is enabled.
        unsafe { curves::quick_gelu_body::<S>(sums) };
    }
    // SAFETY: `sums` holds the block, `to` its place.
    unsafe { write::<S>(sums, place, to.add(from), stride, until - from, after == After::Add) }
}

/// Columns of up to three vectors, `step` values apart.
#[derive(Clone, Copy)]
pub(super) struct Columns {
    pub at: *const f32,
    pub step: usize,
    pub vectors: usize,
    pub columns: usize,
    /// Asked for meanwhile, a line for four columns: any address, or null.
    pub ahead: *const f32,
}

/// The next tile of outputs, of at most `left`; gives how many. Weights lie `stride` apart, sums `pitch`.
///
/// # Safety
/// `x` holds its columns, `w` as many values for each of `left` outputs, `sums` a row of `x`'s lanes for each.
#[inline(always)]
pub(super) unsafe fn tiles<S: Simd>(
    x: Columns,
    w: *const f32,
    stride: usize,
    sums: *mut f32,
    pitch: usize,
    left: usize,
) -> usize {
    let wide = S::ISA == Isa::Avx512;
    let step = if wide && left >= 8 {
        8
    } else if left >= 4 {
        4
    } else {
        1
    };
    // SAFETY: the caller's operands hold the tile.
    unsafe {
        match (wide, x.vectors, step) {
            (true, 3, 8) => tile::<S, 8, 3>(x, w, stride, sums, pitch),
            (true, 2, 8) => tile::<S, 8, 2>(x, w, stride, sums, pitch),
            (true, 3, 4) => tile::<S, 4, 3>(x, w, stride, sums, pitch),
            (true, 2, 4) => tile::<S, 4, 2>(x, w, stride, sums, pitch),
            // Two registers or more a vector: narrower tiles fit the sixteen there are.
            _ => {
                for v in 0..x.vectors {
                    let (x, sums) = (Columns { at: x.at.add(16 * v), ..x }, sums.add(16 * v));
                    match step {
                        8 if wide => tile::<S, 8, 1>(x, w, stride, sums, pitch),
                        4 => tile::<S, 4, 1>(x, w, stride, sums, pitch),
                        _ => tile::<S, 1, 1>(x, w, stride, sums, pitch),
                    }
                }
            }
        }
    }
    step
}

/// `O` outputs of `16·V` lanes: `sums[j][lane] += Σ_i w[j][i] · x[i][lane]`, in the order of i.
#[inline(always)]
unsafe fn tile<S: Simd, const O: usize, const V: usize>(
    x: Columns,
    w: *const f32,
    stride: usize,
    sums: *mut f32,
    pitch: usize,
) {
    // SAFETY: the contract of `tiles`.
    unsafe {
        let mut acc = [[S::zero(); V]; O];
        for (j, row) in acc.iter_mut().enumerate() {
            for (v, sum) in row.iter_mut().enumerate() {
                *sum = S::load(sums.add(j * pitch + 16 * v));
            }
        }
        // A pointer to each row, and four columns a turn: otherwise addresses cost as much as products.
        let (mut at, mut rows) = (x.at, [w; O]);
        let mut ahead = if x.ahead.is_null() { w } else { x.ahead };
        for (j, row) in rows.iter_mut().enumerate() {
            *row = w.add(j * stride);
        }
        for _ in 0..x.columns / 4 {
            S::prefetch(ahead);
            ahead = ahead.wrapping_add(16);
            for i in 0..4 {
                column::<S, O, V>(at.wrapping_add(i * x.step), &rows, i, &mut acc);
            }
            at = at.wrapping_add(4 * x.step);
            for row in &mut rows {
                *row = row.add(4);
            }
        }
        for i in 0..x.columns % 4 {
            column::<S, O, V>(at.wrapping_add(i * x.step), &rows, i, &mut acc);
        }
        for (j, row) in acc.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                S::store(sums.add(j * pitch + 16 * v), sum);
            }
        }
    }
}

/// One column's products.
#[inline(always)]
unsafe fn column<S: Simd, const O: usize, const V: usize>(
    x: *const f32,
    rows: &[*const f32; O],
    i: usize,
    acc: &mut [[S::V; V]; O],
) {
    // SAFETY: the caller's columns and rows hold it.
    unsafe {
        let mut xs = [S::zero(); V];
        for (v, x16) in xs.iter_mut().enumerate() {
            *x16 = S::load(x.add(16 * v));
        }
        for (row, w) in acc.iter_mut().zip(rows) {
            let weight = S::splat(*w.add(i));
            for (sum, &x16) in row.iter_mut().zip(&xs) {
                *sum = S::fma(weight, x16, *sum);
            }
        }
    }
}

/// Writes, or adds, `outputs` rows of sums as the place's rows of outputs, `stride` apart.
#[inline(always)]
unsafe fn write<S: Simd>(sums: &[f32], place: Place, to: *mut f32, stride: usize, outputs: usize, add: bool) {
    let (whole, lanes) = (outputs / 16 * 16, place.lanes);
    let to = to.wrapping_add(place.first * stride);
    for first in (0..place.count).step_by(16) {
        let rows = 16.min(place.count - first);
        for o in (0..whole).step_by(16) {
            // SAFETY: sixteen outputs from `o` on and `rows` rows from `first` on have their place; the square holds
            // what has none.
            unsafe {
                let (from, at) = (sums.as_ptr().add(o * lanes + first), to.add(first * stride + o));
                if rows == 16 && !add {
                    S::turn(from, lanes, at, stride);
                    continue;
                }
                let mut square = [0.0f32; 256];
                S::turn(from, lanes, square.as_mut_ptr(), 16);
                for r in 0..rows {
                    let mut row = S::load(square.as_ptr().add(16 * r));
                    if add {
                        row = S::add(S::load(at.add(r * stride)), row);
                    }
                    S::store(at.add(r * stride), row);
                }
            }
        }
        for r in first..first + rows {
            for o in whole..outputs {
                // SAFETY: as above.
                unsafe {
                    let at = to.add(r * stride + o);
                    let sum = sums[o * lanes + r];
                    *at = if add { *at + sum } else { sum };
                }
            }
        }
    }
}
