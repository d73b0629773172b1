//! Products of activations with frozen matrices: `y = x Wᵀ + b`, weights `(out, in)` read where they lie.
//!
//! Few rows are scalar products, each weight read once: the memory's speed is the bound. Many rows are turned once into
//! panels, sixteen rows to a register, and each weight is broadcast against a panel: no copy of the weights is made.
//! Every output is one sum in one order that depends on neither its neighbours nor the number of threads; outputs are
//! shared out in blocks over the current rayon pool.

use std::cell::Cell;

use rayon::prelude::*;

use super::dense::{self, Rows};
use super::simd::{Isa, Simd, per_isa};

/// Most rows that are taken as scalar products.
pub const FEW: usize = 8;

/// Fewest weights for which many rows are better off here than in a general product that copies the weights.
const LARGE: usize = 1 << 16;

/// Whether products of so many rows with such a matrix are better off here than in a general matrix product.
pub fn serves(rows: usize, inputs: usize, outputs: usize) -> bool {
    inputs > 0 && (rows <= 4 || inputs * outputs >= LARGE)
}

/// Outputs of a block of work.
const BLOCK: usize = 64;

/// Columns of a panel that stay in the first-level cache while a block's outputs pass.
const SLICE: usize = 384;

/// Rows of a whole panel: three registers.
const PANEL: usize = 48;

/// A matrix `(out, in)`, row-major, and what is added to its outputs.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// The weights; `outputs · inputs` of them.
    pub weight: &'a [f32],
    /// Columns, at least 1.
    pub inputs: usize,
    /// One value an output, or nothing.
    pub bias: Option<&'a [f32]>,
}

impl Matrix<'_> {
    /// Rows.
    pub fn outputs(&self) -> usize {
        self.weight.len() / self.inputs.max(1)
    }
}

/// Where the blocks of one product are written; they are disjoint.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: every task writes its own block of outputs and reads nothing.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// One block of work: which product, where it is written, its outputs.
#[derive(Clone, Copy)]
struct Task<'a> {
    matrix: Matrix<'a>,
    to: Out,
    outputs: usize,
    from: usize,
    until: usize,
}

