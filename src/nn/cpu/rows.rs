//! Element-wise passes over one sample: statistics, affine + add + rectify, and their gradients.
//!
//! Everything goes by blocks of sixteen channels. Sums run over a row in f32 and over rows in f64.

use super::map::Map;
use super::simd::{Simd, per_isa};

/// Sixteen channels.
type Lanes = [f32; 16];

/// A sample's values with their map.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// The sample.
    pub data: &'a [f32],
    /// Its layout.
    pub map: &'a Map,
}

impl<'a> View<'a> {
    /// Row `y` as pixels × blocks of lanes.
    #[inline(always)]
    fn row(&self, y: usize) -> &'a [Lanes] {
        self.data[self.map.at(y, 0)..][..self.map.w * self.map.cp].as_chunks().0
    }

    fn blocks(&self) -> usize {
        self.map.cp / 16
    }
}

#[inline(always)]
fn row_mut<'a>(data: &'a mut [f32], map: &Map, y: usize) -> &'a mut [Lanes] {
    data[map.at(y, 0)..][..map.w * map.cp].as_chunks_mut().0
}

#[inline(always)]
fn zip2(a: &Lanes, b: &Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    std::array::from_fn(|i| f(a[i], b[i]))
}

#[inline(always)]
fn lanes(of: &[f32], block: usize) -> &Lanes {
    &of.as_chunks().0[block]
}

/// Rectifies; NaN stays.
#[inline(always)]
fn rectify(v: f32) -> f32 {
    if 0.0 > v { 0.0 } else { v }
}

per_isa! {
    /// Mean and sum of squared deviations of each channel of a sample: `out[..cp]`, `out[cp..2·cp]`.
    stats = stats_body(z: View<'_>, out: &mut [f64])
}

#[inline(always)]
unsafe fn stats_body<S: Simd>(z: View<'_>, out: &mut [f64]) {
    let (n, cp) = (z.map.pixels() as f64, z.map.cp);
    for block in 0..z.blocks() {
        // Deviations from the first pixel, so that squares do not cancel.
        let shift = z.row(0)[block];
        let (mut sums, mut squares) = ([0.0f64; 16], [0.0f64; 16]);
        for y in 0..z.map.h {
            let (mut s, mut q) = ([0.0f32; 16], [0.0f32; 16]);
            for value in z.row(y)[block..].iter().step_by(z.blocks()) {
                let d = zip2(value, &shift, |v, k| v - k);
                s = zip2(&s, &d, |s, d| s + d);
                q = zip2(&q, &d, |q, d| q + d * d);
            }
            for i in 0..16 {
                sums[i] += f64::from(s[i]);
                squares[i] += f64::from(q[i]);
            }
        }
        for i in 0..16 {
            let c = 16 * block + i;
            out[c] = f64::from(shift[i]) + sums[i] / n;
            out[cp + c] = squares[i] - sums[i] * sums[i] / n;
        }
    }
}

/// A summand of a fused pass.
#[derive(Clone, Copy)]
pub(super) struct Term<'a> {
    /// Its values.
    pub z: View<'a>,
    /// Scale and shift of each channel, if batch norm stands before.
    pub affine: Option<(&'a [f32], &'a [f32])>,
}

