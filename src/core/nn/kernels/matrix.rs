//! Products of activations with frozen matrices: `y = x Wᵀ + b`, weights `(out, in)` read where they lie.
//!
//! Few rows are scalar products, each weight read once: the memory's speed is the bound. Many rows are turned into
//! panels, as many at a time as stay in the second-level cache, and each weight is broadcast against a panel: no copy of
//! the weights is made. Every output is one sum in one order, which depends on whether there are at most [`FEW`] rows, but
//! on neither its neighbours nor the number of threads; rows or outputs are shared out over the current rayon pool.

use std::ops::Range;

use rayon::prelude::*;

use super::block::{BLOCK, block};
use super::curves;
use super::dense::{self, Rows};
use super::panels::Panels;
pub use super::panels::groups;
use super::simd::Isa;

/// Most rows that are taken as scalar products.
pub const FEW: usize = 8;

/// Fewest weights for which many rows are better off here than in a general product that copies the weights.
const LARGE: usize = 1 << 16;

/// Values of the panels that stay in the second-level cache, beside a block of weights.
const GROUP: usize = 160 << 10;

/// Whether products of so many rows with such a matrix are better off here than in a general matrix product.
pub fn serves(rows: usize, inputs: usize, outputs: usize) -> bool {
    inputs > 0 && (rows <= 4 || inputs * outputs >= LARGE)
}

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

/// What becomes of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// It is written.
    Write,
    /// It is added to what is there.
    Add,
    /// It goes through [`curves::quick_gelu`].
    QuickGelu,
}

/// Who computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spread {
    /// The caller's thread alone.
    Here,
    /// The current rayon pool.
    Pool,
}

impl Spread {
    fn threads(self) -> usize {
        match self {
            Spread::Here => 1,
            Spread::Pool => rayon::current_num_threads(),
        }
    }
}

/// One product of several with the same rows.
#[derive(Debug)]
pub struct MatrixProduct<'a> {
    /// With what.
    pub matrix: Matrix<'a>,
    /// `(rows, outputs)`.
    pub to: &'a mut [f32],
    /// How it gets there.
    pub after: After,
}

/// Where the blocks of one product are written; they are disjoint.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: every task writes its own block of rows and outputs, and reads nothing of another's.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// One block of work: which product, where it is written, its outputs.
#[derive(Clone, Copy)]
struct Task<'a> {
    matrix: Matrix<'a>,
    to: Out,
    after: After,
    outputs: usize,
    from: usize,
    until: usize,
}

impl<'a> Task<'a> {
    /// The blocks of one product. `to` has room for every row's outputs, initialised for [`After::Add`].
    fn all(matrix: Matrix<'a>, to: *mut f32, after: After) -> impl Iterator<Item = Self> {
        let (to, outputs) = (Out(to), matrix.outputs());
        let block = move |from| Task { matrix, to, after, outputs, from, until: outputs.min(from + BLOCK) };
        (0..outputs).step_by(BLOCK).map(block)
    }
}

fn check(x: &[f32], inputs: usize, matrix: &Matrix<'_>) -> usize {
    assert!(inputs > 0 && x.len().is_multiple_of(inputs), "rows of {inputs} in {} values", x.len());
    let outputs = matrix.outputs();
    assert!(matrix.inputs == inputs && matrix.weight.len() == outputs * inputs, "a matrix of other columns");
    assert!(matrix.bias.is_none_or(|b| b.len() == outputs), "a bias of another length");
    x.len() / inputs * outputs
}

