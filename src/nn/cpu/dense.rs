//! Fully connected layers: weights stay where they are, `(out, in)` row-major, and are read once a product.

use std::ops::Range;

use super::simd::{Isa, Simd, per_isa};

/// Rows of activations: `count` rows of `stride` floats.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// First row.
    pub at: *const f32,
    /// Floats between rows.
    pub stride: usize,
    /// Rows.
    pub count: usize,
}

/// Inputs that stay in the first-level cache while outputs pass.
const BLOCK: usize = 512;

per_isa! {
    /// `y[r][o] = bias[o] + Σ x[r][i]·w[o][i]` for `outs`; `w` has `inputs` columns. Contract: `x` has `inputs`
    /// readable floats a row, `y` has the rows of `x` with `y_stride`.
    product = product_body(x: Rows, w: &[f32], inputs: usize, bias: Option<&[f32]>, y: *mut f32, y_stride: usize, outs: Range<usize>)
}

#[inline(always)]
unsafe fn product_body<S: Simd>(
    x: Rows,
    w: &[f32],
    inputs: usize,
    bias: Option<&[f32]>,
    y: *mut f32,
    y_stride: usize,
    outs: Range<usize>,
) {
    let wide = S::ISA == Isa::Avx512;
    let mut o = outs.start;
    while o < outs.end {
        let mut r = 0;
        let step = if wide { 4 } else { 2 }.min(outs.end - o);
        while r < x.count {
            let rows = if wide { 4 } else { 2 }.min(x.count - r);
            // SAFETY: rows r.. and outputs o.. exist; w holds them.
            unsafe {
                match (step, rows) {
                    (4, 4) => dots::<S, 4, 4>(x, w, inputs, bias, y, y_stride, o, r),
                    (4, 3) => dots::<S, 3, 4>(x, w, inputs, bias, y, y_stride, o, r),
                    (4, 2) => dots::<S, 2, 4>(x, w, inputs, bias, y, y_stride, o, r),
                    (4, 1) => dots::<S, 1, 4>(x, w, inputs, bias, y, y_stride, o, r),
                    (2, 2) => dots::<S, 2, 2>(x, w, inputs, bias, y, y_stride, o, r),
                    _ => {
                        for i in r..r + rows {
                            for j in o..o + step {
                                dots::<S, 1, 1>(x, w, inputs, bias, y, y_stride, j, i);
                            }
                        }
                    }
                }
            }
            r += rows;
        }
        o += step;
    }
}

/// `R × O` dot products, sixteen partial sums each, folded in a fixed order.
#[inline(always)]
#[allow(clippy::too_many_arguments, reason = "a kernel's operands")]
unsafe fn dots<S: Simd, const R: usize, const O: usize>(
    x: Rows,
    w: &[f32],
    inputs: usize,
    bias: Option<&[f32]>,
    y: *mut f32,
    y_stride: usize,
    o: usize,
    r: usize,
) {
    // SAFETY: the contract of `product`: whole vectors lie inside `inputs`.
    unsafe {
        let mut acc = [[S::zero(); O]; R];
        let whole = inputs / 16 * 16;
        let w = w.as_ptr().add(o * inputs);
        let x0 = x.at.add(r * x.stride);
        for i in (0..whole).step_by(16) {
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
                let mut parts = [0.0f32; 16];
                S::store(parts.as_mut_ptr(), lanes);
                for half in [8, 4, 2, 1] {
                    for l in 0..half {
                        parts[l] += parts[l + half];
                    }
                }
                let mut sum = parts[0];
                for i in whole..inputs {
                    sum += *x0.add(k * x.stride + i) * *w.add(j * inputs + i);
                }
                *y.add((r + k) * y_stride + o + j) = sum + bias.map_or(0.0, |b| b[o + j]);
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
    for block in (0..inputs).step_by(BLOCK) {
        let width = BLOCK.min(inputs - block);
        let mut o = 0;
        while o < outputs {
            let step = [8, 4, 2].into_iter().find(|n| outputs - o >= *n).unwrap_or(1);
            for r in 0..gy.count {
                let fresh = o == 0 && !add;
                // SAFETY: row r and columns block.. exist in `gx`; outputs o.. in `gy` and `w`.
                unsafe {
                    let g = gy.at.add(r * gy.stride + o);
                    let to = gx.add(r * gx_stride + block);
                    let w = w.as_ptr().add(o * inputs + block);
                    match step {
                        8 => axpy::<S, 8>(g, w, inputs, to, width, fresh),
                        4 => axpy::<S, 4>(g, w, inputs, to, width, fresh),
                        2 => axpy::<S, 2>(g, w, inputs, to, width, fresh),
                        _ => axpy::<S, 1>(g, w, inputs, to, width, fresh),
                    }
                }
            }
            o += step;
        }
    }
}

/// `to[i] (+)= Σ_j g[j]·w[j·stride + i]`.
#[inline(always)]
unsafe fn axpy<S: Simd, const N: usize>(
    g: *const f32,
    w: *const f32,
    stride: usize,
    to: *mut f32,
    width: usize,
    fresh: bool,
) {
    // SAFETY: the caller's rows hold `width` values, `g` holds N.
    unsafe {
        let mut gs = [S::zero(); N];
        for (j, v) in gs.iter_mut().enumerate() {
            *v = S::splat(*g.add(j));
        }
        let whole = width / 16 * 16;
        for i in (0..whole).step_by(16) {
            let mut sum = if fresh { S::zero() } else { S::load(to.add(i)) };
            for (j, &g) in gs.iter().enumerate() {
                sum = S::fma(g, S::load(w.add(j * stride + i)), sum);
            }
            S::store(to.add(i), sum);
        }
        for i in whole..width {
            let mut sum = if fresh { 0.0 } else { *to.add(i) };
            for j in 0..N {
                sum += *g.add(j) * *w.add(j * stride + i);
            }
            *to.add(i) = sum;
        }
    }
}

per_isa! {
    /// `gw[o][i] += Σ_r gy[r][o]·x[r][i]` for `outs`, rows in order; `gw` starts at `outs.start`.
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
        let whole = width / 16 * 16;
        for i in (0..whole).step_by(16) {
            let mut acc = [S::zero(); N];
            for (j, v) in acc.iter_mut().enumerate() {
                *v = S::load(to.add(j * stride + i));
            }
            for r in 0..x.count {
                let value = S::load(x.at.add(r * x.stride + i));
                for (j, v) in acc.iter_mut().enumerate() {
                    *v = S::fma(S::splat(*g.at.add(r * g.stride + j)), value, *v);
                }
            }
            for (j, &v) in acc.iter().enumerate() {
                S::store(to.add(j * stride + i), v);
            }
        }
        for i in whole..width {
            for j in 0..N {
                let mut sum = *to.add(j * stride + i);
                for r in 0..x.count {
                    sum += *g.at.add(r * g.stride + j) * *x.at.add(r * x.stride + i);
                }
                *to.add(j * stride + i) = sum;
            }
        }
    }
}
