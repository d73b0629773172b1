//! Attention's way back for one head: the gradients of its queries, keys and values, eight queries at a time.
//!
//! With `P` the weights and `G` the gradient of what was gathered: `dV = Pᵀ G`, `dP = G Vᵀ`,
//! `dS = P ∘ (dP − rowsum(P ∘ dP)) / √dim`, `dQ = dS K`, `dK = dSᵀ Q`. The weights are computed again instead of kept, as
//! FlashAttention has it (Dao et al., 2022). What no query of the eight saw is not computed.

use super::attend::{Head, QUERIES, Tokens, mix, score};
use super::curves;
use super::dense::Rows;
use super::panels::{lanes, places, turn_body};
use super::simd::{Isa, Simd, per_isa};
use super::spare::Spare;

/// Where gradients go, `(tokens, dim)` each, without gaps.
#[derive(Debug)]
pub struct HeadGradients<'a> {
    /// Of the queries; written.
    pub q: &'a mut [f32],
    /// Of the keys; added, because several heads may share them.
    pub k: &'a mut [f32],
    /// Of the values; added.
    pub v: &'a mut [f32],
}

/// Gradients of [`attend`](super::attend::attend) from `grad`, one row for each query.
///
/// # Panics
/// When lengths disagree.
pub fn attend_back(head: &Head<'_>, grad: Tokens<'_>, to: &mut HeadGradients<'_>) {
    attend_back_with(Isa::detect(), head, grad, to);
}

fn attend_back_with(isa: Isa, head: &Head<'_>, grad: Tokens<'_>, to: &mut HeadGradients<'_>) {
    let rows = [head.q, head.k, head.v, grad].map(|t| t.rows(head.dim));
    let [q, k, v, g] = rows;
    assert!(k.count == v.count && q.count == g.count, "attention's gradients: lengths");
    assert!(!head.causal || q.count <= k.count, "attention's gradients: more queries than tokens");
    let (queries, keys) = (q.count * head.dim, k.count * head.dim);
    assert!(to.q.len() == queries && to.k.len() == keys && to.v.len() == keys, "attention's gradients: room");
    to.q.fill(0.0);
    if queries > 0 && keys > 0 {
        // SAFETY: `isa` is this machine's; the rows are in their slices, and there is room for their gradients.
        unsafe { kernel(isa, head, rows, to) }
    }
}

per_isa! {
    /// See [`attend_back`]. Contract: queries, keys, values and gradients have their rows of `head.dim` readable values,
    /// `to` has room for them.
    kernel = body(head: &Head<'_>, rows: [Rows; 4], to: &mut HeadGradients<'_>)
}

#[inline(always)]
unsafe fn body<S: Simd>(head: &Head<'_>, rows: [Rows; 4], to: &mut HeadGradients<'_>) {
    let [q, k, v, g] = rows;
    let (dim, pitch, scale) = (head.dim, lanes(k.count), 1.0 / (head.dim as f32).sqrt());
    let mut spare = Spare::take(2 * pitch * (dim + QUERIES) + QUERIES * pitch);
    let (keys, rest) = spare.split_at_mut(pitch * dim);
    let (values, rest) = rest.split_at_mut(pitch * dim);
    let (weights, rest) = rest.split_at_mut(pitch * QUERIES);
    let (slopes, turned) = rest.split_at_mut(pitch * QUERIES);
    // SAFETY: panels of all rows of keys and of values.
    unsafe {
        panels::<S>(k, dim, keys);
        panels::<S>(v, dim, values);
    }
    for first in (0..q.count).step_by(QUERIES) {
        let count = QUERIES.min(q.count - first);
        let end = |i: usize| if head.causal { k.count - q.count + first + i + 1 } else { k.count };
        let most = end(count - 1);
        let part = |of: Rows| Rows { at: of.at.wrapping_add(first * of.stride), count, ..of };
        let (q, g) = (part(q), part(g));
        // SAFETY: `count` rows from `first` on exist; both matrices have a row of `pitch` for each; keys, values and their
        // gradients have `most` rows of `dim`.
        unsafe {
            score::<S>(q, keys, dim, k.count, most, weights);
            score::<S>(g, values, dim, k.count, most, slopes);
            for (i, (p, d)) in
                weights.chunks_exact_mut(pitch).zip(slopes.chunks_exact_mut(pitch)).take(count).enumerate()
            {
                slope::<S>(&mut p[..most], &mut d[..most], head.hidden.min(end(i))..end(i), scale);
            }
            let by_q = &mut to.q[first * dim..(first + count) * dim];
            mix::<S>(slopes.as_ptr(), pitch, Rows { count: most, ..k }, dim, by_q);
            columns(slopes, pitch, most, turned);
            mix::<S>(turned.as_ptr(), QUERIES, q, dim, &mut to.k[..most * dim]);
            columns(weights, pitch, most, turned);
            mix::<S>(turned.as_ptr(), QUERIES, g, dim, &mut to.v[..most * dim]);
        }
    }
}