/// `x Wᵀ + b` of rows `x` (`inputs` values each) with several matrices of as many columns: `(rows, out)` each.
///
/// # Panics
/// When lengths disagree.
pub fn products(x: &[f32], inputs: usize, matrices: &[Matrix<'_>]) -> Vec<Vec<f32>> {
    assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows of {inputs} in {} values", x.len());
    let rows = x.len() / inputs;
    let mut results: Vec<Vec<f32>> = Vec::with_capacity(matrices.len());
    let mut tasks = Vec::new();
    for &matrix in matrices {
        let outputs = matrix.outputs();
        assert!(matrix.inputs == inputs && matrix.weight.len() == outputs * inputs, "a matrix of other columns");
        assert!(matrix.bias.is_none_or(|b| b.len() == outputs), "a bias of another length");
        let mut result: Vec<f32> = Vec::with_capacity(rows * outputs);
        let to = Out(result.as_mut_ptr());
        results.push(result);
        let block = |from| Task { matrix, to, outputs, from, until: outputs.min(from + BLOCK) };
        tasks.extend((0..outputs).step_by(BLOCK).map(block));
    }
    if rows == 0 {
        return results;
    }
    let isa = Isa::detect();
    let panels = if rows > FEW { panels(x, inputs) } else { Aligned::take(0) };
    let run = |task: &Task| match rows > FEW {
        true => wide(isa, &panels, rows, task),
        false => thin(isa, x, rows, task),
    };
    match rayon::current_num_threads() {
        1 => tasks.iter().for_each(run),
        _ => tasks.par_iter().for_each(run),
    }
    for (result, matrix) in results.iter_mut().zip(matrices) {
        // SAFETY: the tasks wrote every output of every row.
        unsafe { result.set_len(rows * matrix.outputs()) };
    }
    results
}

/// As [`products`] with one matrix, on the caller's thread alone.
pub fn product_here(x: &[f32], matrix: Matrix<'_>, y: &mut [f32]) {
    let (inputs, outputs) = (matrix.inputs, matrix.outputs());
    let rows = x.len() / inputs.max(1);
    assert!(inputs > 0 && x.len() == rows * inputs && matrix.weight.len() == outputs * inputs, "product: lengths");
    assert!(y.len() == rows * outputs && matrix.bias.is_none_or(|b| b.len() == outputs), "product: lengths");
    let (isa, task) = (Isa::detect(), Task { matrix, to: Out(y.as_mut_ptr()), outputs, from: 0, until: outputs });
    match rows {
        0 => {}
        1..=FEW => thin(isa, x, rows, &task),
        _ => {
            let panels = panels(x, inputs);
            let block = |from| Task { from, until: outputs.min(from + BLOCK), ..task };
            (0..outputs).step_by(BLOCK).for_each(|from| wide(isa, &panels, rows, &block(from)));
        }
    }
}

/// `y[i] = Σ_r p[r]·v[r][i]` with rows of `v` of the length of `y`.
pub fn mix(p: &[f32], v: &[f32], y: &mut [f32]) {
    assert!(v.len() == p.len() * y.len(), "mix: lengths");
    let gy = Rows { at: p.as_ptr(), stride: p.len(), count: 1 };
    if p.is_empty() {
        return y.fill(0.0);
    }
    // SAFETY: `detect` names an instruction set of this machine; the lengths are checked above.
    unsafe { dense::input_gradient(Isa::detect(), gy, v, y.len(), p.len(), false, y.as_mut_ptr(), y.len()) }
}

fn thin(isa: Isa, x: &[f32], rows: usize, task: &Task) {
    let Matrix { weight, inputs, bias } = task.matrix;
    let x = Rows { at: x.as_ptr(), stride: inputs, count: rows };
    // SAFETY: `isa` was detected; `x` has `rows` rows, `to` has room for them; tasks write disjoint columns.
    unsafe { dense::product(isa, x, weight, inputs, bias, task.to.0, task.outputs, task.from..task.until) }
}

fn wide(isa: Isa, panels: &Aligned, rows: usize, task: &Task) {
    let (panels, mut at) = (panels.get(), 0);
    for first in (0..rows).step_by(PANEL) {
        let count = PANEL.min(rows - first);
        let lanes = count.next_multiple_of(16);
        let panel = &panels[at..at + lanes * task.matrix.inputs];
        at += panel.len();
        // SAFETY: `isa` was detected; the panel has `lanes` rows, `to` those from `first` on; tasks write disjoint
        // columns.
        unsafe {
            block(isa, panel, lanes, task.matrix, task.to.0.add(first * task.outputs), count, task.from, task.until)
        };
    }
}

thread_local! {
    /// The last panels of a thread, for the next: fresh memory costs a page fault a page.
    static SPARE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
}

/// Values that begin on a cache line: a register then never reads from two. They hold anything finite or not.
struct Aligned {
    values: Vec<f32>,
    from: usize,
    len: usize,
}

impl Aligned {
    fn take(len: usize) -> Self {
        let mut values = SPARE.take();
        if values.len() < len + 16 {
            values = vec![0.0f32; len + 16];
        }
        let from = values.as_ptr().align_offset(64).min(16);
        Aligned { values, from, len }
    }

    fn get(&self) -> &[f32] {
        &self.values[self.from..self.from + self.len]
    }

    fn get_mut(&mut self) -> &mut [f32] {
        &mut self.values[self.from..self.from + self.len]
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        SPARE.set(std::mem::take(&mut self.values));
    }
}

/// Rows in panels: `inputs` groups of up to [`PANEL`] values, one of each row, to whole registers; lanes of no row hold
/// anything, and nobody reads their sums.
fn panels(x: &[f32], inputs: usize) -> Aligned {
    const STRIPE: usize = 64;
    let rows = x.len() / inputs;
    let padded = rows / PANEL * PANEL + (rows % PANEL).next_multiple_of(16);
    let mut out = Aligned::take(padded * inputs);
    let isa = Isa::detect();
    let turn = |(x, panel): (&[f32], &mut [f32])| {
        let lanes = panel.len() / inputs;
        // Whole squares by registers; what is left by itself.
        let (rows, whole) = (x.len() / inputs / 16 * 16, inputs / 16 * 16);
        for r in (0..rows).step_by(16) {
            // SAFETY: `isa` was detected; sixteen rows from r on and `whole` columns are in `x` and in the panel.
            unsafe { squares(isa, &x[r * inputs..], inputs, &mut panel[r..], lanes, whole) }
        }
        for from in (0..inputs).step_by(STRIPE) {
            for (r, row) in x.chunks_exact(inputs).enumerate() {
                let until = inputs.min(from + STRIPE);
                let from = if r < rows { whole.clamp(from, until) } else { from };
                let to = panel[from * lanes..].chunks_mut(lanes);
                row[from..until].iter().zip(to).for_each(|(v, group)| group[r] = *v);
            }
        }
    };
    let size = PANEL * inputs;
    match rayon::current_num_threads() {
        1 => x.chunks(size).zip(out.get_mut().chunks_mut(size)).for_each(turn),
        _ => x.par_chunks(size).zip(out.get_mut().par_chunks_mut(size)).for_each(turn),
    }
    out
}

per_isa! {
    /// The first `columns` (whole sixteens) of sixteen rows of `x`, turned. Contract: `x` and `to` hold them.
    squares = squares_body(x: &[f32], inputs: usize, to: &mut [f32], lanes: usize, columns: usize)
}

#[inline(always)]
unsafe fn squares_body<S: Simd>(x: &[f32], inputs: usize, to: &mut [f32], lanes: usize, columns: usize) {
    for i in (0..columns).step_by(16) {
        // SAFETY: the contract of `squares`.
        unsafe { S::turn(x.as_ptr().add(i), inputs, to.as_mut_ptr().add(i * lanes), lanes) };
    }
}

per_isa! {
    /// Outputs `from..until`, at most [`BLOCK`], of `count` rows that lie in a panel of `lanes` (16, 32 or 48) rows.
    /// Contract: `to` has `count` rows of the matrix' outputs, `panel` `lanes` values for each of its columns.
    block = block_body(panel: &[f32], lanes: usize, m: Matrix<'_>, to: *mut f32, count: usize, from: usize, until: usize)
}

#[inline(always)]
unsafe fn block_body<S: Simd>(
    panel: &[f32],
    lanes: usize,
    m: Matrix<'_>,
    to: *mut f32,
    count: usize,
    from: usize,
    until: usize,
) {
    let mut sums = Sums([0.0f32; BLOCK * PANEL]);
    let sums = &mut sums.0;
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
                let (w, x) = (m.weight.as_ptr().add(o * m.inputs + slice), panel.as_ptr().add(slice * lanes));
                let s = sums.as_mut_ptr().add((o - from) * lanes);
                o += tiles::<S>(x, lanes, columns, w, m.inputs, s, until - o);
            }
        }
    }
    // SAFETY: `sums` holds the block, `to` its place.
    unsafe { place::<S>(sums, lanes, to.add(from), m.outputs(), count, until - from) }
}

