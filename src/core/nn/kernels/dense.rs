//! Fully connected layers: weights stay where they are, `(out, in)` row-major, and are read once a product.

use std::ops::Range;

use super::simd::{Isa, Simd, per_isa};

/// Rows of activations: `count` rows of `stride` floats.
#[derive(Clone, Copy)]
pub(in crate::nn) struct Rows {
    /// First row.
    pub at: *const f32,
    /// Floats between rows.
    pub stride: usize,
    /// Rows.
    pub count: usize,
}

/// Inputs of a batch that stay near while outputs pass: what [`product`] of many rows sums at once.
pub(in crate::nn) const SUMMED: usize = 1024;
/// The same of gradients.
const BLOCK: usize = 512;

per_isa! {
    /// `y[r][o] = bias[o] + Σ x[r][i]·w[o][i]` for `outs`, summed by blocks of `at_once` inputs (at least 1); `w` has
    /// `inputs` columns. Contract: `x` has `inputs` readable floats a row, `y` has the rows of `x` with `y_stride`.
    product = product_body(x: Rows, w: &[f32], inputs: usize, at_once: usize, bias: Option<&[f32]>, y: *mut f32, y_stride: usize, outs: Range<usize>)
}

/// Columns `from..to` of a product, and where its sums go.
#[derive(Clone, Copy)]
struct Part<'b> {
    x: Rows,
    w: *const f32,
    inputs: usize,
    columns: (usize, usize),
    bias: Option<&'b [f32]>,
    y: *mut f32,
    y_stride: usize,
}

#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's operands")]
unsafe fn product_body<S: Simd>(
    x: Rows,
    w: &[f32],
    inputs: usize,
    at_once: usize,
    bias: Option<&[f32]>,
    y: *mut f32,
    y_stride: usize,
    outs: Range<usize>,
) {
    let (most_outs, most_rows) = if S::ISA == Isa::Avx512 { (4, 6) } else { (2, 2) };
    // Rows in groups of nearly one size.
    let groups = x.count.div_ceil(most_rows).max(1);
    for from in (0..inputs.max(1)).step_by(at_once) {
        let part = Part { x, w: w.as_ptr(), inputs, columns: (from, inputs.min(from + at_once)), bias, y, y_stride };
        let mut o = outs.start;
        while o < outs.end {
            let step = most_outs.min(outs.end - o);
            for group in 0..groups {
                let rows = group * x.count / groups..(group + 1) * x.count / groups;
                // SAFETY: these rows and outputs exist; w holds them.
                unsafe {
                    match (step, rows.len()) {
                        (4, 6) => dots::<S, 6, 4>(part, o, rows.start),
                        (4, 5) => dots::<S, 5, 4>(part, o, rows.start),
                        (4, 4) => dots::<S, 4, 4>(part, o, rows.start),
                        (4, 3) => dots::<S, 3, 4>(part, o, rows.start),
                        (4, 2) => dots::<S, 2, 4>(part, o, rows.start),
                        (4, 1) => dots::<S, 1, 4>(part, o, rows.start),
                        (2, 2) => dots::<S, 2, 2>(part, o, rows.start),
                        _ => rows.for_each(|r| (o..o + step).for_each(|o| dots::<S, 1, 1>(part, o, r))),
                    }
                }
            }
            o += step;
        }
    }
}