/// One query's scores to weights, and the gradients of its weights to those of its scores.
#[inline(always)]
unsafe fn slope<S: Simd>(p: &mut [f32], d: &mut [f32], seen: std::ops::Range<usize>, scale: f32) {
    for row in [&mut *p, &mut *d] {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
    }
    let (p, d) = (&mut p[seen.clone()], &mut d[seen]);
    if p.is_empty() {
        return;
    }
    // SAFETY: the instruction set is enabled.
    unsafe { curves::softmax_body::<S>(p, scale) };
    let mut along = [0f32; 16];
    for (d, p) in d.chunks(16).zip(p.chunks(16)) {
        along.iter_mut().zip(d.iter().zip(p)).for_each(|(a, (d, p))| *a += d * p);
    }
    let along: f32 = along.iter().sum();
    d.iter_mut().zip(&*p).for_each(|(d, p)| *d = p * (*d - along) * scale);
}

/// All rows as panels.
#[inline(always)]
unsafe fn panels<S: Simd>(x: Rows, dim: usize, to: &mut [f32]) {
    let mut rest = to;
    for p in places(x.count) {
        let (panel, tail) = rest.split_at_mut(p.lanes * dim);
        // SAFETY: the place's rows are in `x`, its lanes in the panel.
        unsafe { turn_body::<S>(Rows { at: x.at.add(p.first * x.stride), count: p.count, ..x }, dim, panel, p.lanes) };
        rest = tail;
    }
}