per_isa! {
    /// `out = relu?(Σ scale·z + shift)` over one or two terms.
    fuse = fuse_body(terms: &[Term<'_>], relu: bool, out: &mut [f32], map: &Map)
}

#[inline(always)]
unsafe fn fuse_body<S: Simd>(terms: &[Term<'_>], relu: bool, out: &mut [f32], map: &Map) {
    match *terms {
        [a] => one(a, relu, out, map),
        [a, b] => match (a.affine, b.affine) {
            (Some(sa), Some(sb)) => two(a.z, b.z, out, map, |c, x, y| {
                let x = affine(x, sa, c);
                let y = affine(y, sb, c);
                end(zip2(&x, &y, |x, y| x + y), relu)
            }),
            (Some(s), None) => {
                two(a.z, b.z, out, map, |c, x, y| end(zip2(&affine(x, s, c), y, |x, y| x + y), relu));
            }
            (None, Some(s)) => {
                two(a.z, b.z, out, map, |c, x, y| end(zip2(x, &affine(y, s, c), |x, y| x + y), relu));
            }
            (None, None) => two(a.z, b.z, out, map, |_, x, y| end(zip2(x, y, |x, y| x + y), relu)),
        },
        _ => {}
    }
}

#[inline(always)]
fn affine(x: &Lanes, (scale, shift): (&[f32], &[f32]), block: usize) -> Lanes {
    let scaled = zip2(x, lanes(scale, block), |x, a| x * a);
    zip2(&scaled, lanes(shift, block), |x, b| x + b)
}

#[inline(always)]
fn end(v: Lanes, relu: bool) -> Lanes {
    if relu { v.map(rectify) } else { v }
}

#[inline(always)]
fn one(a: Term<'_>, relu: bool, out: &mut [f32], map: &Map) {
    let blocks = a.z.blocks();
    for y in 0..map.h {
        let row = a.z.row(y).chunks_exact(blocks);
        for (pixel, z) in row_mut(out, map, y).chunks_exact_mut(blocks).zip(row) {
            for c in 0..blocks {
                pixel[c] = end(a.affine.map_or(z[c], |s| affine(&z[c], s, c)), relu);
            }
        }
    }
}

#[inline(always)]
fn two(a: View<'_>, b: View<'_>, out: &mut [f32], map: &Map, f: impl Fn(usize, &Lanes, &Lanes) -> Lanes) {
    let blocks = a.blocks();
    for y in 0..map.h {
        let rows = a.row(y).chunks_exact(blocks).zip(b.row(y).chunks_exact(blocks));
        for (pixel, (x, y)) in row_mut(out, map, y).chunks_exact_mut(blocks).zip(rows) {
            for c in 0..blocks {
                pixel[c] = f(c, &x[c], &y[c]);
            }
        }
    }
}

/// The gradient of a fused pass's output, and that output where it was rectified.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    /// Gradient.
    pub g: View<'a>,
    /// Rectified output: the gradient passes where it is positive.
    pub y: Option<View<'a>>,
}

#[inline(always)]
fn gate(g: &Lanes, y: &Lanes) -> Lanes {
    zip2(g, y, |g, y| if y > 0.0 { g } else { 0.0 })
}

per_isa! {
    /// Sums over a sample of the gated gradient `g` and of `g·(z − mean)`: `out[..cp]`, `out[cp..2·cp]`.
    sums = sums_body(up: Upstream<'_>, z: View<'_>, mean: &[f32], out: &mut [f64])
}

#[inline(always)]
unsafe fn sums_body<S: Simd>(up: Upstream<'_>, z: View<'_>, mean: &[f32], out: &mut [f64]) {
    match up.y {
        Some(y) => sums_of(up.g, z, mean, out, |row, i, g| gate(g, &y.row(row)[i])),
        None => sums_of(up.g, z, mean, out, |_, _, g| *g),
    }
}

#[inline(always)]
fn sums_of(g: View<'_>, z: View<'_>, mean: &[f32], out: &mut [f64], gated: impl Fn(usize, usize, &Lanes) -> Lanes) {
    let (blocks, cp) = (z.blocks(), z.map.cp);
    for block in 0..blocks {
        let mean = lanes(mean, block);
        let (mut sums, mut products) = ([0.0f64; 16], [0.0f64; 16]);
        for y in 0..z.map.h {
            let (mut s, mut q) = ([0.0f32; 16], [0.0f32; 16]);
            let (grow, zrow) = (g.row(y), z.row(y));
            for i in (block..zrow.len()).step_by(blocks) {
                let g = gated(y, i, &grow[i]);
                let d = zip2(&zrow[i], mean, |z, m| z - m);
                s = zip2(&s, &g, |s, g| s + g);
                let gd = zip2(&g, &d, |g, d| g * d);
                q = zip2(&q, &gd, |q, v| q + v);
            }
            for i in 0..16 {
                sums[i] += f64::from(s[i]);
                products[i] += f64::from(q[i]);
            }
        }
        out[16 * block..][..16].copy_from_slice(&sums);
        out[cp + 16 * block..][..16].copy_from_slice(&products);
    }
}

/// Batch norm's input gradient: `scale·(g − offset − (z − mean)·slope)` for each channel.
#[derive(Clone, Copy)]
pub(super) struct NormGrad<'a> {
    /// The batch norm's input.
    pub z: View<'a>,
    /// γ/σ.
    pub scale: &'a [f32],
    /// Mean of the gradient; 0 with running statistics.
    pub offset: &'a [f32],
    /// Mean of the batch.
    pub mean: &'a [f32],
    /// Mean of gradient × deviation, over σ²; 0 with running statistics.
    pub slope: &'a [f32],
}

per_isa! {
    /// Writes (or adds) the gradient of a term: gated, and through batch norm if there is one.
    fuse_grad = fuse_grad_body(up: Upstream<'_>, norm: Option<NormGrad<'_>>, add: bool, out: &mut [f32], map: &Map)
}

#[inline(always)]
unsafe fn fuse_grad_body<S: Simd>(up: Upstream<'_>, norm: Option<NormGrad<'_>>, add: bool, out: &mut [f32], map: &Map) {
    match (up.y, norm) {
        (Some(y), Some(n)) => {
            grad_of(up.g, add, out, map, |r, i, c, g| normed(&n, r, i, c, gate(g, &y.row(r)[i])));
        }
        (Some(y), None) => grad_of(up.g, add, out, map, |r, i, _, g| gate(g, &y.row(r)[i])),
        (None, Some(n)) => grad_of(up.g, add, out, map, |r, i, c, g| normed(&n, r, i, c, *g)),
        (None, None) => grad_of(up.g, add, out, map, |_, _, _, g| *g),
    }
}

#[inline(always)]
fn normed(n: &NormGrad<'_>, row: usize, i: usize, c: usize, g: Lanes) -> Lanes {
    let z = &n.z.row(row)[i];
    let (scale, offset) = (lanes(n.scale, c), lanes(n.offset, c));
    let (mean, slope) = (lanes(n.mean, c), lanes(n.slope, c));
    std::array::from_fn(|l| scale[l] * (g[l] - offset[l] - (z[l] - mean[l]) * slope[l]))
}

#[inline(always)]
fn grad_of(g: View<'_>, add: bool, out: &mut [f32], map: &Map, value: impl Fn(usize, usize, usize, &Lanes) -> Lanes) {
    let blocks = map.cp / 16;
    for y in 0..map.h {
        let grow = g.row(y);
        let row = row_mut(out, map, y);
        for x in 0..map.w {
            for c in 0..blocks {
                let i = x * blocks + c;
                let v = value(y, i, c, &grow[i]);
                row[i] = if add { zip2(&row[i], &v, |a, b| a + b) } else { v };
            }
        }
    }
}

per_isa! {
    /// Zeroes the gradient where the rectified output `y` is not positive.
    gate_in_place = gate_in_place_body(y: View<'_>, g: &mut [f32], map: &Map)
}

#[inline(always)]
unsafe fn gate_in_place_body<S: Simd>(y: View<'_>, g: &mut [f32], map: &Map) {
    for row in 0..map.h {
        for (g, y) in row_mut(g, map, row).iter_mut().zip(y.row(row)) {
            *g = gate(g, y);
        }
    }
}

per_isa! {
    /// Sum of each channel over a sample, `out[..cp]`.
    channel_sums = channel_sums_body(g: View<'_>, out: &mut [f64])
}

#[inline(always)]
unsafe fn channel_sums_body<S: Simd>(g: View<'_>, out: &mut [f64]) {
    let blocks = g.blocks();
    for block in 0..blocks {
        let mut sums = [0.0f64; 16];
        for y in 0..g.map.h {
            let mut s = [0.0f32; 16];
            for value in g.row(y)[block..].iter().step_by(blocks) {
                s = zip2(&s, value, |s, v| s + v);
            }
            for i in 0..16 {
                sums[i] += f64::from(s[i]);
            }
        }
        out[16 * block..][..16].copy_from_slice(&sums);
    }
}
