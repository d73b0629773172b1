//! Element-wise passes over one sample: statistics, affine + add + rectify, and their gradients.
//!
//! Everything goes by blocks of sixteen channels. Sums run over a row in f32 and over rows in f64.

use super::map::Map;
use crate::nn::kernels::simd::{Simd, per_isa};

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

/// Sums two values of every channel over a sample into `$sums` and `$products` (none where it is empty): `$setup` names
/// the row's pointers, `$pair` gives the values at float `$i` of the row, sixteen of them from channel `$c`. Four blocks
/// of channels go side by side where they can, so that memory is read in its order.
macro_rules! sum_rows {
    ($S:ty, $map:expr, $sums:expr, $products:expr, |$y:ident| $setup:stmt, |$i:ident, $c:ident| $pair:expr) => {{
        let (sums, products): (&mut [f64], &mut [f64]) = ($sums, $products);
        sums.fill(0.0);
        products.fill(0.0);
        for $y in 0..$map.h {
            $setup
            if $map.cp.is_multiple_of(64) {
                sum_rows!(@ 4, $S, $map, sums, products, |$i, $c| $pair);
            } else {
                sum_rows!(@ 1, $S, $map, sums, products, |$i, $c| $pair);
            }
        }
    }};
    (@ $blocks:literal, $S:ty, $map:expr, $sums:ident, $products:ident, |$i:ident, $c:ident| $pair:expr) => {
        for first in (0..$map.cp).step_by(16 * $blocks) {
            let mut all = [(<$S>::zero(), <$S>::zero()); $blocks];
            for x in 0..$map.w {
                for b in 0..$blocks {
                    let $c = first + 16 * b;
                    let $i = x * $map.cp + $c;
                    let (u, v) = $pair;
                    all[b] = (<$S>::add(all[b].0, u), <$S>::add(all[b].1, v));
                }
            }
            for (b, (s, q)) in all.into_iter().enumerate() {
                add_lanes::<$S>(s, $sums, first + 16 * b);
                add_lanes::<$S>(q, $products, first + 16 * b);
            }
        }
    };
}

/// Adds sixteen lanes to those of `sums` from `at`, if there are any.
#[inline(always)]
unsafe fn add_lanes<S: Simd>(v: S::V, sums: &mut [f64], at: usize) {
    let mut lanes = [0.0f32; 16];
    // SAFETY: sixteen writable values; the instruction set is enabled.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    if let Some(sums) = sums.get_mut(at..at + 16) {
        sums.iter_mut().zip(lanes).for_each(|(sum, lane)| *sum += f64::from(lane));
    }
}

per_isa! {
    /// Mean and sum of squared deviations of each channel of a sample: `out[..cp]`, `out[cp..2·cp]`.
    stats = stats_body(z: View<'_>, out: &mut [f64])
}

#[inline(always)]
unsafe fn stats_body<S: Simd>(z: View<'_>, out: &mut [f64]) {
    let (n, cp) = (z.map.pixels() as f64, z.map.cp);
    check(z.map, &[], &[]);
    let (means, squares) = out[..2 * cp].split_at_mut(cp);
    let first = &z.data[z.map.at(0, 0)..][..cp];
    // Deviations from the first pixel, so that squares do not cancel.
    // SAFETY: rows are checked, and blocks lie inside them.
    unsafe {
        sum_rows!(S, z.map, means, squares, |y| let from = z.row(y), |i, c| {
            let d = S::sub(S::load(from.add(i)), S::load(first.as_ptr().add(c)));
            (d, S::mul(d, d))
        });
    }
    for ((mean, squares), &shift) in means.iter_mut().zip(squares).zip(first) {
        let sum = *mean;
        *mean = f64::from(shift) + sum / n;
        *squares -= sum * sum / n;
    }
}

/// A summand of a fused pass.
#[derive(Clone, Copy)]
pub(super) struct Summand<'a> {
    /// Its values.
    pub z: View<'a>,
    /// Scale and shift of each channel, if batch norm stands before.
    pub affine: Option<(&'a [f32], &'a [f32])>,
}

