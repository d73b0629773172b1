//! Attention of one head: scores, their softmax and the mix of values, eight queries at a time.
//!
//! Keys are turned once into panels; queries and values are read where they lie. Each score and each output is one sum
//! in the order of the columns and of the keys. What no query of the eight may see is not computed.

use std::ptr::null;

use super::block::{Columns, tiles};
use super::curves;
use super::dense::Rows;
use super::panels::{lanes, places, turn_body};
use super::simd::{Isa, Simd, per_isa};
use super::spare::Spare;

/// Queries that share a pass over the keys.
pub(super) const QUERIES: usize = 8;

/// Rows of `dim` values of one head, `stride` apart, in a slice that begins with the first.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a> {
    /// Where they lie.
    pub values: &'a [f32],
    /// Values from one row to the next.
    pub stride: usize,
    /// Rows.
    pub count: usize,
}

impl Tokens<'_> {
    pub(super) fn rows(&self, dim: usize) -> Rows {
        let last = self.count.saturating_sub(1) * self.stride;
        assert!(self.count == 0 || self.values.len() >= last + dim, "attention: too few values");
        Rows { at: self.values.as_ptr(), stride: self.stride, count: self.count }
    }
}

/// One head.
#[derive(Clone, Copy, Debug)]
pub struct Head<'a> {
    /// Queries; they are the last of the tokens where the head is causal.
    pub q: Tokens<'a>,
    /// Keys.
    pub k: Tokens<'a>,
    /// Values.
    pub v: Tokens<'a>,
    /// Values of a row.
    pub dim: usize,
    /// Whether a query sees only tokens up to itself.
    pub causal: bool,
    /// Keys at the start that nobody sees.
    pub hidden: usize,
}

/// `softmax(q kᵀ / √dim) v`, `(queries, dim)`; a query that sees nothing gets 0.
///
/// # Panics
/// When lengths disagree.
pub fn attend(head: &Head<'_>, out: &mut [f32]) {
    attend_with(Isa::detect(), head, out);
}

fn attend_with(isa: Isa, head: &Head<'_>, out: &mut [f32]) {
    let (q, k, v) = (head.q.rows(head.dim), head.k.rows(head.dim), head.v.rows(head.dim));
    assert!(k.count == v.count && out.len() == q.count * head.dim, "attention: lengths");
    assert!(!head.causal || q.count <= k.count, "attention: more queries than tokens");
    if out.is_empty() || k.count == 0 {
        return out.fill(0.0);
    }
    // SAFETY: `isa` is this machine's; the rows are in their slices.
    unsafe { kernel(isa, head, q, k, v, out) }
}

