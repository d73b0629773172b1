//! Products of a few rows with a frozen matrix on a CPU: what writing text a token at a time consists of.
//!
//! `y = x Wᵀ` with at most [`ROWS`] rows reads every weight once and is bound by memory; a general matrix product packs
//! the weights first. Each output is one sum in one fixed order, so that the bytes do not depend
//! on the number of threads.

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Storage, Tensor};
use rayon::prelude::*;

use crate::error::Result;

/// Most rows for which this is the better way (at 8 the general product was 9 % faster, at 1 this one by 8 %).
pub const ROWS: usize = 4;

/// Outputs that a thread takes at a time.
const BLOCK: usize = 32;

const LANES: usize = 16;

/// `x Wᵀ` for x `(rows, in)` and W `(out, in)`, or nothing where this way does not serve: another device or type, too
/// many rows, a view. No graph is recorded.
pub fn product(x: &Tensor, weight: &Tensor) -> Result<Option<Tensor>> {
    let (rows, inputs) = x.dims2()?;
    let serves = rows <= ROWS
        && x.dtype() == DType::F32
        && weight.dtype() == DType::F32
        && x.device().is_cpu()
        && weight.device().is_cpu()
        && weight.is_contiguous()
        && weight.dim(1)? == inputs;
    if !serves {
        return Ok(None);
    }
    Ok(Some(x.contiguous()?.apply_op1_no_bwd(&Thin { weight: weight.clone() })?))
}

struct Thin {
    weight: Tensor,
}

impl CustomOp1 for Thin {
    fn name(&self) -> &'static str {
        "thin-product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (rows, inputs) = layout.shape().dims2()?;
        let outputs = self.weight.dim(0)?;
        let (storage, weights) = self.weight.storage_and_layout();
        let (CpuStorage::F32(x), Storage::Cpu(CpuStorage::F32(w))) = (x, &*storage) else {
            candle_core::bail!("thin product: f32 on a CPU expected")
        };
        let (Some((x0, x1)), Some((w0, w1))) = (layout.contiguous_offsets(), weights.contiguous_offsets()) else {
            candle_core::bail!("thin product: contiguous tensors expected")
        };
        let (x, w) = (&x[x0..x1], &w[w0..w1]);
        // Written output by output, then put in rows.
        let mut columns = vec![0.0f32; outputs * rows];
        let fused = fused_multiply_add();
        columns.par_chunks_mut((BLOCK * rows).max(1)).enumerate().for_each(|(block, out)| {
            let first = block * BLOCK;
            let matrix = &w[first * inputs..(first + out.len() / rows) * inputs];
            block_of(fused, matrix, x, inputs, rows, out);
        });
        let mut y = vec![0.0f32; outputs * rows];
        for (o, column) in columns.chunks_exact(rows.max(1)).enumerate() {
            for (r, value) in column.iter().enumerate() {
                y[r * outputs + o] = *value;
            }
        }
        Ok((CpuStorage::F32(y), Shape::from((rows, outputs))))
    }
}

fn fused_multiply_add() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        cfg!(target_arch = "aarch64")
    }
}

/// One block of outputs with the widest instructions there are.
fn block_of(fused: bool, matrix: &[f32], x: &[f32], inputs: usize, rows: usize, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if fused {
        // SAFETY: `fused` says that this machine has AVX2 and FMA.
        return unsafe { block_avx2(matrix, x, inputs, rows, out) };
    }
    if fused {
        return block::<true>(matrix, x, inputs, rows, out);
    }
    block::<false>(matrix, x, inputs, rows, out)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn block_avx2(matrix: &[f32], x: &[f32], inputs: usize, rows: usize, out: &mut [f32]) {
    block::<true>(matrix, x, inputs, rows, out)
}

/// All rows share each load of the weights.
#[inline(always)]
fn block<const FUSED: bool>(matrix: &[f32], x: &[f32], inputs: usize, rows: usize, out: &mut [f32]) {
    for (weights, out) in matrix.chunks_exact(inputs.max(1)).zip(out.chunks_exact_mut(rows.max(1))) {
        match out.len() {
            4 => dots::<FUSED, 4>(weights, x, out),
            3 => dots::<FUSED, 3>(weights, x, out),
            2 => dots::<FUSED, 2>(weights, x, out),
            _ => dots::<FUSED, 1>(weights, x, out),
        }
    }
}

/// Scalar products of `weights` with `M` rows: sixteen lanes, their sum from the first on, then the rest.
#[inline(always)]
fn dots<const FUSED: bool, const M: usize>(weights: &[f32], x: &[f32], out: &mut [f32]) {
    let n = weights.len();
    let mut sums = [[0.0f32; LANES]; M];
    let whole = n / LANES * LANES;
    for at in (0..whole).step_by(LANES) {
        let w = &weights[at..at + LANES];
        for (m, sums) in sums.iter_mut().enumerate() {
            let x = &x[m * n + at..m * n + at + LANES];
            for lane in 0..LANES {
                sums[lane] = multiply_add::<FUSED>(w[lane], x[lane], sums[lane]);
            }
        }
    }
    for (m, (out, sums)) in out.iter_mut().zip(&sums).enumerate() {
        let rest = weights[whole..].iter().zip(&x[m * n + whole..(m + 1) * n]);
        *out = rest.fold(sums.iter().sum(), |s, (w, x)| multiply_add::<FUSED>(*w, *x, s));
    }
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn wave(shape: (usize, usize), step: f32) -> Tensor {
        let data: Vec<f32> = (0..shape.0 * shape.1).map(|i| (i as f32 * step + 0.3).sin()).collect();
        Tensor::from_vec(data, shape, &Device::Cpu).unwrap()
    }

    fn flat(t: &Tensor) -> Vec<f32> {
        t.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn it_is_the_product_for_any_few_rows_and_any_width() {
        for (rows, inputs, outputs) in [(1, 5, 1), (1, 64, 70), (2, 33, 31), (3, 16, 32), (4, 100, 65), (4, 47, 3)] {
            let (x, w) = (wave((rows, inputs), 0.7), wave((outputs, inputs), 0.9));
            let want = flat(&x.matmul(&w.t().unwrap()).unwrap());
            let got = product(&x, &w).unwrap().unwrap();
            assert_eq!(got.dims(), [rows, outputs]);
            assert!(flat(&got).iter().zip(&want).all(|(a, b)| (a - b).abs() < 1e-5 * (1.0 + b.abs())));
        }
    }

    #[test]
    fn a_row_gives_the_same_bytes_alone_in_a_batch_and_on_any_number_of_threads() {
        let (x, w) = (wave((4, 75), 0.7), wave((200, 75), 0.9));
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            flat(&pool.install(|| product(&x, &w)).unwrap().unwrap())
        };
        let all = run(1);
        assert_eq!(all, run(3));
        for row in 0..4 {
            let one = product(&x.narrow(0, row, 1).unwrap(), &w).unwrap().unwrap();
            assert_eq!(flat(&one), all[row * 200..(row + 1) * 200]);
        }
    }

    #[test]
    fn it_stands_aside_where_it_does_not_serve() {
        let w = wave((4, 6), 0.9);
        assert!(product(&wave((5, 6), 0.1), &w).unwrap().is_none());
        assert!(product(&wave((1, 4), 0.1), &w.t().unwrap()).unwrap().is_none());
        assert!(product(&wave((1, 6), 0.1), &w.to_dtype(DType::F16).unwrap()).unwrap().is_none());
    }
}