per_isa! {
    /// `out = relu?(Σ scale·z + shift)` over one or two terms.
    fuse = fuse_body(terms: &[Summand<'_>], relu: bool, out: &mut [f32], map: &Map)
}

#[inline(always)]
unsafe fn fuse_body<S: Simd>(terms: &[Summand<'_>], relu: bool, out: &mut [f32], map: &Map) {
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

/// The gradient of a fused pass's output.
#[derive(Clone, Copy)]
pub(super) struct Upstream<'a> {
    /// Gradient.
    pub g: View<'a>,
    /// Where the output was rectified.
    pub gate: Gate<'a>,
}

/// Where a gradient passes.
#[derive(Clone, Copy)]
pub(super) enum Gate<'a> {
    /// Everywhere.
    Open,
    /// Where the rectified output is positive.
    Output(View<'a>),
    /// Where the only term is positive, computed again: less to read than the output.
    Summand(Summand<'a>),
}

impl Gate<'_> {
    /// One that was computed from this pass's maps.
    fn check(&self, map: &Map) {
        match self {
            Gate::Open => {}
            Gate::Output(y) => check(map, &[y.map], &[]),
            Gate::Summand(t) => {
                let (scale, shift) = t.affine.unwrap_or((&[], &[]));
                check(map, &[t.z.map], &[scale, shift]);
            }
        }
    }
}

per_isa! {
    /// Sums over a sample of the gated gradient `g` and of `g·(z − mean)`: `out[..cp]`, `out[cp..2·cp]`.
    sums = sums_body(up: Upstream<'_>, z: View<'_>, mean: &[f32], out: &mut [f64])
}

#[inline(always)]
unsafe fn sums_body<S: Simd>(up: Upstream<'_>, z: View<'_>, mean: &[f32], out: &mut [f64]) {
    let map = z.map;
    check(map, &[up.g.map], &[mean]);
    up.gate.check(map);
    let (sums, products) = out[..2 * map.cp].split_at_mut(map.cp);
    // SAFETY: rows and coefficients are checked, and blocks lie inside them.
    unsafe {
        macro_rules! pair {
            ($g:expr, $z:expr, $c:ident) => {{
                let g = $g;
                (g, S::mul(g, S::sub($z, S::load(mean.as_ptr().add($c)))))
            }};
        }
        match up.gate {
            Gate::Output(y) => {
                sum_rows!(S, map, sums, products, |r| let (z, g, y) = (z.row(r), up.g.row(r), y.row(r)), |i, c| {
                    pair!(S::gate(S::load(g.add(i)), S::load(y.add(i))), S::load(z.add(i)), c)
                });
            }
            Gate::Summand(Summand { z: t, affine: Some(affine) }) => {
                sum_rows!(S, map, sums, products, |r| let (z, g, t) = (z.row(r), up.g.row(r), t.row(r)), |i, c| {
                    pair!(S::gate(S::load(g.add(i)), self::affine::<S>(t, i, affine, c)), S::load(z.add(i)), c)
                });
            }
            _ => sum_rows!(S, map, sums, products, |r| let (z, g) = (z.row(r), up.g.row(r)), |i, c| {
                pair!(S::load(g.add(i)), S::load(z.add(i)), c)
            }),
        }
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
    check(map, &[up.g.map], &[]);
    up.gate.check(map);
    if let Some(n) = &norm {
        check(map, &[n.z.map], &[n.scale, n.offset, n.mean, n.slope]);
    }
    for row in 0..map.h {
        let (to, g) = (row_mut(out, map, row), up.g.row(row));
        // SAFETY: rows and coefficients are checked, blocks lie inside them.
        unsafe {
            let z = norm.as_ref().map_or(g, |n| n.z.row(row));
            macro_rules! write {
                (|$i:ident, $c:ident| $gated:expr) => {
                    match &norm {
                        Some(n) => blocks!(map, |$i, $c| put::<S>(add, to.add($i), normed::<S>(n, z, $i, $c, $gated))),
                        None => blocks!(map, |$i, $c| put::<S>(add, to.add($i), $gated)),
                    }
                };
            }
            match up.gate {
                Gate::Output(y) => {
                    let y = y.row(row);
                    write!(|i, c| S::gate(S::load(g.add(i)), S::load(y.add(i))));
                }
                Gate::Summand(Summand { z: t, affine: Some(s) }) => {
                    let t = t.row(row);
                    write!(|i, c| S::gate(S::load(g.add(i)), affine::<S>(t, i, s, c)));
                }
                _ => write!(|i, c| S::load(g.add(i))),
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
    let sums = &mut out[..g.map.cp];
    // SAFETY: rows are checked, and blocks lie inside them.
    unsafe {
        sum_rows!(S, g.map, sums, &mut [], |y| let from = g.row(y), |i, _c| (S::load(from.add(i)), S::zero()));
    }
}