/// Rows of `pitch` values as columns of [`QUERIES`].
#[inline(always)]
fn columns(rows: &[f32], pitch: usize, most: usize, to: &mut [f32]) {
    for (j, column) in to.chunks_exact_mut(QUERIES).take(most).enumerate() {
        for (i, value) in column.iter_mut().enumerate() {
            *value = rows[i * pitch + j];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::kernels::attend::attend;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step + 0.3).sin()).collect()
    }

    /// From the definition, in double precision.
    fn plain(h: &Head<'_>, grad: &Tokens<'_>) -> [Vec<f64>; 3] {
        let at = |t: &Tokens<'_>, i: usize, d: usize| f64::from(t.values[i * t.stride + d]);
        let scale = 1.0 / (h.dim as f64).sqrt();
        let [mut dq, mut dk, mut dv] = [h.q.count, h.k.count, h.k.count].map(|n| vec![0f64; n * h.dim]);
        for i in 0..h.q.count {
            let last = if h.causal { h.k.count - h.q.count + i + 1 } else { h.k.count };
            let keys: Vec<usize> = (h.hidden.min(last)..last).collect();
            let dot =
                |a: &Tokens<'_>, b: &Tokens<'_>, j: usize| (0..h.dim).map(|d| at(a, i, d) * at(b, j, d)).sum::<f64>();
            let raised: Vec<f64> = keys.iter().map(|&j| (dot(&h.q, &h.k, j) * scale).exp()).collect();
            let all: f64 = raised.iter().sum();
            let by_weight: Vec<f64> = keys.iter().map(|&j| dot(grad, &h.v, j)).collect();
            let along: f64 = raised.iter().zip(&by_weight).map(|(p, d)| p / all * d).sum();
            for ((&j, p), d) in keys.iter().zip(&raised).zip(&by_weight) {
                let slope = p / all * (d - along) * scale;
                for c in 0..h.dim {
                    dq[i * h.dim + c] += slope * at(&h.k, j, c);
                    dk[j * h.dim + c] += slope * at(&h.q, i, c);
                    dv[j * h.dim + c] += p / all * at(grad, i, c);
                }
            }
        }
        [dq, dk, dv]
    }

    #[test]
    fn every_instruction_set_gives_the_definition_with_and_without_a_past_padding_and_strides() {
        for (queries, tokens, dim, hidden) in
            [(1, 1, 1, 0), (50, 50, 64, 0), (9, 30, 20, 3), (65, 65, 48, 7), (17, 120, 33, 0), (10, 10, 6, 4)]
        {
            for (causal, gap) in [(false, 0), (true, 5)] {
                let stride = dim + gap;
                let made = [(queries, 0.7), (tokens, 0.9), (tokens, 0.4), (queries, 1.1)];
                let made = made.map(|(n, step)| wave(n * stride, step));
                let counts = [queries, tokens, tokens, queries];
                let rows = |i: usize| Tokens { values: &made[i], stride, count: counts[i] };
                let head = Head { q: rows(0), k: rows(1), v: rows(2), dim, causal, hidden };
                let want = plain(&head, &rows(3));
                for isa in Isa::available() {
                    let [mut q, mut k, mut v] = [queries, tokens, tokens].map(|n| vec![0.5; n * dim]);
                    let mut to = HeadGradients { q: &mut q, k: &mut k, v: &mut v };
                    attend_back_with(isa, &head, rows(3), &mut to);
                    for (which, (got, want)) in [&q, &k, &v].into_iter().zip(&want).enumerate() {
                        let more = if which == 0 { 0.0 } else { 0.5 };
                        for (i, (got, want)) in got.iter().zip(want).enumerate() {
                            let what = format!("{queries} of {tokens}, {dim}, causal {causal}, {isa}, {which} at {i}");
                            assert!((f64::from(*got) - more - want).abs() < 8e-6, "{what}: {got} and {want}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn it_is_the_slope_of_what_attention_gathers() {
        let (n, dim) = (13, 20);
        let [q, k, v, g] = [0.7, 0.9, 0.4, 1.3].map(|step| wave(n * dim, step));
        let value = |all: &[Vec<f32>; 3]| {
            let t = |values| Tokens { values, stride: dim, count: n };
            let mut out = vec![0.0; n * dim];
            attend(&Head { q: t(&all[0]), k: t(&all[1]), v: t(&all[2]), dim, causal: true, hidden: 0 }, &mut out);
            out.iter().zip(&g).map(|(o, g)| f64::from(*o) * f64::from(*g)).sum::<f64>()
        };
        let all = [q, k, v];
        let t = |values| Tokens { values, stride: dim, count: n };
        let head = Head { q: t(&all[0]), k: t(&all[1]), v: t(&all[2]), dim, causal: true, hidden: 0 };
        let mut got = [(); 3].map(|()| vec![0.0; n * dim]);
        let [a, b, c] = &mut got;
        attend_back(&head, t(&g), &mut HeadGradients { q: a, k: b, v: c });
        for which in 0..3 {
            for i in [0, 7, 45, n * dim - 1] {
                let moved = |by: f32| {
                    let mut all = all.clone();
                    all[which][i] += by;
                    value(&all)
                };
                let slope = (moved(0.02) - moved(-0.02)) / 0.04;
                let got = f64::from(got[which][i]);
                assert!((slope - got).abs() < 2e-3, "{which} at {i}: {got}, by differences {slope}");
            }
        }
    }
}
