//! Element-wise passes over one sample: statistics, affine + add + rectify, and their gradients.
//!
//! Everything goes by blocks of sixteen channels. Sums run over a row in f32 and over rows in f64.

use super::map::Map;
use super::simd::{Simd, per_isa};

/// A sample's values with their map.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    /// The sample.
    pub data: &'a [f32],
    /// Its layout.
    pub map: &'a Map,
}

impl View<'_> {
    /// First float of row `y`: `w·cp` floats follow, checked.
    #[inline(always)]
    fn row(&self, y: usize) -> *const f32 {
        self.data[self.map.at(y, 0)..][..self.map.w * self.map.cp].as_ptr()
    }
}

#[inline(always)]
fn row_mut(data: &mut [f32], map: &Map, y: usize) -> *mut f32 {
    data[map.at(y, 0)..][..map.w * map.cp].as_mut_ptr()
}

/// The maps of a pass have the same pixels and channels; coefficients reach over all channels.
fn check(map: &Map, others: &[&Map], coefficients: &[&[f32]]) {
    assert!(map.cp.is_multiple_of(16));
    assert!(others.iter().all(|o| (o.cp, o.h, o.w) == (map.cp, map.h, map.w)), "{map:?} and {others:?}");
    assert!(coefficients.iter().all(|c| c.len() >= map.cp));
}

/// Does something for every block of a row: `$i` is its first float in the row, `$c` its first channel. (A macro,
/// because a closure that is not inlined would not know the instruction set.)
macro_rules! blocks {
    ($map:expr, |$i:ident, $c:ident| $body:expr) => {
        if $map.cp == 16 {
            for x in 0..$map.w {
                let ($i, $c) = (16 * x, 0);
                let _ = $c;
                $body;
            }
        } else {
            for x in 0..$map.w {
                for $c in (0..$map.cp).step_by(16) {
                    let $i = x * $map.cp + $c;
                    $body;
                }
            }
        }
    };
}

/// Sums two values of one block of channels over a sample: `$setup` names the row's pointers, `$pair` gives the
/// values at float `$i` of the row.
macro_rules! sum_block {
    ($S:ty, $map:expr, $channel:expr, |$y:ident| $setup:stmt, |$i:ident| $pair:expr) => {{
        let (mut sums, mut products) = ([0.0f64; 16], [0.0f64; 16]);
        for $y in 0..$map.h {
            let (mut s, mut q) = ([0.0f32; 16], [0.0f32; 16]);
            let (mut a, mut b) = (<$S>::zero(), <$S>::zero());
            $setup
            for x in 0..$map.w {
                let $i = x * $map.cp + $channel;
                let (u, v) = $pair;
                (a, b) = (<$S>::add(a, u), <$S>::add(b, v));
            }
            <$S>::store(s.as_mut_ptr(), a);
            <$S>::store(q.as_mut_ptr(), b);
            for i in 0..16 {
                sums[i] += f64::from(s[i]);
                products[i] += f64::from(q[i]);
            }
        }
        (sums, products)
    }};
}

