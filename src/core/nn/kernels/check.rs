//! Dense products against plain loops in f64, on random shapes, on every instruction set here; and what such tests of
//! kernels need.
//!
//! Every operand lies in a block of its own with a margin of NaN around it: a result that used the margin is NaN, and
//! a margin that is no longer NaN was written.

use proptest::prelude::*;

use super::Isa;
use super::dense::{self, Rows};

/// Floats that kernels may read (not use, not write) behind an operand.
const MARGIN: usize = 64;

pub(in crate::nn) struct Block(Vec<f32>);

impl Block {
    pub fn new(values: &[f32]) -> Self {
        let mut all = vec![f32::NAN; MARGIN];
        all.extend_from_slice(values);
        all.resize(values.len() + 2 * MARGIN, f32::NAN);
        Block(all)
    }

    pub fn at(&mut self) -> *mut f32 {
        self.0[MARGIN..].as_mut_ptr()
    }

    pub fn values(&self) -> &[f32] {
        let (before, rest) = self.0.split_at(MARGIN);
        let (values, after) = rest.split_at(rest.len() - MARGIN);
        assert!(before.iter().chain(after).all(|v| v.is_nan()), "a kernel wrote outside its operand");
        values
    }
}

pub(in crate::nn) fn noise(n: usize, salt: u32) -> Vec<f32> {
    let hash = |i: u32| (i.wrapping_add(salt).wrapping_mul(0x9E37_79B1) ^ 0x85EB_CA6B).wrapping_mul(0xC2B2_AE35) >> 8;
    (0..n as u32).map(|i| hash(i) as f32 / 8_388_608.0 - 1.0).collect()
}

pub(in crate::nn) fn near(what: &str, got: &[f32], want: &[f64]) {
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        assert!((f64::from(*g) - w).abs() <= 2e-5 * (1.0 + w.abs()), "{what}[{i}]: {g}, expected {w}");
    }
}

/// A fully connected layer to try.
fn try_dense([rows, inputs, outputs, extra]: [usize; 4], add: bool, isa: Isa) {
    let (xs, ys) = (inputs + extra, outputs + extra);
    let (x, w) = (noise(rows * xs, 1), noise(outputs * inputs, 2));
    let (bias, gy) = (noise(outputs, 3), noise(rows * ys, 4));
    let mut want_y: Vec<f64> = (0..rows * outputs).map(|i| f64::from(bias[i % outputs])).collect();
    let start = if add { 0.5 } else { 0.0 };
    let (mut want_gx, mut want_gw) = (vec![start; rows * inputs], vec![0.0; outputs * inputs]);
    for (r, o, i) in (0..rows).flat_map(|r| (0..outputs).flat_map(move |o| (0..inputs).map(move |i| (r, o, i)))) {
        let (xv, wv, g) = (x[r * xs + i], w[o * inputs + i], gy[r * ys + o]);
        want_y[r * outputs + o] += f64::from(xv) * f64::from(wv);
        want_gx[r * inputs + i] += f64::from(g) * f64::from(wv);
        want_gw[o * inputs + i] += f64::from(g) * f64::from(xv);
    }
    let (mut xb, mut gyb) = (Block::new(&x), Block::new(&gy));
    let (mut yb, mut gxb) = (Block::new(&vec![f32::NAN; rows * outputs]), Block::new(&vec![0.5; rows * inputs]));
    let mut gw = vec![f32::NAN; outputs * inputs];
    let half = outputs / 2;
    let xr = Rows { at: xb.at(), stride: xs, count: rows };
    let gr = Rows { at: gyb.at(), stride: ys, count: rows };
    // SAFETY: operands of these sizes; one thread.
    unsafe {
        for outs in [0..half, half..outputs] {
            dense::product(isa, xr, &w, inputs, dense::SUMMED, Some(&bias), yb.at(), outputs, outs.clone());
            dense::weight_gradient(isa, gr, xr, inputs, &mut gw[outs.start * inputs..outs.end * inputs], outs);
        }
        dense::input_gradient(isa, gr, &w, inputs, outputs, add, gxb.at(), inputs);
    }
    near("output", yb.values(), &want_y);
    near("input gradient", gxb.values(), &want_gx);
    near("weight gradient", &gw, &want_gw);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fully_connected_layers_equal_plain_loops(
        size in [1..20usize, 1..70usize, 1..20usize, 0..3usize], long in any::<bool>(), add in any::<bool>()
    ) {
        let size = if long { [size[0], 40 * size[1], size[2], size[3]] } else { size };
        Isa::available().into_iter().for_each(|isa| try_dense(size, add, isa));
    }
}
