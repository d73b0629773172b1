//! aarch64: NEON, which its baseline has, so that nothing needs enabling.

use std::arch::aarch64::*;
use std::arch::asm;

use super::{Isa, Simd};

type Four = [float32x4_t; 4];

/// A value for each of the four registers.
#[inline(always)]
fn each(f: impl Fn(usize) -> float32x4_t) -> Four {
    [f(0), f(1), f(2), f(3)]
}

/// Four 128-bit registers.
#[derive(Clone, Copy)]
pub(in crate::nn) struct Neon;

// SAFETY of the bodies below: every aarch64 target with a standard library has NEON, and pointers hold sixteen values.
impl Simd for Neon {
    type V = Four;
    const ISA: Isa = Isa::Neon;
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(0.0); 4] }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::V {
        // SAFETY: see above.
        each(|i| unsafe { vld1q_f32(at.add(4 * i)) })
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Self::V) {
        // SAFETY: see above.
        (0..4).for_each(|i| unsafe { vst1q_f32(at.add(4 * i), v[i]) });
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(value); 4] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        each(|i| unsafe { vfmaq_f32(c[i], a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        each(|i| unsafe { vaddq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        each(|i| unsafe { vsubq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        each(|i| unsafe { vmulq_f32(a[i], b[i]) })
    }
    #[inline(always)]
    unsafe fn gate(g: Self::V, y: Self::V) -> Self::V {
        // SAFETY: see above. A comparison gives all bits or none.
        each(|i| unsafe { vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(g[i]), vcgtzq_f32(y[i]))) })
    }
    #[inline(always)]
    unsafe fn relu(v: Self::V) -> Self::V {
        // SAFETY: see above. Negative lanes lose their bits; FMAX would turn −0 into 0, which other sets do not.
        each(|i| unsafe { vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(v[i]), vcltzq_f32(v[i]))) })
    }
    #[inline(always)]
    unsafe fn greater(v: Self::V, mark: Self::V, best: Self::V, marks: Self::V) -> (Self::V, Self::V) {
        // SAFETY: see above. What does not equal itself is NaN.
        let wins = |i: usize| unsafe { vornq_u32(vcgtq_f32(v[i], best[i]), vceqq_f32(v[i], v[i])) };
        // SAFETY: see above.
        let pick = |a: Four, b: Four| each(|i| unsafe { vbslq_f32(wins(i), a[i], b[i]) });
        (pick(v, best), pick(mark, marks))
    }
    #[inline(always)]
    unsafe fn fold(v: Self::V) -> f32 {
        // SAFETY: see above.
        unsafe {
            let four = vaddq_f32(vaddq_f32(v[0], v[2]), vaddq_f32(v[1], v[3]));
            vpadds_f32(vadd_f32(vget_low_f32(four), vget_high_f32(four)))
        }
    }
    #[inline(always)]
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        for (i, j) in (0..16).step_by(4).flat_map(|i| (0..16).step_by(4).map(move |j| (i, j))) {
            // SAFETY: see above. In a square of four by four, pairs of rows, then of pairs change places.
            unsafe {
                let [a, b, c, d] = each(|k| vld1q_f32(from.add((i + k) * stride + j)));
                let pairs = |x, y| (vreinterpretq_f64_f32(x), vreinterpretq_f64_f32(y));
                let low = |(x, y)| vreinterpretq_f32_f64(vtrn1q_f64(x, y));
                let high = |(x, y)| vreinterpretq_f32_f64(vtrn2q_f64(x, y));
                let (even, odd) =
                    (pairs(vtrn1q_f32(a, b), vtrn1q_f32(c, d)), pairs(vtrn2q_f32(a, b), vtrn2q_f32(c, d)));
                for (k, row) in [low(even), low(odd), high(even), high(odd)].into_iter().enumerate() {
                    vst1q_f32(to.add((j + k) * to_stride + i), row);
                }
            }
        }
    }
    #[inline(always)]
    fn prefetch(at: *const f32) {
        // SAFETY: a prefetch touches nothing and never faults.
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) at, options(readonly, nostack, preserves_flags)) }
    }
}