/// A block's sums, `lanes` for each output.
#[repr(align(64))]
struct Sums([f32; BLOCK * PANEL]);

/// The next tile of outputs, of at most `left`; gives how many.
#[inline(always)]
unsafe fn tiles<S: Simd>(
    x: *const f32,
    lanes: usize,
    columns: usize,
    w: *const f32,
    stride: usize,
    sums: *mut f32,
    left: usize,
) -> usize {
    let vectors = lanes / 16;
    // SAFETY: the caller's operands hold the tile.
    unsafe {
        match (S::ISA, vectors) {
            (Isa::Avx512, 3) if left >= 8 => tile::<S, 8, 3>(x, 48, columns, w, stride, sums),
            (Isa::Avx512, 2) if left >= 8 => tile::<S, 8, 2>(x, 32, columns, w, stride, sums),
            // Two registers or more a vector: narrower tiles fit the sixteen there are.
            _ if left >= 4 => {
                (0..vectors).for_each(|v| tile::<S, 4, 1>(x.add(16 * v), lanes, columns, w, stride, sums.add(16 * v)));
                return 4;
            }
            _ => {
                (0..vectors).for_each(|v| tile::<S, 1, 1>(x.add(16 * v), lanes, columns, w, stride, sums.add(16 * v)));
                return 1;
            }
        }
    }
    8
}