/// `x Wᵀ + b` of rows `x` (`inputs` values each) with several matrices of as many columns: `(rows, out)` each.
///
/// # Panics
/// When lengths disagree.
pub fn products(x: &[f32], inputs: usize, matrices: &[Matrix<'_>]) -> Vec<Vec<f32>> {
    let mut results: Vec<Vec<f32>> = matrices.iter().map(|m| Vec::with_capacity(check(x, inputs, m))).collect();
    let tasks = results.iter_mut().zip(matrices).flat_map(|(y, &m)| Task::all(m, y.as_mut_ptr(), After::Write));
    share(Isa::detect(), x, inputs, &tasks.collect::<Vec<_>>(), Spread::Pool);
    for (result, matrix) in results.iter_mut().zip(matrices) {
        // SAFETY: the tasks wrote every output of every row.
        unsafe { result.set_len(check(x, inputs, matrix)) };
    }
    results
}

/// As [`products`], into the places of `wanted`.
///
/// # Panics
/// When lengths disagree.
pub fn run(x: &[f32], inputs: usize, wanted: &mut [MatrixProduct<'_>], spread: Spread) {
    let mut tasks = Vec::new();
    for one in wanted {
        assert!(one.to.len() == check(x, inputs, &one.matrix), "product: lengths");
        tasks.extend(Task::all(one.matrix, one.to.as_mut_ptr(), one.after));
    }
    share(Isa::detect(), x, inputs, &tasks, spread);
}

/// `y[n][i] = Σ_r p[n][r]·v[r][i]`: a few weighted sums of the rows of `v`, each row in its turn. `y` has `sums` rows.
///
/// # Panics
/// When lengths disagree.
pub fn mix(p: &[f32], v: &[f32], y: &mut [f32], sums: usize) {
    let (rows, width) = (p.len() / sums.max(1), y.len() / sums.max(1));
    assert!(p.len() == sums * rows && y.len() == sums * width && v.len() == rows * width, "mix: lengths");
    let gy = Rows { at: p.as_ptr(), stride: rows, count: sums };
    if rows == 0 {
        return y.fill(0.0);
    }
    // SAFETY: `detect` names an instruction set of this machine; the lengths are checked above.
    unsafe { dense::input_gradient(Isa::detect(), gy, v, width, rows, false, y.as_mut_ptr(), width) }
}

/// `y[n][i] += Σ_r p[n][r]·v[r][i]` where `v` has few rows, of `width` values: many rows of `y`, by the current rayon pool.
///
/// # Panics
/// When lengths disagree.
pub fn add_mixed(p: &[f32], v: &[f32], y: &mut [f32], width: usize) {
    let (rows, sums) = (v.len() / width.max(1), y.len() / width.max(1));
    assert!(v.len() == rows * width && y.len() == sums * width && p.len() == sums * rows, "mix: lengths");
    if p.is_empty() || width == 0 {
        return;
    }
    const SOME: usize = 32;
    let one = |(p, y): (&[f32], &mut [f32])| {
        let gy = Rows { at: p.as_ptr(), stride: rows, count: p.len() / rows };
        // SAFETY: `detect` names an instruction set of this machine; the lengths are checked above.
        unsafe { dense::input_gradient(Isa::detect(), gy, v, width, rows, true, y.as_mut_ptr(), width) }
    };
    match rayon::current_num_threads() {
        1 => one((p, y)),
        _ => p.par_chunks(SOME * rows).zip(y.par_chunks_mut(SOME * width)).for_each(one),
    }
}

/// All tasks of rows `x`. Many rows are shared out by groups, each turned where it is used; fewer by outputs.
fn share(isa: Isa, x: &[f32], inputs: usize, tasks: &[Task<'_>], spread: Spread) {
    let (rows, threads) = (x.len() / inputs, spread.threads());
    if rows > FEW
        && let Some(groups) = groups(rows, GROUP / inputs, threads)
    {
        let one = |rows: &Range<usize>| {
            let panels = Panels::of(isa, &x[rows.start * inputs..rows.end * inputs], inputs, false);
            tasks.iter().for_each(|task| wide(isa, &panels, rows.start, task));
        };
        return match threads {
            1 => groups.iter().for_each(one),
            _ => groups.par_iter().for_each(one),
        };
    }
    let panels = (rows > FEW).then(|| Panels::of(isa, x, inputs, true));
    let one = |task: &Task<'_>| match &panels {
        Some(panels) => wide(isa, panels, 0, task),
        None => thin(isa, x, rows, task),
    };
    match threads {
        1 => tasks.iter().for_each(one),
        _ => tasks.par_iter().for_each(one),
    }
}

/// A task for the rows of `panels`, the first of which is row `first`.
fn wide(isa: Isa, panels: &Panels, first: usize, task: &Task<'_>) {
    let inputs = task.matrix.inputs;
    for (i, (place, panel)) in panels.each().enumerate() {
        // The first two panels ask for the next block's weights, half each: they come from far.
        let next = task.matrix.weight.as_ptr().wrapping_add((task.until + i * BLOCK / 2) * inputs);
        let ahead = if i < 2 && task.until < task.outputs { next } else { std::ptr::null() };
        // SAFETY: `isa` is this machine's; the panel has the place's lanes, `to` all rows; tasks write disjoint blocks.
        unsafe {
            let to = (task.to.0.add(first * task.outputs), task.outputs);
            block(isa, panel, place, task.matrix, to, task.after, task.from..task.until, ahead)
        };
    }
}

/// A task for at most [`FEW`] rows.
fn thin(isa: Isa, x: &[f32], rows: usize, task: &Task<'_>) {
    let Matrix { weight, inputs, bias } = task.matrix;
    let x = Rows { at: x.as_ptr(), stride: inputs, count: rows };
    let dots = |weight: &[f32], bias: Option<&[f32]>, to: *mut f32, stride: usize, outs: Range<usize>| {
        // SAFETY: `isa` is this machine's; `x` has `rows` rows, `to` has room for them; tasks write disjoint columns.
        unsafe { dense::product(isa, x, weight, inputs, inputs.max(1), bias, to, stride, outs) }
    };
    if task.after == After::Write {
        return dots(weight, bias, task.to.0, task.outputs, task.from..task.until);
    }
    let (count, mut made) = (task.until - task.from, [0.0f32; FEW * BLOCK]);
    let (weight, bias) = (&weight[task.from * inputs..task.until * inputs], bias.map(|b| &b[task.from..task.until]));
    dots(weight, bias, made.as_mut_ptr(), count, 0..count);
    for (r, made) in made[..rows * count].chunks_exact_mut(count).enumerate() {
        // SAFETY: row r has its outputs at `to`, initialised where they are added to; tasks write disjoint columns.
        let to = unsafe { std::slice::from_raw_parts_mut(task.to.0.add(r * task.outputs + task.from), count) };
        match task.after {
            After::Add => to.iter_mut().zip(made.iter()).for_each(|(y, v)| *y += v),
            _ => {
                curves::quick_gelu(made);
                to.copy_from_slice(made);
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
            (49, 1030, 20),
            (400, 900, 65),
        ] {
            let (x, w, b) = (wave(rows * inputs, 0.7), wave(outputs * inputs, 0.9), wave(outputs, 0.4));
            for bias in [None, Some(b.as_slice())] {
                let m = Matrix { weight: &w, inputs, bias };
                let want = plain(&x, m);
                let what = format!("{rows}×{inputs}×{outputs}");
                near(&products(&x, inputs, &[m])[0], &want, &what);
                for isa in Isa::available() {
                    for after in [After::Write, After::Add, After::QuickGelu] {
                        let want: Vec<f64> = match after {
                            After::Write => want.clone(),
                            After::Add => want.iter().map(|y| y + 9.0).collect(),
                            After::QuickGelu => want.iter().map(|y| y / (1.0 + (-1.702 * y).exp())).collect(),
                        };
                        let mut y = vec![9.0; rows * outputs];
                        let tasks: Vec<Task> = Task::all(m, y.as_mut_ptr(), after).collect();
                        share(isa, &x, inputs, &tasks, Spread::Here);
                        near(&y, &want, &format!("{what} {isa} {after:?}"));
                    }
                }
            }
        }
    }

    #[test]
    fn a_row_gives_the_same_bytes_alone_or_among_others_and_on_any_number_of_threads() {
        let (inputs, outputs) = (75, 200);
        let (x, w) = (wave(700 * inputs, 0.7), wave(outputs * inputs, 0.9));
        let m = Matrix { weight: &w, inputs, bias: None };
        let run = |rows: usize, threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| products(&x[..rows * inputs], inputs, &[m, m])).swap_remove(1)
        };
        let (few, many) = (run(8, 1), run(113, 1));
        assert_eq!(few, run(8, 3));
        assert_eq!(many, run(113, 3));
        // So many rows are shared out by groups.
        let most = run(700, 1);
        assert_eq!(most, run(700, 3));
        assert_eq!(many, most[..113 * outputs]);
        assert_eq!(run(1, 2), few[..outputs]);
        assert_eq!(run(40, 2), many[..40 * outputs]);
    }

    #[test]
    fn a_mix_is_the_weighted_sum_of_rows() {
        let (p, v) = (wave(13, 0.7), wave(13 * 21, 0.9));
        let mut y = vec![9.0; 21];
        mix(&p, &v, &mut y, 1);
        let mut three = vec![9.0; 3 * 21];
        mix(&wave(3 * 13, 0.7), &v, &mut three, 3);
        assert_eq!(three[..21], y);
        let p = wave(70 * 13, 0.7);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let mut many = vec![0.0; 70 * 21];
            pool.install(|| add_mixed(&p, &v, &mut many, 21));
            many
        };
        assert_eq!(run(1)[..3 * 21], three);
        assert_eq!(run(1), run(3));
        for (at, got) in three.iter().enumerate() {
            let (n, i) = (at / 21, at % 21);
            let one = |r: usize| f64::from(wave(3 * 13, 0.7)[n * 13 + r]) * f64::from(v[r * 21 + i]);
            let want: f64 = (0..13).map(one).sum();
            assert!((f64::from(*got) - want).abs() < 1e-5, "{got} and {want}");
        }
    }
}
