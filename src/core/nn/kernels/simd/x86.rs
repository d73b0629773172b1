//! x86-64: AVX2 with FMA, and AVX-512F.

use std::arch::x86_64::*;

use super::{Isa, Simd};

/// Eight, four, two, one: the order of [`Simd::fold`].
#[inline(always)]
unsafe fn fold_eight(v: __m256) -> f32 {
    // SAFETY: AVX is enabled by the caller.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Two 256-bit registers.
#[derive(Clone, Copy)]
pub(in crate::nn) struct Avx2;

// SAFETY of the bodies below: the instruction set is enabled by the caller, and pointers hold sixteen values.
impl Simd for Avx2 {
    type V = [__m256; 2];
    const ISA: Isa = Isa::Avx2;
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Self::V) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(at, v[0]);
            _mm256_storeu_ps(at.add(8), v[1]);
        }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(value); 2] }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
    }
    #[inline(always)]
    unsafe fn gate(g: Self::V, y: Self::V) -> Self::V {
        // SAFETY: see above. A comparison gives all bits or none.
        unsafe {
            let zero = _mm256_setzero_ps();
            let pass = |i: usize| _mm256_and_ps(g[i], _mm256_cmp_ps::<_CMP_GT_OQ>(y[i], zero));
            [pass(0), pass(1)]
        }
    }
    #[inline(always)]
    unsafe fn relu(v: Self::V) -> Self::V {
        // SAFETY: see above. MAXPS returns its second operand when one is NaN.
        unsafe {
            let zero = _mm256_setzero_ps();
            [_mm256_max_ps(zero, v[0]), _mm256_max_ps(zero, v[1])]
        }
    }
    #[inline(always)]
    unsafe fn greater(v: Self::V, mark: Self::V, best: Self::V, marks: Self::V) -> (Self::V, Self::V) {
        // SAFETY: see above.
        unsafe {
            let wins = |i: usize| {
                let (more, nan) =
                    (_mm256_cmp_ps::<_CMP_GT_OQ>(v[i], best[i]), _mm256_cmp_ps::<_CMP_UNORD_Q>(v[i], v[i]));
                _mm256_or_ps(more, nan)
            };
            let wins = [wins(0), wins(1)];
            let pick =
                |a: Self::V, b: Self::V| [_mm256_blendv_ps(a[0], b[0], wins[0]), _mm256_blendv_ps(a[1], b[1], wins[1])];
            (pick(best, v), pick(marks, mark))
        }
    }
    #[inline(always)]
    unsafe fn fold(v: Self::V) -> f32 {
        // SAFETY: see above.
        unsafe { fold_eight(_mm256_add_ps(v[0], v[1])) }
    }
    #[inline(always)]
    fn prefetch(at: *const f32) {
        // SAFETY: a prefetch touches nothing and never faults; every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}

/// One 512-bit register.
#[derive(Clone, Copy)]
pub(in crate::nn) struct Avx512;

impl Simd for Avx512 {
    type V = __m512;
    const ISA: Isa = Isa::Avx512;
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(at) }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, v: Self::V) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(at, v) }
    }
    #[inline(always)]
    unsafe fn splat(value: f32) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(value) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn gate(g: Self::V, y: Self::V) -> Self::V {
        // SAFETY: see above.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(y, _mm512_setzero_ps()), g) }
    }
    #[inline(always)]
    unsafe fn relu(v: Self::V) -> Self::V {
        // SAFETY: see above. MAXPS returns its second operand when one is NaN.
        unsafe { _mm512_max_ps(_mm512_setzero_ps(), v) }
    }
    #[inline(always)]
    unsafe fn greater(v: Self::V, mark: Self::V, best: Self::V, marks: Self::V) -> (Self::V, Self::V) {
        // SAFETY: see above.
        unsafe {
            let wins = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, best) | _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            (_mm512_mask_mov_ps(best, wins, v), _mm512_mask_mov_ps(marks, wins, mark))
        }
    }
    #[inline(always)]
    unsafe fn fold(v: Self::V) -> f32 {
        // SAFETY: see above.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
            fold_eight(_mm256_add_ps(_mm512_castps512_ps256(v), high))
        }
    }
    #[inline(always)]
    unsafe fn turn(from: *const f32, stride: usize, to: *mut f32, to_stride: usize) {
        // SAFETY: see above. Pairs of rows, then of pairs, then 128-bit quarters change places.
        unsafe {
            let mut a = [_mm512_setzero_ps(); 16];
            let mut b = a;
            for (i, row) in a.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(i * stride));
            }
            for i in 0..8 {
                b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
                b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
            }
            let low = |x, y| _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
            let high = |x, y| _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(x), _mm512_castps_pd(y)));
            for i in (0..16).step_by(4) {
                a[i] = low(b[i], b[i + 2]);
                a[i + 1] = high(b[i], b[i + 2]);
                a[i + 2] = low(b[i + 1], b[i + 3]);
                a[i + 3] = high(b[i + 1], b[i + 3]);
            }
            for i in 0..4 {
                b[i] = _mm512_shuffle_f32x4::<0x88>(a[i], a[4 + i]);
                b[4 + i] = _mm512_shuffle_f32x4::<0xdd>(a[i], a[4 + i]);
                b[8 + i] = _mm512_shuffle_f32x4::<0x88>(a[8 + i], a[12 + i]);
                b[12 + i] = _mm512_shuffle_f32x4::<0xdd>(a[8 + i], a[12 + i]);
            }
            for i in 0..8 {
                _mm512_storeu_ps(to.add(i * to_stride), _mm512_shuffle_f32x4::<0x88>(b[i], b[8 + i]));
                _mm512_storeu_ps(to.add((8 + i) * to_stride), _mm512_shuffle_f32x4::<0xdd>(b[i], b[8 + i]));
            }
        }
    }
    #[inline(always)]
    fn prefetch(at: *const f32) {
        // SAFETY: a prefetch touches nothing and never faults; every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
}