/// `O` outputs of `16·V` rows: `sums[j][lane] += Σ_i w[j][i] · x[i][lane]`, in the order of i.
#[inline(always)]
unsafe fn tile<S: Simd, const O: usize, const V: usize>(
    x: *const f32,
    lanes: usize,
    columns: usize,
    w: *const f32,
    stride: usize,
    sums: *mut f32,
) {
    // SAFETY: `x` has `columns` groups of `lanes` values, `w` O rows, `sums` O rows of `lanes`.
    unsafe {
        let mut acc = [[S::zero(); V]; O];
        for (j, row) in acc.iter_mut().enumerate() {
            for (v, sum) in row.iter_mut().enumerate() {
                *sum = S::load(sums.add(j * lanes + 16 * v));
            }
        }
        // A pointer to each row, and four columns a turn: otherwise addresses cost as much as products.
        let (mut x, mut rows) = (x, [w; O]);
        for (j, row) in rows.iter_mut().enumerate() {
            *row = w.add(j * stride);
        }
        for _ in 0..columns / 4 {
            for i in 0..4 {
                column::<S, O, V>(x.add(i * lanes), &rows, i, &mut acc);
            }
            x = x.add(4 * lanes);
            for row in &mut rows {
                *row = row.add(4);
            }
        }
        for i in 0..columns % 4 {
            column::<S, O, V>(x.add(i * lanes), &rows, i, &mut acc);
        }
        for (j, row) in acc.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                S::store(sums.add(j * lanes + 16 * v), sum);
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
    // SAFETY: the caller's panel and rows hold the column.
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

/// Writes `outputs` rows of `lanes` sums as `count` rows of outputs, `stride` apart.
#[inline(always)]
unsafe fn place<S: Simd>(sums: &[f32], lanes: usize, to: *mut f32, stride: usize, count: usize, outputs: usize) {
    let whole = outputs / 16 * 16;
    for first in (0..count).step_by(16) {
        let rows = 16.min(count - first);
        for o in (0..whole).step_by(16) {
            // SAFETY: sixteen outputs from `o` on and `rows` rows from `first` on have their place; the square holds
            // what has none.
            unsafe {
                let (from, at) = (sums.as_ptr().add(o * lanes + first), to.add(first * stride + o));
                if rows == 16 {
                    S::turn(from, lanes, at, stride);
                } else {
                    let mut square = [0.0f32; 256];
                    S::turn(from, lanes, square.as_mut_ptr(), 16);
                    for r in 0..rows {
                        std::ptr::copy_nonoverlapping(square.as_ptr().add(16 * r), at.add(r * stride), 16);
                    }
                }
            }
        }
        for r in first..first + rows {
            for o in whole..outputs {
                // SAFETY: as above.
                unsafe { *to.add(r * stride + o) = sums[o * lanes + r] };
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

    /// In double precision.
    fn plain(x: &[f32], m: Matrix<'_>) -> Vec<f64> {
        let dot = |row: &[f32], w: &[f32]| row.iter().zip(w).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let rows = x.chunks_exact(m.inputs);
        let outs = |row| {
            m.weight
                .chunks_exact(m.inputs)
                .enumerate()
                .map(move |(o, w)| dot(row, w) + m.bias.map_or(0.0, |b| f64::from(b[o])))
        };
        rows.flat_map(outs).collect()
    }

    fn near(got: &[f32], want: &[f64], what: &str) {
        assert_eq!(got.len(), want.len(), "{what}");
        for (g, w) in got.iter().zip(want) {
            assert!((f64::from(*g) - w).abs() < 2e-6 * (10.0 + w.abs()), "{what}: {g} and {w}");
        }
    }

    #[test]
    fn every_shape_on_every_instruction_set_is_the_product() {
        for (rows, inputs, outputs) in [
            (1, 64, 70),
            (1, 5, 1),
            (3, 33, 31),
            (8, 100, 65),
            (9, 7, 8),
            (16, 40, 3),
            (40, 65, 72),
            (48, 16, 9),
            (113, 200, 150),
        ] {
            let (x, w, b) = (wave(rows * inputs, 0.7), wave(outputs * inputs, 0.9), wave(outputs, 0.4));
            for bias in [None, Some(b.as_slice())] {
                let m = Matrix { weight: &w, inputs, bias };
                let want = plain(&x, m);
                let what = format!("{rows}×{inputs}×{outputs}");
                near(&products(&x, inputs, &[m])[0], &want, &what);
                let mut here = vec![9.0; rows * outputs];
                product_here(&x, m, &mut here);
                near(&here, &want, &what);
                for isa in Isa::available() {
                    let mut y = vec![9.0; rows * outputs];
                    for from in (0..outputs).step_by(BLOCK) {
                        let until = outputs.min(from + BLOCK);
                        let task = Task { matrix: m, to: Out(y.as_mut_ptr()), outputs, from, until };
                        match rows > FEW {
                            true => wide(isa, &panels(&x, inputs), rows, &task),
                            false => thin(isa, &x, rows, &task),
                        }
                    }
                    near(&y, &want, &format!("{what} {isa}"));
                }
            }
        }
    }

    #[test]
    fn a_row_gives_the_same_bytes_alone_or_among_others_and_on_any_number_of_threads() {
        let (inputs, outputs) = (75, 200);
        let (x, w) = (wave(113 * inputs, 0.7), wave(outputs * inputs, 0.9));
        let m = Matrix { weight: &w, inputs, bias: None };
        let run = |rows: usize, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| products(&x[..rows * inputs], inputs, &[m, m])).swap_remove(1)
        };
        let (few, many) = (run(8, 1), run(113, 1));
        assert_eq!(few, run(8, 3));
        assert_eq!(many, run(113, 3));
        assert_eq!(run(1, 2), few[..outputs]);
        assert_eq!(run(40, 2), many[..40 * outputs]);
    }

    #[test]
    fn a_mix_is_the_weighted_sum_of_rows() {
        let (p, v) = (wave(13, 0.7), wave(13 * 21, 0.9));
        let mut y = vec![9.0; 21];
        mix(&p, &v, &mut y);
        for (i, got) in y.iter().enumerate() {
            let want: f64 = p.iter().enumerate().map(|(r, p)| f64::from(*p) * f64::from(v[r * 21 + i])).sum();
            assert!((f64::from(*got) - want).abs() < 1e-5, "{got} and {want}");
        }
    }
}
