//! Products of gradients with frozen matrices: `gx = g W`, weights `(out, in)` read where they lie.
//!
//! Gradients are turned into panels as activations are in [`matrix`](super::matrix); of the weights a block of columns at
//! a time is turned into rows, which costs a pass over the weights, and the same blocks of work do the rest. Every value
//! is one sum in the order of the outputs, whatever the number of threads.

use rayon::prelude::*;

use super::block::{BLOCK, block};
use super::dense::Rows;
use super::matrix::{After, Matrix, MatrixProduct};
use super::panels::{Panels, turn};
use super::simd::Isa;
use super::spare::Spare;

/// Columns of a task.
const CHUNK: usize = 3 * BLOCK;

/// Rows of the matrix that are turned at once.
const SLICE: usize = 1024;

/// Where a product is written; blocks are disjoint.
#[derive(Clone, Copy)]
struct Out(*mut f32);

// SAFETY: every task writes its own columns, and reads nothing of another's.
unsafe impl Send for Out {}
// SAFETY: as above.
unsafe impl Sync for Out {}

/// `g W` of rows `g` (`outputs` values each) with several matrices of as many outputs, each `(rows, inputs)`, by the
/// current rayon pool. Biases have no part in it.
///
/// # Panics
/// When lengths disagree.
pub fn back(g: &[f32], outputs: usize, wanted: &mut [MatrixProduct<'_>]) {
    back_with(Isa::detect(), g, outputs, wanted);
}

fn back_with(isa: Isa, g: &[f32], outputs: usize, wanted: &mut [MatrixProduct<'_>]) {
    assert!(outputs > 0 && g.len().is_multiple_of(outputs), "gradients of {outputs} in {} values", g.len());
    let rows = g.len() / outputs;
    let mut tasks = Vec::new();
    for one in wanted.iter_mut() {
        let m = one.matrix;
        assert!(m.outputs() == outputs && m.weight.len() == outputs * m.inputs, "a matrix of other outputs");
        assert!(one.to.len() == rows * m.inputs, "back: lengths");
        let to = Out(one.to.as_mut_ptr());
        tasks.extend((0..m.inputs).step_by(CHUNK).map(|from| (m, to, one.after, from)));
    }
    if rows == 0 {
        return;
    }
    let threads = rayon::current_num_threads() > 1;
    let panels = Panels::of(isa, g, outputs, threads);
    let one = |&(m, to, after, from): &(Matrix<'_>, Out, After, usize)| columns(isa, &panels, m, to, after, from);
    match threads {
        true => tasks.par_iter().for_each(one),
        false => tasks.iter().for_each(one),
    }
}

/// Columns `from..` of the matrix, a chunk at most, by slices of its rows: what is turned stays in the second-level cache
/// while the panels pass.
fn columns(isa: Isa, panels: &Panels, m: Matrix<'_>, to: Out, after: After, from: usize) {
    let (outputs, width) = (m.outputs(), CHUNK.min(m.inputs - from));
    let mut turned = Spare::take(width * SLICE.min(outputs));
    for slice in (0..outputs).step_by(SLICE) {
        let length = SLICE.min(outputs - slice);
        let turned = &mut turned[..width * length];
        let x = Rows { at: m.weight[slice * m.inputs + from..].as_ptr(), stride: m.inputs, count: length };
        // SAFETY: `isa` is this machine's; each row of the matrix has `width` values from `from` on.
        unsafe { turn(isa, x, width, turned, length) };
        let part = Matrix { weight: turned, inputs: length, bias: None };
        let after = if slice == 0 { after } else { After::Add };
        for (place, panel) in panels.each() {
            let panel = &panel[slice * place.lanes..(slice + length) * place.lanes];
            for block_from in (0..width).step_by(BLOCK) {
                let outs = block_from..width.min(block_from + BLOCK);
                // SAFETY: as above; `to` has all rows of the matrix' inputs, and other tasks write other columns.
                unsafe { block(isa, panel, place, part, (to.0.add(from), m.inputs), after, outs, std::ptr::null()) };
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

    #[test]
    fn every_shape_on_every_instruction_set_is_the_product_with_any_number_of_threads() {
        for (rows, inputs, outputs) in
            [(1, 1, 1), (3, 70, 64), (9, 8, 7), (40, 72, 65), (113, 150, 200), (49, 20, 1030), (400, 65, 9)]
        {
            let (g, w) = (wave(rows * outputs, 0.7), wave(outputs * inputs, 0.9));
            let want: Vec<f64> = (0..rows * inputs)
                .map(|at| {
                    let (r, i) = (at / inputs, at % inputs);
                    (0..outputs).map(|o| f64::from(g[r * outputs + o]) * f64::from(w[o * inputs + i])).sum()
                })
                .collect();
            let run = |isa, threads, after| {
                let (mut y, mut z) = (vec![9.0; rows * inputs], vec![9.0; rows * inputs]);
                let matrix = Matrix { weight: &w, inputs, bias: None };
                let [one, two] = [&mut y, &mut z].map(|to| MatrixProduct { matrix, to, after });
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| back_with(isa, &g, outputs, &mut [one, two]));
                assert_eq!(y, z);
                y
            };
            for isa in Isa::available() {
                for (after, more) in [(After::Write, 0.0), (After::Add, 9.0)] {
                    let y = run(isa, 1, after);
                    for (got, want) in y.iter().zip(&want) {
                        let near = (f64::from(*got) - more - want).abs() < 4e-6 * (10.0 + want.abs());
                        assert!(near, "{rows}×{inputs}×{outputs} {isa} {after:?}: {got} and {want}");
                    }
                    assert_eq!(y, run(isa, 3, after), "{rows}×{inputs}×{outputs} {isa} {after:?}");
                }
            }
        }
    }
}