/// `R × O` dot products, sixteen partial sums each, folded in a fixed order.
#[inline(always)]
unsafe fn dots<S: Simd, const R: usize, const O: usize>(part: Part<'_>, o: usize, r: usize) {
    let Part { x, inputs, columns: (from, to), .. } = part;
    // SAFETY: the contract of `product`: whole vectors lie inside the columns.
    unsafe {
        let mut acc = [[S::zero(); O]; R];
        let whole = from + (to - from) / 16 * 16;
        let w = part.w.add(o * inputs);
        let x0 = x.at.add(r * x.stride);
        for i in (from..whole).step_by(16) {
            let mut ws = [S::zero(); O];
            for (j, v) in ws.iter_mut().enumerate() {
                *v = S::load(w.add(j * inputs + i));
            }
            for (k, row) in acc.iter_mut().enumerate() {
                let v = S::load(x0.add(k * x.stride + i));
                for j in 0..O {
                    row[j] = S::fma(v, ws[j], row[j]);
                }
            }
        }
        for (k, row) in acc.iter().enumerate() {
            for (j, &lanes) in row.iter().enumerate() {
                let mut sum = S::fold(lanes);
                for i in whole..to {
                    sum += *x0.add(k * x.stride + i) * *w.add(j * inputs + i);
                }
                let y = part.y.add((r + k) * part.y_stride + o + j);
                *y = sum + if from > 0 { *y } else { part.bias.map_or(0.0, |b| b[o + j]) };
            }
        }
    }
}

per_isa! {
    /// `gx[r][i] (+)= Σ_o gy[r][o]·w[o][i]`, outputs in order. Contract: `gx` has the rows of `gy` with `gx_stride`.
    input_gradient = input_gradient_body(gy: Rows, w: &[f32], inputs: usize, outputs: usize, add: bool, gx: *mut f32, gx_stride: usize)
}

#[inline(always)]
unsafe fn input_gradient_body<S: Simd>(
    gy: Rows,
    w: &[f32],
    inputs: usize,
    outputs: usize,
    add: bool,
    gx: *mut f32,
    gx_stride: usize,
) {
    let most_rows = if S::ISA == Isa::Avx512 { 2 } else { 1 };
    for block in (0..inputs).step_by(BLOCK) {
        let width = BLOCK.min(inputs - block);
        let mut o = 0;
        while o < outputs {
            let step = [8, 4, 2].into_iter().find(|n| outputs - o >= *n).unwrap_or(1);
            let mut r = 0;
            while r < gy.count {
                let rows = most_rows.min(gy.count - r);
                // SAFETY: rows r.. and columns block.. exist in `gx`; outputs o.. in `gy` and `w`.
                unsafe {
                    let g = Rows { at: gy.at.add(r * gy.stride + o), count: rows, ..gy };
                    let to = (gx.add(r * gx_stride + block), gx_stride);
                    let w = w.as_ptr().add(o * inputs + block);
                    let how = (width, o == 0 && !add);
                    match (step, rows) {
                        (8, 2) => axpy::<S, 2, 8>(g, w, inputs, to, how),
                        (8, _) => axpy::<S, 1, 8>(g, w, inputs, to, how),
                        (4, 2) => axpy::<S, 2, 4>(g, w, inputs, to, how),
                        (4, _) => axpy::<S, 1, 4>(g, w, inputs, to, how),
                        (2, 2) => axpy::<S, 2, 2>(g, w, inputs, to, how),
                        (2, _) => axpy::<S, 1, 2>(g, w, inputs, to, how),
                        (_, 2) => axpy::<S, 2, 1>(g, w, inputs, to, how),
                        _ => axpy::<S, 1, 1>(g, w, inputs, to, how),
                    }
                }
                r += rows;
            }
            o += step;
        }
    }
}

/// `to[r][i] (+)= Σ_j g[r][j]·w[j·stride + i]` for `width` columns; `fresh` starts at 0.
#[inline(always)]
unsafe fn axpy<S: Simd, const R: usize, const N: usize>(
    g: Rows,
    w: *const f32,
    stride: usize,
    (to, to_stride): (*mut f32, usize),
    (width, fresh): (usize, bool),
) {
    // SAFETY: the caller's rows hold `width` values, rows of `g` hold N.
    unsafe {
        let mut gs = [[S::zero(); R]; N];
        for (j, column) in gs.iter_mut().enumerate() {
            for (r, v) in column.iter_mut().enumerate() {
                *v = S::splat(*g.at.add(r * g.stride + j));
            }
        }
        let whole = width / 16 * 16;
        for i in (0..whole).step_by(16) {
            let mut sums = [S::zero(); R];
            if !fresh {
                sums.iter_mut().enumerate().for_each(|(r, s)| *s = S::load(to.add(r * to_stride + i)));
            }
            for (j, column) in gs.iter().enumerate() {
                let value = S::load(w.add(j * stride + i));
                for (sum, &g) in sums.iter_mut().zip(column) {
                    *sum = S::fma(g, value, *sum);
                }
            }
            sums.iter().enumerate().for_each(|(r, s)| S::store(to.add(r * to_stride + i), *s));
        }
        for i in whole..width {
            for r in 0..R {
                let at = to.add(r * to_stride + i);
                let mut sum = if fresh { 0.0 } else { *at };
                for j in 0..N {
                    sum += *g.at.add(r * g.stride + j) * *w.add(j * stride + i);
                }
                *at = sum;
            }
        }
    }
}