per_isa! {
    /// See [`attend`]. Contract: `q`, `k` and `v` have their rows of `head.dim` readable values.
    kernel = body(head: &Head<'_>, q: Rows, k: Rows, v: Rows, out: &mut [f32])
}

#[inline(always)]
unsafe fn body<S: Simd>(head: &Head<'_>, q: Rows, k: Rows, v: Rows, out: &mut [f32]) {
    let (dim, pitch) = (head.dim, lanes(k.count));
    let mut spare = Spare::take(pitch * (dim + QUERIES));
    let (keys, scores) = spare.split_at_mut(pitch * dim);
    let mut rest = &mut keys[..];
    for p in places(k.count) {
        let (panel, tail) = rest.split_at_mut(p.lanes * dim);
        // SAFETY: the place's rows are in `k`, its lanes in the panel.
        unsafe { turn_body::<S>(Rows { at: k.at.add(p.first * k.stride), count: p.count, ..k }, dim, panel, p.lanes) };
        rest = tail;
    }
    for (block, out) in out.chunks_mut(QUERIES * dim).enumerate() {
        let (first, count) = (block * QUERIES, out.len() / dim);
        let end = |i: usize| if head.causal { k.count - q.count + i + 1 } else { k.count };
        let most = end(first + count - 1);
        // SAFETY: `count` queries from `first` on exist; `scores` has a row of `pitch` for each.
        unsafe { score::<S>(Rows { at: q.at.add(first * q.stride), count, ..q }, keys, dim, k.count, most, scores) };
        for (i, row) in scores.chunks_exact_mut(pitch).take(count).enumerate() {
            let last = end(first + i);
            let seen = head.hidden.min(last)..last;
            row[..seen.start].fill(0.0);
            row[last..most].fill(0.0);
            if !seen.is_empty() {
                // SAFETY: the instruction set is enabled.
                unsafe { curves::softmax_body::<S>(&mut row[seen], 1.0 / (dim as f32).sqrt()) };
            }
        }
        out.fill(0.0);
        // SAFETY: `v` has `most` rows of `dim`, `scores` and `out` a row for each query.
        unsafe { mix::<S>(scores.as_ptr(), pitch, Rows { count: most, ..v }, dim, out) };
    }
}

/// Products of the queries with the panels of the first `most` of `all` keys.
#[inline(always)]
pub(super) unsafe fn score<S: Simd>(q: Rows, keys: &[f32], dim: usize, all: usize, most: usize, scores: &mut [f32]) {
    let pitch = lanes(all);
    let (mut panel, mut lane) = (keys.as_ptr(), 0);
    for p in places(all).take_while(|p| p.first < most) {
        let x = Columns { at: panel, step: p.lanes, vectors: p.lanes / 16, columns: dim, ahead: null() };
        let mut i = 0;
        while i < q.count {
            // SAFETY: the panel has its lanes for each column; lanes before and of this panel are within the pitch.
            unsafe {
                let sums = scores.as_mut_ptr().add(i * pitch + lane);
                (0..q.count - i).for_each(|j| std::ptr::write_bytes(sums.add(j * pitch), 0, p.lanes));
                i += tiles::<S>(x, q.at.add(i * q.stride), q.stride, sums, pitch, q.count - i);
            }
        }
        // SAFETY: the next panel begins, or `keys` ends, there.
        panel = unsafe { panel.add(p.lanes * dim) };
        lane += p.lanes;
    }
}

/// `out[i] += Σ_j p[i][j] v[j]`.
#[inline(always)]
pub(super) unsafe fn mix<S: Simd>(p: *const f32, pitch: usize, v: Rows, dim: usize, out: &mut [f32]) {
    let (count, whole) = (out.len() / dim, dim / 16 * 16);
    for at in (0..whole).step_by(32) {
        let vectors = ((whole - at) / 16).min(2);
        let mut i = 0;
        while i < count {
            // SAFETY: rows of `v` and of `out` have `dim` values, of which `16·vectors` begin at `at`.
            unsafe {
                let x = Columns { at: v.at.add(at), step: v.stride, vectors, columns: v.count, ahead: null() };
                let sums = out.as_mut_ptr().add(i * dim + at);
                i += tiles::<S>(x, p.add(i * pitch), pitch, sums, dim, count - i);
            }
        }
    }
    for i in 0..count {
        for d in whole..dim {
            for j in 0..v.count {
                // SAFETY: as above.
                out[i * dim + d] += unsafe { *p.add(i * pitch + j) * *v.at.add(j * v.stride + d) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wave(n: usize, step: f32) -> Vec<f32> {
        (0..n).map(|i| (i as f32 * step + 0.3).sin()).collect()
    }

    /// In double precision, from the definition.
    fn plain(h: &Head<'_>) -> Vec<f64> {
        let at = |t: &Tokens<'_>, i: usize, d: usize| f64::from(t.values[i * t.stride + d]);
        let one = |i: usize| {
            let last = if h.causal { h.k.count - h.q.count + i + 1 } else { h.k.count };
            let keys: Vec<usize> = (h.hidden.min(last)..last).collect();
            let dot = |j: &usize| (0..h.dim).map(|d| at(&h.q, i, d) * at(&h.k, *j, d)).sum::<f64>();
            let raised: Vec<f64> = keys.iter().map(|j| (dot(j) / (h.dim as f64).sqrt()).exp()).collect();
            let all: f64 = raised.iter().sum();
            (0..h.dim).map(move |d| keys.iter().zip(&raised).map(|(j, e)| e * at(&h.v, *j, d) / all).sum()).collect()
        };
        (0..h.q.count).flat_map(|i| -> Vec<f64> { one(i) }).collect()
    }

    #[test]
    fn every_instruction_set_gives_the_definition_with_and_without_a_past_padding_and_strides() {
        for (queries, tokens, dim, hidden) in
            [(1, 1, 1, 0), (50, 50, 64, 0), (9, 30, 20, 3), (65, 65, 48, 7), (17, 120, 33, 0), (10, 10, 6, 4)]
        {
            for (causal, gap) in [(false, 0), (true, 5)] {
                let stride = dim + gap;
                let [q, k, v] = [(queries, 0.7), (tokens, 0.9), (tokens, 0.4)].map(|(n, s)| wave(n * stride, s));
                let rows = |values, count| Tokens { values, stride, count };
                let (q, k, v) = (rows(&q, queries), rows(&k, tokens), rows(&v, tokens));
                let head = Head { q, k, v, dim, causal, hidden };
                let want = plain(&head);
                for isa in Isa::available() {
                    let mut out = vec![9.0; queries * dim];
                    attend_with(isa, &head, &mut out);
                    for (i, (got, want)) in out.iter().zip(&want).enumerate() {
                        let what = format!("{queries} of {tokens}, {dim}, causal {causal}, {isa}, {i}");
                        assert!((f64::from(*got) - want).abs() < 3e-6, "{what}: {got} and {want}");
                    }
                }
            }
        }
    }
}
