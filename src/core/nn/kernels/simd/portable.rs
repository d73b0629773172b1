//! What any machine runs.

use super::{Isa, Simd};

/// Plain arrays.
#[derive(Clone, Copy)]
pub(in crate::nn) struct Portable;

impl Simd for Portable {
    type V = [f32; 16];
    const ISA: Isa = Isa::Portable;
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 16]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::V {
        // SAFETY: the caller guarantees sixteen readable values; `[f32; 16]` has the alignment of f32.
        unsafe { *at.cast() }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Self::V) {
        // SAFETY: the caller guarantees sixteen writable values.
        unsafe { *at.cast() = v }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        [value; 16]
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, mut c: Self::V) -> Self::V {
        for i in 0..16 {
            c[i] += a[i] * b[i];
        }
        c
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, mut b: Self::V) -> Self::V {
        for i in 0..16 {
            b[i] += a[i];
        }
        b
    }
    #[inline(always)]
    unsafe fn sub(mut a: Self::V, b: Self::V) -> Self::V {
        for i in 0..16 {
            a[i] -= b[i];
        }
        a
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, mut b: Self::V) -> Self::V {
        for i in 0..16 {
            b[i] *= a[i];
        }
        b
    }
    #[inline(always)]
    unsafe fn gate(mut g: Self::V, y: Self::V) -> Self::V {
        for i in 0..16 {
            g[i] = if y[i] > 0.0 { g[i] } else { 0.0 };
        }
        g
    }
    #[inline(always)]
    unsafe fn relu(mut v: Self::V) -> Self::V {
        for x in &mut v {
            *x = if 0.0 > *x { 0.0 } else { *x };
        }
        v
    }
    #[inline(always)]
    unsafe fn greater(v: Self::V, mark: Self::V, mut best: Self::V, mut marks: Self::V) -> (Self::V, Self::V) {
        for i in 0..16 {
            let wins = v[i] > best[i] || v[i].is_nan();
            (best[i], marks[i]) = if wins { (v[i], mark[i]) } else { (best[i], marks[i]) };
        }
        (best, marks)
    }
    #[inline(always)]
    fn prefetch(_: *const f32) {}
}