per_isa! {
    /// `gw[o][i] = Σ_r gy[r][o]·x[r][i]` for `outs`, rows in order; `gw` starts at `outs.start`.
    weight_gradient = weight_gradient_body(gy: Rows, x: Rows, inputs: usize, gw: &mut [f32], outs: Range<usize>)
}

#[inline(always)]
unsafe fn weight_gradient_body<S: Simd>(gy: Rows, x: Rows, inputs: usize, gw: &mut [f32], outs: Range<usize>) {
    for block in (0..inputs).step_by(BLOCK) {
        let width = BLOCK.min(inputs - block);
        let mut o = outs.start;
        while o < outs.end {
            let n = 4.min(outs.end - o);
            let to = gw[(o - outs.start) * inputs + block..].as_mut_ptr();
            // SAFETY: rows of `gw`, `gy` and `x` exist for these outputs and columns.
            unsafe {
                let x = Rows { at: x.at.add(block), ..x };
                let g = Rows { at: gy.at.add(o), ..gy };
                match n {
                    4 => outer::<S, 4>(g, x, to, inputs, width),
                    3 => outer::<S, 3>(g, x, to, inputs, width),
                    2 => outer::<S, 2>(g, x, to, inputs, width),
                    _ => outer::<S, 1>(g, x, to, inputs, width),
                }
            }
            o += n;
        }
    }
}

#[inline(always)]
unsafe fn outer<S: Simd, const N: usize>(g: Rows, x: Rows, to: *mut f32, stride: usize, width: usize) {
    // SAFETY: the caller's rows hold `width` values, each row of `g` holds N.
    unsafe {
        // Two vectors side by side where a vector is one register.
        let pairs = if S::ISA == Isa::Avx512 { width / 32 * 32 } else { 0 };
        let whole = width / 16 * 16;
        for i in (0..pairs).step_by(32) {
            outer_block::<S, N, 2>(g, x, to, stride, i);
        }
        for i in (pairs..whole).step_by(16) {
            outer_block::<S, N, 1>(g, x, to, stride, i);
        }
        for i in whole..width {
            for j in 0..N {
                let products = (0..x.count).map(|r| *g.at.add(r * g.stride + j) * *x.at.add(r * x.stride + i));
                *to.add(j * stride + i) = products.sum();
            }
        }
    }
}

/// `V` vectors of columns from `i`.
#[inline(always)]
unsafe fn outer_block<S: Simd, const N: usize, const V: usize>(
    g: Rows,
    x: Rows,
    to: *mut f32,
    stride: usize,
    i: usize,
) {
    // SAFETY: as `outer`; the columns exist.
    unsafe {
        let mut acc = [[S::zero(); V]; N];
        for r in 0..x.count {
            let mut values = [S::zero(); V];
            for (v, value) in values.iter_mut().enumerate() {
                *value = S::load(x.at.add(r * x.stride + i + 16 * v));
            }
            for (j, row) in acc.iter_mut().enumerate() {
                let g = S::splat(*g.at.add(r * g.stride + j));
                for v in 0..V {
                    row[v] = S::fma(g, values[v], row[v]);
                }
            }
        }
        for (j, row) in acc.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                S::store(to.add(j * stride + i + 16 * v), sum);
            }
        }
    }
}