per_isa! {
    /// Mean and sum of squared deviations of each channel of a sample: `out[..cp]`, `out[cp..2·cp]`.
    stats = stats_body(z: View<'_>, out: &mut [f64])
}

#[inline(always)]
unsafe fn stats_body<S: Simd>(z: View<'_>, out: &mut [f64]) {
    let (n, cp) = (z.map.pixels() as f64, z.map.cp);
    check(z.map, &[], &[]);
    for channel in (0..cp).step_by(16) {
        // Deviations from the first pixel, so that squares do not cancel.
        // SAFETY: rows are checked, and blocks lie inside them.
        let (sums, squares) = unsafe {
            let shift = S::load(z.row(0).add(channel));
            sum_block!(S, z.map, channel, |y| let from = z.row(y), |i| {
                let d = S::sub(S::load(from.add(i)), shift);
                (d, S::mul(d, d))
            })
        };
        for i in 0..16 {
            let shift = f64::from(z.data[z.map.at(0, 0) + channel + i]);
            out[channel + i] = shift + sums[i] / n;
            out[cp + channel + i] = squares[i] - sums[i] * sums[i] / n;
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
    for term in terms {
        match term.affine {
            Some((scale, shift)) => check(map, &[term.z.map], &[scale, shift]),
            None => check(map, &[term.z.map], &[]),
        }
    }
    for y in 0..map.h {
        let to = row_mut(out, map, y);
        // SAFETY: rows and coefficients are checked, blocks lie inside them.
        unsafe {
            match *terms {
                [a] => {
                    let x = a.z.row(y);
                    match a.affine {
                        Some(s) => blocks!(map, |i, c| S::store(to.add(i), end::<S>(relu, affine::<S>(x, i, s, c)))),
                        None => blocks!(map, |i, _c| S::store(to.add(i), end::<S>(relu, S::load(x.add(i))))),
                    }
                }
                [a, b] => {
                    let (x, z) = (a.z.row(y), b.z.row(y));
                    match (a.affine, b.affine) {
                        (Some(s), Some(t)) => blocks!(map, |i, c| {
                            S::store(
                                to.add(i),
                                end::<S>(relu, S::add(affine::<S>(x, i, s, c), affine::<S>(z, i, t, c))),
                            );
                        }),
                        (Some(s), None) => blocks!(map, |i, c| {
                            S::store(to.add(i), end::<S>(relu, S::add(affine::<S>(x, i, s, c), S::load(z.add(i)))));
                        }),
                        (None, Some(t)) => blocks!(map, |i, c| {
                            S::store(to.add(i), end::<S>(relu, S::add(S::load(x.add(i)), affine::<S>(z, i, t, c))));
                        }),
                        (None, None) => {
                            blocks!(map, |i, _c| S::store(
                                to.add(i),
                                end::<S>(relu, S::add(S::load(x.add(i)), S::load(z.add(i))))
                            ));
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

#[inline(always)]
unsafe fn end<S: Simd>(relu: bool, v: S::V) -> S::V {
    // SAFETY: the instruction set is enabled.
    if relu { unsafe { S::relu(v) } } else { v }
}

/// Writes, or adds to what is there.
#[inline(always)]
unsafe fn put<S: Simd>(add: bool, at: *mut f32, v: S::V) {
    // SAFETY: the caller has checked the row.
    unsafe { S::store(at, if add { S::add(S::load(at), v) } else { v }) }
}

#[inline(always)]
unsafe fn affine<S: Simd>(x: *const f32, i: usize, (scale, shift): (&[f32], &[f32]), c: usize) -> S::V {
    // SAFETY: the caller has checked the row and the coefficients.
    unsafe { S::fma(S::load(x.add(i)), S::load(scale.as_ptr().add(c)), S::load(shift.as_ptr().add(c))) }
}

/// The gradient of a fused pass's output, and that output where it was rectified.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    /// Gradient.
    pub g: View<'a>,
    /// Rectified output: the gradient passes where it is positive.
    pub y: Option<View<'a>>,
}

per_isa! {
    /// Sums over a sample of the gated gradient `g` and of `g·(z − mean)`: `out[..cp]`, `out[cp..2·cp]`.
    sums = sums_body(up: Upstream<'_>, z: View<'_>, mean: &[f32], out: &mut [f64])
}

#[inline(always)]
unsafe fn sums_body<S: Simd>(up: Upstream<'_>, z: View<'_>, mean: &[f32], out: &mut [f64]) {
    let map = z.map;
    check(map, &[up.g.map, up.y.map_or(up.g.map, |y| y.map)], &[mean]);
    let cp = map.cp;
    for channel in (0..cp).step_by(16) {
        // SAFETY: rows are checked, and blocks lie inside them.
        let (sums, products) = unsafe {
            let mean = S::load(mean.as_ptr().add(channel));
            match up.y {
                Some(y) => sum_block!(S, map, channel, |r| let (z, g, y) = (z.row(r), up.g.row(r), y.row(r)), |i| {
                    let g = S::gate(S::load(g.add(i)), S::load(y.add(i)));
                    (g, S::mul(g, S::sub(S::load(z.add(i)), mean)))
                }),
                None => sum_block!(S, map, channel, |r| let (z, g) = (z.row(r), up.g.row(r)), |i| {
                    let g = S::load(g.add(i));
                    (g, S::mul(g, S::sub(S::load(z.add(i)), mean)))
                }),
            }
        };
        out[channel..][..16].copy_from_slice(&sums);
        out[cp + channel..][..16].copy_from_slice(&products);
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
    check(map, &[up.g.map, up.y.map_or(up.g.map, |y| y.map)], &[]);
    if let Some(n) = &norm {
        check(map, &[n.z.map], &[n.scale, n.offset, n.mean, n.slope]);
    }
    for row in 0..map.h {
        let (to, g) = (row_mut(out, map, row), up.g.row(row));
        // SAFETY: rows and coefficients are checked, blocks lie inside them.
        unsafe {
            let z = norm.as_ref().map_or(g, |n| n.z.row(row));
            match (up.y.map(|y| y.row(row)), &norm) {
                (Some(y), Some(n)) => blocks!(map, |i, c| {
                    put::<S>(add, to.add(i), normed::<S>(n, z, i, c, S::gate(S::load(g.add(i)), S::load(y.add(i)))));
                }),
                (Some(y), None) => {
                    blocks!(map, |i, _c| put::<S>(add, to.add(i), S::gate(S::load(g.add(i)), S::load(y.add(i)))))
                }
                (None, Some(n)) => {
                    blocks!(map, |i, c| put::<S>(add, to.add(i), normed::<S>(n, z, i, c, S::load(g.add(i)))))
                }
                (None, None) => blocks!(map, |i, _c| put::<S>(add, to.add(i), S::load(g.add(i)))),
            }
        }
    }
}

#[inline(always)]
unsafe fn normed<S: Simd>(n: &NormGrad<'_>, z: *const f32, i: usize, c: usize, g: S::V) -> S::V {
    // SAFETY: the caller has checked the row and the coefficients.
    unsafe {
        let deviation = S::sub(S::load(z.add(i)), S::load(n.mean.as_ptr().add(c)));
        let centred = S::sub(g, S::load(n.offset.as_ptr().add(c)));
        let along = S::mul(deviation, S::load(n.slope.as_ptr().add(c)));
        S::mul(S::load(n.scale.as_ptr().add(c)), S::sub(centred, along))
    }
}

per_isa! {
    /// Zeroes the gradient where the rectified output `y` is not positive.
    gate_in_place = gate_in_place_body(y: View<'_>, g: &mut [f32], map: &Map)
}

#[inline(always)]
unsafe fn gate_in_place_body<S: Simd>(y: View<'_>, g: &mut [f32], map: &Map) {
    check(map, &[y.map], &[]);
    for row in 0..map.h {
        let (g, y) = (row_mut(g, map, row), y.row(row));
        // SAFETY: rows are checked, blocks lie inside them.
        unsafe { blocks!(map, |i, _c| S::store(g.add(i), S::gate(S::load(g.add(i)), S::load(y.add(i))))) }
    }
}

per_isa! {
    /// Sum of each channel over a sample, `out[..cp]`.
    channel_sums = channel_sums_body(g: View<'_>, out: &mut [f64])
}

#[inline(always)]
unsafe fn channel_sums_body<S: Simd>(g: View<'_>, out: &mut [f64]) {
    check(g.map, &[], &[]);
    for channel in (0..g.map.cp).step_by(16) {
        // SAFETY: rows are checked, and blocks lie inside them.
        let (sums, _) =
            unsafe { sum_block!(S, g.map, channel, |y| let from = g.row(y), |i| (S::load(from.add(i)), S::zero())) };
        out[channel..][..16].copy_from_slice(&sums);
    }
}
